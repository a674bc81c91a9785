"""Semantic FPN (Kirillov et al. 2019) on a backbone: a feature pyramid, and the head that adds its levels up.

Our own head over torchvision's pyramid: the FPN of segmentation_models_pytorch has GroupNorms where the papers' has
synchronised BatchNorms, aligns corners, and takes sizes that are multiples of 32 only.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork

from pocketformer.architecture.design import Grid
from pocketformer.dense.backbone import Backbone

PYRAMID, WIDTH, DROPOUT = 256, 128, 0.1  # channels of the pyramid and of the head; of its maps (both papers)


def upsampled(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Bilinear, corners not aligned."""
    return x if x.shape[2:] == tuple(size) else F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


class Branch(nn.Sequential):
    """One level of the pyramid: 3x3 convolutions, each but the finest level's followed by upsampling to the map that
    is twice as fine."""

    def __init__(self, levels: int):
        widths = [PYRAMID, *[WIDTH] * max(levels, 1)]
        super().__init__(*(Conv2dNormActivation(a, b, 3) for a, b in pairwise(widths)))
        for layer in self:
            nn.init.kaiming_normal_(layer[0].weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor, sizes: Sequence[Sequence[int]]) -> torch.Tensor:
        """`sizes`: of the maps behind each upsampling; fewer than there are convolutions at the finest level."""
        for i, layer in enumerate(self):
            x = layer(x)
            if i < len(sizes):
                x = upsampled(x, sizes[i])
        return x


class SemanticFPN(nn.Module):
    """Maps (B, C_j, h_j, w_j), finest first, to logits (B, classes, h_0, w_0). `reductions`: strides of the maps."""

    def __init__(self, widths: Sequence[int], reductions: Sequence[int], num_classes: int):
        super().__init__()
        self.reductions = tuple(reductions)
        self.neck = FeaturePyramidNetwork(list(widths), PYRAMID)
        self.branches = nn.ModuleList(Branch(round(math.log2(r / reductions[0]))) for r in reductions)
        self.dropout = nn.Dropout2d(DROPOUT)
        self.classifier = nn.Conv2d(WIDTH, num_classes, 1)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        pyramid = list(self.neck({str(i): x for i, x in enumerate(maps)}).values())
        sizes = {r: x.shape[2:] for r, x in zip(self.reductions, maps, strict=True)}
        finest = self.reductions[0]
        total = None
        for reduction, branch, x in zip(self.reductions, self.branches, pyramid, strict=True):
            steps = [reduction >> k for k in range(1, round(math.log2(reduction / finest)) + 1)]
            # A stride between two maps, where a stage's is 4: as fine as the image's sides allow.
            there = [sizes.get(r) or [math.ceil(side * finest / r) for side in sizes[finest]] for r in steps]
            y = branch(x, there)
            total = y if total is None else total + y
        return self.classifier(self.dropout(total))


class Segmenter(nn.Module):
    """Images (B, 3, H, W) of any size to logits (B, classes, H, W).

    `backbone`: images to maps, with their `widths` and `reductions`; ours, or any other of that form.
    """

    in_chans = 3

    def __init__(self, backbone: Backbone | nn.Module, num_classes: int):
        super().__init__()
        self.backbone = backbone
        self.head = SemanticFPN(backbone.widths, backbone.reductions, num_classes)
        self.num_classes = num_classes

    @property
    def resolution(self) -> Grid:
        """Of the images that the tables of attention biases are for; others are as welcome."""
        return self.backbone.network.resolution

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return upsampled(self.head(self.backbone(images)), images.shape[2:])

    def parameter_groups(self, weight_decay: float) -> list[dict]:
        """For an optimiser: one group, with weight decay on norms and vectors too, as published."""
        return [{"params": [p for p in self.parameters() if p.requires_grad], "weight_decay": weight_decay}]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.backbone.network.set_grad_checkpointing(enable)
