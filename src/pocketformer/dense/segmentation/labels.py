"""Masks of labels: how files write them, and the classes that they stand for."""

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from pocketformer.errors import UserError

IGNORE = -1  # the class of pixels that are not learned from, nor judged
_ONE_CHANNEL = ("1", "L", "P")  # and 16 or 32 bit, whose modes begin with I


@dataclass(frozen=True)
class Coding:
    """Of masks: label `ignore_index` has no class; with `reduce_zero_label` neither has 0, and label k is class k - 1
    (ADE20K's masks)."""

    ignore_index: int = 255
    reduce_zero_label: bool = False

    def classes(self, mask: np.ndarray) -> np.ndarray:
        """Labels int32 to classes int16, or `IGNORE`."""
        found = mask.astype(np.int16) - np.int16(self.reduce_zero_label)
        found[mask == self.ignore_index] = IGNORE
        return found

    def labels(self, classes: np.ndarray) -> np.ndarray:
        """Classes to the labels that masks have for them."""
        return classes + int(self.reduce_zero_label)

    def valid(self, label: int, num_classes: int | None) -> bool:
        """Whether masks may have the label; of an unknown number of classes, any that is not negative."""
        if label == self.ignore_index or (label == 0 and self.reduce_zero_label):
            return True
        most = np.iinfo(np.int16).max if num_classes is None else num_classes
        return 0 <= label - self.reduce_zero_label < most


def read_mask(path: str | Path | BinaryIO) -> np.ndarray:
    """Labels int32 (H, W). Raises `ValueError` for what is no map of labels, and what Pillow does."""
    with Image.open(path) as image:
        if image.mode not in _ONE_CHANNEL and not image.mode.startswith("I"):
            raise ValueError(f"in colour (mode {image.mode}), not one label a pixel")
        return np.asarray(image).astype(np.int32)


def read_classes(path: Path, coding: Coding) -> tuple[str, ...]:
    """Names of classes, one a line, in the order of their labels. A last one that is of the ignored label is left
    out. Raises `UserError` in one line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"class names {path} cannot be read: {getattr(error, 'strerror', 'not UTF-8')}") from None
    names = [line.strip() for line in lines if line.strip()]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"class names {path}: {', '.join(twice[:3])} more than once")
    if not names:
        raise UserError(f"class names {path}: the file is empty; write one name a line")
    ignored = coding.ignore_index - coding.reduce_zero_label
    if ignored == len(names) - 1:
        names.pop()
    elif 0 <= ignored < len(names):
        raise UserError(
            f"class names {path}: label {coding.ignore_index} is {names[ignored]!r} there, but it is the ignored one; "
            "only the last class can be ignored (or label 0, by --reduce-zero-label and without its name)"
        )
    return tuple(names)
