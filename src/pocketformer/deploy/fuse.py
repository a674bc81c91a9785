"""The deployed graph: the same function with everything folded that is constant once training is over.

Norms, layer scales, the query scale and the subsampling path of the dual-path query go into convolutions (in
float64), the attention bias is gathered and mixed by the first talking head, the final norm goes into the
classifier, two classifiers into one. Shapes are those of `models.compute`: maps are (B, C, H, W).
"""

from collections.abc import Iterable
from functools import singledispatch

import torch
import torch.nn.functional as F
from torch import nn

from pocketformer.architecture.blocks import Grid, positions, strided
from pocketformer.errors import UserError
from pocketformer.models import blocks
from pocketformer.models.compute import split_heads

# Upsampling as one matrix product is 4-6 % of a network faster on ONNX Runtime up to about this many entries
# (224 px: 49 x 196); its cost grows with their number, that of an interpolation only with the larger grid.
_MATRIX_ENTRIES = 2**14


def fuse(model: nn.Module) -> "FusedNetwork":
    """The deployed graph of a network as a new module; `model` is left as it was.

    Its output equals that of `model` in evaluation mode up to rounding (1e-5), whatever mode `model` is in:
    (B, in_chans, H, W) images to (B, num_classes) logits. It holds no norms and nothing that needs gradients.
    Raises `UserError` for what is not one of this package's networks.
    """
    try:
        parts = [model.stem]
        for stage in model.stages:
            if not isinstance(stage.downsample, nn.Identity):
                parts.append(stage.downsample)
            parts.extend(stage.blocks)
        heads = [head for head in (model.head, model.head_dist) if head is not None]
        norm, grids = model.norm, [b.grid for b in model.architecture.blocks(model.resolution)]
    except AttributeError:
        kind = type(model).__name__
        raise UserError(f"cannot fuse a {kind}: it is not one of this package's networks") from None
    fused = [fuse_block(part, grid) for part, grid in zip(parts, grids[:-1], strict=True)]
    return FusedNetwork(*fused, FusedHead(norm, heads)).eval()


@singledispatch
def fuse_block(block: nn.Module, grid: Grid) -> nn.Module:
    """The deployed form of one static block whose input has `grid` (height, width), exactly as `fuse` puts it
    into a network. Shares nothing with `block`. Further kinds of block register their own form."""
    raise UserError(f"cannot fuse a block of type {type(block).__name__}")


class FusedNetwork(nn.Sequential):
    """The fused blocks in order of execution, from stem to head."""


@torch.no_grad()
def folded(
    conv: nn.Conv2d, norm: nn.BatchNorm2d | None = None, scale: torch.Tensor | float = 1, centre: float = 0
) -> nn.Conv2d:
    """A new convolution that computes scale * norm(conv(x)).

    `scale` is a number or one number per output channel; `centre` is added to the centre tap of the kernel
    first: for a depthwise kernel with `centre` 1 that adds the (subsampled) input itself.
    """
    weight, bias = conv.weight.double().clone(), conv.bias.double()
    weight[:, :, weight.shape[2] // 2, weight.shape[3] // 2] += centre
    if norm is not None:
        factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        weight = weight * factor[:, None, None, None]
        bias = (bias - norm.running_mean.double()) * factor + norm.bias.double()
    scale = torch.as_tensor(scale, dtype=torch.float64, device=weight.device).reshape(-1)
    result = nn.Conv2d(
        conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, groups=conv.groups
    ).to(conv.weight)
    result.weight.copy_(weight * scale[:, None, None, None])
    result.bias.copy_(bias * scale)
    return result.requires_grad_(False)


def _fold(layer: blocks.ConvNorm, scale: torch.Tensor | float = 1.0) -> nn.Conv2d:
    return folded(layer.conv, layer.bn, scale)


def _activation(module: nn.Module) -> nn.Module:
    return type(module)()  # a new one: a fused network shares no module with its source


class FusedStem(nn.Module):
    def __init__(self, block: blocks.Stem, grid: Grid):
        super().__init__()
        self.conv1, self.conv2 = _fold(block.conv1), _fold(block.conv2)
        self.act = _activation(block.act)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.conv2(self.act(self.conv1(x))))


class FusedFFN(nn.Module):
    def __init__(self, block: blocks.FFN, grid: Grid):
        super().__init__()
        self.fc1, self.mid = _fold(block.fc1), _fold(block.mid)
        self.fc2 = _fold(block.fc2, block.scale.gamma)
        self.act = _activation(block.act)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.fc2(self.act(self.mid(self.act(self.fc1(x)))))


class HeadMix(nn.Module):
    """A talking head: (B, heads, M, N) mixed over heads, plus `offset`, (heads, M or 1, N or 1).

    A matrix product, not a 1x1 convolution: on ONNX Runtime they are within 2 % of each other, and ExecuTorch
    normalises a softmax behind that convolution over the wrong axis.
    """

    def __init__(self, weight: torch.Tensor, offset: torch.Tensor):
        super().__init__()
        self.register_buffer("weight", weight.detach().clone())
        self.register_buffer("offset", offset.detach().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.weight @ x.flatten(2)).unflatten(2, x.shape[2:]) + self.offset


