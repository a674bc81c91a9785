"""Photographs that EXIF turns, and on which of their two forms an annotation was drawn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import ExifTags, Image

T = TypeVar("T")
Size = tuple[int, int]  # height and width, px
_SWAPPED = (5, 6, 7, 8)  # orientations that swap the sides
_CLEAR = 1.25  # times the contrast along an annotation's edges that the other way would have


def frame(image: Image.Image, decode: Callable[[Image.Image], T]) -> tuple[T, Size, int]:
    """Of an opened image what `decode` gives, its size as stored, and its orientation, 1 to 8 as EXIF counts; 1:
    nothing is turned."""
    size, late = (image.height, image.width), image.format == "PNG"  # of which the entry may come behind the pixels
    turn = 1 if late else turn_of(image)
    found = decode(image)
    turn = turn_of(image) if late else turn
    return found, shown(size, turn) if image.format == "TIFF" else size, turn  # Pillow tells TIFF's size as shown


def turn_of(image: Image.Image) -> int:
    """1 also where the entry makes no sense. Before it is decoded; of PNG behind that."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken metadata, of which its parser raises anything
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def undone(image: Image.Image, turn: int) -> Image.Image:
    """An image that was turned, as it is stored."""
    return Image.fromarray(turned(np.asarray(image), {6: 8, 8: 6}.get(turn, turn)))


def shown(stored: Size, turn: int) -> Size:
    """The size of an image as it is meant to be seen."""
    return stored[::-1] if turn in _SWAPPED else stored


def turned(pixels: np.ndarray, turn: int) -> np.ndarray:
    """Pixels (H, W, …) as they are meant to be seen."""
    if turn in _SWAPPED:
        pixels = pixels.swapaxes(0, 1)
    if turn in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if turn in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


@dataclass(frozen=True)
class Settled:
    """Whether what fits both forms of its image was drawn on the stored one, and why that is thought."""

    stored: bool
    why: str


def settle(asked: str, drawn_shown: int, drawn_stored: int, contrasts: Sequence[float] = ()) -> Settled:
    """Decides for the annotations whose size fits both forms: as `asked`; else as those that fit but one, where they
    agree; else by `contrasts` (see `contrast`); else they were drawn on the image as it is shown."""
    if asked != "auto":
        return Settled(asked == "stored", f"--exif {asked}")
    if bool(drawn_shown) != bool(drawn_stored):
        return Settled(bool(drawn_stored), "as the others of this set, by their sizes")
    ratio = float(np.exp(np.mean(np.log(contrasts)))) if len(contrasts) else 1.0
    if not 1 / _CLEAR <= ratio <= _CLEAR:
        return Settled(ratio > 1, "there they lie on the edges in their images")
    return Settled(False, "as annotation tools show images")


def contrast(image: np.ndarray, drawn: np.ndarray, turn: int) -> float:
    """How much stronger the edges of an image (H, W), as stored, are along the borders of what was drawn (H, W) if
    that was drawn on it as stored than if it was on the image as shown."""
    grey = image.astype(np.float32)
    edges = np.zeros_like(grey)
    edges[:, 1:] += np.abs(np.diff(grey, axis=1))
    edges[1:] += np.abs(np.diff(grey, axis=0))

    def strength(pixels: np.ndarray) -> float:
        border = np.zeros(drawn.shape, bool)
        border[:, 1:] |= drawn[:, 1:] != drawn[:, :-1]
        border[1:] |= drawn[1:] != drawn[:-1]
        return float(pixels[border].mean()) if border.any() else 0.0

    least = float(edges.mean()) / 10 + 1e-6
    return (strength(edges) + least) / (strength(turned(edges, turn)) + least)
