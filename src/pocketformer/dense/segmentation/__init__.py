"""Semantic segmentation: Semantic FPN on the backbones, as both papers evaluate them on ADE20K."""
