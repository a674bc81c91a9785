"""Finds images by the name that a user gives: `embedded`, a folder, or a data set of timm.

Nothing is decoded here and nothing is known of splits: a source is a count, class names and a way to load
each image. Data sets of timm are in `named`.
"""

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from pocketformer.errors import UserError

EMBEDDED = Path(__file__).parent / "embedded" / "fashion_mnist_6k2k.npz"
PREFIXES = ("torch", "hfds", "hfids", "tfds", "wds")
_LITTER = {"thumbs.db", "desktop.ini", "__macosx"}


@dataclass(frozen=True)
class Sample:
    """One image as found: opened (pixels may be decoded later), the bytes that identify it, its class."""

    image: Image.Image
    raw: bytes
    label: int


Load = Callable[[], Sample]


@dataclass(frozen=True)
class Found:
    """Images that were found and not yet decoded: `train` rows first, then `test` rows (0: no such split).

    `jobs()` yields (row, load); `stream` says that yielding already costs the decoding. `stamp` changes when
    any image may have changed, without reading them. `classes` is empty if the source names none.
    """

    source: str
    classes: tuple[str, ...]
    train: int
    test: int
    stamp: str
    jobs: Callable[[], Iterator[tuple[int, Load]]]
    name: Callable[[int], str]
    notes: tuple[str, ...] = ()
    stream: bool = False

    def __len__(self) -> int:
        return self.train + self.test


def find(source: str | os.PathLike) -> Found:
    """Finds the images of a source; raises `UserError` in one line if there are none to be had."""
    source = os.fspath(source)
    if source == "embedded":
        return _find_embedded()
    path = Path(source)
    if path.is_dir():
        try:
            return _find_folder(source, path)
        except OSError as error:
            raise UserError(f"{source}: cannot be listed: {error.strerror}: {error.filename}") from None
    if path.exists():
        raise UserError(f"{source}: is a file; give a folder with train/ (and val/), one sub-folder per class")
    prefix, slash, name = source.partition("/")
    if slash and name and prefix.lower() in PREFIXES:
        from pocketformer.training.named import find_named  # brings in timm

        return find_named(source, prefix.lower(), name)
    raise UserError(f"{source}: no such folder, and not a dataset name (torch/…, hfds/…, wds/…)")


def _find_embedded() -> Found:
    with np.load(EMBEDDED) as archive:
        images = np.concatenate([archive["train_images"], archive["test_images"]])
        labels = np.concatenate([archive["train_labels"], archive["test_labels"]])
        classes = tuple(map(str, archive["classes"]))
        train = len(archive["train_labels"])

    def load(row: int) -> Sample:
        return Sample(Image.fromarray(images[row]), images[row].tobytes(), int(labels[row]))

    return Found(
        source="embedded",
        classes=classes,
        train=train,
        test=len(labels) - train,
        stamp=hashlib.sha256(EMBEDDED.read_bytes()).hexdigest(),
        jobs=lambda: ((row, partial(load, row)) for row in range(len(labels))),
        name=lambda row: f"embedded image {row}",
    )


def _is_litter(name: str) -> bool:
    return name.startswith(".") or name.lower() in _LITTER


def _scan(folder: Path) -> tuple[dict[str, list[str]], list[str]]:
    """Class name -> sorted paths of its files (sub-folders included), and the files beside the classes."""

    def fail(error: OSError) -> None:
        raise error

    names = sorted(entry for entry in os.listdir(folder) if not _is_litter(entry))
    classes: dict[str, list[str]] = {}
    for name in names:
        if not (folder / name).is_dir():
            continue
        paths: list[str] = []
        for parent, folders, files in os.walk(folder / name, onerror=fail, followlinks=True):
            folders[:] = [f for f in folders if not _is_litter(f)]
            paths += [os.path.join(parent, f) for f in files if not _is_litter(f)]
        classes[name] = sorted(paths)  # the order of a file system is not reproducible
    return classes, [name for name in names if name not in classes]


def _checked_scan(folder: Path, notes: list[str]) -> dict[str, list[str]]:
    classes, loose = _scan(folder)
    if not classes:
        raise UserError(f"{folder}: has no class folders; images belong into one sub-folder per class")
    if len(classes) == 1:
        raise UserError(f"{folder}: has only one class folder ({next(iter(classes))}); at least two are needed")
    if empty := [name for name, paths in classes.items() if not paths]:
        raise UserError(f"{folder}: class folders without images: {some(empty)}; fill or remove them")
    if loose:
        notes.append(f"not read, as beside the class folders of {folder}: {some(loose)}")
    return classes


def _find_folder(source: str, root: Path) -> Found:
    notes: list[str] = []
    has_train, val = (root / "train").is_dir(), root / "val"
    if val.is_dir() and not has_train:
        raise UserError(f"{source}: has val/ but no train/; put the training images into train/")
    parts = [_checked_scan(root / "train" if has_train else root, notes)]
    classes = tuple(parts[0])
    if val.is_dir():
        parts.append(_checked_scan(val, notes))
        differences = [
            f"only in {where}/: {some(sorted(names))}"
            for where, names in (
                ("train", parts[0].keys() - parts[1].keys()),
                ("val", parts[1].keys() - parts[0].keys()),
            )
            if names
        ]
        if differences:
            raise UserError(f"{source}: val/ and train/ have different classes ({'; '.join(differences)})")
    elif has_train:
        others = [n for n in ("validation", "valid", "test") if (root / n).is_dir()]
        notes += [f"{n}/ was not read; name it val/ to make it the test split" for n in others]

    files = [(path, label) for part in parts for label, c in enumerate(classes) for path in part[c]]

    def load(row: int) -> Sample:
        path, label = files[row]
        raw = Path(path).read_bytes()
        if not raw:
            raise ValueError("empty file")
        return Sample(Image.open(io.BytesIO(raw)), raw, label)

    return Found(
        source=source,
        classes=classes,
        train=sum(map(len, parts[0].values())),
        test=sum(map(len, parts[1].values())) if len(parts) == 2 else 0,
        stamp=stamp_of([path for path, _ in files], source, str(root.resolve())),
        jobs=lambda: ((row, partial(load, row)) for row in range(len(files))),
        name=lambda row: Path(files[row][0]).relative_to(root).as_posix(),
        notes=tuple(notes),
    )


def stamp_of(paths: list[str], *more: str) -> str:
    """Hash of the paths, sizes and times of files, and of further words; reads no file."""
    digest = hashlib.sha256(repr(more).encode("utf-8", "surrogateescape"))
    for path in paths:
        try:
            status = os.stat(path)
            digest.update(os.fsencode(path) + f"|{status.st_size}|{status.st_mtime_ns}\n".encode())
        except OSError:  # a dangling link, or a shard on the web
            digest.update(os.fsencode(path) + b"|?\n")
    return digest.hexdigest()


def some(names: list[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (f", … ({len(names)} in all)" if len(names) > count else "")
