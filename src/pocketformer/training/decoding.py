"""Decodes the images of a source once, to one size, into memory or a memory-mapped cache file."""

import hashlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from pocketformer.errors import UserError, WorkError
from pocketformer.files import read_json, whole, write_json
from pocketformer.training.colours import UNKNOWN, Seen, see, upright
from pocketformer.training.depths import Depth
from pocketformer.training.opening import why_unreadable
from pocketformer.training.remarks import Remarks, is_plain
from pocketformer.training.sources import Found, Load

__all__ = [
    "FORMAT",
    "Decoded",
    "decode_all",
    "describe_bad",
    "each",
    "readable",
    "refuse_bad",
    "skipped",
    "to_pixels",
    "upright",
    "why_unreadable",
]

FORMAT = 3  # of the cache and of the pixels in it: change it with anything below that changes either
_CHUNK = 256
T = TypeVar("T")


@dataclass(frozen=True)
class Decoded:
    """Images uint8 (N, 3, h, w) in the order of the source, labels int64 (N,), a hash of each image.

    Rows in `bad` (row -> why) hold no image; their label is -1. `median_side`: short side of the sources, px. `depth`:
    the rule by which images of more than 8 bits were decoded; `remarks`: what there is to say of the pixels.
    """

    images: np.ndarray
    labels: np.ndarray
    digests: tuple[str, ...]
    bad: dict[int, str]
    median_side: int
    depth: Depth = UNKNOWN
    remarks: Remarks = field(default_factory=Remarks)


def decode_all(
    found: Found,
    size: tuple[int, int],
    *,
    cache: Path | None = None,
    accept_bad: bool = False,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
    depth: Depth = UNKNOWN,
) -> Decoded:
    """Decodes every image to `size` (height, width), or maps the cache of an earlier call. What `depth` does not say
    is decided by the values of all images together.

    Raises `UserError` that counts and names the files that cannot be read, unless `accept_bad`; then no cache
    is written. Raises `WorkError` if the cache does not fit on its disk.
    """
    shape = (len(found), 3, *size)
    if cache is None:
        decoded = _decode(found, np.zeros(shape, np.uint8), workers, progress, depth)
        refuse_bad(found, decoded.bad, accept_bad)
        return decoded
    file, facts = _cache_files(Path(cache), found, size, depth)
    decoded = _read_cache(file, facts, shape)
    if decoded is None:
        _check_space(file.parent, int(np.prod(shape)))
        with whole(file) as temporary:
            images = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
            decoded = _decode(found, images, workers, progress, depth)
            refuse_bad(found, decoded.bad, accept_bad)
            images.flush()
            # First, so that an array with its final name always has its facts.
            write_json(facts, _facts(decoded))
        del images
        decoded = _read_cache(file, facts, shape)
        if decoded is None:
            raise WorkError(f"the cache of decoded images cannot be read back: {file}")
    refuse_bad(found, decoded.bad, accept_bad)
    return decoded


def to_pixels(image: Image.Image, size: tuple[int, int], depth: Depth = UNKNOWN) -> np.ndarray:
    """RGB pixels uint8 (3, h, w): upright (EXIF), resized to cover `size` (bicubic, antialiased), cut."""
    return _covered(_seen_for(image, size, depth).image, size)


def _seen_for(image: Image.Image, size: tuple[int, int], depth: Depth) -> Seen:
    side = 3 * max(size)
    image.draft(None, (side, side))  # large JPEGs: decode no finer than three times what is kept
    return see(image, depth)


def _covered(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    scale = min(image.width / width, image.height / height)
    left, top = (image.width - width * scale) / 2, (image.height - height * scale) / 2
    box = (
        max(left, 0),
        max(top, 0),
        min(left + width * scale, image.width),
        min(top + height * scale, image.height),
    )
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box=box)).transpose(2, 0, 1)


def describe_bad(name: Callable[[int], str], bad: Mapping[int, str], count: int = 3) -> str:
    """The first few unreadable images with the reason: `cat/a.jpg (truncated), …`."""
    named = [f"{name(row)} ({why})" for row, why in islice(sorted(bad.items()), count)]
    return ", ".join(named) + (", …" if len(bad) > count else "")


def skipped(name: Callable[[int], str], bad: Mapping[int, str]) -> str:
    """What the user is told of images that were skipped."""
    return f"{len(bad)} image{'s' * (len(bad) > 1)} skipped: {describe_bad(name, bad)}"


def refuse_bad(found: Found, bad: Mapping[int, str], accept_bad: bool = False) -> None:
    """Raises `UserError` that counts and names the images in `bad` (row -> why), unless there are none."""
    if bad and not accept_bad:
        how = "remove them or pass --bad-images skip" if len(bad) < len(found) else "convert them (docs/images.md)"
        raise UserError(
            f"{found.source}: {len(bad)} of {len(found)} files cannot be read as images: "
            f"{describe_bad(found.name, bad)}; {how}"
        )


