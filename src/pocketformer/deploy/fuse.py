"""The deployed graph: the same function with everything folded that is constant once training is over.

Norms, layer scales, the query scale and the subsampling path of the attention downsampling's query go into
convolutions and linears (in float64), the attention bias is gathered and mixed by the first talking head, the
final norm goes into the classifier, two classifiers into one.
"""

from collections.abc import Iterable
from functools import singledispatch

import torch
from torch import nn

from pocketformer.architecture.design import Grid
from pocketformer.deploy.folding import activation, affine, fold, plain_norm
from pocketformer.errors import UserError
from pocketformer.models import ends


@singledispatch
def fuse(model: nn.Module) -> nn.Module:
    """The deployed graph of a network as a new module; `model` is left as it was.

    Its output equals that of `model` in evaluation mode up to rounding (1e-5), whatever mode `model` is in:
    (B, in_chans, H, W) images to (B, num_classes) logits. It holds no BatchNorm and nothing that needs gradients.
    Raises `UserError` for what is not one of this package's networks. What is built on a network, such as a segmenter,
    registers a form of its own.
    """
    try:
        parts = model.sequence()
        heads = [head for head in (model.head, model.head_dist) if head is not None]
        norm, grids = model.norm, [b.grid for b in model.architecture.blocks(model.resolution)]
    except AttributeError:
        kind = type(model).__name__
        raise UserError(f"cannot fuse a {kind}: it is not one of this package's networks") from None
    if model.num_classes == 0 or model.global_pool != "avg":
        raise UserError("cannot fuse a network without a classifier: reset_classifier gives it one")
    fused = [fuse_block(part, grid) for part, grid in zip(parts, grids, strict=False)]  # stages may be pruned
    return FusedNetwork(*fused, FusedHead(norm, heads)).eval()


@singledispatch
def fuse_block(block: nn.Module, grid: Grid) -> nn.Module:
    """The deployed form of one static block whose input has `grid` (height, width), exactly as `fuse` puts it
    into a network. Shares nothing with `block`. Each kind of block registers its form."""
    raise UserError(f"cannot fuse a block of type {type(block).__name__}")


class FusedNetwork(nn.Sequential):
    """The fused blocks in order of execution, from stem to head."""


class FusedStem(nn.Module):
    def __init__(self, block: ends.Stem, grid: Grid):
        super().__init__()
        self.conv1, self.conv2 = fold(block.conv1), fold(block.conv2)
        self.act = activation(block.act)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.conv2(self.act(self.conv1(x))))


class FusedConv(nn.Module):
    """Of the large-kernel stem and the convolutional downsampling."""

    def __init__(self, block: ends.PatchStem | ends.ConvDownsampling, grid: Grid):
        super().__init__()
        self.conv = fold(block.conv)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class FusedHead(nn.Module):
    """Final norm and classifiers as one linear layer behind the mean: (B, C, h, w) to (B, num_classes).

    A LayerNorm or GroupNorm stays in front of the mean, without its weight and bias.
    """

    def __init__(self, norm: nn.Module, heads: Iterable[nn.Linear]):
        super().__init__()
        heads = list(heads)
        weight = torch.stack([head.weight.double() for head in heads]).mean(0)
        bias = torch.stack([head.bias.double() for head in heads]).mean(0)
        self.norm = None
        self.on_tokens = isinstance(norm, nn.LayerNorm)
        match norm:
            case nn.Identity():  # a pruned network's
                factor, shift = torch.ones_like(weight[0]), torch.zeros_like(weight[0])
            case nn.LayerNorm() | nn.GroupNorm():
                self.norm = plain_norm(norm)
                factor, shift = norm.weight.double(), norm.bias.double()
            case _:
                factor, shift = affine(norm)
        self.linear = nn.Linear(heads[0].in_features, heads[0].out_features).to(heads[0].weight)
        with torch.no_grad():
            self.linear.weight.copy_(weight * factor)
            self.linear.bias.copy_(bias + weight @ shift)
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.on_tokens:
            return self.linear(self.norm(x.flatten(2).transpose(1, 2)).mean(1))
        if self.norm is not None:
            x = self.norm(x)
        return self.linear(x.mean((2, 3)))


fuse_block.register(ends.Stem, FusedStem)
fuse_block.register(ends.PatchStem, FusedConv)
fuse_block.register(ends.ConvDownsampling, FusedConv)
