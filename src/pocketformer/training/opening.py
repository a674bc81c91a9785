"""Image files opened by Pillow: formats of optional packages, the largest size, and why one cannot be read."""

import contextlib
import ctypes
import importlib.util
import io
import logging
import os
import re
import warnings
from functools import cache
from pathlib import Path
from typing import BinaryIO

from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from pocketformer.errors import UserError

LIMIT_VARIABLE = "POCKETFORMER_MAX_PIXELS"
_HEIF = b"heic heix heim heis hevc hevx hevm hevs mif1 msf1 heif"
_FOREIGN = {  # what people take for images, by how it begins; Pillow knows none of it
    b"\xff\x0a": "JPEG XL",
    b"\x00\x00\x00\x0cJXL ": "JPEG XL",
    b"%PDF": "a PDF document",
    b"<svg": "an SVG drawing",
    b"<!DOCTYPE html": "a web page",
    b"version https://git-lfs": "a pointer of Git LFS (`git lfs pull` fetches the image)",
    b"\x93NUMPY": "a NumPy array",
    b"\x89HDF": "an HDF5 file",
    b"\x76\x2f\x31\x01": "OpenEXR",
}
_SAMPLES = {1: "unsigned", 2: "signed", 3: "floating point"}


class Unreadable(ValueError):
    """Says in full why an image cannot be read."""


def open_image(file: BinaryIO | Path | str) -> Image.Image:
    """`Image.open`, which decodes nothing yet. HEIC and HEIF too, where pillow-heif is installed.

    Pillow's warnings (odd metadata, large images) are kept off the screen. Images of more pixels than Pillow's limit,
    or than $POCKETFORMER_MAX_PIXELS, are refused. Raises whatever Pillow does, and `Unreadable`.
    """
    _quieten()
    if limit := os.environ.get(LIMIT_VARIABLE):
        Image.MAX_IMAGE_PIXELS = _pixels(limit) // 2  # Pillow refuses at twice of it
    image = _opened(file)
    image.opened_from = file
    return image


def reopened(image: Image.Image) -> Image.Image | None:
    """The same image, not decoded, of what `open_image` opened; None: somebody else has, or what it read is gone."""
    file = getattr(image, "opened_from", None) or getattr(image, "filename", None) or getattr(image, "fp", None)
    if not file:
        return None
    if not hasattr(file, "seek"):
        return open_image(io.BytesIO(Path(file).read_bytes()))
    file.seek(0)
    return open_image(io.BytesIO(file.read()))


def _opened(file: BinaryIO | Path | str) -> Image.Image:
    try:
        return Image.open(file)
    except UnidentifiedImageError:
        head = _head(file)
        if head[4:8] == b"ftyp" and head[8:12] in _HEIF:
            if importlib.util.find_spec("pillow_heif") is None:
                raise Unreadable("HEIC: install pocketformer[heic]") from None
            import pillow_heif

            pillow_heif.register_heif_opener()
            return Image.open(file)
        if why := _foreign(file, head):
            raise Unreadable(why) from None
        raise


def why_unreadable(error: Exception) -> str:
    """A word or two on why an image cannot be read."""
    if isinstance(error, Unreadable):
        return str(error)
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, FileNotFoundError):
        return "missing"
    if isinstance(error, PermissionError):
        return "no permission"
    text = " ".join(str(error).split())
    if re.match(r"decoder error|encountered decoder error|broken data stream|broken PNG", text):
        return "damaged"
    if isinstance(error, Image.DecompressionBombError):
        pixels, limit = (int(number) for number in re.findall(r"\d+", text)[:2])
        return f"{pixels:,} pixels, more than {limit:,}; {LIMIT_VARIABLE}={pixels} lets it pass"
    return "truncated" if "truncated" in text.lower() else text[:60] or type(error).__name__


_PILLOW = re.compile(r"PIL\b")


def _quieten() -> None:
    # For good: leaving `catch_warnings` in one thread would undo what another has set.
    rule = ("ignore", None, Warning, _PILLOW, 0)
    if warnings.filters[:1] != [rule]:
        with contextlib.suppress(ValueError):
            warnings.filters.remove(rule)
        warnings.filters.insert(0, rule)
        warnings._filters_mutated()
    _quieten_libraries()


@cache
def _quieten_libraries() -> None:
    """Pillow's log, which Python prints where nobody asks for it, and libtiff's own messages: Pillow raises as well."""
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    with contextlib.suppress(OSError, AttributeError):  # a Pillow without it, or that hides it
        ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)


def _pixels(text: str) -> int:
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?(?:e\d+)?)\s*([kMG]?)\s*", text)
    count = int(float(found[1]) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}[found[2]]) if found else 0
    if count < 2:
        raise UserError(f"{LIMIT_VARIABLE} is {text!r}; give a number of pixels, such as 500000000 or 500M")
    return count


def _head(file: BinaryIO | Path | str) -> bytes:
    if hasattr(file, "read"):
        file.seek(0)
        head = file.read(512)
        file.seek(0)
        return head
    with open(file, "rb") as opened:
        return opened.read(512)


def _foreign(file: BinaryIO | Path | str, head: bytes) -> str | None:
    """What a file is that Pillow does not know, if it is something known."""
    if head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis"):
        return "AVIF: needs Pillow 11.3 or later"
    if head[128:132] == b"DICM":
        return "DICOM, which is not read: convert it to 16-bit PNG or TIFF"
    if any(head.startswith(prefix) for prefix in TiffImagePlugin.PREFIXES):
        return _tiff(file, head)
    return next((f"{what}, which is not read" for start, what in _FOREIGN.items() if head.startswith(start)), None)


def _tiff(file: BinaryIO | Path | str, head: bytes) -> str | None:
    """The channels of a TIFF file of a kind that Pillow does not read."""
    if not hasattr(file, "read"):
        with open(file, "rb") as opened:
            return _tiff(opened, head)
    try:
        file.seek(0)
        head = file.read(16 if 43 in head[2:4] else 8)
        tags = TiffImagePlugin.ImageFileDirectory_v2(head)
        file.seek(tags.next)
        tags.load(file)
        count, bits = tags.get(277, 1), tags.get(258, (1,))
        kind = _SAMPLES.get(tags.get(339, (1,))[0], "unknown")
        return f"a TIFF of {count} channel{'s' * (count > 1)} of {bits[0]} bits ({kind}), which Pillow does not read"
    except Exception:  # damaged: whatever its parser raises
        return None
