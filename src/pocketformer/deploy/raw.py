"""Files that take the bytes of an image as they lie in memory, and normalise them as the first thing in their graph.

Folded into the stem instead, the mean would be wrong at the border: there a convolution pads with zeros, which stand
for the mean, not for black.
"""

import copy
from collections.abc import Callable

import torch
from torch import nn

from pocketformer.deploy.facts import Facts


class Raw(nn.Module):
    """uint8 (B, H, W, C) to what `network` makes of them, normalised, as (B, C, H, W)."""

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.network = network
        scale = 1 / (255 * torch.tensor(std, dtype=torch.float64))
        self.register_buffer("scale", scale.float())
        self.register_buffer("offset", (torch.tensor(mean, dtype=torch.float64) / torch.tensor(std)).float())

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.network((image.float() * self.scale - self.offset).permute(0, 3, 1, 2))

    def around(self, change: Callable[[nn.Module], nn.Module]) -> "Raw":
        """The same before a changed network: bytes are normalised in float32, in whatever that computes."""
        found = copy.copy(self)
        found._modules = {"network": change(self.network)}
        return found


def around(module: nn.Module, change: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """`change` of the network in a `Raw`, or of the module itself."""
    return module.around(change) if isinstance(module, Raw) else change(module)


def as_input(facts: Facts, images: torch.Tensor) -> torch.Tensor:
    """Normalised images (B, C, H, W) as a file of these facts takes them."""
    return to_bytes(images, facts.mean, facts.std) if facts.raw else images


def to_bytes(images: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """Normalised images (B, C, H, W) as the nearest bytes (B, H, W, C): exactly those that they were made of."""
    scale, offset = (torch.tensor(values).view(-1, 1, 1) for values in (std, mean))
    return ((images * scale + offset) * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def from_bytes(images: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """Bytes (B, H, W, C) normalised, (B, C, H, W), as PyTorch's network takes them."""
    shares = images.permute(0, 3, 1, 2).double() / 255
    scale, offset = (torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in (std, mean))
    return ((shares - offset) / scale).float()
