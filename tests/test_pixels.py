"""Pixels: any type and mode of image becomes 8-bit RGB by a stated rule, or is refused in one line."""

import colorsys
import io
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from image_files import pgm, png, tiff
from pocketformer.errors import UserError
from pocketformer.training.colours import Remark, see
from pocketformer.training.depths import Depth
from pocketformer.training.opening import open_image, why_unreadable

H, W = 6, 8
TOPS = (1, 255, 1023, 4095, 16383, 65535)


@dataclass
class Case:
    """A file and what it must become, uint8 (H, W, 3), by an own computation; None: refused. `near`: within so much."""

    kind: str
    raw: bytes
    expected: np.ndarray | None
    near: int = 0
    remarks: frozenset = frozenset()


# --- the rules once more, without Pillow


def bits_of(most: int, low: int = 0) -> int:
    fits = (b for b in (1, *range(8, 33, 2)) if (-low <= 2 ** (b - 1) > most if low < 0 else most < 2**b))
    return next(b for b in fits if b > 1 or low == 0)


def whole(values: np.ndarray) -> np.ndarray:
    low, high = int(values.min()), int(values.max())
    bits = bits_of(high, low)
    if bits == 1:
        return values * 255
    return (values.astype(np.int64) + (2 ** (bits - 1) if low < 0 else 0)) // 2 ** (bits - 8)


