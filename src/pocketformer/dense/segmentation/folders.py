"""Images and their masks in folders, by the layouts of ADE20K and CamVid."""

import os
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pocketformer.dense.segmentation.labels import Coding, read_classes
from pocketformer.errors import UserError
from pocketformer.training.sources import some, stamp_of

# Of each layout and split, the folders of images and of masks.
LAYOUTS = {
    "ADE20K": {
        "train": ("images/training", "annotations/training"),
        "val": ("images/validation", "annotations/validation"),
        "test": ("images/test", "annotations/test"),
    },
    "CamVid": {
        "train": ("train", "trainannot"),
        "val": ("val", "valannot"),
        "test": ("test", "testannot"),
    },
}


@dataclass(frozen=True)
class Pairs:
    """A split: files below `root`, each mask that of the image in its place. `where`: the folders."""

    name: str
    root: Path
    where: tuple[str, str]
    images: tuple[str, ...]
    masks: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Folder:
    """What a folder of images and masks holds. `stamp` changes with size and time of any file. `classes` None: their
    names are not known, nor their number."""

    source: str
    splits: dict[str, Pairs]
    classes: tuple[str, ...] | None
    coding: Coding
    stamp: str
    notes: tuple[str, ...] = ()

    @property
    def judged(self) -> Pairs:
        """Of what results are told: test, or val if there is none."""
        for name in ("test", "val"):
            if name in self.splits:
                return self.splits[name]
        raise UserError(f"{self.source}: has no val or test images to evaluate on")


def find_masks(source: str, coding: Coding, classes: str | None = None) -> Folder:
    """Lists images and masks; reads none. `classes`: a file of names, by default `classes.txt` there.

    Raises `UserError` in one line for a folder of another layout, an empty split, images without a mask and masks
    without an image.
    """
    root = Path(source)
    if not root.is_dir():
        raise UserError(f"{source}: no such folder")
    layout = next((found for found in LAYOUTS.values() if _has(root, found["train"])), None)
    if layout is None:
        known = "; ".join(
            f"{name}: {', '.join(f'{images} with {masks}' for images, masks in splits.values())}"
            for name, splits in LAYOUTS.items()
        )
        raise UserError(f"{source}: no training images with masks; known layouts are {known} (val and test if any)")
    splits, notes = {}, []
    for name, where in layout.items():
        if _has(root, where):
            splits[name] = _paired(source, name, root, where)
        elif (root / where[0]).is_dir():
            notes.append(f"{where[0]}/ of {source} was not read, as there is no {where[1]}/")
    file = Path(classes) if classes is not None else root / "classes.txt"
    names = read_classes(file, coding) if classes is not None or file.is_file() else None
    paths = [name for split in splits.values() for name in (*split.images, *split.masks)]
    stamp = stamp_of([str(root / path) for path in paths], repr(coding), repr(names))
    return Folder(source, splits, names, coding, stamp, tuple(notes))


def _has(root: Path, where: tuple[str, str]) -> bool:
    return all((root / part).is_dir() for part in where)


def _paired(source: str, name: str, root: Path, where: tuple[str, str]) -> Pairs:
    images, masks = (_files(source, root / part) for part in where)
    if not images:
        raise UserError(f"{source}: {where[0]}/ is empty, no images to {'learn from' if name == 'train' else 'judge'}")
    for kind, there, other in (("images", images, masks), ("masks", masks, images)):
        if alone := [there[stem] for stem in there if stem not in other]:
            have, miss = where if kind == "images" else where[::-1]
            what = "mask" if kind == "images" else "image"
            raise UserError(
                f"{source}: {len(alone)} of {len(there)} {kind} in {have}/ have no {what} of their name in {miss}/: "
                f"{some(sorted(alone))}"
            )
    stems = sorted(images)
    return Pairs(
        name,
        root,
        where,
        tuple(f"{where[0]}/{images[stem]}" for stem in stems),
        tuple(f"{where[1]}/{masks[stem]}" for stem in stems),
    )


def _files(source: str, folder: Path) -> dict[str, str]:
    """Names of the image files from the folder, sub-folders included, by what stands before their suffix."""
    suffixes = Image.registered_extensions()
    found: dict[str, str] = {}
    twice: list[str] = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            if name.startswith(".") or suffix.lower() not in suffixes:
                continue
            below = Path(os.path.relpath(parent, folder))
            key = (below / stem).as_posix()
            if key in found:
                twice.append((below / name).as_posix())
            found.setdefault(key, (below / name).as_posix())
    if twice:
        raise UserError(
            f"{source}: {len(twice)} files in {folder.name}/ share their names but for the suffix with "
            f"another: {some(twice)}"
        )
    return found
