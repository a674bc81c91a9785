"""COCO's JSON read and looked through before anything is trained: each kind of mistake is one line that counts it and
names the first three."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pocketformer.dense.detection import masks
from pocketformer.dense.detection.coco import CocoSet, Picture, Thing, fingerprint
from pocketformer.dense.detection.pictures import unreadable
from pocketformer.errors import UserError
from pocketformer.progress import say

_SLACK = 1.0  # px by which a box may stand out: files round
_MISSING, _CLASS, _EMPTY, _OUTSIDE, _MASK, _FORM = (
    "of images that the file does not list",
    "of a category that is not in its list",
    "with a box of zero or negative size",
    "with a box outside the image",
    "without a mask that can be used",
    "not of COCO's form",
)
_FILES = "unreadable, or not of the size that the file says"


class Faults:
    """Mistakes by kind, in the order in which they were met."""

    def __init__(self, source: str):
        self.source = source
        self.found: dict[tuple[str, str], list[str]] = {}

    def add(self, what: str, kind: str, name: str) -> None:
        self.found.setdefault((what, kind), []).append(name)

    def lines(self) -> list[str]:
        found = []
        for (what, kind), names in self.found.items():
            first = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
            found.append(f"{self.source}: {len(names)} {what}{'s' * (len(names) > 1)} {kind}: {first}")
        return found

    def settle(self, skip: bool) -> None:
        """Says all kinds; unless they are to be skipped, raises `UserError`."""
        lines = self.lines()
        if skip:
            for line in lines:
                say(f"note: {line}; left out")
            return
        advice = "mend the file, or leave them out by --bad-annotations skip"
        if len(lines) == 1:
            raise UserError(f"{lines[0]}; {advice}")
        if lines:
            for line in lines:
                say(line)
            count = sum(map(len, self.found.values()))
            raise UserError(f"{self.source}: {count} mistakes of {len(lines)} kinds, named above; {advice}")


def read(
    file: Path,
    folder: Path,
    with_masks: bool | None = None,
    skip: bool = False,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> CocoSet:
    """The pictures that `file` describes, in `folder`. `with_masks`: False: none are read; None: if the file has any.

    Raises `UserError` for mistakes (see `Faults`), which are left out with `skip`, and where nothing remains.
    """
    raw = _bytes(file)
    try:
        content = json.loads(raw)
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON ({error})") from None
    named = ("images", "annotations", "categories")
    if not isinstance(content, dict) or any(not _is_objects(content.get(name)) for name in named):
        raise UserError(f"{file} is not a COCO file: it needs the lists {', '.join(named)}")
    classes = _classes(content["categories"], file)
    if not folder.is_dir():
        raise UserError(f"{file}: its images should be in {folder}, which is not there")
    faults = Faults(str(file))
    if with_masks is None:
        with_masks = any(a.get("segmentation") for a in content["annotations"] if not a.get("iscrowd"))
    sizes, files = _images(content["images"], faults)
    things = _things(content["annotations"], sizes, classes, with_masks, faults)
    pictures = [Picture(number, files[number], sizes[number], tuple(things[number])) for number in sizes]
    if not pictures:
        raise UserError(f"{file} lists no image that can be used: the split is empty")
    bad = unreadable(folder, pictures, workers, progress)
    for picture in pictures:
        if picture.number in bad:
            faults.add("image", _FILES, f"{picture.file} ({bad[picture.number]})")
    faults.settle(skip)
    kept = tuple(p for p in pictures if p.number not in bad)
    if not kept:
        raise UserError(f"{file}: none of its {len(pictures)} images can be read: the split is empty")
    # Masks whose form is no fault of the file's are still none: then boxes are all that can be learned.
    return CocoSet(str(file), folder, classes, kept, with_masks, fingerprint(raw, with_masks, _sizes(folder, kept)))


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


def _is_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)


def _classes(categories: list[dict], file: Path) -> dict[int, str]:
    if any(not _is_whole(c.get("id")) or not isinstance(c.get("name"), str) for c in categories):
        raise UserError(f"{file}: each category needs a whole number as id, and a name")
    found = {c["id"]: c["name"] for c in categories}
    if not found or len(found) < len(categories):
        raise UserError(f"{file}: its categories are {'given twice' if found else 'an empty list'}")
    return {number: found[number] for number in sorted(found)}


def _images(given: list[dict], faults: Faults) -> tuple[dict[int, masks.Size], dict[int, str]]:
    sizes: dict[int, masks.Size] = {}
    files: dict[int, str] = {}
    for place, image in enumerate(given):
        number, name, size = image.get("id"), image.get("file_name"), (image.get("height"), image.get("width"))
        good = _is_whole(number) and isinstance(name, str) and all(_is_whole(side) and side > 0 for side in size)
        if not good or number in sizes:
            faults.add("image", "without an id of their own, file_name, height and width", f"entry {place}")
            continue
        sizes[number], files[number] = size, name
    return sizes, files


def _things(
    given: list[dict], sizes: dict[int, masks.Size], classes: dict[int, str], with_masks: bool, faults: Faults
) -> dict[int, list[Thing]]:
    found: dict[int, list[Thing]] = {number: [] for number in sizes}
    for place, entry in enumerate(given):
        number, image, box = entry.get("id", f"entry {place}"), entry.get("image_id"), entry.get("bbox")
        name = f"annotation {number} (image {image})"
        if not isinstance(number, int | str) or not _is_box(box):
            faults.add("annotation", _FORM, name)
        elif not _is_whole(image) or image not in sizes:
            faults.add("annotation", _MISSING, name)
        elif not _is_whole(entry.get("category_id")) or entry["category_id"] not in classes:
            faults.add("annotation", _CLASS, f"{name}: category {entry.get('category_id')!r}")
        elif box[2] <= 0 or box[3] <= 0:
            faults.add("annotation", _EMPTY, f"{name}: {box[2]:g} x {box[3]:g} px")
        elif _outside(box, sizes[image]):
            faults.add("annotation", _OUTSIDE, name)
        else:
            try:
                mask = masks.parse(entry.get("segmentation"), sizes[image]) if with_masks else None
            except ValueError as error:
                faults.add("annotation", _MASK, f"{name}: {error}")
                continue
            area = entry.get("area")
            good = isinstance(area, int | float) and not isinstance(area, bool) and math.isfinite(area)
            crowd = bool(entry.get("iscrowd"))
            thing = Thing(number, entry["category_id"], tuple(map(float, box)), crowd, mask, area if good else None)
            found[image].append(thing)
    return found


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_box(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 4:
        return False
    return all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in value)


def _outside(box: list[float], size: masks.Size) -> bool:
    left, top, width, height = box
    within = left >= -_SLACK and top >= -_SLACK
    within = within and left + width <= size[1] + _SLACK and top + height <= size[0] + _SLACK
    # What overlaps by less than the slack has nothing left within the image.
    return not within or left >= size[1] or top >= size[0] or left + width <= 0 or top + height <= 0
