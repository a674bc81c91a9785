"""Which labels of masks stand for which classes."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

IGNORE = -1  # the class of pixels that are not learned from, nor judged
_USUAL = 255
_LARGEST = 65535  # label that can be written back as an image


@dataclass(frozen=True)
class Coding:
    """Of masks: label `ignore_index` (None: 255, unless the masks are of 0 and 255 alone) has no class; with
    `reduce_zero_label` neither has 0, and label k is class k - 1 (ADE20K's masks).

    With `values` the i-th of these labels is class i, and those of `void` have none. `colours`: labels are colours,
    red * 65536 + green * 256 + blue. `rounded`: a label counts as the nearest of `values`.
    """

    ignore_index: int | None = None
    reduce_zero_label: bool = False
    values: tuple[int, ...] = ()
    void: tuple[int, ...] = ()
    colours: bool = False
    rounded: bool = False

    @property
    def ignored(self) -> int:
        return _USUAL if self.ignore_index is None else self.ignore_index

    def classes(self, mask: np.ndarray) -> np.ndarray:
        """Labels int32 to classes int16, or `IGNORE`."""
        if self.values:
            known = np.array(self.values)
            order = np.argsort(known)
            if self.rounded:
                bounds = (known[order][1:] + known[order][:-1] + 1) // 2
                return order[np.searchsorted(bounds, mask, side="right")].astype(np.int16)
            place = order[np.searchsorted(known[order], mask).clip(max=len(known) - 1)]
            return np.where(known[place] == mask, place, IGNORE).astype(np.int16)
        found = mask.astype(np.int16) - np.int16(self.reduce_zero_label)
        found[mask == self.ignored] = IGNORE
        return found

    def labels(self, classes: np.ndarray) -> np.ndarray:
        """Classes to the labels that masks have for them."""
        return np.array(self.values)[classes] if self.values else classes + int(self.reduce_zero_label)

    def valid(self, label: int, num_classes: int | None) -> bool:
        """Whether masks may have the label; of an unknown number of classes, any that is not negative."""
        if self.colours or self.void:
            return label in self.values or label in self.void
        if self.rounded:
            return min(self.values) <= label <= max(self.values)
        if label == self.ignored or (label == 0 and self.reduce_zero_label):
            return True
        if self.values:
            return label in self.values
        most = _LARGEST + 1 if num_classes is None else num_classes
        return 0 <= label - self.reduce_zero_label < most

    def known(self, num_classes: int) -> str:
        """The labels that masks may have, for a message."""
        if self.values:
            names = [self.named(label) for label in self.values[:8]] + ["…"] * (len(self.values) > 8)
            void = [self.named(label) for label in self.void]
            rest = void if self.colours or self.void else [str(self.ignored)] * (self.ignored not in self.values)
            return ", ".join(names) + (f"; ignored: {' and '.join(rest)}" if rest else "")
        first = int(self.reduce_zero_label)
        zero = "0 and " if self.reduce_zero_label else ""
        return f"{first} to {first + num_classes - 1}; ignored: {zero}{self.ignored}"

    def named(self, label: int) -> str:
        return colour_text(label) if self.colours else str(label)


def colour_text(label: int) -> str:
    return f"({label >> 16}, {label >> 8 & 255}, {label & 255})"


def ranges(labels: Iterable[int]) -> str:
    """Whole numbers in order, neighbours drawn together: "0, 1, 5 to 9"."""
    runs: list[list[int]] = []
    for label in sorted(labels):
        if runs and label == runs[-1][1] + 1:
            runs[-1][1] = label
        else:
            runs.append([label, label])
    texts = [str(a) if a == b else f"{a}, {b}" if b == a + 1 else f"{a} to {b}" for a, b in runs]
    return ", ".join(texts[:8]) + (", …" if len(texts) > 8 else "")
