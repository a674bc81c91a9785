"""Image files written byte by byte, of kinds that Pillow itself does not write. Shared by the tests of pixels."""

import struct
import zlib

import numpy as np


def png(
    values: np.ndarray, bits: int = 8, kind: int = 0, clear: bytes = b"", palette: bytes = b"", turn: int = 1
) -> bytes:
    """`values` (H, W) or (H, W, C) of `bits` each, colour type `kind`; `clear`: tRNS; `turn`: orientation of EXIF."""
    height, width = values.shape[:2]
    if bits < 8:
        ones = np.unpackbits(values.astype(np.uint8)[..., None], axis=2)[..., -bits:].reshape(height, -1)
        rows = [np.packbits(row).tobytes() for row in ones]
    else:
        rows = [row.astype(">u2" if bits == 16 else "u1").tobytes() for row in values]
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))]
    chunks += [(b"PLTE", palette)] if palette else []
    chunks += [(b"tRNS", clear)] if clear else []
    chunks += (
        [(b"eXIf", b"II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0" + struct.pack("<I", turn) + bytes(4))] if turn > 1 else []
    )
    chunks += [(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(
    pages: list[np.ndarray],
    photometric: int = 1,
    extra: tuple[int, ...] = (),
    order: str = "<",
    packed: bool = False,
    palette: np.ndarray | None = None,
    bits: int | None = None,
) -> bytes:
    """Pages (H, W) or (H, W, C), whose dtype says the kind of samples; `bits` 1: of one bit. `packed`: deflated."""
    out = bytearray((b"II*\0" if order == "<" else b"MM\0*") + bytes(4))
    link = 4
    for page in pages:
        height, width, count = (*page.shape, 1)[:3]
        kind = {"u": 1, "i": 2, "f": 3}[page.dtype.kind]
        size = bits or page.dtype.itemsize * 8
        raw = (
            np.packbits(page, axis=1).tobytes() if size == 1 else page.astype(page.dtype.newbyteorder(order)).tobytes()
        )
        strip = zlib.compress(raw) if packed else raw
        tags = [(256, 4, [width]), (257, 4, [height]), (258, 3, [size] * count), (259, 3, [8 if packed else 1])]
        tags += [(262, 3, [photometric]), (273, 4, [len(out)]), (277, 3, [count]), (278, 4, [height])]
        tags += [(279, 4, [len(strip)])]
        out += strip + bytes(len(strip) % 2)
        tags += [(320, 3, palette.T.astype(int).ravel().tolist())] if palette is not None else []
        tags += [(338, 3, list(extra))] if extra else []
        tags += [(339, 3, [kind] * count)]
        fields = b""
        for tag, form, values in sorted(tags):
            data = b"".join(struct.pack(order + ("H" if form == 3 else "I"), value) for value in values)
            if len(data) > 4:
                place, out = len(out), out + data
                data = struct.pack(order + "I", place)
            fields += struct.pack(order + "HHI", tag, form, len(values)) + data.ljust(4, b"\0")
        out[link : link + 4] = struct.pack(order + "I", len(out))
        link = len(out) + 2 + 12 * len(tags)
        out += struct.pack(order + "H", len(tags)) + fields + bytes(4)
    return bytes(out)


def pgm(values: np.ndarray, most: int) -> bytes:
    """Grey, uint8 or, above 255, uint16."""
    height, width = values.shape
    return f"P5 {width} {height} {most}\n".encode() + values.astype(">u2" if most > 255 else "u1").tobytes()
