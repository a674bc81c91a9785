"""Finds images by the name that a user gives: `embedded`, a folder, or a data set of timm.

Nothing is decoded here and nothing is known of splits: a source is a count, class names and a way to load
each image. Folders are in `folders`, shards in `shards`, other data sets of timm in `named`.
"""

import hashlib
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from pocketformer.errors import UserError
from pocketformer.files import as_path, as_text

EMBEDDED = Path(__file__).parent / "embedded" / "fashion_mnist_6k2k.npz"
PREFIXES = ("torch", "hfds", "hfids", "tfds", "wds")


@dataclass(frozen=True)
class Sample:
    """One image as found: opened (pixels may be decoded later), the bytes that identify it, its class."""

    image: Image.Image
    raw: bytes
    label: int


Load = Callable[[], Sample]
Spans = Sequence[tuple[int, int]]  # (first byte, count) of parts of a file


@dataclass(frozen=True)
class Found:
    """Images that were found and not yet decoded: `train` rows first, then `search` and `test` (0: no such split).

    `name` of a row is for people. `stamp` changes when any image may have changed, without reading them.
    `classes` is empty if the source names none.

    Sources with random access have `load`, `labels` (int64 (N,), without decoding any image) and `identify` (what
    tells an image of a row from others without reading it, the same on any machine); `bad` are rows that cannot be
    read, as far as listing tells (row -> why), and `place` is what vanishes if the images do. These go to other
    processes, so they can be pickled. `sizes` int64 (N,) are those of the files in bytes,
    `read` gives bytes of one, in spans, `path` is that of a row below its class, where there are such.

    The others have `in_order()`, which yields (row, load) and decodes to do so, and `why_in_order`.
    """

    source: str
    classes: tuple[str, ...]
    train: int
    test: int
    stamp: str
    name: Callable[[int], str]
    notes: tuple[str, ...] = ()
    load: Callable[[int], Sample] | None = None
    labels: Callable[[], np.ndarray] | None = None
    identify: Callable[[int], str] | None = None
    path: Callable[[int], str] | None = None
    sizes: Callable[[], np.ndarray] | None = None
    read: Callable[[int, Spans], bytes] | None = None
    bad: Mapping[int, str] = field(default_factory=dict)
    place: Path | None = None
    in_order: Callable[[], Iterator[tuple[int, Load]]] | None = None
    why_in_order: str = ""
    search: int = 0

    def __len__(self) -> int:
        return self.train + self.search + self.test

    def jobs(self) -> Iterator[tuple[int, Load]]:
        """(row, load) of every image."""
        if self.load is None:
            return self.in_order()
        return ((row, partial(self.load, row)) for row in range(len(self)))

    @property
    def stream(self) -> bool:
        """Whether yielding a job already costs the decoding."""
        return self.load is None


def find(source: str | os.PathLike) -> Found:
    """Finds the images of a source; raises `UserError` in one line if there are none to be had."""
    source = os.fspath(source)
    if source == "embedded":
        return _find_embedded()
    if (path := folder_of(source)) is not None:
        from pocketformer.training.folders import find_folder

        return _listed(source, lambda: find_folder(source, path))
    prefix, slash, name = source.partition("/")
    if slash and name and prefix.lower() in PREFIXES:
        from pocketformer.training.named import find_named  # brings in timm

        return find_named(source, prefix.lower(), name)
    raise UserError(f"{source}: no such folder, and not a dataset name (torch/…, hfds/…, wds/…)")


def find_all(source: str | os.PathLike, classes: Sequence[str] | None) -> Found:
    """Finds the images of any folder of classes as one test split; of other sources, what `find` does. `classes`: the
    names that are known."""
    source = os.fspath(source)
    path = None if source == "embedded" else folder_of(source)
    if path is None:
        return find(source)
    from pocketformer.training.folders import find_labelled

    return _listed(source, lambda: find_labelled(source, path, classes))


def folder_of(source: str) -> Path | None:
    """The folder that a source names; None if it names none. Raises `UserError` if it is a file."""
    if not source:  # a script's variable that is not set, and no word for the folder one is in
        raise UserError("the name of the images is empty; give a folder, or the name of a data set")
    path = Path(as_path(source))
    if path.exists() and not path.is_dir():
        raise UserError(f"{source}: is a file; give a folder with train/ (and val/), one sub-folder per class")
    return path if path.is_dir() else None


def _listed(source: str, find: Callable[[], Found]) -> Found:
    try:
        return find()
    except OSError as error:
        raise UserError(f"{source}: cannot be listed: {error.strerror}: {error.filename}") from None


@dataclass(frozen=True, eq=False)
class _Embedded:
    images: np.ndarray
    targets: np.ndarray

    def load(self, row: int) -> Sample:
        return Sample(Image.fromarray(self.images[row]), self.images[row].tobytes(), int(self.targets[row]))

    def labels(self) -> np.ndarray:
        return self.targets

    def name(self, row: int) -> str:
        return f"embedded image {row}"


def _find_embedded() -> Found:
    with np.load(EMBEDDED) as archive:
        images = np.concatenate([archive["train_images"], archive["test_images"]])
        labels = np.concatenate([archive["train_labels"], archive["test_labels"]]).astype(np.int64)
        classes = tuple(map(str, archive["classes"]))
        train = len(archive["train_labels"])
    embedded = _Embedded(images, labels)
    return Found(
        source="embedded",
        classes=classes,
        train=train,
        test=len(labels) - train,
        stamp=hashlib.sha256(EMBEDDED.read_bytes()).hexdigest(),
        name=embedded.name,
        load=embedded.load,
        labels=embedded.labels,
        identify=embedded.name,
    )


def stamp_of(paths: list[str], *more: str) -> str:
    """Hash of the paths, sizes and times of files, and of further words; reads no file."""
    return stamp_and_sizes(paths, *more)[0]


def stamp_and_sizes(paths: list[str], *more: str) -> tuple[str, np.ndarray]:
    """`stamp_of` and the sizes in bytes, int64 (N,): -1 where there is no file."""
    digest = hashlib.sha256(repr(more).encode("utf-8", "surrogateescape"))
    sizes = np.full(len(paths), -1, np.int64)
    for row, path in enumerate(paths):
        try:
            status = os.stat(path)
            sizes[row] = status.st_size
            digest.update(os.fsencode(path) + f"|{status.st_size}|{status.st_mtime_ns}\n".encode())
        except OSError:  # a dangling link, or a shard on the web
            digest.update(os.fsencode(path) + b"|?\n")
    return digest.hexdigest(), sizes


def keys_of(digests: Iterable[str]) -> np.ndarray:
    """uint64 of 16 hex digits each; 0 for what could not be read."""
    return np.array([int(digest or "0", 16) for digest in digests], np.uint64)


def fingerprint(*facts: str) -> str:
    """16 hex digits that do not depend on the order of the facts, so neither on the names of files."""
    return hashlib.sha256("\n".join(sorted(facts)).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def some(names: list[str], count: int = 3) -> str:
    """The first of many names, for a message of one line."""
    more = f", … ({len(names)} in all)" if len(names) > count else ""
    return ", ".join(map(shown, names[:count])) + more


def shown(name: str) -> str:
    """A name as it can stand in a line: line breaks and other control characters, also those that turn the direction
    of writing, are written as escapes."""
    hidden = {c for c in as_text(name) if unicodedata.category(c) in ("Cc", "Zl", "Zp") or _turns(c)}
    return "".join(c.encode("unicode_escape").decode() if c in hidden else c for c in as_text(name))


def _turns(character: str) -> bool:
    return unicodedata.bidirectional(character) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
