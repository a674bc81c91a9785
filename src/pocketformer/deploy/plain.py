"""What converters trace, as PyTorch lays tensors out by itself: where images and weights came from leaves no mark."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def by_itself() -> Iterator[None]:
    """Without what a caller may have switched on around: inference mode, autocast."""
    with torch.inference_mode(False), torch.autocast("cpu", enabled=False):
        yield


def plain(x: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A copy with the same values: of that type, on the processor, row after row in memory, without a gradient.

    Converters write the strides of what they trace into the file, and ExecuTorch's then computes something else. Not
    `contiguous`, which keeps the strides of sides of length one.
    """
    with torch.inference_mode(False), torch.no_grad():
        return torch.empty(x.shape, dtype=dtype, device="cpu").copy_(x.detach())


def plain_network(module: nn.Module) -> nn.Module:
    """The module itself, all its weights laid out so; whole numbers stay whole."""
    for tensor in [*module.parameters(), *module.buffers()]:
        tensor.data = plain(tensor, torch.float32 if tensor.is_floating_point() else tensor.dtype)
    return module
