"""All images and masks of a folder looked at once, before any work begins on them."""

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from pocketformer import files
from pocketformer.dense.segmentation.folders import Folder, Pairs
from pocketformer.dense.segmentation.labels import Coding, read_mask
from pocketformer.errors import UserError
from pocketformer.progress import say
from pocketformer.training.decoding import why_unreadable
from pocketformer.training.sources import some

_TURNED = (5, 6, 7, 8)  # orientations of EXIF that swap width and height
_CHECKED_AT = 8  # JPEGs are decoded at an eighth: all of the file is read, and little of it computed

# What can be wrong with a pair, in the order in which it is told; `{n}` of `{total}`.
_WRONG = {
    "image": "{n} of {total} images of {split} cannot be read",
    "mask": "{n} of {total} masks of {split} cannot be read as labels",
    "size": "{n} of {total} masks of {split} have another size than their image",
    "label": "{n} of {total} masks of {split} have labels outside the class list ({known})",
}


@dataclass(frozen=True)
class Census:
    """Pixels of each label, by split, and a hash of names and contents of all files."""

    labels: Mapping[str, Mapping[int, int]]
    fingerprint: str

    def num_classes(self, coding: Coding) -> int:
        """One more than the largest class; of masks that are all ignored `UserError`."""
        found = {label for split in self.labels.values() for label in split}
        classes = coding.classes(np.array(sorted(found), np.int32))
        if classes.max(initial=-1) < 0:
            raise UserError("the masks have no label that is not ignored")
        return int(classes.max()) + 1


def take_census(
    folder: Folder,
    splits: Iterable[str],
    num_classes: int | None,
    workers: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Census:
    """Looks at every image and mask of the splits; `progress` gets how many are done; `workers`: threads.

    Images or masks that cannot be read, masks of another size than their image, and labels that are no class are told
    in one line a kind and split, with the count and the first three; then `UserError`.
    """
    found: dict[str, Counter] = {}
    lines: list[str] = []
    mistakes = 0
    done, digest = 0, hashlib.sha256(repr((folder.classes, folder.coding)).encode())
    for name in splits:
        pairs = folder.splits[name]
        labels, wrong = Counter(), {kind: [] for kind in _WRONG}

        def look(row: int, pairs: Pairs = pairs) -> _Seen:
            return _look(pairs, row, folder.coding, num_classes)

        with ThreadPoolExecutor(workers) if workers > 0 else nullcontext() as pool:
            for seen in (pool.map if pool else map)(look, range(len(pairs))):
                done += 1
                digest.update(seen.digest)
                labels.update(seen.labels)
                if seen.wrong:
                    wrong[seen.wrong].append(seen.what)
                if progress:
                    progress(done)
        for kind, names in wrong.items():
            if names:
                what = _WRONG[kind].format(
                    n=len(names), total=len(pairs), split=name, known=_known(folder, num_classes)
                )
                lines.append(f"{folder.source}: {what}: {some(names)}")
                mistakes += len(names)
        found[name] = labels
    if len(lines) > 1:
        for line in lines:
            say(line)
        raise UserError(f"{folder.source}: {mistakes} files of {len(lines)} kinds cannot be used, named above")
    if lines:
        raise UserError(lines[0])
    return Census(found, digest.hexdigest()[:16])


def _known(folder: Folder, num_classes: int | None) -> str:
    coding = folder.coding
    if num_classes is None:
        return "none is below 0"
    first = int(coding.reduce_zero_label)
    zero = "0 and " if coding.reduce_zero_label else ""
    return f"{first} to {first + num_classes - 1}; ignored: {zero}{coding.ignore_index}"


@dataclass(frozen=True)
class _Seen:
    """Of a pair: pixels of each label, or what is wrong (a key of `_WRONG`) and what to tell of it."""

    digest: bytes = b""
    labels: Mapping[int, int] = field(default_factory=dict)
    wrong: str = ""
    what: str = ""


def _look(pairs: Pairs, row: int, coding: Coding, num_classes: int | None) -> _Seen:
    image_name, mask_name = pairs.images[row], pairs.masks[row]
    digest = hashlib.sha256(f"{image_name}\n{mask_name}\n".encode("utf-8", "surrogateescape"))
    try:
        raw = (pairs.root / image_name).read_bytes()
        digest.update(raw)
        size = _size(raw)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise whatever they like
        return _Seen(wrong="image", what=f"{image_name} ({why_unreadable(error)})")
    try:
        raw = (pairs.root / mask_name).read_bytes()
        digest.update(raw)
        mask = read_mask(io.BytesIO(raw))
    except MemoryError:
        raise
    except Exception as error:
        return _Seen(wrong="mask", what=f"{mask_name} ({why_unreadable(error)})")
    if mask.shape != size:
        sizes = f"{mask.shape[1]}x{mask.shape[0]} px, its image {size[1]}x{size[0]}"
        return _Seen(wrong="size", what=f"{mask_name} ({sizes})")
    values, counts = np.unique(mask, return_counts=True)
    outside = [str(value) for value in values.tolist() if not coding.valid(value, num_classes)]
    if outside:
        return _Seen(wrong="label", what=f"{mask_name} ({some(outside)})")
    return _Seen(digest.digest(), dict(zip(values.tolist(), counts.tolist(), strict=True)))


def _size(raw: bytes) -> tuple[int, int]:
    """Height and width of an image as it is meant to be seen; all of it is read."""
    with Image.open(io.BytesIO(raw)) as image:
        width, height = image.size
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) in _TURNED
        image.draft(None, (max(1, width // _CHECKED_AT), max(1, height // _CHECKED_AT)))
        image.load()
    return (width, height) if turned else (height, width)


def read_census(path: Path, stamp: str) -> Census | None:
    """That of an earlier look at the very same files; None if there was none."""
    if not path.is_file():
        return None
    try:
        kept = files.read_json(path)
        if kept["stamp"] != stamp:
            return None
        labels = {name: {int(k): int(n) for k, n in split.items()} for name, split in kept["labels"].items()}
        return Census(labels, str(kept["fingerprint"]))
    except (UserError, KeyError, TypeError, ValueError, AttributeError):  # damaged: looked at again
        return None


def write_census(path: Path, stamp: str, census: Census) -> None:
    files.write_json(path, {"stamp": stamp, "fingerprint": census.fingerprint, "labels": census.labels})
