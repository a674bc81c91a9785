"""Images in tar shards of a local folder (`wds/FOLDER`), read at random through an index.

The layout is WebDataset's as timm reads it: `_info.json` names splits and their shards; the members `KEY.jpg` (or
another suffix of images, in any case) and `KEY.cls`, or `KEY.json` where the split has an `alt_label`, follow each
other. WebDataset reads a shard from its start to its end, which leaves the order to the number of processes and a
killed epoch nowhere to continue. The headers alone tell where each image lies, so none of that need be.
"""

import io
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np

from pocketformer.errors import UserError
from pocketformer.training.layouts import split_of
from pocketformer.training.opening import open_image
from pocketformer.training.sources import Found, Sample, Spans, some, stamp_of
from pocketformer.training.strings import Strings
from pocketformer.training.trees import image_endings

_INFO = ("_info.json", "info.json")
_BEST = (".jpg", ".jpeg", ".png", ".webp")  # of a sample with several images the first of these, else any


@dataclass(frozen=True, eq=False)
class ShardImages:
    """Members of tar files by row: `spans` int64 (N, 3) number of the shard, first byte, bytes (0: no image)."""

    folder: Path
    shards: Strings
    keys: Strings
    spans: np.ndarray
    targets: np.ndarray

    def load(self, row: int) -> Sample:
        shard, first, size = map(int, self.spans[row])
        if not size or self.targets[row] < 0:
            raise ValueError(self.bad()[row])
        with open(self.folder / self.shards[shard], "rb") as file:
            file.seek(first)
            raw = file.read(size)
        return Sample(open_image(io.BytesIO(raw)), raw, int(self.targets[row]))

    def first(self, count: int) -> "ShardImages":
        """The first rows alone."""
        return replace(self, spans=self.spans[:count], targets=self.targets[:count])

    def sizes(self) -> np.ndarray:
        return self.spans[:, 2]

    def read(self, row: int, spans: Spans) -> bytes:
        shard, start, size = map(int, self.spans[row])
        with open(self.folder / self.shards[shard], "rb") as file:
            spans = [(max(first, 0), count) for first, count in spans]
            return b"".join(os.pread(file.fileno(), min(n, size - first), start + first) for first, n in spans)

    def path(self, row: int) -> str:
        return self.keys[row]

    def labels(self) -> np.ndarray:
        return self.targets

    def name(self, row: int) -> str:
        return f"{self.shards[self.spans[row, 0]]}: {self.keys[row]}"

    def identify(self, row: int) -> str:
        return f"{self.name(row)} {self.spans[row, 2]}"

    def bad(self) -> dict[int, str]:
        rows = np.flatnonzero((self.spans[:, 2] == 0) | (self.targets < 0))
        return {int(row): "no label" if self.spans[row, 2] else "no image" for row in rows}


