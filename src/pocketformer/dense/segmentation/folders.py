"""Images and their masks in folders, by the layouts of ADE20K and CamVid and those that are like them."""

import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pocketformer.dense.segmentation import voc
from pocketformer.dense.segmentation.labels import Coding
from pocketformer.dense.segmentation.lists import read_classes
from pocketformer.dense.segmentation.pairing import paired
from pocketformer.errors import UserError
from pocketformer.training.colours import UNKNOWN
from pocketformer.training.depths import Depth
from pocketformer.training.sources import some, stamp_of
from pocketformer.training.trees import image_endings, is_litter, read_tree

LAYOUTS = (
    "ADE20K: images/training with annotations/training, images/validation with annotations/validation, images/test "
    "with annotations/test; CamVid: train with trainannot, val with valannot, test with testannot (val and test if "
    "any); train/images with train/masks; JPEGImages with SegmentationClass; or NAME and NAME_mask in train"
)
# What splits, and folders of images and masks in them, may be called, in any case.
_SPLITS = {"train": ("train", "training"), "val": ("val", "validation", "valid"), "test": ("test", "testing")}
_IMAGES = ("images", "image", "imgs", "img")
_MASKS = ("annotations", "annotation", "annot", "masks", "mask", "labels", "label", "segmentation", "gt")
_MASK_NAME = re.compile(r"(?:^|[_\-. ])(?:masks?|labels?|seg|segmentation|annotation|gt|groundtruth)$", re.IGNORECASE)
_LOSSY, _LOSSLESS = (".jpg", ".jpeg"), (".png", ".bmp", ".gif", ".tif", ".tiff")


@dataclass(frozen=True)
class Pairs:
    """A split: files below `root`, each mask that of the image in its place. `where`: the folders. `turns`: of rows
    whose masks are turned as they are read, by which orientation of EXIF. `depth`: of images of more than 8 bits."""

    name: str
    root: Path
    where: tuple[str, str]
    images: tuple[str, ...]
    masks: tuple[str, ...]
    turns: Mapping[int, int] = field(default_factory=dict)
    depth: Depth = UNKNOWN

    def __len__(self) -> int:
        return len(self.images)

    @property
    def paths(self) -> list[Path]:
        """Of the images."""
        return [self.root / image for image in self.images]


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

    def refuse_without_training(self) -> None:
        if "train" not in self.splits:
            raise UserError(f"{self.source}: no training images with masks; known layouts are {LAYOUTS}")

    @property
    def judged(self) -> Pairs:
        """Of what results are told: test, or val if there is none; all, where the folder has no splits."""
        for name in ("test", "val"):
            if name in self.splits:
                return self.splits[name]
        if (every := self.splits.get("train")) and every.where[0].casefold() in (*_IMAGES, voc.IMAGES):
            return every
        raise UserError(f"{self.source}: has no val or test images to evaluate on")


def find_masks(source: str, coding: Coding, classes: str | None = None) -> Folder:
    """Lists images and masks; reads none. `classes`: a file of names, by default `classes.txt` there.

    Raises `UserError` in one line for a folder of another layout, an empty split, images without a mask and masks
    without an image.
    """
    root = Path(source)
    if not root.is_dir():
        raise UserError(f"{source}: no such folder")
    folders = _folders(root)
    splits, notes = _voc(source, root, folders), []
    for name in _SPLITS if not splits else ():
        images, masks, usual = _place(source, root, folders, name)
        if masks is not None:
            splits[name], note = _paired(source, name, root, (images, masks))
            notes += [note] if note else []
        elif images is not None:
            notes.append(f"{images}/ of {source} was not read, as there is no {usual}/")
    if not splits:
        raise UserError(f"{source}: no images with masks; known layouts are {LAYOUTS}")
    file = Path(classes) if classes is not None else _list_of(root, splits)
    names = None
    if file is not None:
        names, coding = read_classes(file, coding)
        if coding.values:
            shown = [f"{coding.named(label)} {name}" for label, name in zip(coding.values, names, strict=True)]
            notes.append(f"labels by {file}: {some(shown, 4)}")
    paths = [name for split in splits.values() for name in (*split.images, *split.masks)]
    stamp = stamp_of([str(root / path) for path in paths], repr(coding), repr(names))
    return Folder(source, splits, names, coding, stamp, tuple(notes))


def _list_of(root: Path, splits: Mapping[str, Pairs]) -> Path | None:
    """The list of classes that lies there: ours, CVAT's, or Roboflow's."""
    files = [root / "classes.txt"]
    for pairs in splits.values():
        files.append(
            root / (voc.COLOURS if pairs.where[0].casefold() == voc.IMAGES else f"{pairs.where[0]}/_classes.csv")
        )
    return next((file for file in files if file.is_file()), None)


def _voc(source: str, root: Path, folders: Mapping[str, str]) -> dict[str, Pairs]:
    """Splits in Pascal VOC's layout; none in another one."""
    if voc.IMAGES not in folders or voc.MASKS not in folders:
        return {}
    where = (folders[voc.IMAGES], folders[voc.MASKS])
    images, masks = (_files(source, root / part) for part in where)
    found = {}
    for name, stems in voc.listed(source, root, _SPLITS, list(masks)).items():
        if missing := [stem for stem in stems if stem not in images]:
            raise UserError(f"{source}: {len(missing)} masks of {name} have no image in {where[0]}/: {some(missing)}")
        files = (
            tuple(f"{part}/{there[stem]}" for stem in stems) for part, there in zip(where, (images, masks), strict=True)
        )
        found[name] = Pairs(name, root, where, *files)
    return found