def real(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    spans = [span for span in ((0, 1), (-1, 1), (0, 255)) if span[0] <= low and high <= span[1]]
    low, high = spans[0] if spans else (low, high)
    return np.round((values.astype(np.float64) - low) / (high - low or 1) * 255)


def is_light(colours: np.ndarray, alpha: np.ndarray) -> bool:
    """Whether what is visible would hardly be seen on white."""
    return bool((colours @ [0.299, 0.587, 0.114] * alpha).sum() > 235 * alpha.sum())


def over_ground(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share, ground = alpha[..., None] / 255, 0 if is_light(colours, alpha) else 255
    return np.round(colours * share + ground * (1 - share))


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=2)


def turned(pixels: np.ndarray, turn: int) -> np.ndarray:
    pixels = pixels[:, ::-1] if turn in (2, 4, 5, 7) else pixels
    return np.rot90(pixels, {1: 0, 2: 0, 3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}[turn])


# --- files


def deep(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(0, int(rng.choice(TOPS)) + 1, shape)


def a_png(rng: np.random.Generator) -> Case:
    kind = int(rng.choice([0, 2, 3, 4, 6]))
    bits = int(rng.choice({0: [1, 2, 4, 8, 16], 2: [8, 16], 3: [1, 2, 4, 8], 4: [8, 16], 6: [8, 16]}[kind]))
    channels = {2: (3,), 4: (2,), 6: (4,)}.get(kind, ())
    values = deep(rng, H, W, *channels) if bits == 16 else rng.integers(0, 2**bits, (H, W, *channels))
    clear, palette, alpha, remarks = b"", b"", None, {Remark.DEEP} if bits == 16 else set()
    if kind in (4, 6):
        if bits == 16:
            values[..., -1] = rng.integers(0, 65536, (H, W))
            values[0, 0, -1] = 65535
        values, alpha, stored = values[..., :-1], values[..., -1] >> (bits - 8), values
    else:
        stored = values
        if rng.random() < 0.5 and kind != 3:
            one = values[1, 2]
            clear = np.atleast_1d(one).astype(">u2").tobytes()
            alpha = np.where((values == one).reshape(H, W, -1).all(2), 0, 255)
    if kind == 3:
        table = rng.integers(0, 256, (2**bits, 3))
        palette, colours = table.astype(np.uint8).tobytes(), table[values]
        if rng.random() < 0.5:
            alphas = rng.integers(0, 256, 2**bits)
            clear, alpha = alphas.astype(np.uint8).tobytes(), alphas[values]
    else:
        reduced = whole(values) if bits == 16 else values * 255 // (2**bits - 1)
        colours = reduced if kind in (2, 6) else grey(reduced.reshape(H, W))
    turn = int(rng.integers(1, 9))
    if alpha is not None and (alpha < 255).any():
        remarks = remarks | {Remark.LIGHT if is_light(colours, alpha) else Remark.CLEAR}
        colours = over_ground(colours, alpha)
    raw = png(stored, bits, kind, clear, palette, turn)
    return Case(f"PNG {kind}/{bits}", raw, turned(colours, turn), 1 if alpha is not None else 0, frozenset(remarks))


def a_tiff(rng: np.random.Generator) -> Case:
    order, packed = str(rng.choice(["<", ">"])), bool(rng.random() < 0.5)
    pages = int(rng.integers(1, 3))
    remarks = {Remark.FRAMES} if pages > 1 else set()
    sort = str(rng.choice(["bit", "u1", "u2", "i2", "u4", "i4", "f4", "colour", "colour16", "extra", "ink", "palette"]))
    white = bool(rng.random() < 0.5) and sort in ("bit", "u1", "f4")
    options = {"order": order, "packed": packed, "photometric": int(not white)}
    near = 0
    if sort == "bit":
        values = rng.integers(0, 2, (H, W)).astype(np.uint8)
        options["bits"], expected = 1, grey(values * 255)
    elif sort == "u1":
        values = rng.integers(0, 256, (H, W)).astype(np.uint8)
        expected = grey(values)
    elif sort in ("u2", "i2", "u4", "i4"):
        values = deep(rng, H, W)
        if sort[0] == "i":
            values = values // 2 - (int(rng.choice(TOPS)) // 2 + 1 if rng.random() < 0.5 else 0)
        if sort[1] == "4" and rng.random() < 0.3:
            values = values * 1000 if sort[0] == "i" else values * 60000
        values = values.astype(sort)
        if sort == "u2" and order == "<":
            white = bool(rng.random() < 0.5)
            options["photometric"] = int(not white)
        expected = None if (sort, order) == ("u4", ">") else grey(whole(values))  # Pillow has no such layout
    elif sort == "f4":
        low, high = [(0, 1), (-1, 1), (0, 255), (-1000, 3000), (0, 4095)][int(rng.integers(5))]
        values = rng.uniform(low, high, (H, W)).astype(np.float32)
        expected = grey(real(values))
        if rng.random() < 0.1:
            values[0, 0] = rng.choice([np.nan, np.inf])
            expected = None
    elif sort == "colour":
        values = rng.integers(0, 256, (H, W, 3)).astype(np.uint8)
        options["photometric"], expected = 2, values
    elif sort == "colour16":
        values = deep(rng, H, W, 3).astype(np.uint16)
        options["photometric"], expected = 2, whole(values)
    elif sort == "extra":
        count = int(rng.integers(1, 4))
        values = rng.integers(0, 256, (H, W, 3 + count)).astype(np.uint8)
        options |= {"photometric": 2, "extra": (2,) + (0,) * (count - 1) if rng.random() < 0.5 else (0,) * count}
        expected = values[..., :3]
        if options["extra"][0] == 2:
            expected, near = over_ground(expected, values[..., 3]), 1
            remarks.add(Remark.CLEAR)
        if 0 in options["extra"]:
            remarks.add(Remark.CHANNELS)
    elif sort == "ink":
        values = rng.integers(0, 256, (H, W, 4)).astype(np.uint8)
        options["photometric"], near = 5, 1
        expected = np.round((255.0 - values[..., :3]) * (255 - values[..., 3:]) / 255)
        remarks.add(Remark.INK)
    else:
        values, table = rng.integers(0, 256, (H, W)).astype(np.uint8), rng.integers(0, 256, (256, 3))
        options |= {"photometric": 3, "palette": table * 257}
        expected = table[values]
    if white and expected is not None:
        expected = 255 - expected
    if sort in ("u2", "i2", "u4", "i4", "f4", "colour16"):
        remarks.add(Remark.DEEP)
    raw = tiff([values] * pages, **options)
    return Case(f"TIFF {sort}", raw, expected, near, frozenset(remarks))


def a_pnm(rng: np.random.Generator) -> Case:
    most = int(rng.choice([255, 65535]))
    values = deep(rng, H, W) if most > 255 else rng.integers(0, 256, (H, W))
    remarks = {Remark.DEEP} if most > 255 else set()
    return Case("PGM", pgm(values, most), grey(whole(values) if most > 255 else values), 0, frozenset(remarks))


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def a_film(rng: np.random.Generator) -> Case:
    """GIF, APNG, WebP; with and without more frames and transparent parts."""
    kind, frames = str(rng.choice(["GIF", "PNG", "WEBP"])), int(rng.integers(1, 4))
    if kind == "GIF":
        table = rng.permutation(256 * 3).reshape(256, 3) % 256
        made = [Image.fromarray(rng.integers(0, 256, (H, W)).astype(np.uint8)) for _ in range(frames)]
        for image in made:
            image.putpalette(table.astype(np.uint8).tobytes())
        values = np.asarray(made[0])
        colours, alpha = table[values], np.full((H, W), 255)
        options = {}
        if rng.random() < 0.5:
            options["transparency"] = int(values[2, 3])
            alpha = np.where(values == values[2, 3], 0, 255)
        raw = saved(made[0], kind, save_all=frames > 1, append_images=made[1:], optimize=False, **options)
    else:
        arrays = [rng.integers(0, 256, (H, W, 4)).astype(np.uint8) for _ in range(frames)]
        colours, alpha = arrays[0][..., :3], arrays[0][..., 3].copy()
        made = [Image.fromarray(array) for array in arrays]
        options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
        raw = saved(made[0], kind, save_all=frames > 1, append_images=made[1:], **options)
    remarks = ({Remark.FRAMES} if frames > 1 else set()) | ({Remark.CLEAR} if (alpha < 255).any() else set())
    return Case(f"film {kind}", raw, over_ground(colours, alpha), 1, frozenset(remarks))


def a_jpeg(rng: np.random.Generator) -> Case:
    """What the JPEG itself holds is Pillow's to say; what becomes of it is not."""
    mode = str(rng.choice(["L", "RGB", "CMYK"]))
    smooth = rng.integers(0, 256, (2, 2, len(Image.new(mode, (1, 1)).getbands())), dtype=np.uint8)
    image = Image.frombytes(mode, (2, 2), smooth.tobytes()).resize((W, H), Image.Resampling.BICUBIC)
    turn = int(rng.integers(1, 9))
    exif = Image.Exif()
    exif[0x0112] = turn
    raw = saved(image, "JPEG", quality=95, exif=exif)
    values = np.asarray(Image.open(io.BytesIO(raw))).astype(float)
    if mode == "CMYK":
        expected = (255 - values[..., :3]) * (255 - values[..., 3:]) / 255
    else:
        expected = grey(values) if mode == "L" else values
    remarks = frozenset({Remark.INK} if mode == "CMYK" else ())
    return Case(f"JPEG {mode}", raw, turned(np.round(expected), turn), int(mode == "CMYK"), remarks)


def a_ruin(rng: np.random.Generator) -> Case:
    """Refused: cut short, of another kind, or of channels that nobody asked for."""
    sort = int(rng.integers(5))
    whole_file = png(rng.integers(0, 256, (40, 40, 3)), 8, 2)
    raw = [
        whole_file[: int(rng.integers(60, len(whole_file) - 60))],
        rng.bytes(int(rng.integers(1, 300))),
        tiff([rng.uniform(0, 1, (H, W, 3)).astype(np.float32)], 2),
        tiff([rng.integers(0, 99, (H, W, 9)).astype(np.uint16)], 1, (0,) * 8),
        bytes(4) + b"ftypheic" + bytes(50),
    ][sort]
    return Case(f"ruin {sort}", raw, None)


MAKERS = (a_png, a_png, a_tiff, a_tiff, a_pnm, a_film, a_jpeg, a_ruin)


def test_500_random_files_have_the_right_pixels_or_one_line(record_property):
    counts, refused = Counter(), Counter()
    for number in range(500):
        rng = np.random.default_rng(number)
        case = MAKERS[number % len(MAKERS)](rng)
        try:
            seen = see(open_image(io.BytesIO(case.raw)))
        except Exception as error:
            why = why_unreadable(error)
            assert case.expected is None, (number, case.kind, why)
            assert why, (number, case.kind)
            assert "\n" not in why
            refused[case.kind] += 1
            continue
        assert case.expected is not None, (number, case.kind)
        found = np.asarray(seen.image).astype(int)
        assert found.shape == case.expected.shape, (number, case.kind)
        assert np.abs(found - case.expected).max() <= case.near, (number, case.kind, found - case.expected)
        assert seen.remarks == case.remarks, (number, case.kind, seen.remarks)
        counts[case.kind.split("/")[0]] += 1
    print(f"{sum(counts.values())} read: {dict(counts)}; {sum(refused.values())} refused: {dict(refused)}")
    assert sum(counts.values()) + sum(refused.values()) == 500
    assert sum(counts.values()) > 400


def test_images_without_a_file_have_the_right_pixels():
    """Data sets of other libraries hand over images of any mode, also such as no file has."""
    rng = np.random.default_rng(0)
    made = {}
    for mode in ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"):
        count = len(Image.new(mode, (1, 1)).getbands())
        values = rng.integers(0, 256, (H, W, count), dtype=np.uint8)
        if mode in ("La", "RGBa"):
            values[..., :-1] = values[..., :-1].astype(int) * values[..., -1:] // 255
        raw = np.packbits(values[..., 0] > 99, axis=1) if mode == "1" else values
        image = Image.frombytes(mode, (W, H), raw.tobytes())
        if mode[0] == "P":
            image.putpalette(rng.integers(0, 256, 768, dtype=np.uint8).tobytes())
        made[mode] = values.astype(int), np.array(image.getpalette() or [0] * 768).reshape(256, 3), image
    for mode, (values, table, image) in made.items():
        colours, alpha, near = values[..., :3], None, 0
        if mode in ("1", "L", "LA", "La"):
            colours = grey(np.where(values[..., 0] > 99, 255, 0) if mode == "1" else values[..., 0])
        if mode in ("P", "PA"):
            colours = table[values[..., 0]]
        if mode in ("LA", "La", "PA", "RGBA", "RGBa"):
            alpha, near = values[..., -1], 2
            expected = colours + 255 - alpha[..., None] if mode[-1] == "a" else over_ground(colours, alpha)
        elif mode == "CMYK":
            expected, near = (255.0 - colours) * (255 - values[..., 3:]) / 255, 1
        elif mode == "YCbCr":
            y, cb, cr = (band - shift for band, shift in zip(np.moveaxis(values, 2, 0), (0, 128, 128), strict=True))
            expected = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], axis=2).clip(
                0, 255
            )
            near = 2
        elif mode == "HSV":
            expected = np.apply_along_axis(lambda hsv: np.multiply(colorsys.hsv_to_rgb(*hsv / 255), 255), 2, values)
            near = 4  # Pillow rounds hue on its way
        else:
            expected = colours
        found = np.asarray(see(image).image).astype(int)
        if mode == "LAB":  # by the profiles of LittleCMS: light and dark as they are, and no more asked
            assert np.corrcoef(found.mean(2).ravel(), values[..., 0].ravel())[0, 1] > 0.5
            continue
        assert np.abs(found - expected).max() <= near, (mode, np.abs(found - expected).max())
    for mode, kind in (("I;16", "<u2"), ("I;16L", "<u2"), ("I;16B", ">u2"), ("I", "<i4"), ("F", "<f4")):
        values = rng.integers(0, 1000, (H, W)).astype(kind)
        values[0, 0] = 1000
        found = see(Image.frombytes(mode, (W, H), values.tobytes()), Depth(bits=10, real=(0, 1020)))
        np.testing.assert_array_equal(found.image.getchannel("G"), np.rint(values / 4) if mode == "F" else values >> 2)


