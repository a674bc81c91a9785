"""Any image that Pillow opens, as upright 8-bit RGB, by one stated rule each kind (docs/images.md has the table)."""

import re
import sys
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from PIL import ExifTags, Image

from pocketformer.training.depths import Depth, Extent
from pocketformer.training.opening import Unreadable, reopened

GROUND, DARK = (255, 255, 255), (0, 0, 0)  # what transparent pixels are laid over; where the visible ones are light
_LIGHT = 235  # of 255: what is as light on average would hardly be seen on white
_FRAMED = ("AVIF", "GIF", "HEIF", "PNG", "TIFF", "WEBP")  # others hold previews or layers beside the image
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
_TURNS = {  # what undoes an orientation of EXIF
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
UNKNOWN = Depth()


class Remark(StrEnum):
    """What was assumed about an image, or is odd about it."""

    CLEAR = "clear"  # has transparent pixels
    LIGHT = "light"  # and else nearly white ones
    FRAMES = "frames"
    CHANNELS = "channels"  # more than three colours and alpha
    INK = "ink"
    DEEP = "deep"  # of more than 8 bits a channel
    CUT = "cut"  # holds values beyond the depth
    PLAIN = "plain"  # of one colour: seen by who decodes to a size


@dataclass(frozen=True)
class Seen:
    """An image as it is used, and what there is to say of it. `extent`: of its values, where they have more than 8
    bits and were looked at."""

    image: Image.Image
    remarks: frozenset[Remark] = frozenset()
    extent: Extent = field(default_factory=Extent)


def see(image: Image.Image, depth: Depth = UNKNOWN) -> Seen:
    """Decodes an opened image. Raises whatever Pillow does, and `Unreadable`.

    Colour profiles and gamma are not applied. What `depth` does not say goes by the values of this image alone.
    """
    given, image = image, _undecoded(image)
    remarks = {Remark.FRAMES} if _frames(image) > 1 else set()
    _set_byte_order(image)
    raw = _raw_mode(image)  # gone once it is loaded
    twin = _low_bytes(image, raw) if _is_deep_colour(image, raw) and not _is_shifted(image, depth) else None
    more_channels = image.format == "TIFF" and "X" in raw.split(";")[0]
    image.load()
    extent = Extent()
    turn = _turn(given if given.format != "TIFF" else image)  # Pillow turns TIFF itself
    if image.mode.startswith(("I", "F")) or twin is not None:
        image, extent, cut = _reduced(image, twin, raw, depth)
        remarks |= {Remark.DEEP, Remark.CUT} if cut else {Remark.DEEP}
    elif _is_deep_colour(image, raw):
        remarks.add(Remark.DEEP)
    if image.mode in ("CMYK", "LAB"):
        remarks.add(Remark.INK)
    if more_channels:
        remarks.add(Remark.CHANNELS)
    rgb, ground = _over_ground(image, raw)
    if rgb is None:
        rgb = image if image.mode == "RGB" else image.convert("RGB")
    else:
        remarks.add(Remark.LIGHT if ground == DARK else Remark.CLEAR)
    return Seen(rgb.transpose(turn) if turn is not None else rgb, frozenset(remarks), extent)


def upright(image: Image.Image, depth: Depth = UNKNOWN) -> Image.Image:
    """The whole image decoded: 8-bit RGB, turned as its EXIF data say."""
    return see(image, depth).image


def _undecoded(image: Image.Image) -> Image.Image:
    """The image; anew if it was decoded already (asking a PNG file for its EXIF does) and its file lays out its pixels
    in another way than Pillow hands them over."""
    if getattr(image, "tile", None):
        return image
    if image.format == "TIFF":
        other = max(_tag(image, _BITS, (8,))) > 8
    else:
        other = image.format == "PNG" and (image.mode in ("RGB", "RGBA") or "transparency" in image.info)
    again = reopened(image) if other else None
    return again if again is not None and ";" in _raw_mode(again) else image


def _frames(image: Image.Image) -> int:
    if image.format not in _FRAMED:
        return 1
    try:
        return getattr(image, "n_frames", 1)
    except Exception:  # broken behind its first frame
        image.seek(0)
        return 1


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # broken metadata, of which its parser raises anything
        return None


def _raw_mode(image: Image.Image) -> str:
    """How the file lays out its pixels, as Pillow names it; empty where it does not say."""
    tiles = getattr(image, "tile", None) or [("", None, 0, "")]
    arguments = tiles[0][3]
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


# --- more than 8 bits


def _set_byte_order(image: Image.Image) -> None:
    """libtiff gives values in the order of this machine; Pillow takes those of more than 16 bits, or with a sign, for
    being in the order of the file."""
    for place, tile in enumerate(getattr(image, "tile", ())):
        if tile[0] == "libtiff":
            raw = re.sub(r"^([IF]);(16|32|64)B?([SF])$", r"\1;\2N\3", tile[3][0])
            image.tile[place] = tile._replace(args=_with_raw_mode(tile[3], raw))


def _is_deep_colour(image: Image.Image, raw: str) -> bool:
    """Whether Pillow would keep only the high byte of each 16-bit value."""
    return ";16" in raw and not image.mode.startswith(("I", "F"))


def _is_shifted(image: Image.Image, depth: Depth) -> bool:
    """Whether the high byte is all that the depth asks for."""
    return depth.bits == 16 and not depth.signed and "transparency" not in image.info


def _low_bytes(image: Image.Image, raw: str) -> Image.Image | None:
    """The same image of the low bytes, which Pillow gives if it is told the other order of bytes."""
    if raw.startswith(("RGBa", "La")):  # it divides by alpha on its way
        return None
    other = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}[raw[-1]]
    swapped = "RGBA" if raw == "LA;16B" else raw[:-1] + other
    twin = reopened(image)
    if twin is None:
        return None
    twin.tile = [tile._replace(args=_with_raw_mode(tile.args, swapped)) for tile in twin.tile]
    twin.load()
    return twin


