"""Boxes and masks of single objects: Mask R-CNN and Faster R-CNN on our backbones, in COCO's format."""
