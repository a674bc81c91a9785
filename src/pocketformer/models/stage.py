"""Blocks from their values, and a stage of them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from pocketformer.architecture import blocks as values
from pocketformer.models import efficientformer, efficientformerv2, ends


def build_block(value: values.BlockValue, layer_scale: float = 1e-5, drop_path: float = 0.0) -> nn.Module:
    """The module of any block value but the head, which is the network's own."""
    match value:
        case values.Stem():
            return ends.Stem(value)
        case values.PatchStem():
            return ends.PatchStem(value)
        case values.ConvDownsampling():
            return ends.ConvDownsampling(value)
        case values.AttentionDownsampling():
            return efficientformerv2.AttentionDownsampling(value)
        case values.FFNBlock():
            return efficientformerv2.FFN(value, layer_scale, drop_path)
        case values.AttentionBlock():
            return efficientformerv2.Attention(value, layer_scale, drop_path)
        case values.MetaBlock():
            return efficientformer.MetaBlock(value, layer_scale, drop_path)
        case values.TokenAttentionBlock():
            return efficientformer.TokenAttention(value, layer_scale, drop_path)
        case values.TokenFFNBlock():
            return efficientformer.TokenFFN(value, layer_scale, drop_path)
    raise TypeError(f"no static block for {value!r}")


def drop_path_rates(kinds: list[str], rate: float) -> list[float]:
    """One rate a block, linear from 0 to `rate` over the published blocks: an attention block has the rate of
    the FFN behind it, with which it forms one published block."""
    index = [kinds[:i].count("ffn") for i in range(len(kinds))]
    last = max(kinds.count("ffn") - 1, 1)
    return [rate * min(i, last) / last for i in index]


class Stage(nn.Module):
    """Downsampling, then blocks: (B, C, H, W) to (B, C', H', W')."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module]):
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.downsample(x)
        if not (self.grad_checkpointing and self.training and torch.is_grad_enabled()):
            return self.blocks(x)
        for block in self.blocks:
            x = checkpointed(block, x, list(block.modules()))
        return x


def checkpointed(run: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, modules: Sequence[nn.Module]):
    """`run(x)`, computed again in the backward pass instead of keeping its activations. `modules`: what it runs, the
    norms among them."""
    return checkpoint(run, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _recomputing(modules)))


@contextmanager
def _recomputing(modules: Sequence[nn.Module]) -> Iterator[None]:
    """The second forward of gradient checkpointing: without it, norms would count every batch twice."""
    norms = [m for m in modules if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(batches)
