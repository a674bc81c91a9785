"""Fused blocks rewritten, exactly, for runtimes that keep maps with channels last.

There a map is a list of tokens already; heads that are split along channels first would transpose it twice. And
a map of channels last is interpolated in place, where a matrix product along positions transposes it as well.
"""

import torch
from torch import nn

from pocketformer.architecture.design import Grid
from pocketformer.deploy.efficientformerv2 import FusedAttention, FusedAttentionDownsampling, interpolating


def channels_last(module: nn.Module) -> nn.Module:
    """A copy of a fused network, or of one block, that computes the same with fewer transpositions."""
    return _rewritten(interpolating(module))


def _rewritten(module: nn.Module) -> nn.Module:
    for name, child in list(module.named_children()):
        setattr(module, name, _rewritten(child))
    form = _FORMS.get(type(module))
    return module if form is None else form(module)


def _tokens(x: torch.Tensor, heads: int) -> torch.Tensor:
    """(B, heads * d, h, w) to (B, heads, h * w, d)."""
    return x.permute(0, 2, 3, 1).flatten(1, 2).unflatten(2, (heads, -1)).transpose(1, 2)


def _attend(weights: torch.Tensor, values: torch.Tensor, grid: Grid) -> torch.Tensor:
    """(B, heads, M, N) and (B, heads * d, h, w) with h * w = N to (B, heads * d, *grid) with M positions."""
    y = weights @ _tokens(values, weights.shape[1])
    return y.transpose(1, 2).flatten(2).unflatten(1, grid).permute(0, 3, 1, 2)


class _Attention(nn.Module):
    def __init__(self, block: FusedAttention):
        super().__init__()
        self.block = block

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        block = self.block
        y = x if block.stride_conv is None else block.stride_conv(x)
        values, keys = block.v(y), _tokens(block.k(y), block.heads)
        queries = _tokens(block.q(x if block.full_queries else y), block.heads)
        weights = block.after(block.before(queries @ keys.transpose(-2, -1)).softmax(dim=-1))
        y = _attend(weights, values, block.grid)
        if block.v_local is not None:
            local = block.v_local(values)
            y = y + (block.upsampling(local) if block.full_queries else local)
        if block.upsampling is not None and not block.full_queries:
            y = block.upsampling(y)
        return x + block.proj(block.act(y))


class _AttentionDownsampling(nn.Module):
    def __init__(self, block: FusedAttentionDownsampling):
        super().__init__()
        self.block = block

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        block = self.block
        values, keys = block.v(x), _tokens(block.k(x), block.heads)
        queries = _tokens(block.q(block.q_local(x)), block.heads)
        y = _attend(block.before(queries @ keys.transpose(-2, -1)).softmax(dim=-1), values, block.out_grid)
        if block.v_local is not None:
            y = y + block.v_local(values)
        y = block.proj(block.act(y))
        return y if block.conv is None else block.conv(x) + y


_FORMS = {
    FusedAttention: _Attention,
    FusedAttentionDownsampling: _AttentionDownsampling,
}
