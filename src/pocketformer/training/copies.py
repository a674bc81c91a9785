"""Images that must stay on one side of every split: copies of one image, and groups that a person names."""

import hashlib
import os
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np

from pocketformer.errors import UserError
from pocketformer.progress import Stage, stage
from pocketformer.training.sources import Found, shown

_MANY, _CHUNK = 20_000, 1024
_PART = 4096  # bytes of the middle and of the end of a file, by which files of one size are told apart first


def find_copies(found: Found, digests: Sequence[str] | None, workers: int = 0) -> np.ndarray | None:
    """int64 (N,): the first row whose file holds the same bytes. None if there are no copies, or none can be told.

    `digests` of the images, where they were read; else files of one size are compared, by parts and then in whole.
    """
    rows = [row for row in range(len(found)) if row not in found.bad]
    if digests is not None:
        return _alike(len(found), ((row, digests[row]) for row in rows if digests[row]))
    if found.sizes is None or found.load is None:
        return None
    sizes = found.sizes()
    first, keys = None, [_digester(found, sizes, whole=False), _digester(found, sizes, whole=True)]
    for keyed in (lambda rows: sizes[rows].tolist(), *(partial(_mapped, key, workers=workers) for key in keys)):
        first = _alike(len(found), zip(rows, keyed(rows), strict=True))
        if first is None:
            return None
        several = np.bincount(first, minlength=len(found))[first] > 1
        rows = [row for row in rows if several[row]]
    return first


def find_groups(found: Found, by: str) -> np.ndarray:
    """int64 (N,): the first row of the group that each image belongs to, by its name.

    `by`: "prefix", what its file's name has before the last `_` or `-`; "folder", the folder below its class's that it
    lies in; or a regular expression, whose groups name the group. An image without any is a group of its own.
    """
    if found.path is None:
        raise UserError(f"--group-by {by}: images of {found.source} have no names to go by; it takes a folder")
    key_of = _key(found, by)
    first = _alike(len(found), ((row, key) for row in range(len(found)) if (key := key_of(row)) is not None))
    if first is None:
        raise UserError(
            f"--group-by {by} puts no two images of {found.source} into one group; the first is called {found.name(0)}"
        )
    return first


def joined(count: int, partitions: Iterable[np.ndarray]) -> np.ndarray:
    """int64 (N,): the first row of the smallest groups that hold whole groups of all partitions, given likewise."""
    above = list(range(count))

    def top(row: int) -> int:
        while above[row] != row:
            above[row] = above[above[row]]
            row = above[row]
        return row

    for first in partitions:
        for row in np.flatnonzero(first != np.arange(count)).tolist():
            one, other = sorted((top(row), top(int(first[row]))))
            above[other] = one
    return np.array([top(row) for row in range(count)], np.int64)


def told_of_copies(
    found: Found,
    first: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    notes: list[str],
    warnings: list[str],
) -> None:
    """Appends what the person is told of copies."""
    more = np.flatnonzero((first != np.arange(len(first))) & (labels >= 0))
    if not len(more):
        return
    row = int(more[0])
    notes.append(
        f"{len(more)} image{'s are copies' if len(more) > 1 else ' is a copy'} of others ({shown(found.name(row))} of "
        f"{shown(found.name(int(first[row])))}{', …' if len(more) > 1 else ''}): copies stay on one side of every split"
    )
    other = more[labels[more] != labels[first[more]]]
    if len(other):
        row = int(other[0])
        warnings.append(
            f"copies of one image are in different classes ({len(other)} in all): {shown(found.name(row))} is "
            f"{shown(classes[labels[row]])}, {shown(found.name(int(first[row])))} is "
            f"{shown(classes[labels[first[row]]])}"
        )


