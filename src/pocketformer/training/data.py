"""The public entry to images: `open_data` reads a source and splits it into fit, search and test.

The test split is `val/` of the source, or a tenth set aside; the rest is split once into fit and search. Images are
decoded into memory once, or, where they are too many, each time they are needed (`streaming`).
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from pocketformer.errors import UserError
from pocketformer.training.colours import UNKNOWN
from pocketformer.training.copies import find_copies, find_groups, joined, outside, told_of_copies, told_of_groups
from pocketformer.training.decoding import decode_all, readable, refuse_bad, skipped
from pocketformer.training.depths import Depth
from pocketformer.training.sources import Found, find, find_all, fingerprint, keys_of, some
from pocketformer.training.splits import Split
from pocketformer.training.splitting import random_words, search_count, split_rows, stratified
from pocketformer.training.streaming import Look, StreamedImages, preflight

__all__ = [
    "Data",
    "Split",
    "Survey",
    "open_data",
    "open_labelled",
    "random_words",
    "search_count",
    "stratified",
    "streams",
    "survey",
]

IN_MEMORY = 2 * 10**9  # bytes of decoded images up to which they are kept in memory unless told otherwise
_LOOKS = 200  # of a stream's images, where not all are looked at


@dataclass(frozen=True, eq=False)
class Data:
    """A source, read and split.

    `final` is fit + search. `fingerprint` is a hash of the images, labels and class names as read (of a streamed
    source: of names and sizes of files, labels and class names); `split_fingerprint` of which of them are in fit,
    search and test, `test_fingerprint` of those in test. `listed`: the same three of the images as they are listed
    (names and sizes), streamed or not; empty of sources that are read in order. `notes` are sentences worth telling
    the user, `search_notes` those of them that only matter where the search split is used, `warnings` such that must
    not be missed. `depth` is the rule by which images of more than 8 bits are decoded. `median_side` is the median
    short side of the source images in pixels (of 200 of them where not all were looked at). `group_by`: as asked.
    """

    source: str
    classes: tuple[str, ...]
    fit: Split
    search: Split
    final: Split
    test: Split
    fingerprint: str
    split_fingerprint: str
    notes: tuple[str, ...]
    median_side: int
    search_notes: tuple[str, ...] = ()
    test_fingerprint: str = ""
    listed: Mapping[str, str] = field(default_factory=dict)
    group_by: str | None = None
    warnings: tuple[str, ...] = ()
    depth: Depth = UNKNOWN
    keys: np.ndarray | None = None  # uint64, a hash of what each row's file holds; None: the files were not read

    def summary(self) -> str:
        """How many classes there are, and images in each split: `2 classes: cat, dog; images: 80 in fit, …`."""
        parts = [f"{len(split):,} in {split.name}" for split in (self.fit, self.search, self.test) if len(split)]
        return f"{len(self.classes)} classes: {some(list(self.classes), 12)}; images: {', '.join(parts)}"

    def late_note(self) -> str | None:
        """What to tell of unreadable images that were met since the source was opened; None if there were none."""
        return self.fit.images.note() if self.fit.streamed else None


@dataclass(frozen=True)
class Survey:
    """A first look at a source: images (of these in `val/`), class names, median short side in px."""

    source: str
    images: int
    test_images: int
    classes: tuple[str, ...]
    median_side: int


def survey(source: str | os.PathLike, *, looks: int = 200) -> Survey:
    """Counts the images of a source and measures up to `looks` of them, without decoding any file.

    Raises `UserError` as `open_data` does for a source that is missing or has no proper classes. `classes` is
    empty where only reading a data set would tell them.
    """
    found = find(source)
    sides = [min(image.size) for image in readable(found, looks)]
    if not sides:
        raise UserError(f"{source}: none of the files looked at can be read as an image")
    return Survey(found.source, len(found), found.test, found.classes, int(np.median(sides)))


def open_data(
    source: str | os.PathLike | Found,
    *,
    size: tuple[int, int],
    seed: int = 0,
    cache: Path | None = None,
    bad_images: str = "refuse",
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
    stream: bool | None = None,
    check: bool = True,
    group_by: str | None = None,
    depth: Depth = UNKNOWN,
) -> Data:
    """Reads all images of `source`, stored at `size` (height, width) in pixels, and splits them.

    Args:
        source: "embedded", a folder (train/ and val/, or classes directly; one sub-folder per class), or a
            data set name of timm's `create_dataset` (torch/…, hfds/…, wds/…); or what `find` found there.
        size: stored size; images are resized to cover it and centre-cropped.
        seed: of the splits.
        cache: folder for the decoded images, which are then memory-mapped and not decoded again. Not for streams.
        bad_images: "refuse" or "skip" files that cannot be read as images.
        workers: threads that decode; 0: the calling one.
        progress: called with (images done, images in all).
        stream: leave the images where they are and decode them when needed; None: if they would take more than
            2 GB in memory and can be read in any order (`streams`).
        group_by: what names the group of an image, whose images stay on one side of every split: "prefix", "folder"
            or a regular expression (`copies.find_groups`). Copies of one image do so in any case.
        check: of a stream whose bad images are refused: look at all of them first. Not needed if another process
            does, or has done; a bad image then ends the work when it is met.
        depth: how images of more than 8 bits are decoded, as far as it is known already, such as from the training of
            what they are for. The rest is decided by the values of all images that are looked at.

    Raises:
        UserError: in one line, for a source that is missing, has no proper classes, unreadable images (unless
            skipped) or too few images.
    """
    if bad_images not in ("refuse", "skip"):
        raise UserError(f"--bad-images is {bad_images!r}; it must be refuse or skip")
    if len(size) != 2 or min(size) < 1:
        raise UserError(f"stored size is {size}; it must be two positive numbers of pixels (height, width)")
    found = source if isinstance(source, Found) else find(source)
    size, accept_bad = tuple(size), bad_images == "skip"
    if streams(found, size, stream, cache):
        told = stream is not None
        return _open_stream(found, size, seed, accept_bad, workers, progress, check, told, group_by, depth)
    decoded = decode_all(
        found, size, cache=cache, accept_bad=accept_bad, workers=workers, progress=progress, depth=depth
    )
    notes = []
    if stream is None and cache is None and _bytes(found, size) > IN_MEMORY:
        notes.append(f"the images take {_bytes(found, size) / 1e9:.1f} GB of memory: {found.why_in_order}")
    images, labels = torch.from_numpy(decoded.images), decoded.labels
    copies = find_copies(found, decoded.digests)
    look = Look(decoded.median_side, decoded.depth, decoded.remarks)
    identify = decoded.digests.__getitem__
    return _split(found, images, labels, identify, decoded.bad, look, seed, notes, copies, group_by)


def open_labelled(source: str | os.PathLike, classes: Sequence[str] | None, **options) -> Data:
    """Reads any labelled images as one test split; fit and search are empty.

    Of a folder with class folders directly, all images; of one with splits, those of its test split (`test/`, else
    `val/`, else what there is); of another data set, its test split, or all if it has none.

    Args:
        classes: the names of the classes in the order of the labels; the folder may hold some of them only. None: its
            own.
        options: of `open_data`.

    Raises:
        UserError: as `open_data`, and for class folders that are none of `classes`.
    """
    found = find_all(source, classes)
    if found.train and not found.test:
        found = replace(found, train=0, test=found.train)
    return open_data(found, **options)


def streams(found: Found, size: tuple[int, int], stream: bool | None = None, cache: Path | None = None) -> bool:
    """Whether `open_data` leaves the images where they are. Raises `UserError` if it is told to and cannot."""
    if stream and found.load is None:
        raise UserError(f"{found.source}: cannot be streamed: {found.why_in_order}")
    if stream is None:
        return cache is None and found.load is not None and _bytes(found, size) > IN_MEMORY
    return stream


def _bytes(found: Found, size: tuple[int, int]) -> int:
    return len(found) * 3 * size[0] * size[1]


def _open_stream(
    found: Found,
    size: tuple[int, int],
    seed: int,
    accept_bad: bool,
    workers: int,
    progress: Callable[[int, int], None] | None,
    check: bool,
    told: bool,
    group_by: str | None,
    depth: Depth,
) -> Data:
    notes = []
    if not told:
        notes.append(
            f"the images would take {_bytes(found, size) / 1e9:.1f} GB in memory: they are decoded as they are needed"
        )
    if check and not accept_bad:
        look = preflight(found, workers, progress, depth)
    else:
        refuse_bad(found, found.bad, accept_bad)
        look = preflight(found, workers, depth=depth, limit=_LOOKS)
    labels = np.array(found.labels(), np.int64)
    labels[list(found.bad)] = -1
    images = StreamedImages(found, size, accept_bad, workers, look.depth)
    copies = find_copies(found, None, workers)
    return _split(found, images, labels, found.identify, found.bad, look, seed, notes, copies, group_by)


def _split(
    found: Found,
    images: torch.Tensor | StreamedImages,
    labels: np.ndarray,
    identify: Callable[[int], str],
    bad: Mapping[int, str],
    look: Look,
    seed: int,
    more_notes: list[str],
    copies: np.ndarray | None,
    group_by: str | None,
) -> Data:
    notes = [*found.notes, *more_notes]
    if bad:
        notes.append(skipped(found.name, bad))
    seen = look.remarks.notes(found.name, look.depth)
    if seen and look.remarks.looked < len(found) - len(bad):
        notes.append(f"of {look.remarks.looked} images that were looked at: {'; '.join(seen)}")
    else:
        notes += seen
    classes = found.classes or tuple(map(str, range(int(labels.max(initial=-1)) + 1)))
    search_notes: list[str] = []
    warnings = look.remarks.warnings(labels, classes)
    groups, labelled, left = _grouped(found, labels, classes, copies, group_by, notes, warnings)
    try:
        rows = split_rows(found, labelled, classes, seed, notes, search_notes, groups)
    except UserError as error:
        missing = [skipped(found.name, bad)] * bool(bad) + [left] * bool(left)
        raise UserError("; ".join([str(error), *missing])) from None
    targets = torch.from_numpy(labels)
    splits = {name: Split(name, images, targets, torch.from_numpy(chosen)) for name, chosen in rows.items()}

    def fingerprints(identify: Callable[[int], str]) -> dict[str, str]:
        names = [f"class {name}" for name in classes]
        facts = {
            part: [f"{classes[labels[row]]} {identify(row)}" for row in rows[part]]
            for part in ("fit", "search", "test")
        }
        return {
            "fingerprint": fingerprint(*names, *chain.from_iterable(facts.values())),
            "split_fingerprint": fingerprint(*(f"{part} {fact}" for part in facts for fact in facts[part])),
            "test_fingerprint": fingerprint(*facts["test"]),
        }

    read = fingerprints(identify)
    listed = read if identify == found.identify else fingerprints(found.identify) if found.identify else {}
    return Data(
        source=found.source,
        classes=classes,
        fit=splits["fit"],
        search=splits["search"],
        final=splits["fit+search"],
        test=splits["test"],
        notes=(*notes, *search_notes),
        search_notes=tuple(search_notes),
        median_side=look.median_side,
        listed=listed,
        group_by=group_by,
        warnings=tuple(warnings),
        depth=look.depth,
        keys=None if read is listed else keys_of(map(identify, range(len(found)))),
        **read,
    )


def _grouped(
    found: Found,
    labels: np.ndarray,
    classes: Sequence[str],
    copies: np.ndarray | None,
    group_by: str | None,
    notes: list[str],
    warnings: list[str],
) -> tuple[np.ndarray | None, np.ndarray, str]:
    """The groups that splits must not divide (None: all images may go anywhere), the labels, -1 of those that are
    left out for it, and how many those are, in words; appends to the notes and warnings."""
    partitions = [] if copies is None or not found.train else [copies]
    if partitions:
        told_of_copies(found, copies, labels, classes, notes, warnings)
    if group_by is not None:
        named = find_groups(found, group_by)
        notes.append(told_of_groups(named, labels, group_by))
        partitions.append(named)
    if not partitions:
        return None, labels, ""
    groups = joined(len(found), partitions)
    out, left = outside(found, groups, labels, group_by)
    notes += [left] * bool(left)
    return groups, np.where(out, -1, labels), left
