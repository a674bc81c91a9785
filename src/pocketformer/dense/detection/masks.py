"""Masks as COCO writes them: polygons, or run lengths, compressed or not. Nothing of a file is trusted."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

Size = tuple[int, int]  # height and width, px


@dataclass(frozen=True, eq=False)
class Polygons:
    """The union of polygons, each float64 (V, 2) of x and y in px. `dropped`: why others of the file are not there."""

    parts: tuple[np.ndarray, ...]
    size: Size
    dropped: tuple[str, ...] = ()

    def to_coco(self) -> list[list[float]]:
        return [part.ravel().tolist() for part in self.parts]

    def bitmap(self, size: Size, flipped: bool) -> np.ndarray:
        """uint8 (H, W) of the image resized to `size`, then flipped left to right where asked for."""
        from faster_coco_eval.core import mask as coco

        factor = np.array([size[1] / self.size[1], size[0] / self.size[0]])
        parts = [part * factor for part in self.parts]
        if flipped:
            parts = [np.array([size[1], 0]) + part * np.array([-1, 1]) for part in parts]
        return coco.decode(coco.merge(coco.frPyObjects([part.ravel().tolist() for part in parts], *size)))


@dataclass(frozen=True, eq=False)
class Runs:
    """Lengths of runs of 0 and 1 in turn, down the columns."""

    counts: np.ndarray
    size: Size

    def to_coco(self) -> dict:
        return {"size": list(self.size), "counts": self.counts.tolist()}

    def bitmap(self, size: Size, flipped: bool) -> np.ndarray:
        values = np.arange(len(self.counts)) % 2
        found = np.repeat(values.astype(np.uint8), self.counts).reshape(self.size[::-1]).T
        if size != self.size:
            found = np.asarray(Image.fromarray(found).resize(size[::-1], Image.Resampling.NEAREST))
        return np.ascontiguousarray(found[:, ::-1] if flipped else found)


Mask = Polygons | Runs


def parse(given: Any, size: Size) -> Mask:
    """The mask of an object in an image of `size`. Raises `ValueError` that says what is wrong with it; of several
    polygons those alone that are wrong are left out."""
    if isinstance(given, dict):
        return Runs(_runs(given, size), size)
    if not isinstance(given, list) or not given:
        raise ValueError("neither polygons nor run lengths")
    parts, dropped = [], []
    for part in _polygons(given):
        try:
            parts.append(_polygon(part, size))
        except ValueError as error:
            dropped.append(str(error))
    if not parts:
        raise ValueError(dropped[0])
    return Polygons(tuple(parts), size, tuple(dropped))


def _polygons(given: list) -> list:
    """Also one polygon that is not in a list of its own: of numbers, or of points."""
    if all(isinstance(value, int | float) for value in given):
        return [given]
    if len(given) > 2 and all(isinstance(point, list) and len(point) == 2 for point in given):
        return [given]
    return given


def _polygon(given: Any, size: Size) -> np.ndarray:
    try:
        found = np.array(given, np.float64)
    except (TypeError, ValueError):
        raise ValueError("a polygon is not a list of numbers") from None
    if found.ndim == 2 and found.shape[1] == 2:  # a list of points
        found = found.ravel()
    if found.ndim != 1 or len(found) < 6 or len(found) % 2:
        raise ValueError("a polygon of fewer than 3 points")
    points = found.reshape(-1, 2)
    limits = np.array([size[1], size[0]], np.float64)
    # Far away it would take the rasteriser memory without end.
    if not np.isfinite(points).all() or (points < -limits).any() or (points > 2 * limits).any():
        raise ValueError("a polygon far outside the image")
    return points


def _runs(given: dict, size: Size) -> np.ndarray:
    if given.get("size") != list(size):
        raise ValueError(f"a mask of {_named(given.get('size'))}, not of the image's {_named(list(size))}")
    counts = given.get("counts")
    if isinstance(counts, str):
        counts = _decompressed(counts)
    if not isinstance(counts, list) or any(not isinstance(n, int) or isinstance(n, bool) or n < 0 for n in counts):
        raise ValueError("run lengths that are not whole numbers from 0 on")
    if sum(counts) != size[0] * size[1]:
        raise ValueError("run lengths that do not add up to the image")
    return np.array(counts, np.int64)


def _named(size: Any) -> str:
    good = isinstance(size, list) and len(size) == 2 and all(isinstance(side, int) for side in size)
    return f"{size[0]} x {size[1]} px" if good else "no size"


def _decompressed(text: str) -> list[int]:
    """COCO's compressed form: numbers in groups of 5 bits, lowest first, each a character from "0" on whose sixth bit
    says that more follow; from the fourth number on, the difference to the last but one."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError("compressed run lengths that are damaged")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("compressed run lengths that are cut short")
    return counts


def area(mask: Mask) -> float:
    return float(mask.bitmap(mask.size, False).sum())
