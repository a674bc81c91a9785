"""Images in folders: `train/` and `val/`, or the classes directly; one sub-folder per class."""

import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pocketformer.errors import UserError
from pocketformer.training.sources import Found, Sample, some, stamp_and_sizes
from pocketformer.training.strings import Strings

_LITTER = {"thumbs.db", "desktop.ini", "__macosx"}


@dataclass(frozen=True, eq=False)
class FolderImages:
    """Files below `root`, by row: `names` from there, `labels` int64 (N,), `sizes` int64 (N,) in bytes."""

    root: Path
    names: Strings
    labels: np.ndarray
    sizes: np.ndarray

    def load(self, row: int) -> Sample:
        raw = (self.root / self.names[row]).read_bytes()
        if not raw:
            raise ValueError("empty file")
        return Sample(Image.open(io.BytesIO(raw)), raw, int(self.labels[row]))

    def name(self, row: int) -> str:
        return Path(self.names[row]).as_posix()

    def identify(self, row: int) -> str:
        return f"{self.name(row)} {self.sizes[row]}"

    def known_labels(self) -> np.ndarray:
        return self.labels

    def bad(self) -> dict[int, str]:
        return {int(row): "empty file" if self.sizes[row] == 0 else "missing" for row in np.flatnonzero(self.sizes < 1)}


def find_folder(source: str, root: Path) -> Found:
    """Lists the images of a folder; reads none."""
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

    paths = [path for part in parts for c in classes for path in part[c]]
    stamp, sizes = stamp_and_sizes(paths, source, str(root.resolve()))
    prefix = len(str(root / "x")) - 1
    images = FolderImages(
        root=root,
        names=Strings(path[prefix:] for path in paths),
        labels=np.repeat(np.arange(len(parts) * len(classes)), [len(part[c]) for part in parts for c in classes])
        % len(classes),
        sizes=sizes,
    )
    train = sum(map(len, parts[0].values()))
    return Found(
        source=source,
        classes=classes,
        train=train,
        test=len(paths) - train,
        stamp=stamp,
        name=images.name,
        notes=tuple(notes),
        load=images.load,
        labels=images.known_labels,
        identify=images.identify,
        bad=images.bad(),
        place=root,
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
