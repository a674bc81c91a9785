"""COCO's JSON read and looked through before anything is trained: each kind of mistake is one line that counts it and
names the first three; what can be mended is, and said so."""

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketformer.dense import orientation
from pocketformer.dense.detection import masks
from pocketformer.dense.detection.coco import CocoSet, Picture, Thing, fingerprint
from pocketformer.dense.detection.faults import Faults
from pocketformer.dense.detection.pictures import Header, look_at
from pocketformer.dense.detection.places import ImageFiles
from pocketformer.dense.detection.values import SLACK, Box, box_of, clipped, flag, key, side_of, strange, whole
from pocketformer.dense.detection.values import number as number_of
from pocketformer.errors import UserError
from pocketformer.progress import say

_MISSING, _CLASS, _EMPTY, _OUTSIDE, _MASK, _FORM = (
    "of images that the file does not list",
    "of a category that is not in its list",
    "with a box of zero or negative size",
    "with a box outside the image",
    "without a mask that can be used",
    "not of COCO's form",
)
_FILES = "unreadable, or not of the size that the file says"


@dataclass(frozen=True)
class _Listed:
    """An entry of the list of images: its size, if it has one, and its file."""

    id: str
    name: str
    size: masks.Size | None
    path: Path | None
    place: str  # where it was looked for


def read(
    file: Path,
    folder: Path,
    with_masks: bool | None = None,
    skip: bool = False,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
    exif: str = "auto",
) -> CocoSet:
    """The pictures that `file` describes, in `folder`. `with_masks`: False: none are read; None: if the file has any.
    `exif`: see `orientation.settle`.

    Raises `UserError` for mistakes (see `Faults`), which are left out with `skip`, and where nothing remains.
    """
    raw = _bytes(file)
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not valid JSON ({error})") from None
    named = ("images", "annotations", "categories")
    if not isinstance(content, dict) or any(not _is_objects(content.get(name)) for name in named):
        raise UserError(f"{file} is not a COCO file: it needs the lists {', '.join(named)}")
    faults = Faults(str(file))
    classes, numbers = _classes(content["categories"], content["annotations"], file, faults)
    if not folder.is_dir():
        raise UserError(f"{file}: its images should be in {folder}, which is not there")
    if with_masks is None:
        with_masks = any(a.get("segmentation") for a in content["annotations"] if not flag(a.get("iscrowd")))
    listed, owners = _listed(content["images"], ImageFiles(folder, file), faults)
    if not listed:
        faults.settle(skip)
        raise UserError(f"{file} lists no image that can be used: the split is empty")
    found = look_at([image.path for image in listed if image.path], workers, progress)
    headers = dict(zip((image.id for image in listed if image.path), found, strict=True))
    frames = _frames(listed, headers, exif, faults)
    sizes = {image.id: frames[image.id][0] if image.id in frames else image.size for image in listed}
    things = _things(content["annotations"], sizes, owners, numbers, with_masks, faults)
    faults.settle(skip)
    given = {image.id: whole(image.id) for image in listed}
    pictures = []
    for place, image in enumerate(listed, 1):
        if image.id in frames:
            name = image.name if image.path == folder / image.name else os.path.relpath(image.path, folder)
            size, stored = frames[image.id]
            number = place if None in given.values() else given[image.id]
            pictures.append(Picture(number, name, size, tuple(things[image.id]), stored))
    if not pictures:
        raise UserError(f"{file}: none of its {len(listed)} images can be read: the split is empty")
    # Masks whose form is no fault of the file's are still none: then boxes are all that can be learned.
    known = fingerprint(raw, with_masks, _sizes(folder, pictures))
    return CocoSet(str(file), folder, classes, tuple(pictures), with_masks, known)


def _sizes(folder: Path, pictures: Sequence[Picture]) -> list[tuple[str, int]]:
    """What files are told apart by: names and bytes."""
    return [(picture.file, (folder / picture.file).stat().st_size) for picture in pictures]


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise UserError(f"annotations not found: {file}") from None
    except IsADirectoryError:
        raise UserError(f"{file} is a folder; name the file of annotations") from None
    except OSError as error:
        raise UserError(f"annotations {file} cannot be read: {error.strerror}") from None


def _is_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)


