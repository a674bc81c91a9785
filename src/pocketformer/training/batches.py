"""Batches for training and evaluation, made for a whole batch at once from the stored uint8 images.

A training batch is a pure function of (seed, step): resuming needs no state and gives equal bits.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from pocketformer.errors import UserError
from pocketformer.training.data import Split, random_words

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


# Uniform numbers that the augmentation of one image takes: crop 4, flip 1, erasing 5.
_DRAWS = 10
_ORDER, _AUGMENT = 1, 2  # keys of the two streams of random numbers


@dataclass(frozen=True)
class Augmentation:
    """Random resized crop (shares of the image area, aspect ratios), flip, erasing (a probability)."""

    flip: bool = True
    scale: tuple[float, float] = (0.35, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    erase: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UserError(f"augmentation scale is {self.scale}; it must be 0 < smallest <= largest <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise UserError(f"augmentation ratio is {self.ratio}; it must be 0 < smallest <= largest")
        if not 0 <= self.erase <= 1:
            raise UserError(f"augmentation erase is {self.erase}; it is a probability")


@dataclass(frozen=True, eq=False)
class Plan:
    """What happens to the images of one batch, in pixels of the stored images.

    `rows` int64 (B,) positions in the split; `boxes` float64 (B, 4) left, top, width, height; `flips` bool
    (B,); `holes` float64 (B, 4) boxes to erase as shares of the output (0 wide: none).
    """

    rows: torch.Tensor
    boxes: torch.Tensor
    flips: torch.Tensor
    holes: torch.Tensor


class TrainBatches:
    """Shuffled, augmented batches of a split.

    Args:
        split: images to train on.
        batch_size: images a batch; a smaller split is one batch. The incomplete last batch of an epoch is
            left out (each epoch leaves out others).
        size: height and width of the batches in pixels.
        augmentation: None: a centre crop.
        seed: of order and augmentation.
        normalisation: of the images.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        size: tuple[int, int],
        augmentation: Augmentation | None,
        seed: int,
        normalisation: Normalisation = OURS,
    ):
        if batch_size < 1:
            raise UserError(f"the batch size is {batch_size}; it must be at least 1")
        if len(split) == 0:
            raise UserError(f"the {split.name} split has no images")
        if augmentation is None:
            _check_crop(split, size)
        self.split, self.size, self.augmentation, self.seed = split, tuple(size), augmentation, seed
        self.normalisation = normalisation
        self.batch_size = min(batch_size, len(split))
        self.steps_per_epoch = len(split) // self.batch_size
        self._epoch: tuple[int, np.ndarray, np.ndarray] | None = None  # a memo: number, order, draws

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Batch number `step` >= 0 of the training: images and labels.

        Images are float32 (B, 3, H, W), channels last and normalised; labels int64 (B,).
        """
        plan = self.plan(step)
        images, labels = self.split.take(plan.rows)
        if self.augmentation is None:
            return renormalise(normalise(centre_crop(images, self.size)), self.normalisation), labels
        x = renormalise(crop(images, plan.boxes, plan.flips, self.size), self.normalisation)
        return erase(x, plan.holes) if self.augmentation.erase > 0 else x, labels

    def plan(self, step: int) -> Plan:
        """The images of a step and what is to happen to them."""
        epoch, position = divmod(step, self.steps_per_epoch)
        order, draws = self._numbers(epoch)
        rows = order[position * self.batch_size : (position + 1) * self.batch_size]
        height, width = self.split.images.shape[-2:]
        boxes = np.tile(np.array([0.0, 0.0, width, height]), (len(rows), 1))
        flips, holes = np.zeros(len(rows), bool), np.zeros((len(rows), 4))
        if self.augmentation is not None:
            u = draws[rows].T
            boxes = _boxes(u[:4], height, width, self.augmentation.scale, self.augmentation.ratio)
            flips = (u[4] < 0.5) & self.augmentation.flip
            holes = _boxes(u[5:9], 1, 1, (0.02, 1 / 3), (0.3, 1 / 0.3))
            holes[u[9] >= self.augmentation.erase, 2] = 0
        return Plan(*map(torch.from_numpy, (rows, boxes, flips, holes)))

    def _numbers(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The order of an epoch (N,), and uniform numbers (N, draws) for each image of the split."""
        if self._epoch is None or self._epoch[0] != epoch:
            n = len(self.split)
            order = np.argsort(random_words(n, self.seed, epoch, _ORDER), kind="stable")
            draws = np.empty((0, _DRAWS))
            if self.augmentation is not None:
                words = random_words(n * _DRAWS, self.seed, epoch, _AUGMENT).reshape(n, _DRAWS)
                draws = (words >> np.uint64(11)) * 2.0**-53
            self._epoch = epoch, order, draws
        return self._epoch[1:]


@dataclass(frozen=True)
class EvalBatches:
    """All images of a split in order, centre-cropped and normalised; may be iterated any number of times."""

    split: Split
    batch_size: int
    size: tuple[int, int]
    normalisation: Normalisation = OURS

    def __len__(self) -> int:
        return math.ceil(len(self.split) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for rows in torch.arange(len(self.split)).split(self.batch_size):
            images, labels = self.split.take(rows)
            yield renormalise(normalise(centre_crop(images, self.size)), self.normalisation), labels


def eval_batches(
    split: Split, batch_size: int, size: tuple[int, int], normalisation: Normalisation = OURS
) -> EvalBatches:
    """Batches (x float32 (B, 3, H, W) channels last, y int64 (B,)) of a split; the last may be smaller.

    Raises `UserError` if the stored images are smaller than `size`.
    """
    if batch_size < 1:
        raise UserError(f"the batch size is {batch_size}; it must be at least 1")
    _check_crop(split, size)
    return EvalBatches(split, batch_size, tuple(size), normalisation)


def stored_size(size: tuple[int, int], crop_pct: float) -> tuple[int, int]:
    """Height and width at which to store images so that a crop of `size` shows `crop_pct` of a side."""
    if not 0 < crop_pct <= 1:
        raise UserError(f"the crop share is {crop_pct}; it must be above 0 and at most 1")
    return round(size[0] / crop_pct), round(size[1] / crop_pct)


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


def _boxes(
    u: np.ndarray, height: float, width: float, scale: tuple[float, float], ratio: tuple[float, float]
) -> np.ndarray:
    """Random boxes (B, 4) out of uniform numbers (4, B): area uniform in `scale`, then log aspect uniform.

    Only aspects with which the area fits are drawn, where torchvision draws again: no loop, and areas stay
    exactly uniform.
    """
    area = (scale[0] + (scale[1] - scale[0]) * u[0]) * height * width
    highest = width**2 / area
    lowest = area / height**2
    low, high = np.clip(ratio[0], lowest, highest), np.clip(ratio[1], lowest, highest)
    aspect = np.exp(np.log(low) + (np.log(high) - np.log(low)) * u[1])
    w, h = np.minimum(np.sqrt(area * aspect), width), np.minimum(np.sqrt(area / aspect), height)
    return np.stack([u[2] * (width - w), u[3] * (height - h), w, h], axis=1)


def _check_crop(split: Split, size: tuple[int, int]) -> None:
    height, width = split.images.shape[-2:]
    if size[0] > height or size[1] > width:
        raise UserError(
            f"the images are stored at {height}×{width} px, smaller than the {size[0]}×{size[1]} px asked for"
        )
