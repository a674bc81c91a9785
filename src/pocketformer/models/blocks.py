"""The static blocks of EfficientFormerV2, each built from its value in `architecture.blocks`."""

import torch
from timm.layers import DropPath, trunc_normal_
from torch import nn

from pocketformer.architecture import blocks as values
from pocketformer.models import compute

_ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU, "hardswish": nn.Hardswish}


def activation(name: str) -> nn.Module:
    return _ACTIVATIONS[name]()


class ConvNorm(nn.Module):
    """Convolution with bias, then BatchNorm (pitfall 1)."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.conv(x))


class LayerScale(nn.Module):
    """S of eq. 4 and 5: one factor a channel."""

    def __init__(self, width: int, init: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), float(init)))

    def at(self, width: int) -> torch.Tensor:
        """The first `width` factors, (width, 1, 1)."""
        return self.gamma[:width, None, None]


def init_ffn(*convs: nn.Conv2d) -> None:
    """The official initialisation of an FFN's 1x1 convolutions; other layers keep torch's default."""
    for conv in convs:
        trunc_normal_(conv.weight, std=0.02)
        nn.init.zeros_(conv.bias)


class Stem(nn.Module):
    def __init__(self, value: values.Stem):
        super().__init__()
        first, second = value.strides
        self.conv1 = ConvNorm(value.in_chans, value.mid_width, 3, first)
        self.conv2 = ConvNorm(value.mid_width, value.width, 3, second)
        self.act = activation(value.activation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return compute.stem(x, self.conv1, self.conv2, self.act)


class FFN(nn.Module):
    def __init__(self, value: values.FFNBlock, layer_scale: float = 1e-5, drop_path: float = 0.0):
        super().__init__()
        self.fc1 = ConvNorm(value.width, value.hidden)
        self.mid = ConvNorm(value.hidden, value.hidden, 3, groups=value.hidden)
        self.fc2 = ConvNorm(value.hidden, value.width)
        self.scale = LayerScale(value.width, layer_scale)
        self.act = activation(value.activation)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        init_ffn(self.fc1.conv, self.fc2.conv)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.scale.at(x.shape[1])
        return compute.ffn(x, self.fc1, self.mid, self.fc2, scale, self.act, self.drop_path)


class AttentionBias(nn.Module):
    """ab of eq. 6: a learnable table with one entry a head and offset; gathered anew in each forward, so that
    no gathered bias outlives the weights."""

    def __init__(self, heads: int, grid: tuple[int, int], stride: int = 1):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(heads, grid[0] * grid[1]))
        self.register_buffer("index", compute.offset_index(grid, stride), persistent=False)

    def forward(self) -> torch.Tensor:
        return self.table[:, self.index]  # (heads, M, N)


class Attention(nn.Module):
    def __init__(self, value: values.AttentionBlock, layer_scale: float = 1e-5, drop_path: float = 0.0):
        super().__init__()
        width, keys, vals = value.width, value.keys, value.values
        strided = value.stride > 1
        self.stride_conv = ConvNorm(width, width, 3, value.stride, groups=width) if strided else None
        self.q = ConvNorm(width, keys)
        self.k = ConvNorm(width, keys)
        self.v = ConvNorm(width, vals)
        self.v_local = ConvNorm(vals, vals, 3, groups=vals)
        self.talking_head1 = nn.Conv2d(value.heads, value.heads, 1)
        self.talking_head2 = nn.Conv2d(value.heads, value.heads, 1)
        self.bias = AttentionBias(value.heads, value.attention_grid)
        self.proj = ConvNorm(vals, width)
        self.scale = LayerScale(width, layer_scale)
        self.act = activation(value.activation)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return compute.attention(
            x,
            self.stride_conv,
            self.q,
            self.k,
            self.v,
            self.v_local,
            self.talking_head1,
            self.talking_head2,
            self.bias(),
            self.proj,
            self.scale.at(x.shape[1]),
            self.act,
            self.drop_path,
        )


class ConvDownsampling(nn.Module):
    def __init__(self, value: values.ConvDownsampling):
        super().__init__()
        self.conv = ConvNorm(value.in_width, value.width, 3, value.stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class DualPathDownsampling(nn.Module):
    def __init__(self, value: values.DualPathDownsampling):
        super().__init__()
        inputs, keys, vals = value.in_width, value.keys, value.values
        self.stride = value.stride
        self.conv = ConvNorm(inputs, value.width, 3, value.stride)
        self.q_local = nn.Conv2d(inputs, inputs, 3, value.stride, 1, groups=inputs)
        self.q = ConvNorm(inputs, keys)
        self.k = ConvNorm(inputs, keys)
        self.v = ConvNorm(inputs, vals)
        self.v_local = ConvNorm(vals, vals, 3, value.stride, groups=vals)
        self.bias = AttentionBias(value.heads, value.grid, value.stride)
        self.proj = ConvNorm(vals, value.width)
        self.act = activation(value.activation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return compute.dual_path_downsampling(
            x,
            self.conv,
            self.q_local,
            self.q,
            self.k,
            self.v,
            self.v_local,
            self.bias(),
            self.proj,
            self.act,
            self.stride,
        )


def build_block(value: values.BlockValue, layer_scale: float = 1e-5, drop_path: float = 0.0) -> nn.Module:
    """The module of any block value but the head, which is the network's own."""
    match value:
        case values.Stem():
            return Stem(value)
        case values.FFNBlock():
            return FFN(value, layer_scale, drop_path)
        case values.AttentionBlock():
            return Attention(value, layer_scale, drop_path)
        case values.ConvDownsampling():
            return ConvDownsampling(value)
        case values.DualPathDownsampling():
            return DualPathDownsampling(value)
    raise TypeError(f"no static block for {value!r}")