def _classes(
    categories: list[dict], annotations: list[dict], file: Path, faults: Faults
) -> tuple[dict[int, str], dict[str, int]]:
    """{number: name}, by number, and the numbers by the file's ids: the ids, or their places where some are no whole
    numbers."""
    found: dict[str, str] = {}
    for category in categories:
        number, name = key(category.get("id")), category.get("name")
        if number is None or isinstance(name, bool) or not isinstance(name, str | int):
            raise UserError(f"{file}: each category needs an id, a number or text, and a name")
        name = str(name).encode("utf-8", "backslashreplace").decode()  # half a character could not be written
        if found.setdefault(number, name) != name:
            raise UserError(f"{file}: its categories are given twice: {number} is {found[number]!r} and {name!r}")
    if not found:
        raise UserError(f"{file}: its categories are an empty list")
    if len(found) < len(categories):
        faults.mend("category", "listed twice and taken once", f"{len(found)} differ")
    used = {key(entry.get("category_id")) for entry in annotations}
    for name in sorted({name for name, count in Counter(found.values()).items() if count > 1}):
        same = [number for number in found if found[number] == name]
        if len([number for number in same if number in used]) > 1:
            raise UserError(f"{file}: categories {' and '.join(same)} are both called {name!r}; give each its own name")
        for number in [number for number in same if number not in used][: len(same) - 1]:
            del found[number]
            faults.mend("category", "without objects left out, as another has its name", f"{number} ({name})")
    ids = {number: whole(number) for number in found}
    if None in ids.values():
        strange_id = next(number for number, value in ids.items() if value is None)
        faults.mend("list of categories", "with ids that are no whole numbers; numbered in its order", strange_id)
        ids = {number: place for place, number in enumerate(found, 1)}
    classes = {ids[number]: name for number, name in found.items()}
    return {number: classes[number] for number in sorted(classes)}, ids


def _listed(given: list[dict], files: ImageFiles, faults: Faults) -> tuple[list[_Listed], dict[str, str]]:
    """The images; and by the ids of all entries those of the first ones that name the same file."""
    found: dict[str, _Listed] = {}
    owners: dict[Path, _Listed] = {}
    same: dict[str, str] = {}
    for place, image in enumerate(given):
        number, name = key(image.get("id")), image.get("file_name")
        sides = [image.get("height"), image.get("width")]
        size = None if None in sides else tuple(side_of(side) for side in sides)
        good = number is not None and isinstance(name, str) and name and (size is None or None not in size)
        if not good or number in same:
            faults.add("image", "without an id of their own, file_name, height and width", f"entry {place}")
            continue
        path, where = files.find(name)
        if (owner := owners.get(path)) is not None:
            if (owner.name, owner.size) == (name, size):
                same[number] = owner.id
                faults.mend("image", "listed again by another id, taken as one with all objects", f"{number} ({name})")
                continue
            where, path = f"{where}, which is that of {owner.name} too", None
        elif path is not None and not files.is_plain(name, path):
            faults.mend("image", "found by the end of their names alone", f"{name} is {path}")
        if size is None:
            faults.mend("image", "without height and width; those of the file are taken", name)
        found[number] = _Listed(number, name, size, path, where)
        same[number] = number
        if path is not None:
            owners[path] = found[number]
    return list(found.values()), same


def _frames(
    listed: Sequence[_Listed], headers: Mapping[str, Header | str], exif: str, faults: Faults
) -> dict[str, tuple[masks.Size, bool]]:
    """Of each image that can be used the size that it is annotated for, and whether that is as it is stored, whatever
    EXIF says."""
    drawn: dict[str, str] = {}
    for image in listed:
        header = headers.get(image.id, "missing")
        if isinstance(header, str):
            faults.add("image", _FILES, f"{image.name} ({header}){'' if image.path else f' at {image.place}'}")
        elif header.turn == 1 and image.size in (None, header.stored):
            drawn[image.id] = ""
        elif image.size is None or image.size == header.stored == header.shown:
            drawn[image.id] = "either"
        elif image.size in (header.shown, header.stored):
            drawn[image.id] = "shown" if image.size == header.shown else "stored"
        else:
            size, wanted = header.shown, image.size
            faults.add("image", _FILES, f"{image.name} ({size[0]} x {size[1]} px, not {wanted[0]} x {wanted[1]})")
    count = Counter(drawn.values())
    settled = orientation.settle(exif, count["shown"], count["stored"])
    if count["stored"]:
        say(
            f"note: {faults.source}: {_images(count['stored'])} the size that it says before EXIF turns it: "
            "taken as stored"
        )
    if count["either"]:
        other = "" if settled.why.startswith("--") else f"; if not: --exif {'shown' if settled.stored else 'stored'}"
        say(
            f"note: {faults.source}: {_images(count['either'])} the size that it says with and without EXIF's turn; "
            f"annotated as {'stored' if settled.stored else 'shown'}: {settled.why}{other}"
        )
    frames = {}
    for image in listed:
        if image.id in drawn:
            header = headers[image.id]
            stored = drawn[image.id] == "stored" or (drawn[image.id] == "either" and settled.stored)
            frames[image.id] = (header.stored if stored else header.shown), stored
    return frames