def _decode(
    found: Found,
    images: np.ndarray,
    workers: int,
    progress: Callable[[int, int], None] | None,
    depth: Depth,
) -> Decoded:
    size = images.shape[2:]
    labels = np.full(len(found), -1, np.int64)
    digests = [""] * len(found)
    sides = np.zeros(len(found), np.int64)
    # A stream that leaves out what it cannot read never fills its last rows.
    bad = dict.fromkeys(range(len(found)), "left out by its reader")
    remarks = Remarks()

    def work(job: tuple[int, Load], depth: Depth) -> None:
        row, load = job
        try:
            sample = load()
            sides[row] = min(sample.image.size)
            seen = _seen_for(sample.image, size, depth)
            images[row] = _covered(seen.image, size)
        except (UserError, MemoryError):
            raise
        except Exception as error:  # decoders raise whatever they like
            bad[row] = why_unreadable(error)
            return
        labels[row] = sample.label
        digests[row] = hashlib.sha256(sample.raw).hexdigest()[:16]
        remarks.add(row, seen, is_plain(images[row].min((1, 2)), images[row].max((1, 2))))
        bad.pop(row, None)

    each(partial(work, depth=depth), found.jobs(), workers, len(found), progress)
    decided = depth.within(remarks.extent)
    # Each went by its own values; those for which that is another rule than the set's are decoded again.
    again = {row for row, own in remarks.extents.items() if depth.within(own).within(remarks.extent) != decided}
    if again:
        jobs = (job for job in found.jobs() if job[0] in again)
        each(partial(work, depth=decided), jobs, workers, len(again), progress)
    good = labels >= 0
    median = int(np.median(sides[good])) if good.any() else 0
    remarks.looked = int(good.sum())
    return Decoded(images, labels, tuple(digests), bad, median, decided, remarks)


def each(
    work: Callable[[T], None],
    jobs: Iterator[T],
    workers: int,
    count: int,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Does `work` on every job by so many threads (PIL and hashlib let go of the interpreter, and what threads find
    need not be copied between processes); 0: in the calling one. `progress` gets (done, count)."""
    done = 0
    with ThreadPoolExecutor(workers) if workers > 0 else nullcontext() as pool:
        while chunk := list(islice(jobs, _CHUNK)):
            for _ in pool.map(work, chunk) if pool else map(work, chunk):
                pass
            done += len(chunk)
            if progress:
                progress(done, count)


def _cache_files(cache: Path, found: Found, size: tuple[int, int], depth: Depth) -> tuple[Path, Path]:
    key = hashlib.sha256(f"{FORMAT}|{found.stamp}|{size}|{depth}".encode()).hexdigest()[:16]
    word = re.sub(r"[^A-Za-z0-9]+", "-", found.source).strip("-")[-40:]
    return cache / f"{word}-{key}.npy", cache / f"{word}-{key}.json"


def _facts(decoded: Decoded) -> dict:
    return {
        "format": FORMAT,
        "labels": decoded.labels.tolist(),
        "digests": " ".join(digest or "-" for digest in decoded.digests),
        "bad": {str(row): why for row, why in decoded.bad.items()},
        "median_side": decoded.median_side,
        **decoded.depth.recorded(),
        "remarks": decoded.remarks.to_dict(),
    }


def _read_cache(file: Path, facts: Path, shape: tuple[int, ...]) -> Decoded | None:
    """The cache, memory-mapped; None if it is not there, or damaged (it is then made again)."""
    try:
        # Copy-on-write, as torch takes no read-only arrays; nothing writes to it.
        images = np.load(file, mmap_mode="c", allow_pickle=False)
        known = read_json(facts)
        digests = tuple("" if digest == "-" else digest for digest in known["digests"].split(" "))
        labels = np.array(known["labels"], np.int64)
        bad = {int(row): why for row, why in known["bad"].items()}
        if images.shape != shape or images.dtype != np.uint8 or not len(labels) == len(digests) == shape[0]:
            return None
        depth, remarks = Depth.of_record(known), Remarks.from_dict(known["remarks"])
        return Decoded(images, labels, digests, bad, int(known["median_side"]), depth, remarks)
    except (OSError, UserError, ValueError, KeyError, TypeError, AttributeError, EOFError):
        return None


def _check_space(folder: Path, needed: int) -> None:
    """A memory map that outgrows its disk dies of a signal, so ask first."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise WorkError(f"{folder}: decoded images take {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")


def readable(found: Found, limit: int) -> Iterator[Image.Image]:
    """Up to `limit` images, spread evenly where that is cheap; not decoded, the unreadable left out."""
    step = 1 if found.stream else max(1, len(found) // limit)
    for _, load in islice(found.jobs(), 0, step * limit, step):
        try:
            yield load().image
        except UserError:
            raise
        except Exception:  # open_data names them
            continue