def test_an_orientation_that_is_none_turns_nothing():
    values = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
    for turn in (9, 65535):
        np.testing.assert_array_equal(see(open_image(io.BytesIO(png(values, 8, 2, turn=turn)))).image, values)


def test_an_image_that_was_decoded_before_has_the_same_pixels(tmp_path):
    """Asking a PNG file for its EXIF decodes it."""
    rng = np.random.default_rng(0)
    values = rng.integers(0, 1000, (H, W, 3)).astype(np.uint16)
    files = {
        "a.png": png(values, 16, 2, turn=6),
        "b.tif": tiff([values], 2, packed=True),
        "c.tif": tiff([rng.random((H, W)).astype(np.float32)], order=">", packed=True),
        "e.png": png(values[..., 0] % 4, 2, clear=b"\0\1"),
        "d.png": png(np.concatenate([values, values[..., :1] * 0 + 65535], axis=2), 16, 6),
    }
    for name, raw in files.items():
        (tmp_path / name).write_bytes(raw)
        for file in (tmp_path / name, io.BytesIO(raw)):
            image = open_image(file)
            image.getexif()
            image.load()
            assert np.array_equal(see(image).image, see(open_image(io.BytesIO(raw))).image), name


def test_a_depth_survives_its_record():
    for depth in (Depth(), Depth(12), Depth(14, True), Depth(None, False, (0.0, 1.0)), Depth(16, False, (-3.5, 1e9))):
        assert Depth.of_record(depth.recorded()) == depth
    for wrong in ({"bits": 11, "signed": False, "real": None}, {"bits": 8}, [8]):
        with pytest.raises(UserError, match="depth of images"):
            Depth.of_record({"depth": wrong})
