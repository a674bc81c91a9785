"""The deployed forms of EfficientFormerV2's blocks. Shapes are those of `models.compute`: maps are (B, C, H, W)."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from pocketformer.architecture.blocks import positions, strided
from pocketformer.architecture.design import Grid
from pocketformer.deploy.folding import activation, fold, folded
from pocketformer.deploy.fuse import fuse_block
from pocketformer.models import efficientformerv2
from pocketformer.models.compute import split_heads

# Upsampling as one matrix product is 4-6 % of a network faster on ONNX Runtime up to about this many entries
# (224 px: 49 x 196); its cost grows with their number, that of an interpolation only with the larger grid.
_MATRIX_ENTRIES = 2**14


class FusedFFN(nn.Module):
    def __init__(self, block: efficientformerv2.FFN, grid: Grid):
        super().__init__()
        self.fc1, self.mid = fold(block.fc1), fold(block.mid)
        self.fc2 = fold(block.fc2, block.scale.gamma.double())
        self.act = activation(block.act)

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

    def __init__(self, grid: Grid, size: Grid, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.size, entries = size, positions(grid) * positions(size)
        matrix = None
        if entries <= _MATRIX_ENTRIES:
            unit = torch.eye(positions(grid), dtype=torch.float64).reshape(1, -1, *grid)
            matrix = F.interpolate(unit, size=size, mode="bilinear", align_corners=False)[0].flatten(1).to(dtype)
        self.register_buffer("matrix", matrix)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.matrix is None:
            return F.interpolate(x, size=self.size, mode="bilinear", align_corners=False)
        return (x.flatten(2) @ self.matrix).unflatten(2, self.size)


def interpolating(module: nn.Module) -> nn.Module:
    """A copy of a fused network, or of a block, whose upsamplings are interpolations and not matrix products."""
    module = copy.deepcopy(module)
    for part in module.modules():
        if isinstance(part, Upsampling):
            part.matrix = None
    return module


def attend(weights: torch.Tensor, values: torch.Tensor, grid: Grid) -> torch.Tensor:
    """(B, heads, M, N) and (B, heads * d, h, w) with h * w = N to (B, heads * d, *grid) with M positions.

    Values first: what needs transposing is then the smaller factor, and the result is in channel order.
    """
    y = split_heads(values, weights.shape[1]) @ weights.transpose(-2, -1)
    return y.flatten(1, 2).unflatten(2, grid)


class Offset(nn.Module):
    """A constant added to the scores (B, heads, M, N): the gathered attention bias."""

    def __init__(self, offset: torch.Tensor):
        super().__init__()
        self.register_buffer("offset", offset.detach().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.offset


def _score_layers(block: nn.Module, grid: Grid) -> tuple[nn.Module, nn.Module]:
    """What stands before and behind the softmax: bias and first talking head, second talking head."""
    bias = None if block.bias is None else block.bias(grid).detach()  # (heads, M, N)
    if getattr(block, "talking_head1", None) is None:
        return (nn.Identity() if bias is None else Offset(bias)), nn.Identity()
    mix1, mix2 = (t.weight[:, :, 0, 0] for t in (block.talking_head1, block.talking_head2))
    constant = block.talking_head1.bias.double()[:, None, None]
    if bias is not None:  # the first talking head is linear: its bias and the mixed attention bias are one constant
        constant = constant + torch.einsum("gh,hmn->gmn", mix1.double(), bias.double())
    return HeadMix(mix1, constant.to(mix1)), HeadMix(mix2, block.talking_head2.bias[:, None, None])


class FusedAttention(nn.Module):
    def __init__(self, block: efficientformerv2.Attention, grid: Grid):
        super().__init__()
        self.heads = block.heads
        key_dim = block.q.conv.out_channels // self.heads
        self.grid, self.full_queries = tuple(grid), block.full_queries
        self.stride_conv = self.upsampling = None
        if block.stride_conv is not None:
            self.stride_conv = fold(block.stride_conv)
            key_grid = strided(grid, block.stride_conv.conv.stride[0])
            gamma = block.scale.gamma
            self.upsampling = Upsampling(key_grid, tuple(grid), gamma.dtype).to(gamma.device)
            self.grid = self.grid if self.full_queries else key_grid
        self.q, self.k, self.v = fold(block.q, key_dim**-0.5), fold(block.k), fold(block.v)
        self.v_local = None if block.v_local is None else fold(block.v_local)
        self.before, self.after = _score_layers(block, self.grid)
        self.proj = fold(block.proj, block.scale.gamma.double())
        self.act = activation(block.act)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x if self.stride_conv is None else self.stride_conv(x)
        values = self.v(y)
        queries = split_heads(self.q(x if self.full_queries else y), self.heads)
        scores = queries.transpose(-2, -1) @ split_heads(self.k(y), self.heads)
        y = attend(self.after(self.before(scores).softmax(dim=-1)), values, self.grid)
        if self.v_local is not None:
            local = self.v_local(values)
            y = y + (self.upsampling(local) if self.full_queries else local)
        if self.upsampling is not None and not self.full_queries:
            y = self.upsampling(y)
        return x + self.proj(self.act(y))


class FusedAttentionDownsampling(nn.Module):
    def __init__(self, block: efficientformerv2.AttentionDownsampling, grid: Grid):
        super().__init__()
        self.heads = block.heads
        key_dim = block.q.conv.out_channels // self.heads
        self.out_grid = strided(grid, block.stride)
        self.conv = None if block.conv is None else fold(block.conv)
        self.q_local = folded(block.q_local, centre=1.0)  # the subsampling path is the centre tap
        self.q, self.k, self.v = fold(block.q, key_dim**-0.5), fold(block.k), fold(block.v)
        self.v_local = None if block.v_local is None else fold(block.v_local)
        self.before, _ = _score_layers(block, grid)
        self.proj = fold(block.proj)
        self.act = activation(block.act)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = self.v(x)
        queries, keys = split_heads(self.q(self.q_local(x)), self.heads), split_heads(self.k(x), self.heads)
        y = attend(self.before(queries.transpose(-2, -1) @ keys).softmax(dim=-1), values, self.out_grid)
        if self.v_local is not None:
            y = y + self.v_local(values)
        y = self.proj(self.act(y))
        return y if self.conv is None else self.conv(x) + y


fuse_block.register(efficientformerv2.FFN, FusedFFN)
fuse_block.register(efficientformerv2.Attention, FusedAttention)
fuse_block.register(efficientformerv2.AttentionDownsampling, FusedAttentionDownsampling)
