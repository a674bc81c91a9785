"""The channels of a MetaPath supernet in the order of their norms, so that a narrower stage keeps the first ones.

V1 cuts the width of a trained network of one width; which channels go it does not say: here those of smallest norm
(contract 6.14). Sorted once, a cut is a slice, which computes what masking the others would, and less; but for
LayerNorms, whose statistics are then of the channels that are kept.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from pocketformer.models.efficientformer import MetaBlock, TokenAttention, TokenFFN
from pocketformer.models.layers import ConvNorm
from pocketformer.supernet.metapath import MetaPathSupernet

Axis = tuple[torch.Tensor, int]  # a tensor, and which of its dimensions counts the channels


@dataclass
class Channels:
    """Channels that are cut together. `filters` (C, n) each: what writes them, norms and layer scales folded in;
    `axes`: where they stand."""

    filters: list[torch.Tensor] = field(default_factory=list)
    axes: list[Axis] = field(default_factory=list)

    def norms(self) -> torch.Tensor:
        """(C,): the Euclidean norm of all numbers that write a channel."""
        return torch.stack([filters.double().square().sum(1) for filters in self.filters]).sum(0).sqrt()

    def sort(self) -> None:
        order = self.norms().argsort(descending=True, stable=True)
        for tensor, dim in self.axes:
            tensor.copy_(tensor.index_select(dim, order))

    def written_by(self, layer: ConvNorm | nn.Linear, scale: torch.Tensor | float = 1.0) -> None:
        """`scale` (C,): of the layer scale behind it."""
        conv = layer.conv if isinstance(layer, ConvNorm) else layer
        tensors = [conv.weight, conv.bias]
        if isinstance(layer, ConvNorm):
            scale = scale * layer.norm.weight / (layer.norm.running_var + layer.norm.eps).sqrt()
            tensors += normed(layer.norm)
        scale = torch.as_tensor(scale).expand(len(conv.weight))
        self.filters.append(conv.weight.flatten(1) * scale[:, None])
        self.axes += [(tensor, 0) for tensor in tensors]

    def read_by(self, *layers: ConvNorm | nn.Linear) -> None:
        self.axes += [((layer.conv if isinstance(layer, ConvNorm) else layer).weight, 1) for layer in layers]

    def beside(self, *tensors: torch.Tensor) -> None:
        """Vectors with a number for each channel: norms, layer scales."""
        self.axes += [(tensor, 0) for tensor in tensors]


def normed(norm: nn.Module) -> list[torch.Tensor]:
    running = [norm.running_mean, norm.running_var] if isinstance(norm, nn.modules.batchnorm._BatchNorm) else []
    return [norm.weight, norm.bias, *running]


@torch.no_grad()
def sort_channels(supernet: MetaPathSupernet) -> None:
    """Orders the channels of each stage, of the stem's first convolution and inside each MLP, largest norm first. The
    supernet computes what it did."""
    for channels in list(groups(supernet)):
        channels.sort()


def groups(supernet: MetaPathSupernet) -> Iterator[Channels]:
    stem = Channels()
    stem.written_by(supernet.stem.conv1)
    stem.read_by(supernet.stem.conv2)
    yield stem
    writers = [supernet.stem.conv2, *(downsample.conv for downsample in supernet.downsamples)]
    for j, stage in enumerate(supernet.stages):
        outer = Channels()
        outer.written_by(writers[j])
        for path in stage:
            for block in filter(None, (path.local, path.attention, path.mlp)):
                yield from _block(block, outer)
        if j < len(supernet.downsamples):
            outer.read_by(supernet.downsamples[j].conv)
        else:
            outer.read_by(supernet.head)
            for norm in supernet.norms.values():
                outer.beside(*normed(norm))
        yield outer


def _block(block: MetaBlock | TokenAttention | TokenFFN, outer: Channels) -> Iterator[Channels]:
    """Adds a block's part of the stage's channels; yields those inside it. Heads are not cut."""
    if isinstance(block, TokenAttention):
        outer.beside(*normed(block.norm))
        outer.read_by(block.qkv)
        outer.written_by(block.proj, block.scale.gamma)
    else:
        outer.beside(*(normed(block.norm) if isinstance(block, TokenFFN) else [block.mixer_scale.gamma]))
        outer.read_by(block.fc1)
        outer.written_by(block.fc2, block.scale.gamma)
        inner = Channels()
        inner.written_by(block.fc1)
        inner.read_by(block.fc2)
        yield inner
    outer.beside(block.scale.gamma)
