"""The modules around the stages, of both families: stems and the convolutional downsampling."""

import torch
from torch import nn

from pocketformer.architecture import blocks as values
from pocketformer.models import compute
from pocketformer.models.layers import ConvNorm, activation


class Stem(nn.Module):
    def __init__(self, value: values.Stem):
        super().__init__()
        first, second = value.strides
        self.conv1 = ConvNorm(value.in_chans, value.mid_width, 3, first, norm_name=value.norm)
        self.conv2 = ConvNorm(value.mid_width, value.width, 3, second, norm_name=value.norm)
        self.act = activation(value.activation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return compute.stem(x, self.conv1, self.conv2, self.act)


class PatchStem(nn.Module):
    """Large-kernel patch embedding (V1 Table 3)."""

    def __init__(self, value: values.PatchStem):
        super().__init__()
        self.conv = ConvNorm(value.in_chans, value.width, value.kernel, value.stride, norm_name=value.norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class ConvDownsampling(nn.Module):
    def __init__(self, value: values.ConvDownsampling):
        super().__init__()
        self.conv = ConvNorm(value.in_width, value.width, 3, value.stride, norm_name=value.norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)