def repeated(files: Sequence[Path], others: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Of `files` each that holds the same bytes as one of `others`, with that one."""
    sizes: dict[int, list[Path]] = {}
    for other in others:
        sizes.setdefault(_size(other), []).append(other)
    near = [file for file in files if _size(file) in sizes and _size(file) > 0]
    held = {_hashed(other): other for size in {_size(file) for file in near} for other in sizes[size]}
    return [(file, held[key]) for file in near if (key := _hashed(file)) in held]


def told_of_groups(first: np.ndarray, labels: np.ndarray, by: str) -> str:
    """What the person is told of groups."""
    sizes = np.bincount(first[labels >= 0])
    count = int((sizes > 0).sum())
    return (
        f"--group-by {by}: {int(sizes.sum())} images are {count} groups, the largest of {sizes.max()}; each stays on "
        "one side of every split"
    )


def outside(found: Found, groups: np.ndarray, labels: np.ndarray, by: str | None) -> tuple[np.ndarray, str]:
    """bool (N,): rows that are left out, as others of their group are in a later split that was given: what is tested
    on is never trained on, nor what the search is scored on. With what the person is told of it, if there are any."""
    side = np.searchsorted([found.train, found.train + found.search], np.arange(len(found)), side="right")
    side = np.where(labels >= 0, side, -1)
    last = np.full(len(found), -1)
    np.maximum.at(last, groups, side)
    out = (side >= 0) & (side < last[groups])
    like = "copies" if by is None else "copies, or of a group with some,"
    before, given = ("training and the search", " or of validation") if found.search else ("training", "")
    left = f"{out.sum()} image{'s are' if out.sum() > 1 else ' is'} left out of {before}"
    return out, f"{left}: {like} of images in the test split{given}" if out.any() else ""


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # told when it is read
        return -1


def _hashed(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _key(found: Found, by: str) -> Callable[[int], Hashable | None]:
    if by == "folder":
        return lambda row: os.path.dirname(found.path(row)) or None
    if by == "prefix":
        pattern = re.compile(r"(.*)[_-]")
        return lambda row: (match := pattern.match(os.path.splitext(os.path.basename(found.path(row)))[0])) and match[1]
    pattern = _pattern(by)

    def matched(row: int) -> Hashable | None:
        match = pattern.search(found.name(row))
        return match and (match.groups() or match[0])

    return matched


def _pattern(text: str) -> re.Pattern:
    try:
        return re.compile(text)
    except re.error as error:
        raise UserError(
            f"--group-by {text!r} is neither prefix nor folder nor a regular expression ({error}); an example: "
            "'(patient\\d+)_'"
        ) from None


def _alike(count: int, keys: Iterable[tuple[int, Hashable]]) -> np.ndarray | None:
    """int64 (N,): the first row of the same key; None if all differ. A row without key is alone."""
    first, seen = np.arange(count), {}
    for row, key in keys:
        first[row] = seen.setdefault(key, row)
    return first if len(seen) and (first != np.arange(count)).any() else None


def _mapped(key: Callable[[int], Hashable], rows: list[int], workers: int) -> Iterator[Hashable]:
    """The keys of rows, by `workers` threads; of many it is said how far it is."""
    shown = stage("look for copies", len(rows)) if len(rows) > _MANY else nullcontext(Stage("", None))
    with shown as progress, ThreadPoolExecutor(workers) if workers > 0 else nullcontext() as pool:
        for first in range(0, len(rows), _CHUNK):
            chunk = rows[first : first + _CHUNK]
            yield from (pool.map if pool else map)(key, chunk)
            progress.advance(len(chunk))


def _digester(found: Found, sizes: np.ndarray, whole: bool) -> Callable[[int], bytes]:
    def digest(row: int) -> bytes:
        size = int(sizes[row])
        try:
            parts = found.read(row, [(0, size)] if whole else [(size // 2, _PART), (size - _PART, _PART)])
        except OSError:  # told when it is decoded
            return b"%d" % row
        return hashlib.sha256(b"%d " % size + parts).digest()

    return digest
