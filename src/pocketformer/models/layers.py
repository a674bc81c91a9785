"""Layers that the blocks of both families are made of."""

import torch
from timm.layers import DropPath, trunc_normal_
from torch import nn

_ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU, "hardswish": nn.Hardswish}


def activation(name: str) -> nn.Module:
    return _ACTIVATIONS[name]()


def norm(name: str, width: int) -> nn.Module:
    """Of a map (B, width, H, W): BatchNorm, or GroupNorm with one group (V1 Table 3)."""
    return nn.BatchNorm2d(width) if name == "bn" else nn.GroupNorm(1, width)


def drop_path(rate: float) -> nn.Module:
    return DropPath(rate) if rate else nn.Identity()


class ConvNorm(nn.Module):
    """Convolution with bias, then norm (pitfall 1)."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, norm_name: str = "bn"
    ):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups)
        self.norm = norm(norm_name, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x))


class LayerScale(nn.Module):
    """S of V2 eq. 4 and 5: one factor a channel."""

    def __init__(self, width: int, init: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), float(init)))

    def at(self, width: int) -> torch.Tensor:
        """The first `width` factors, (width, 1, 1)."""
        return self.gamma[:width, None, None]


def init_mlp(*layers: nn.Conv2d | nn.Linear) -> None:
    """The official initialisation of linears and of an FFN's 1x1 convolutions; others keep torch's default."""
    for layer in layers:
        trunc_normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