def _folders(root: Path) -> dict[str, str]:
    """Folders in it and in those, by their paths in small letters."""
    found = {}
    for folder in _inside(root):
        found.setdefault(folder.casefold(), folder)
        for name in _inside(root / folder):
            found.setdefault(f"{folder}/{name}".casefold(), f"{folder}/{name}")
    return found


def _inside(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not is_litter(p.name))


def _place(source: str, root: Path, folders: Mapping[str, str], split: str) -> tuple[str | None, str | None, str]:
    """Folders of a split's images and masks; of images alone, and what that of their masks usually is; or of none."""
    alone: tuple[str | None, str | None, str] = (None, None, "")
    for images, masks in _candidates(split):
        if images not in folders:
            continue
        there = [folders[name] for name in masks if name in folders]
        if len(there) > 1:
            raise UserError(f"{source}: which masks are meant, those in {'/ or '.join(there)}/? Leave but one of them")
        if there:
            return folders[images], there[0], ""
        if _holds_both(root / folders[images]):
            return folders[images], folders[images], ""
        alone = alone if alone[0] else (folders[images], None, masks[0])
    return alone


def _candidates(split: str) -> Iterator[tuple[str, list[str]]]:
    """Folder of images, and what that of their masks may be called."""
    for word in _SPLITS[split]:
        for kind in _IMAGES:
            yield f"{kind}/{word}", [f"{masks}/{word}" for masks in _MASKS]
            yield f"{word}/{kind}", [f"{word}/{masks}" for masks in _MASKS]
        yield word, [f"{word}{join}{masks}" for masks in ("annot", *_MASKS[:2], *_MASKS[3:]) for join in ("", "_", "-")]
    if split == "train":
        yield from ((kind, list(_MASKS)) for kind in _IMAGES)


def _paired(source: str, name: str, root: Path, where: tuple[str, str]) -> tuple[Pairs, str]:
    """The split, and a note if names are not simply the same."""
    if where[0] == where[1]:
        images, masks = _both(source, root / where[0])
    else:
        images, masks = (_files(source, root / part) for part in where)
    if not images:
        raise UserError(f"{source}: {where[0]}/ is empty, no images to {'learn from' if name == 'train' else 'judge'}")
    pairs = paired(images, masks)
    for kind, there, used in (("images", images, set(pairs)), ("masks", masks, set(pairs.values()))):
        if alone := [there[stem] for stem in there if stem not in used]:
            have, miss = where if kind == "images" else where[::-1]
            what = "mask" if kind == "images" else "image"
            raise UserError(
                f"{source}: {len(alone)} of {len(there)} {kind} in {have}/ have no {what} of their name in {miss}/: "
                f"{some(sorted(alone))}"
            )
    stems = sorted(pairs)
    note = ""
    if other := [stem for stem in stems if stem != pairs[stem]]:
        note = (
            f"masks of {name} are told by more than equal names: {images[other[0]]} has {masks[pairs[other[0]]]}, and "
            "so on"
        )
    found = (
        tuple(f"{where[0]}/{images[stem]}" for stem in stems),
        tuple(f"{where[1]}/{masks[pairs[stem]]}" for stem in stems),
    )
    return Pairs(name, root, where, *found), note


def _holds_both(folder: Path) -> bool:
    """Whether some files are named as masks, or as many are PNG as JPEG and have their names."""
    if any(_MASK_NAME.search(path.stem) for path in folder.iterdir() if path.suffix.lower() in image_endings()):
        return True
    photographs, masks = (
        {p.stem for p in folder.iterdir() if p.suffix.lower() in kind} for kind in (_LOSSY, _LOSSLESS)
    )
    return bool(masks) and photographs == masks


def _both(source: str, folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Images and masks of one folder, told by a mask's name, or by suffixes where names are the same."""
    photographs, others = (_files(source, folder, kind) for kind in (_LOSSY, _LOSSLESS))
    if others and photographs.keys() == others.keys():
        return photographs, others
    every = _files(source, folder)
    images = {stem: file for stem, file in every.items() if not _MASK_NAME.search(stem)}
    return images, {stem: file for stem, file in every.items() if stem not in images}


def _files(source: str, folder: Path, suffixes: Collection[str] | None = None) -> dict[str, str]:
    """Names of the image files from the folder, sub-folders included, by what stands before their suffix."""
    suffixes = suffixes or image_endings()
    found: dict[str, str] = {}
    twice: list[str] = []
    for path in read_tree(str(folder)).images():
        name = Path(os.path.relpath(path, folder)).as_posix()
        stem, suffix = os.path.splitext(name)
        if suffix.lower() not in suffixes:
            continue
        if stem in found:
            twice.append(name)
        found.setdefault(stem, name)
    if twice:
        raise UserError(
            f"{source}: {len(twice)} files in {folder.name}/ share their names but for the suffix with "
            f"another: {some(twice)}"
        )
    return found