def _images(count: int) -> str:
    return f"{count} image has" if count == 1 else f"{count} images have"


def _things(
    given: list[dict],
    sizes: dict[str, masks.Size | None],
    owners: Mapping[str, str],
    numbers: dict[str, int],
    with_masks: bool,
    faults: Faults,
) -> dict[str, list[Thing]]:
    found: dict[str, list[Thing]] = {number: [] for number in sizes}
    boxes: list[tuple[Box, masks.Size]] = []
    useless: list[tuple[str, str]] = []
    for place, entry in enumerate(given):
        number, box = entry.get("id", f"entry {place}"), box_of(entry.get("bbox"))
        image = owners.get(key(entry.get("image_id")))
        name, category = f"annotation {number} (image {entry.get('image_id')})", key(entry.get("category_id"))
        if not isinstance(number, int | float | str) or box is None:
            faults.add("annotation", _FORM, name)
        elif image not in sizes:
            faults.add("annotation", _MISSING, name)
        elif category not in numbers:
            faults.add("annotation", _CLASS, f"{name}: category {entry.get('category_id')!r}")
        elif box[2] <= 0 or box[3] <= 0:
            useless.append((_EMPTY, f"{name}: {box[2]:g} x {box[3]:g} px"))
        elif (size := sizes[image]) is not None:  # else the image cannot be used, and its objects go with it
            boxes.append((box, size))
            within = clipped(box, size)
            if min(within[2:]) <= 0:
                useless.append((_OUTSIDE, name))
            elif thing := _thing(entry, number, numbers[category], (box, within), size, with_masks, name, faults):
                found[image].append(thing)
    for image in {owner for number, owner in owners.items() if number != owner}:  # its objects may be there twice
        found[image] = list({(thing.category, thing.box): thing for thing in found[image]}.values())
    for kind, name in useless:  # a few are slips; of most it would be another form of box
        if 2 * len(useless) > len(given):
            faults.add("annotation", kind, name)
        else:
            faults.mend("annotation", f"{kind}, left out", name)
    if why := strange(boxes):
        raise UserError(f"{faults.source}: its boxes are not COCO's: {why}")
    return found


def _thing(
    entry: dict,
    number: int | float | str,
    category: int,
    boxes: tuple[Box, Box],
    size: masks.Size,
    with_masks: bool,
    name: str,
    faults: Faults,
) -> Thing | None:
    """The object, `boxes` its own and what of that is in the image."""
    try:
        mask = masks.parse(entry.get("segmentation"), size) if with_masks else None
    except ValueError as error:
        faults.add("annotation", _MASK, f"{name}: {error}")
        return None
    if isinstance(mask, masks.Polygons) and mask.dropped:
        faults.mend("mask", "of which bad polygons are left out", f"{name}: {mask.dropped[0]}")
    own, within = boxes
    area = number_of(entry.get("area"))
    if own != within:
        sides = f"{own[0]:g}, {own[1]:g}, {own[2]:g} x {own[3]:g} px"
        if min(within[2:]) < SLACK <= min(own[2:]):
            faults.mend("box", "with less than 1 px within the image, left out", f"{name}: {sides}")
            return None
        faults.mend("box", "cut at the edge of the image", f"{name}: {sides}")
        area = None
    return Thing(number, category, tuple(map(float, within)), flag(entry.get("iscrowd")), mask, area)
