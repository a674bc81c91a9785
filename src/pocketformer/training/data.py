"""The public entry to images: `open_data` reads a source and splits it into fit, search and test.

The test split is `val/` of the source, or a tenth set aside; the rest is split once into fit and search.
Splits are a function of (seed, labels, order of files) alone and do not change with library versions.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pocketformer.errors import UserError
from pocketformer.training.decoding import Decoded, decode_all, describe_bad, readable
from pocketformer.training.sources import Found, find, some

SEARCH_SMALLEST, SEARCH_LARGEST = 500, 10_000


@dataclass(frozen=True, eq=False)
class Split:
    """Some rows of shared image data: `images` uint8 (N, 3, S_h, S_w), `labels` int64 (N,).

    `indices` int64 are the rows that belong to the split, in order; None: all of them.
    """

    name: str
    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels if self.indices is None else self.indices)

    def take(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies of images uint8 (B, 3, S_h, S_w) and labels int64 (B,) at `rows`, positions in the split."""
        rows = rows if self.indices is None else self.indices[rows]
        return self.images[rows], self.labels[rows]


@dataclass(frozen=True, eq=False)
class Data:
    """A source, read and split.

    `final` is fit + search. `fingerprint` is a hash of the images, labels and class names as read;
    `split_fingerprint` of which of them are in fit, search and test. `notes` are sentences worth telling the
    user. `median_side` is the median short side of the source images in pixels.
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
) -> Data:
    """Reads all images of `source`, stored at `size` (height, width) in pixels, and splits them.

    Args:
        source: "embedded", a folder (train/ and val/, or classes directly; one sub-folder per class), or a
            data set name of timm's `create_dataset` (torch/…, hfds/…, wds/…); or what `find` found there.
        size: stored size; images are resized to cover it and centre-cropped.
        seed: of the splits.
        cache: folder for the decoded images, which are then memory-mapped and not decoded again.
        bad_images: "refuse" or "skip" files that cannot be read as images.
        workers: threads that decode; 0: the calling one.
        progress: called with (images done, images in all).

    Raises:
        UserError: in one line, for a source that is missing, has no proper classes, unreadable images (unless
            skipped) or too few images.
    """
    if bad_images not in ("refuse", "skip"):
        raise UserError(f"--bad-images is {bad_images!r}; it must be refuse or skip")
    if len(size) != 2 or min(size) < 1:
        raise UserError(f"stored size is {size}; it must be two positive numbers of pixels (height, width)")
    found = source if isinstance(source, Found) else find(source)
    decoded = decode_all(
        found, tuple(size), cache=cache, accept_bad=bad_images == "skip", workers=workers, progress=progress
    )
    notes = list(found.notes)
    if decoded.bad:
        count = len(decoded.bad)
        notes.append(f"{count} image{'s' * (count > 1)} skipped: {describe_bad(found, decoded.bad)}")
    classes = found.classes or tuple(map(str, range(int(decoded.labels.max(initial=-1)) + 1)))
    rows = _split(found, decoded, classes, seed, notes)

    images, labels = torch.from_numpy(decoded.images), torch.from_numpy(decoded.labels)
    splits = {name: Split(name, images, labels, torch.from_numpy(chosen)) for name, chosen in rows.items()}
    names = [classes[label] if label >= 0 else "" for label in decoded.labels]
    return Data(
        source=found.source,
        classes=classes,
        fit=splits["fit"],
        search=splits["search"],
        final=splits["fit+search"],
        test=splits["test"],
        fingerprint=_fingerprint(
            *(f"class {name}" for name in classes),
            *(f"{names[row]} {decoded.digests[row]}" for part in ("fit+search", "test") for row in rows[part]),
        ),
        split_fingerprint=_fingerprint(
            *(f"{part} {names[row]} {decoded.digests[row]}" for part in ("fit", "search", "test") for row in rows[part])
        ),
        notes=tuple(notes),
        median_side=decoded.median_side,
    )


def stratified(labels: np.ndarray, count: int, seed: int, *, purpose: int = 0) -> np.ndarray:
    """Chooses about `count` of the labels at random, each class in proportion; bool (N,), True: chosen.

    Every class gets its share of `count` rounded down or up (largest remainders), at least one image; where
    many classes need that one, more than `count` are chosen. A class of one image is chosen whole.
    """
    classes, inverse, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    shares = sizes * (count / max(len(labels), 1))
    # The share of one class is exact in binary only by luck: 29.999999 is 30.
    quotas = np.maximum(np.floor(shares + 1e-9), 1).astype(np.int64)
    remainders = np.where(shares > quotas, shares - quotas, -1.0)
    order = np.argsort(-remainders, kind="stable")
    extra = min(max(count - int(quotas.sum()), 0), int((remainders > 1e-9).sum()))
    quotas[order[:extra]] += 1
    rank = random_words(len(labels), seed, purpose)
    chosen = np.zeros(len(labels), bool)
    for c in range(len(classes)):
        rows = np.flatnonzero(inverse == c)
        chosen[rows[np.argsort(rank[rows], kind="stable")[: quotas[c]]]] = True
    return chosen


def random_words(count: int, seed: int, *key: int) -> np.ndarray:
    """`count` random uint64, a function of the seed and the key that no numpy version changes."""
    if seed < 0:
        raise UserError(f"the seed is {seed}; it must not be negative")
    return np.random.Philox(np.random.SeedSequence([seed, *key])).random_raw(count)


def search_count(rest: int) -> int:
    """Images of the search split out of `rest`: a tenth, within 500 and 10,000, never more than half."""
    return min(max((rest + 5) // 10, SEARCH_SMALLEST), SEARCH_LARGEST, rest // 2)


def _split(
    found: Found, decoded: Decoded, classes: tuple[str, ...], seed: int, notes: list[str]
) -> dict[str, np.ndarray]:
    """Ascending rows of each split; appends to the notes what the user did not ask for."""
    good = decoded.labels >= 0
    is_test = np.arange(len(found)) >= found.train
    rest, test = np.flatnonzero(good & ~is_test), np.flatnonzero(good & is_test)
    if len(classes) < 2:
        raise UserError(f"{found.source}: has only one class; at least two are needed")
    _check_classes(found.source, "training images", decoded.labels[rest], classes, 2 if found.test else 3)
    if found.test:
        _check_classes(found.source, "test images", decoded.labels[test], classes, 1)
    else:
        chosen = stratified(decoded.labels[rest], (len(rest) + 5) // 10, seed, purpose=1)
        test, rest = rest[chosen], rest[~chosen]
        notes.append(f"no val/: a stratified tenth ({len(test)} images, seed {seed}) was set aside as the test split")
    count = search_count(len(rest))
    chosen = stratified(decoded.labels[rest], count, seed, purpose=2)
    search, fit = rest[chosen], rest[~chosen]
    if count < SEARCH_SMALLEST:
        notes.append(f"small set: the search split is half of the images besides test ({len(search)} of {len(rest)})")
    elif len(rest) < 10 * SEARCH_SMALLEST - 5:
        notes.append(f"small set: the search split has its minimum of {count} images ({len(rest)} besides test)")
    return {"fit": fit, "search": search, "fit+search": rest, "test": test}


def _check_classes(source: str, what: str, labels: np.ndarray, classes: tuple[str, ...], least: int) -> None:
    if labels.max(initial=0) >= len(classes):
        raise UserError(f"{source}: a label is {labels.max()}, but there are only {len(classes)} classes")
    counts = np.bincount(labels, minlength=len(classes))
    if few := [f"{c} ({n})" for c, n in zip(classes, counts, strict=True) if n < least]:
        raise UserError(f"{source}: too few {what} to split: {some(few)}; each class needs at least {least}")


def _fingerprint(*facts: str) -> str:
    """16 hex digits that do not depend on the order of the facts, so neither on the names of files."""
    return hashlib.sha256("\n".join(sorted(facts)).encode("utf-8", "surrogateescape")).hexdigest()[:16]