class Upsampling(nn.Module):
    """Bilinear, corners not aligned: (B, C, *grid) to (B, C, *size)."""

    def __init__(self, grid: Grid, size: Grid):
        super().__init__()
        self.size, entries = size, positions(grid) * positions(size)
        matrix = None
        if entries <= _MATRIX_ENTRIES:
            unit = torch.eye(positions(grid)).reshape(1, -1, *grid)
            matrix = F.interpolate(unit, size=size, mode="bilinear", align_corners=False)[0].flatten(1)
        self.register_buffer("matrix", matrix)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.matrix is None:
            return F.interpolate(x, size=self.size, mode="bilinear", align_corners=False)
        return (x.flatten(2) @ self.matrix).unflatten(2, self.size)


def attend(weights: torch.Tensor, values: torch.Tensor, grid: Grid) -> torch.Tensor:
    """(B, heads, M, N) and (B, heads * d, h, w) with h * w = N to (B, heads * d, *grid) with M positions.

    Values first: what needs transposing is then the smaller factor, and the result is in channel order.
    """
    y = split_heads(values, weights.shape[1]) @ weights.transpose(-2, -1)
    return y.flatten(1, 2).unflatten(2, grid)


class FusedAttention(nn.Module):
    def __init__(self, block: blocks.Attention, grid: Grid):
        super().__init__()
        bias = block.bias().detach()  # (heads, N, N)
        self.heads = bias.shape[0]
        key_dim = block.q.conv.out_channels // self.heads
        self.stride_conv = self.upsampling = None
        self.grid = tuple(grid)
        if block.stride_conv is not None:
            self.stride_conv = _fold(block.stride_conv)
            self.grid = strided(grid, block.stride_conv.conv.stride[0])
            self.upsampling = Upsampling(self.grid, tuple(grid)).to(bias)
        self.q, self.k, self.v = _fold(block.q, key_dim**-0.5), _fold(block.k), _fold(block.v)
        self.v_local = _fold(block.v_local)
        mix1, mix2 = (t.weight[:, :, 0, 0] for t in (block.talking_head1, block.talking_head2))
        # The first talking head is linear: its bias and the mixed attention bias are one constant.
        mixed = torch.einsum("gh,hmn->gmn", mix1.double(), bias.double())
        self.mix1 = HeadMix(mix1, (mixed + block.talking_head1.bias.double()[:, None, None]).to(mix1))
        self.mix2 = HeadMix(mix2, block.talking_head2.bias[:, None, None])
        self.proj = _fold(block.proj, block.scale.gamma)
        self.act = _activation(block.act)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x if self.stride_conv is None else self.stride_conv(x)
        values = self.v(y)
        queries, keys = split_heads(self.q(y), self.heads), split_heads(self.k(y), self.heads)
        weights = self.mix2(self.mix1(queries.transpose(-2, -1) @ keys).softmax(dim=-1))
        y = attend(weights, values, self.grid) + self.v_local(values)
        if self.upsampling is not None:
            y = self.upsampling(y)
        return x + self.proj(self.act(y))


class FusedConvDownsampling(nn.Module):
    def __init__(self, block: blocks.ConvDownsampling, grid: Grid):
        super().__init__()
        self.conv = _fold(block.conv)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class FusedDualPathDownsampling(nn.Module):
    def __init__(self, block: blocks.DualPathDownsampling, grid: Grid):
        super().__init__()
        bias = block.bias().detach()  # (heads, M, N)
        self.heads = bias.shape[0]
        key_dim = block.q.conv.out_channels // self.heads
        self.out_grid = strided(grid, block.stride)
        self.conv = _fold(block.conv)
        self.q_local = folded(block.q_local, centre=1.0)  # the subsampling path is the centre tap
        self.q, self.k, self.v = _fold(block.q, key_dim**-0.5), _fold(block.k), _fold(block.v)
        self.v_local, self.proj = _fold(block.v_local), _fold(block.proj)
        self.register_buffer("bias", bias.clone())
        self.act = _activation(block.act)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = self.v(x)
        queries, keys = split_heads(self.q(self.q_local(x)), self.heads), split_heads(self.k(x), self.heads)
        weights = (queries.transpose(-2, -1) @ keys + self.bias).softmax(dim=-1)
        y = attend(weights, values, self.out_grid) + self.v_local(values)
        return self.conv(x) + self.proj(self.act(y))


class FusedHead(nn.Module):
    """Final norm and classifiers as one linear layer behind the mean: (B, C, h, w) to (B, num_classes)."""

    def __init__(self, norm: nn.BatchNorm2d, heads: Iterable[nn.Linear]):
        super().__init__()
        heads = list(heads)
        weight = torch.stack([head.weight.double() for head in heads]).mean(0)
        bias = torch.stack([head.bias.double() for head in heads]).mean(0)
        factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        shift = norm.bias.double() - norm.running_mean.double() * factor
        self.linear = nn.Linear(heads[0].in_features, heads[0].out_features).to(heads[0].weight)
        with torch.no_grad():
            self.linear.weight.copy_(weight * factor)
            self.linear.bias.copy_(bias + weight @ shift)
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.mean((2, 3)))


fuse_block.register(blocks.Stem, FusedStem)
fuse_block.register(blocks.FFN, FusedFFN)
fuse_block.register(blocks.Attention, FusedAttention)
fuse_block.register(blocks.ConvDownsampling, FusedConvDownsampling)
fuse_block.register(blocks.DualPathDownsampling, FusedDualPathDownsampling)
