"""How well a segmenter does: the confusion matrix of all pixels of a split, and what is read off it."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import nn

from pocketformer import ranks
from pocketformer.architecture.design import Grid
from pocketformer.dense.segmentation.crops import read_pair, scale_to
from pocketformer.dense.segmentation.folders import Pairs
from pocketformer.dense.segmentation.labels import Coding
from pocketformer.dense.segmentation.segmenter import Segmenter, upsampled
from pocketformer.training.pixels import Normalisation

_CHANNELS = 16  # of the logits that are brought to an image's own size at a time


@dataclass(frozen=True, eq=False)
class Scores:
    """`confusion` int64 (classes, classes): pixels by their class and by what they were taken for. Classes that are
    neither there nor predicted have no IoU (nan), and no part in the mean."""

    confusion: np.ndarray
    images: int

    @property
    def iou(self) -> np.ndarray:
        both = np.diag(self.confusion).astype(float)
        either = self.confusion.sum(0) + self.confusion.sum(1) - both
        return np.divide(both, either, out=np.full(len(both), np.nan), where=either > 0)

    @property
    def miou(self) -> float:
        known = self.iou[~np.isnan(self.iou)]
        return float(known.mean()) if len(known) else 0.0

    @property
    def pixel_accuracy(self) -> float:
        return float(np.diag(self.confusion).sum() / max(self.confusion.sum(), 1))

    def to_dict(self, classes: Sequence[str]) -> dict:
        found = {name: None if np.isnan(x) else float(x) for name, x in zip(classes, self.iou, strict=True)}
        pixels = dict(zip(classes, self.confusion.sum(1).tolist(), strict=True))
        values = {"mIoU": self.miou, "pixel_accuracy": self.pixel_accuracy, "images": self.images}
        return {**values, "iou": found, "pixels": pixels}


def count(truth: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """The confusion matrix of one image; pixels whose true class is below 0 do not count."""
    labelled = truth >= 0
    places = truth[labelled].astype(np.int64) * num_classes + predicted[labelled]
    return np.bincount(places, minlength=num_classes**2).reshape(num_classes, num_classes)


def prepared(image: Image.Image, size: Grid, normalisation: Normalisation, least: int) -> torch.Tensor:
    """An RGB image at the base scale of `size`, whole, in its own shape: float32 (1, 3, h, w), normalised.

    The published pipeline then stretches each side to a multiple of 32. Here the networks take any size and nothing is
    stretched or padded, so that an image keeps its proportions; no side is below `least`.
    """
    factor = scale_to(*image.size, size)
    width, height = (max(least, round(side * factor)) for side in image.size)
    pixels = np.array(image.resize((width, height), Image.Resampling.BILINEAR))
    mean, std = (torch.tensor(values) for values in normalisation)
    return torch.from_numpy(pixels).float().div_(255).sub_(mean).div_(std).permute(2, 0, 1)[None]


@torch.inference_mode()
def segment(model: nn.Module, image: torch.Tensor, size: Grid) -> np.ndarray:
    """Classes int16 (height, width) of a prepared image, at its own `size`; `model` in evaluation mode."""
    device = next(model.parameters()).device
    return classes_at(model(image.to(device)).float(), size)


def classes_at(logits: torch.Tensor, size: Grid) -> np.ndarray:
    """The class of the largest logit (1, classes, h, w) at another size; a few channels at a time, as all of them at
    the size of a photograph may not fit."""
    best, classes = None, None
    for first in range(0, logits.shape[1], _CHANNELS):
        values, found = upsampled(logits[:, first : first + _CHANNELS], size)[0].max(0)
        if best is None:
            best, classes = values, found
            continue
        larger = values > best
        best, classes = torch.where(larger, values, best), torch.where(larger, found + first, classes)
    return classes.to(torch.int16).cpu().numpy()


def evaluate(
    model: Segmenter,
    pairs: Pairs,
    coding: Coding,
    size: Grid,
    normalisation: Normalisation,
    workers: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Scores:
    """Every image of a split once, whole, one at a time, judged at its own size; `model` in evaluation mode.

    The processes of a job deal out the images and all get the sum, no image counted twice. `workers`: threads that
    read ahead.
    """
    num_classes = model.num_classes
    total, seen = np.zeros((num_classes, num_classes), np.int64), 0
    least = max(model.backbone.reductions)
    rows = range(ranks.rank(), len(pairs), ranks.count())

    def load(row: int) -> tuple[torch.Tensor, np.ndarray]:
        image, truth = read_pair(pairs, row, coding)
        return prepared(image, size, normalisation, least), truth

    for image, truth in _ahead(load, rows, workers):
        total += count(truth, segment(model, image, truth.shape), num_classes)
        seen += 1
        if progress:
            progress(min(seen * ranks.count(), len(pairs)))
    parts = ranks.gather((total, seen))
    return Scores(sum(found for found, _ in parts), sum(images for _, images in parts))


def _ahead(load: Callable, rows: Sequence[int], workers: int) -> Iterator:
    if workers == 0:
        yield from map(load, rows)
        return
    pool = ThreadPoolExecutor(workers)
    try:
        waiting: deque = deque()
        for row in rows:
            waiting.append(pool.submit(load, row))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