def _with_raw_mode(arguments: tuple | str, raw: str) -> tuple | str:
    return (raw, *arguments[1:]) if isinstance(arguments, tuple) else raw


def _reduced(image: Image.Image, twin: Image.Image | None, raw: str, depth: Depth) -> tuple[Image.Image, Extent, bool]:
    """L, LA, RGB, RGBA or CMYK of 8 bits; the extent of its values without alpha; whether some were cut off."""
    values, alpha = _values(image) if twin is None else _wide(image, twin, raw)
    try:
        extent = Extent.of(values)
    except ValueError as error:
        raise Unreadable(str(error)) from None
    known = depth.within(extent)
    found = known.reduced(values)
    if _tag(image, _PHOTOMETRIC) == 0 and twin is None:  # white is zero; Pillow turns only 8 bits round
        found = 255 - found
    mode = "L" if found.ndim == 2 else "RGB" if found.shape[2] == 3 else "CMYK"
    reduced = Image.frombytes(mode, found.shape[1::-1], found.tobytes())
    if alpha is not None:
        reduced.putalpha(Image.fromarray(_alpha8(alpha, known.bits or 16)))
    return reduced, extent, not known.holds(extent)


def _values(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """One channel (H, W) and, where one value is transparent, alpha."""
    values = np.asarray(image)
    if _tag(image, _SAMPLE_FORMAT, (1,))[0] == 1 and image.format == "TIFF" and values.dtype == np.int32:
        values = values.view(np.uint32)  # Pillow has no such mode
    clear = image.info.get("transparency")
    return values, np.where(values == clear, 0, 65535) if isinstance(clear, int) else None


def _wide(image: Image.Image, twin: Image.Image, raw: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Colours (H, W, 3 or 4), or (H, W) of grey, and alpha (H, W), of 16 bits."""
    if raw == "LA;16B":  # of four bytes a pixel
        grey, grey_low, alpha, alpha_low = (band.astype(np.uint16) for band in np.moveaxis(np.asarray(twin), 2, 0))
        return grey << 8 | grey_low, alpha << 8 | alpha_low
    values = np.asarray(image).astype(np.uint16) << 8 | np.asarray(twin)
    clear = image.info.get("transparency")
    if image.mode == "RGBA":
        return values[..., :3], values[..., 3]
    if isinstance(clear, tuple):
        return values, np.where((values == np.array(clear)).all(2), 0, 65535)
    return values, None


def _alpha8(alpha: np.ndarray, bits: int) -> np.ndarray:
    """Alpha is of 16 bits, unless all of it fits into those of the colours."""
    bits = bits if 8 <= bits <= 16 and 0 < alpha.max() < 2**bits else 16
    return (alpha >> (bits - 8)).astype(np.uint8)


def _tag(image: Image.Image, tag: int, default=None):
    return image.tag_v2.get(tag, default) if hasattr(image, "tag_v2") else default


# --- more than colour


def _over_ground(image: Image.Image, raw: str) -> tuple[Image.Image | None, tuple[int, ...]]:
    """The image laid over `GROUND`, or over `DARK` where all that is visible would vanish on it; and which. None if no
    pixel is transparent."""
    clear = image.info.get("transparency")
    if clear is None and not image.has_transparency_data:
        return None, GROUND
    if raw in ("L;2", "L;4") and isinstance(clear, int):  # Pillow scales the pixels, not this
        image.info["transparency"] = clear * {"L;2": 85, "L;4": 17}[raw]
    if image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.upper())
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
        return None, GROUND
    rgba = image.convert("RGBA")
    alpha = rgba.getchannel("A")
    if alpha.getextrema()[0] == 255:
        return None, GROUND
    colours, weights = rgba.convert("RGB"), np.asarray(alpha, np.float64)
    light = (np.asarray(colours.convert("L")) * weights).sum() > _LIGHT * weights.sum()
    ground = DARK if light else GROUND
    laid = Image.new("RGB", image.size, ground)
    laid.paste(colours, mask=alpha)
    return laid, ground