def find_shards(source: str, folder: Path, test_splits: tuple[str, ...]) -> Found:
    """Indexes the train split and the first of `test_splits` that there is; reads headers and labels, no images. With a
    validation split and a labelled test split, the first is for the search."""
    splits = _read_info(source, folder)
    if "train" not in splits:
        raise UserError(f"{source}: has no split named train")
    named = [name for name in ("train", *test_splits) if name in splits]
    of = {split_of(name): name for name in reversed(named)}
    notes, three = [], len(of) == 3
    if three and not all((folder / shard).is_file() for shard in splits[of["test"]]["filenames"]):
        three = False
        notes.append(f"the split {of['test']} was not read: its shards are not there")
    named = [of[split] for split in ("train", "val", "test")] if three else named[:2]
    shards, rows, counts = [], [], []
    for name in named:
        found = len(rows)
        for shard in splits[name]["filenames"]:
            rows += _index(folder / shard, len(shards), splits[name].get("alt_label", ""))
            shards.append(str(shard))
        counts.append(len(rows) - found)
        if counts[-1] != splits[name]["num_samples"]:
            raise UserError(
                f"{source}: the shards of {name} hold {counts[-1]} images, not {splits[name]['num_samples']} as "
                f"{folder} says"
            )
    keys, spans, targets = zip(*rows, strict=True) if rows else ((), (), ())
    images = ShardImages(
        folder,
        Strings(shards),
        Strings(keys),
        np.array(spans, np.int64).reshape(-1, 3),
        np.array(targets, np.int64),
    )
    if not all(counts):
        raise UserError(f"{source}: its shards hold no images")
    if three and (images.targets[-counts[-1] :] < 0).all():
        three, images = False, images.first(sum(counts[:-1]))
        notes.append(f"the split {named[2]} was not read: its images have no labels")
        counts = counts[:2]
    if three:
        notes.append(
            f"the search and --validate are scored on {named[1]}, {named[2]} is the test split, and the final training "
            f"learns from {named[0]} and {named[1]}"
        )
    return Found(
        source=source,
        classes=(),
        train=counts[0],
        search=counts[1] if three else 0,
        test=counts[-1] if len(counts) > 1 else 0,
        notes=tuple(notes),
        stamp=stamp_of([str(folder / shard) for shard in shards], source),
        name=images.name,
        load=images.load,
        labels=images.labels,
        identify=images.identify,
        path=images.path,
        sizes=images.sizes,
        read=images.read,
        bad=images.bad(),
        place=folder,
    )


def _read_info(source: str, folder: Path) -> dict[str, dict]:
    """Split -> its `filenames`, `num_samples` and, perhaps, `alt_label`."""
    file = next((folder / name for name in _INFO if (folder / name).is_file()), None)
    if file is None:
        raise UserError(f"{source}: cannot be obtained: no _info.json (splits and shards) in {folder}")
    try:
        splits = json.loads(file.read_bytes())["splits"]
        missing = [s for s, facts in splits.items() if not {"filenames", "num_samples"} <= facts.keys()]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{file}: names no splits; each needs filenames and num_samples") from None
    if missing:
        raise UserError(f"{file}: splits without filenames or num_samples: {some(missing)}")
    return splits


def _index(path: Path, number: int, label_field: str) -> Iterator[tuple[str, tuple[int, int, int], int]]:
    """(key, (number, first byte, bytes), label or -1) of each sample of one shard."""
    try:
        with tarfile.open(path, "r:") as tar:
            for key, members in groupby(_files(tar), lambda member: member[0]):
                parts = {suffix: member for _, suffix, member in members}
                image = _image(parts)
                label = _label(tar, parts, label_field)
                yield key, (number, image.offset_data, image.size) if image else (number, 0, 0), label
    except FileNotFoundError:
        raise UserError(f"{path}: this shard is missing") from None
    except tarfile.TarError as error:
        raise UserError(f"{path}: cannot be read as a tar file: {error}; it must be whole and uncompressed") from None


def _files(tar: tarfile.TarFile) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """(key, suffix, member): a key ends at the first dot of the file's name."""
    for member in tar:
        folder, slash, name = member.name.rpartition("/")
        stem, dot, suffix = name.partition(".")
        if member.isfile() and stem and dot:
            yield folder + slash + stem, suffix.lower(), member


def _image(parts: dict[str, tarfile.TarInfo]) -> tarfile.TarInfo | None:
    """The member that is an image by the last of its suffixes, such as `jpeg` or `image.jpg`."""
    known = {f".{suffix.rpartition('.')[2]}": member for suffix, member in reversed(parts.items())}
    images = [suffix for suffix in (*_BEST, *sorted(image_endings())) if suffix in known]
    return known[images[0]] if images else None


def _label(tar: tarfile.TarFile, parts: dict[str, tarfile.TarInfo], field: str) -> int:
    member = parts.get("json" if field else "cls")
    if member is None:
        return -1
    try:
        text = tar.extractfile(member).read()
        return max(int(json.loads(text)[field] if field else text), -1)
    except (ValueError, KeyError, TypeError):
        return -1
