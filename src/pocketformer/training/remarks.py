"""What there is to tell of the pixels of many images: a count, the first three names and the rule, once a kind."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from pocketformer.training.colours import Remark, Seen
from pocketformer.training.depths import Depth, Extent

PLAIN = 2  # an image whose values differ by no more in any channel is of one colour
_TEXTS = {
    Remark.CLEAR: "with transparent pixels: laid over white",
    Remark.LIGHT: "with transparent pixels, the others nearly white: laid over black",
    Remark.FRAMES: "with several frames or pages: the first is taken",
    Remark.CHANNELS: "with more channels than colours and alpha: those are left out",
    Remark.INK: "in CMYK or LAB: converted by the usual formula, without their colour profile",
    Remark.PLAIN: "of one colour once decoded",
}


@dataclass
class Remarks:
    """Filled while images are decoded. `rows` (row -> what was remarked) has only those of which there is something
    to say, `extents` those with more than 8 bits a channel; `looked`: how many were looked at."""

    rows: dict[int, frozenset[Remark]] = field(default_factory=dict)
    extents: dict[int, Extent] = field(default_factory=dict)
    looked: int = 0

    def add(self, row: int, seen: Seen, plain: bool) -> None:
        """Of one image; threads may call it at once, each for a row of its own."""
        remarks = seen.remarks | {Remark.PLAIN} if plain else seen.remarks
        self.rows.pop(row, None)
        if remarks:
            self.rows[row] = remarks
        if Remark.DEEP in remarks:
            self.extents[row] = seen.extent

    @property
    def extent(self) -> Extent:
        return Extent.over(self.extents.values())

    def having(self, remark: Remark) -> list[int]:
        return sorted(row for row, remarks in self.rows.items() if remark in remarks)

    def notes(self, name: Callable[[int], str], depth: Depth) -> list[str]:
        """One sentence a kind. `depth`: the rule that the images were, or will be, decoded by."""
        found = []
        if deep := self.having(Remark.DEEP):
            cut = self.having(Remark.CUT)
            beyond = f"; {_images(cut, name)} hold values beyond, which are cut off" if cut else ""
            found.append(
                f"{_images(deep, name)} with more than 8 bits a channel: {depth.text()} become 0 to 255, in all images "
                f"alike{beyond}"
            )
        found += [f"{_images(rows, name)} {text}" for kind, text in _TEXTS.items() if (rows := self.having(kind))]
        return found

    def warnings(self, labels: np.ndarray, classes: tuple[str, ...]) -> list[str]:
        """Where there is nothing to be seen in all images of a class, or in half of all."""
        plain = self.having(Remark.PLAIN)
        if not plain:
            return []
        if 2 * len(plain) >= self.looked:
            of = "all" if len(plain) == self.looked else f"{len(plain)} of {self.looked}"
            why = "nothing can be learned from them (values such as 0 and 1 of 255 are one colour)"
            return [f"{of} images are of one colour once decoded: {why}"]
        alone = np.bincount(labels[plain][labels[plain] >= 0], minlength=len(classes))
        counts = np.bincount(labels[labels >= 0], minlength=len(classes))
        empty = [classes[i] for i in np.flatnonzero((alone == counts) & (counts > 0))]
        names = ", ".join(empty[:3]) + (", …" if len(empty) > 3 else "")
        return [f"all images of {names} are of one colour once decoded"] if empty else []

    def to_dict(self) -> dict:
        return {
            "rows": {str(row): sorted(remarks) for row, remarks in self.rows.items()},
            "extents": {str(row): [extent.whole, extent.real] for row, extent in self.extents.items()},
            "looked": self.looked,
        }

    @classmethod
    def from_dict(cls, values: Mapping) -> "Remarks":
        return cls(
            {int(row): frozenset(map(Remark, remarks)) for row, remarks in values["rows"].items()},
            {int(row): Extent(*(r and tuple(r) for r in ranges)) for row, ranges in values["extents"].items()},
            int(values["looked"]),
        )


def is_plain(lows: Iterable[int], highs: Iterable[int]) -> bool:
    """Of the smallest and largest value of each channel."""
    return all(int(high) - int(low) <= PLAIN for low, high in zip(lows, highs, strict=True))


def _images(rows: list[int], name: Callable[[int], str]) -> str:
    names = ", ".join(map(name, rows[:3])) + (", …" if len(rows) > 3 else "")
    return f"{len(rows)} image{'s' * (len(rows) > 1)} ({names})"
