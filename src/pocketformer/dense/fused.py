"""The deployed form of a backbone: its maps without norms, and without biases that are to be re-sampled."""

import copy

import torch
from torch import nn

from pocketformer.dense.backbone import Backbone
from pocketformer.deploy.fuse import fuse_block


class ExactGroupNorm(nn.Module):
    """GroupNorm of a single group, the mean taken off first. Of one exported as such ONNX Runtime cancels digits where
    the mean is large against the spread: L1's maps at 320 x 512 px were off by 1e-3 of their standard deviation."""

    def __init__(self, norm: nn.GroupNorm):
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x - self._mean(x)
        x = x * torch.rsqrt(self._mean(x * x) + self.eps)
        return x * self.weight[:, None, None] + self.bias[:, None, None]

    @staticmethod
    def _mean(x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3), keepdim=True).mean(1, keepdim=True)


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
        norms = copy.deepcopy(backbone.norms)
        self.norms = nn.ModuleList(ExactGroupNorm(n) if isinstance(n, nn.GroupNorm) else n for n in norms)
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        maps = []
        for stage, norm in zip(self.stages, self.norms, strict=True):
            x = stage(x)
            maps.append(norm(x))
        return maps
