"""What is done to the pixels of a whole batch at once: normalising, cropping, flipping, erasing."""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

MEAN = 0.5
STD = 0.5


class Normalisation(NamedTuple):
    """(share of 255 - mean) / std, a value each a channel."""

    mean: tuple[float, ...] = (MEAN,) * 3
    std: tuple[float, ...] = (STD,) * 3


OURS = Normalisation()


def normalisation_of(model: nn.Module) -> Normalisation:
    """What a network's images are normalised by: ours, or that of the weights it began with."""
    cfg = getattr(model, "pretrained_cfg", {})
    return Normalisation(tuple(cfg.get("mean", OURS.mean)), tuple(cfg.get("std", OURS.std)))


def normalise(images: torch.Tensor) -> torch.Tensor:
    """uint8 (B, 3, H, W) to float32, channels last, from 0…255 to (share - MEAN) / STD."""
    x = images.to(torch.float32, memory_format=torch.channels_last)
    return x.mul_(1 / (255 * STD)).sub_(MEAN / STD)


def renormalise(x: torch.Tensor, normalisation: Normalisation) -> torch.Tensor:
    """Images (B, 3, H, W) that `normalise` made, as they are under another normalisation."""
    if normalisation == OURS:
        return x
    mean, std = (torch.tensor(values, dtype=x.dtype).view(-1, 1, 1) for values in normalisation)
    return (x * STD + MEAN - mean) / std


def centre_crop(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The middle `size` (height, width) of images (..., S_h, S_w), rounded towards the top left; a view."""
    top, left = (images.shape[-2] - size[0]) // 2, (images.shape[-1] - size[1]) // 2
    return images[..., top : top + size[0], left : left + size[1]]


def crop(images: torch.Tensor, boxes: torch.Tensor, flips: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Cuts a box out of each image, flips it left to right where asked, resizes to `size` and normalises.

    images uint8 (B, 3, S_h, S_w), boxes float (B, 4) left, top, width, height in pixels, flips bool (B,);
    float32 (B, 3, H, W), channels last. Bilinear in one step for the batch, pixel centres at one half.
    """
    height, width = images.shape[-2:]
    left, top, w, h = boxes.unbind(1)
    theta = torch.zeros(len(boxes), 2, 3, dtype=torch.float64)
    theta[:, 0, 0] = torch.where(flips, -w, w) / width
    theta[:, 0, 2] = (2 * left + w) / width - 1
    theta[:, 1, 1] = h / height
    theta[:, 1, 2] = (2 * top + h) / height - 1
    grid = functional.affine_grid(theta.float(), [len(boxes), 3, *size], align_corners=False)
    # Normalised first: it is linear, so it may go before, where the bytes become floats anyway.
    return functional.grid_sample(
        normalise(images), grid, mode="bilinear", padding_mode="reflection", align_corners=False
    ).contiguous(memory_format=torch.channels_last)


def erase(x: torch.Tensor, holes: torch.Tensor) -> torch.Tensor:
    """Sets boxes of normalised images (B, C, H, W) to 0, the mean; holes (B, 4) as shares of the sides."""
    left, top, w, h = holes.to(x.dtype).unbind(1)
    rows = (torch.arange(x.shape[-2]) + 0.5) / x.shape[-2]
    columns = (torch.arange(x.shape[-1]) + 0.5) / x.shape[-1]
    in_rows = (rows >= top[:, None]) & (rows < (top + h)[:, None])
    in_columns = (columns >= left[:, None]) & (columns < (left + w)[:, None])
    return x.masked_fill_((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0.0)
