"""The deployed form of a segmenter: nothing left of norms, dropout, and biases that are to be re-sampled."""

import copy

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pocketformer.dense.fused import FusedBackbone
from pocketformer.dense.segmentation.segmenter import Segmenter, SemanticFPN, upsampled
from pocketformer.deploy.fuse import fuse


class FusedSegmenter(nn.Module):
    """Images (B, 3, *resolution), of exactly the segmenter's resolution, to logits (B, classes, *resolution)."""

    def __init__(self, segmenter: Segmenter):
        super().__init__()
        self.backbone, self.head = FusedBackbone(segmenter.backbone), fused_head(segmenter.head)
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return upsampled(self.head(self.backbone(x)), x.shape[2:])


def fused_head(head: SemanticFPN) -> SemanticFPN:
    """A copy with its norms folded, in float64, and without dropout."""
    head = copy.deepcopy(head).eval()
    for branch in head.branches:
        for layer in branch:
            conv, norm = layer[0].double(), layer[1].double()
            layer[0], layer[1] = fuse_conv_bn_eval(conv, norm).to(head.classifier.weight), nn.Identity()
    head.dropout = nn.Identity()
    return head


@fuse.register
def _(model: Segmenter) -> FusedSegmenter:
    return FusedSegmenter(model).eval()
