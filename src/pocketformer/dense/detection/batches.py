"""Batches of annotated images, a pure function of (seed, step), and single images for evaluation."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from pocketformer.dense.detection.coco import CocoSet
from pocketformer.dense.detection.instances import Instances
from pocketformer.dense.detection.pictures import Size, fitted, open_image, padded, to_input
from pocketformer.errors import UserError
from pocketformer.training.orders import WHOLE, Order, Places, Share
from pocketformer.training.pixels import Normalisation
from pocketformer.training.splitting import random_words
from pocketformer.training.workers import by_workers

_FLIP = 2  # key of the stream of random numbers


class DetectionBatches:
    """Shuffled batches: each image resized to the short and long side of `size`, flipped half of the time, normalised
    and padded with its batch to multiples of 32 px, as published. Images are not grouped by their shape.

    `batch_size` is of all processes; the incomplete last batch of an epoch is left out (others in each epoch).
    Crowds are to be left out before (`CocoSet.for_training`). `workers`: processes that
    decode; 0: the calling one. Their number, and where a training continues, change no bit.
    """

    def __init__(
        self,
        images: CocoSet,
        batch_size: int,
        size: Size,
        seed: int,
        normalisation: Normalisation,
        share: Share = WHOLE,
        workers: int = 0,
    ):
        if len(images) == 0:
            raise UserError(f"{images.source}: no image has an object: the split is empty")
        self.workers = workers
        self._order = Order(len(images), batch_size, seed, share=share)
        self.batch_size, self.steps_per_epoch = self._order.batch_size, self._order.steps_per_epoch
        self._samples = _Samples(images, size, normalisation, seed)

    def steps(self, first: int, last: int) -> Iterator[tuple[torch.Tensor, Instances]]:
        places = map(self._order.at, range(first, last))
        if self.workers > 0:
            return by_workers(self._samples, places, self.workers)
        return map(self._samples.__getitem__, places)


class _Samples(Dataset):
    """The batch of `Places`."""

    def __init__(self, images: CocoSet, size: Size, normalisation: Normalisation, seed: int):
        self.images, self.size, self.normalisation, self.seed = images, size, normalisation, seed
        self._epoch: tuple[int, np.ndarray] | None = None  # a memo: number, which images are flipped

    def __getitem__(self, places: Places) -> tuple[torch.Tensor, Instances]:
        rows = places.positions.tolist()
        flips = self._flips(places.epoch)[rows].tolist()
        sizes = [fitted(self.images.pictures[row].size, self.size) for row in rows]
        batch = padded([self._input(*each) for each in zip(rows, sizes, flips, strict=True)])
        return batch, annotated(self.images, rows, sizes, flips, tuple(batch.shape[2:]))

    def _input(self, row: int, size: Size, flipped: bool) -> torch.Tensor:
        picture = self.images.pictures[row]
        image = open_image(self.images.path(row), picture.size, picture.stored, self.images.depth)
        return to_input(image, size, self.normalisation, flipped)

    def _flips(self, epoch: int) -> np.ndarray:
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, random_words(len(self.images), self.seed, epoch, _FLIP) >> np.uint64(63) == 1
        return self._epoch[1]


def annotated(
    images: CocoSet, rows: Sequence[int], sizes: Sequence[Size], flips: Sequence[bool], padded_to: Size
) -> Instances:
    """The objects of pictures as they are shown: resized to `sizes`, flipped, padded."""
    labels, boxes, found, counts = images.labels, [], [], []
    masks: list[np.ndarray] = []
    for row, size, flipped in zip(rows, sizes, flips, strict=True):
        picture = images.pictures[row]
        counts.append(len(picture.things))
        for thing in picture.things:
            found.append(labels[thing.category])
            boxes.append(_box(thing.box, picture.size, size, flipped))
            if images.masks:
                mask = np.zeros(padded_to, np.uint8)
                mask[: size[0], : size[1]] = thing.mask.bitmap(size, flipped)
                masks.append(mask)
    shown = None
    if images.masks:
        shown = torch.from_numpy(np.stack(masks) if masks else np.zeros((0, *padded_to), np.uint8))
    every = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Instances(tuple(sizes), tuple(counts), every, torch.tensor(found, dtype=torch.int64), shown)


def _box(box: Sequence[float], stored: Size, size: Size, flipped: bool) -> tuple[float, float, float, float]:
    """Left, top, right, bottom within the image as it is shown."""
    across, down = size[1] / stored[1], size[0] / stored[0]
    left, right = (min(max(x, 0.0), stored[1]) * across for x in (box[0], box[0] + box[2]))
    top, bottom = (min(max(y, 0.0), stored[0]) * down for y in (box[1], box[1] + box[3]))
    return (size[1] - right, top, size[1] - left, bottom) if flipped else (left, top, right, bottom)


class Single(Dataset):
    """Images one at a time, so that nothing found in one depends on how far another pads it."""

    def __init__(self, images: CocoSet, size: Size, normalisation: Normalisation):
        self.images, self.size, self.normalisation = images, size, normalisation

    def __getitem__(self, row: int) -> tuple[int, torch.Tensor, Size]:
        """The row, the batch (1, 3, H, W), and the image's size in it."""
        picture = self.images.pictures[row]
        size = fitted(picture.size, self.size)
        image = open_image(self.images.path(row), picture.size, picture.stored, self.images.depth)
        return row, padded([to_input(image, size, self.normalisation)]), size

    def of(self, rows: Sequence[int], workers: int) -> Iterator[tuple[int, torch.Tensor, Size]]:
        return by_workers(self, iter(rows), workers) if workers > 0 else map(self.__getitem__, rows)
