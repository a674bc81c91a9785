"""Batches for training and evaluation.

A training batch is a pure function of (seed, step): resuming needs no state and gives equal bits. Those of images in
memory are made here, for a whole batch at once; others image by image, by `transformed`.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from pocketformer.errors import UserError
from pocketformer.training.augmentation import Augmentation
from pocketformer.training.balance import labels_of
from pocketformer.training.data import Split
from pocketformer.training.orders import WHOLE, Order, Share
from pocketformer.training.pixels import (
    MEAN,
    OURS,
    STD,
    Normalisation,
    centre_crop,
    crop,
    erase,
    normalisation_of,
    normalise,
    renormalise,
)
from pocketformer.training.splitting import random_words

__all__ = [
    "MEAN",
    "OURS",
    "STD",
    "Augmentation",
    "EvalBatches",
    "Normalisation",
    "Plan",
    "Share",
    "TrainBatches",
    "TrainingBatches",
    "centre_crop",
    "crop",
    "erase",
    "eval_batches",
    "normalisation_of",
    "normalise",
    "renormalise",
    "stored_size",
    "train_batches",
]

Batch = tuple[torch.Tensor, torch.Tensor]
# Uniform numbers that the augmentation of one image takes: crop 4, flip 1, erasing 5.
_DRAWS = 10
_AUGMENT = 2  # key of the stream of random numbers


class TrainingBatches(Protocol):
    """Batches of a training, one process's share of each.

    `batch_size` is of all processes together. `steps(first, last)` yields those of steps first … last - 1, over
    any number of epochs: images float32 (B, 3, H, W), channels last and normalised, and labels int64 (B,).
    """

    batch_size: int
    steps_per_epoch: int

    def steps(self, first: int, last: int) -> Iterator[Batch]: ...


def train_batches(
    split: Split,
    batch_size: int,
    size: tuple[int, int],
    augmentation: Augmentation | None,
    seed: int,
    normalisation: Normalisation = OURS,
    share: Share = WHOLE,
    workers: int = 0,
    balanced: bool = False,
) -> TrainingBatches:
    """`TrainBatches`, or `TransformedBatches` by `workers` processes where images are streamed or the augmentation
    asks for RandAugment or repeats. Arguments are theirs."""
    single = augmentation is not None and (split.streamed or augmentation.randaugment or augmentation.repeats > 1)
    if not single:
        return TrainBatches(split, batch_size, size, augmentation, seed, normalisation, share, balanced)
    from pocketformer.training.transformed import TransformedBatches  # brings in timm

    return TransformedBatches(split, batch_size, size, augmentation, seed, normalisation, share, workers, balanced)


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
        share: the part of each batch to make.
        balanced: draw all classes equally often (`balance.equal_shares`).
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        size: tuple[int, int],
        augmentation: Augmentation | None,
        seed: int,
        normalisation: Normalisation = OURS,
        share: Share = WHOLE,
        balanced: bool = False,
    ):
        if len(split) == 0:
            raise UserError(f"the {split.name} split has no images")
        if augmentation is None:
            _check_crop(split, size)
        elif augmentation.randaugment or augmentation.repeats > 1:
            raise UserError("RandAugment and repeats are made image by image: use train_batches")
        self.split, self.size, self.augmentation, self.seed = split, tuple(size), augmentation, seed
        self.normalisation = normalisation
        self._order = Order(len(split), batch_size, seed, share=share, labels=labels_of(split) if balanced else None)
        self.batch_size, self.steps_per_epoch = self._order.batch_size, self._order.steps_per_epoch
        self._epoch: tuple[int, np.ndarray] | None = None  # a memo: number, draws

    def steps(self, first: int, last: int) -> Iterator[Batch]:
        """Batches of steps `first` … `last` - 1, as `batch` makes them."""
        return map(self.batch, range(first, last))

    def batch(self, step: int) -> Batch:
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
        epoch, rows, copies = self._order.at(step)
        height, width = self.split.stored_size
        boxes = np.tile(np.array([0.0, 0.0, width, height]), (len(rows), 1))
        flips, holes = np.zeros(len(rows), bool), np.zeros((len(rows), 4))
        if self.augmentation is not None:
            u = self._draws(epoch)[rows if self._order.labels is None else copies].T
            boxes = _boxes(u[:4], height, width, self.augmentation.scale, self.augmentation.ratio)
            flips = (u[4] < 0.5) & self.augmentation.flip
            holes = _boxes(u[5:9], 1, 1, (0.02, 1 / 3), (0.3, 1 / 0.3))
            holes[u[9] >= self.augmentation.erase, 2] = 0
        return Plan(*map(torch.from_numpy, (rows, boxes, flips, holes)))

    def _draws(self, epoch: int) -> np.ndarray:
        """Uniform numbers (N, draws) for each image of the split, or each place in a balanced epoch."""
        if self._epoch is None or self._epoch[0] != epoch:
            n = len(self.split)
            words = random_words(n * _DRAWS, self.seed, epoch, _AUGMENT).reshape(n, _DRAWS)
            self._epoch = epoch, (words >> np.uint64(11)) * 2.0**-53
        return self._epoch[1]


@dataclass(frozen=True)
class EvalBatches:
    """All images of a split in order, centre-cropped and normalised; may be iterated any number of times.

    Images of a streamed split that cannot be read, where that is accepted, are left out, never replaced: a batch is
    smaller by them, one without any other is not there, and `split.images.bad` has them.
    """

    split: Split
    batch_size: int
    size: tuple[int, int]
    normalisation: Normalisation = OURS
    workers: int = 0

    def __len__(self) -> int:
        return math.ceil(len(self.split) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return self.at(range(len(self)))

    def at(self, numbers: Sequence[int]) -> Iterator[Batch]:
        """The batches of these numbers, in the order given."""
        groups = (self._positions(number) for number in numbers)
        taken = self._stream(groups) if self.split.streamed else map(self.split.take, groups)
        for images, labels in taken:
            if not len(labels):
                continue
            yield renormalise(normalise(centre_crop(images, self.size)), self.normalisation), labels

    def _positions(self, number: int) -> torch.Tensor:
        first = range(len(self))[number] * self.batch_size
        return torch.arange(first, min(first + self.batch_size, len(self.split)))

    def _stream(self, groups: Iterator[torch.Tensor]) -> Iterator[Batch]:
        """As `split.take` each, without what cannot be read; threads decode one batch ahead."""
        pool = ThreadPoolExecutor(max(self.workers, 1))
        ahead = 1 if self.workers > 0 else 0
        try:
            waiting: deque = deque()
            for positions in groups:
                rows = [self.split.row(position) for position in positions.tolist()]
                waiting.append((rows, [pool.submit(self.split.images.pixels, row) for row in rows]))
                if len(waiting) > ahead:
                    yield self._collected(*waiting.popleft())
            while waiting:
                yield self._collected(*waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _collected(self, rows: list[int], futures: list) -> Batch:
        found = [(row, future.result()) for row, future in zip(rows, futures, strict=True)]
        read = [(row, pixels) for row, pixels in found if pixels is not None]
        images = np.empty((len(read), 3, *self.split.stored_size), np.uint8)
        for place, (_, pixels) in enumerate(read):
            images[place] = pixels
        return torch.from_numpy(images), self.split.labels[[row for row, _ in read]]


def eval_batches(
    split: Split,
    batch_size: int,
    size: tuple[int, int],
    normalisation: Normalisation = OURS,
    workers: int = 0,
) -> EvalBatches:
    """Batches (x float32 (B, 3, H, W) channels last, y int64 (B,)) of a split; the last may be smaller.

    `workers` threads decode streamed images. Raises `UserError` if the stored images are smaller than `size`.
    """
    if batch_size < 1:
        raise UserError(f"the batch size is {batch_size}; it must be at least 1")
    _check_crop(split, size)
    return EvalBatches(split, batch_size, tuple(size), normalisation, workers)


def stored_size(size: tuple[int, int], crop_pct: float) -> tuple[int, int]:
    """Height and width at which to store images so that a crop of `size` shows `crop_pct` of a side."""
    if not 0 < crop_pct <= 1:
        raise UserError(f"the crop share is {crop_pct}; it must be above 0 and at most 1")
    return round(size[0] / crop_pct), round(size[1] / crop_pct)


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
    height, width = split.stored_size
    if size[0] > height or size[1] > width:
        raise UserError(
            f"the images are stored at {height}×{width} px, smaller than the {size[0]}×{size[1]} px asked for"
        )
