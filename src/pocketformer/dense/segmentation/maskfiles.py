"""Files of masks: what they hold, and which of them cannot hold labels."""

import io
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from pocketformer.dense.orientation import turn_of, turned
from pocketformer.dense.segmentation.labels import Coding
from pocketformer.training.opening import open_image

# Those that also have a lossless form do not say reliably which it is.
_LOSSY = ("JPEG", "JPEG2000", "MPO", "AVIF", "HEIF", "HEIC", "DDS", "JXL")
_LOSSY_TIFF = ("jpeg", "tiff_jpeg", "old_jpeg", "webp")  # `compression` as Pillow names it
_GREY = ("1", "L", "P", "LA", "PA", "La", "F")  # and 16 or 32 bit, whose modes begin with I


class Lossy(ValueError):
    """A file whose compression changes labels."""


class Coloured(ValueError):
    """A mask in colour where none is expected; `colours`: a few that it has."""

    def __init__(self, mode: str, colours: list[tuple[int, int, int]]):
        super().__init__(f"in colour (mode {mode}), not one label a pixel")
        self.colours = colours


@dataclass(frozen=True, eq=False)
class MaskFile:
    """`labels` int32 (H, W) as stored; `bits`: a mask of 1 bit, whose labels are then 0 and 1; `turn`: its own EXIF
    orientation; `palette`: the colours of the labels that occur, of an indexed mask."""

    labels: np.ndarray
    bits: bool = False
    turn: int = 1
    palette: dict[int, tuple[int, int, int]] = field(default_factory=dict)


def read_mask(path: str | Path | BinaryIO, coding: Coding | None = None, turn: int = 1) -> np.ndarray:
    """Labels int32 (H, W), turned by EXIF's `turn`. Raises `ValueError` for what is no map of labels, and what Pillow
    does."""
    coding = coding or Coding()
    found = open_mask(path, coding)
    labels = found.labels
    if found.bits and len(coding.values) == 2:
        labels = np.array(coding.values, np.int32)[labels]
    return labels if turn == 1 else turned(labels, turn)


def open_mask(path: str | Path | BinaryIO, coding: Coding) -> MaskFile:
    """A mask as it is in its file: grey, indexed (the index is the label, but for a palette of greys alone), or colours
    whose channels are equal; with `coding.colours` colours (see `Coding`). TIFF comes as EXIF turns it. Raises as
    `read_mask` does."""
    # Not by its path: what Pillow maps it turns otherwise.
    with open_image(io.BytesIO(Path(path).read_bytes()) if isinstance(path, str | Path) else path) as image:
        refuse_lossy(image)
        if getattr(image, "n_frames", 1) > 1:
            raise ValueError(f"{image.n_frames} pictures in one file")
        image.load()
        found = _decoded(image, coding)
        turn = turn_of(image)
        return found if image.format == "TIFF" else replace(found, turn=turn)  # Pillow turns TIFF itself


def _decoded(image: Image.Image, coding: Coding) -> MaskFile:
    if coding.colours:
        return MaskFile(_packed(image))
    grey = image.mode in _GREY or image.mode.startswith("I")
    labels = _grey(image) if grey else _of_equal_channels(image)
    palette = np.array(image.getpalette("RGB") or [] if image.mode in ("P", "PA") else [], np.int32).reshape(-1, 3)
    there = np.unique(labels)
    if len(palette) > max(there[-1], 0) and (palette == palette[:, :1]).all():
        # As GIF writes grey: the numbers are those of the shades, in any order.
        shades = palette[there, 0]
        if len(np.unique(shades)) == len(there):
            return MaskFile(palette[labels, 0])
    colours = {int(i): tuple(palette[i].tolist()) for i in there[(there >= 0) & (there < len(palette))]}
    return MaskFile(labels, image.mode == "1", palette=colours)


def refuse_lossy(image: Image.Image) -> None:
    """Raises `Lossy` where the compression of an opened file, not yet decoded, is one that changes values."""
    kind, how = image.format, str(image.info.get("compression", ""))
    if kind in _LOSSY:
        raise Lossy(kind)
    if (kind == "TIFF" and how in _LOSSY_TIFF) or (kind == "WEBP" and not _is_lossless_webp(image)):
        raise Lossy(f"{kind} with lossy compression")


def _is_lossless_webp(image: Image.Image) -> bool:
    """By the chunks of the container: lossless pixels are in one of their own kind."""
    image.fp.seek(12)
    while len(head := image.fp.read(8)) == 8:
        if head[:4] in (b"VP8L", b"VP8 "):
            return head[:4] == b"VP8L"
        size = int.from_bytes(head[4:], "little")
        image.fp.seek(size + size % 2, 1)
    return False


def _grey(image: Image.Image) -> np.ndarray:
    if image.mode in ("LA", "PA", "La"):
        _refuse_alpha(np.asarray(image.getchannel("A")))
        image = image.getchannel(0)
    values = np.asarray(image)
    if values.dtype.kind == "f":
        if not np.isfinite(values).all() or (values != np.round(values)).any():
            raise ValueError("numbers that are not whole (mode F), not labels")
        if np.abs(values).max(initial=0) > np.iinfo(np.int32).max:
            raise ValueError("numbers that are too large for labels")
    return values.astype(np.int32)


def _rgb(image: Image.Image) -> np.ndarray:
    """uint8 (H, W, 3)."""
    if image.mode == "RGBA":
        _refuse_alpha(np.asarray(image.getchannel("A")))
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _refuse_alpha(alpha: np.ndarray) -> None:
    if alpha.size and alpha.min() != alpha.max():
        raise ValueError("partly transparent: labels must be in its colours alone")


def _packed(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I") or image.mode == "F":
        raise ValueError(f"not in colour (mode {image.mode}), but its classes are named by colours")
    pixels = _rgb(image).astype(np.int32)
    return pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]


def _of_equal_channels(image: Image.Image) -> np.ndarray:
    if image.mode not in ("RGB", "RGBA", "RGBX"):
        raise Coloured(image.mode, [])
    pixels = _rgb(image)
    if (pixels == pixels[..., :1]).all():
        return pixels[..., 0].astype(np.int32)
    found = np.unique(pixels[:: max(1, len(pixels) // 64)].reshape(-1, 3), axis=0)
    raise Coloured(image.mode, [tuple(colour) for colour in found[:6].tolist()])
