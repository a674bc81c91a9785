"""The deployed form of a backbone: its maps without norms, and without biases that are to be re-sampled."""

import copy

import torch
from torch import nn

from pocketformer.dense.backbone import Backbone
from pocketformer.deploy.fuse import fuse_block


class FusedBackbone(nn.Module):
    """Images (B, 3, *resolution), of exactly the network's resolution, to the backbone's maps."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        network = copy.deepcopy(backbone.network).eval()
        blocks = network.architecture.blocks(network.resolution)
        parts = iter([fuse_block(part, b.grid) for part, b in zip(network.sequence(), blocks, strict=False)])
        lengths = [len(stage.blocks) + (not isinstance(stage.downsample, nn.Identity)) for stage in network.stages]
        lengths[0] += 1  # the stem
        self.stages = nn.ModuleList(nn.Sequential(*(next(parts) for _ in range(n))) for n in lengths)
        self.norms = copy.deepcopy(backbone.norms)
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        maps = []
        for stage, norm in zip(self.stages, self.norms, strict=True):
            x = stage(x)
            maps.append(norm(x))
        return maps
