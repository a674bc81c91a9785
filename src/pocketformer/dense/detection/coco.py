"""Images with annotated objects, as COCO's JSON describes them."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pocketformer.dense.detection.masks import Mask, Size, area
from pocketformer.errors import UserError
from pocketformer.training.colours import UNKNOWN
from pocketformer.training.depths import Depth
from pocketformer.training.splitting import random_words

_SEARCH, TEST = 3, 4  # keys of streams of random numbers
_LARGEST = 5000  # images of COCO's own val


@dataclass(frozen=True, eq=False)
class Thing:
    """One annotation: `box` left, top, width, height in px of the image as it is annotated."""

    number: int | str  # its id in the file
    category: int
    box: tuple[float, float, float, float]
    crowd: bool = False
    mask: Mask | None = None
    area: float | None = None


@dataclass(frozen=True, eq=False)
class Picture:
    number: int  # its id in the file, or its place there
    file: str
    size: Size
    things: tuple[Thing, ...] = ()
    stored: bool = False  # it is annotated, and looked at, as it is stored, whatever EXIF says


@dataclass(frozen=True, eq=False)
class CocoSet:
    """The pictures of one split in `folder`; `classes` is {category id: name} in the order of the labels, from 1 on.

    `masks`: every object that is no crowd has one. `fingerprint`: of the file and of what was left out of it. `depth`:
    of images of more than 8 bits.
    """

    source: str
    folder: Path
    classes: Mapping[int, str]
    pictures: tuple[Picture, ...]
    masks: bool
    fingerprint: str = ""
    depth: Depth = UNKNOWN

    def __len__(self) -> int:
        return len(self.pictures)

    def path(self, row: int) -> Path:
        return self.folder / self.pictures[row].file

    @property
    def paths(self) -> list[Path]:
        return [self.path(row) for row in range(len(self))]

    @property
    def labels(self) -> dict[int, int]:
        """{category id: label}."""
        return {category: label for label, category in enumerate(self.classes, 1)}

    def for_training(self) -> "CocoSet":
        """What is learned from, as published: no crowds, no boxes narrower or lower than 1 px, no pictures without
        an object."""
        kept = []
        for picture in self.pictures:
            things = tuple(t for t in picture.things if not t.crowd and min(t.box[2:]) >= 1)
            if things:
                kept.append(replace(picture, things=things))
        return replace(self, pictures=tuple(kept))

    def held_out(self, seed: int, key: int = _SEARCH) -> tuple["CocoSet", "CocoSet"]:
        """What remains, and a random tenth (at most 5,000): the search split, or with another `key` another one.
        `UserError` if there are too few."""
        if len(self) < 2:
            raise UserError(f"{self.source}: {len(self)} image with objects is too few to hold a search split out")
        order = random_words(len(self), seed, key).argsort(kind="stable")
        chosen = set(order[: min(max(1, (len(self) + 5) // 10), _LARGEST)].tolist())
        parts = [tuple(p for i, p in enumerate(self.pictures) if (i in chosen) == search) for search in (False, True)]
        return replace(self, pictures=parts[0]), replace(self, pictures=parts[1])

    def to_coco(self) -> dict[str, Any]:
        """As COCO's evaluation takes it; ids of annotations count from 1, which it asks for in silence."""
        found: list[dict] = []
        for picture in self.pictures:
            for thing in picture.things:
                entry = {
                    "id": len(found) + 1,
                    "image_id": picture.number,
                    "category_id": thing.category,
                    "bbox": list(thing.box),
                    "iscrowd": int(thing.crowd),
                    "area": self._area(thing),
                }
                if thing.mask is not None:
                    entry["segmentation"] = thing.mask.to_coco()
                found.append(entry)
        sizes = [{"id": p.number, "file_name": p.file, "height": p.size[0], "width": p.size[1]} for p in self.pictures]
        categories = [{"id": number, "name": name} for number, name in self.classes.items()]
        return {"images": sizes, "annotations": found, "categories": categories}

    def _area(self, thing: Thing) -> float:
        """What decides between small, medium and large: as given, else of the mask, else of the box."""
        if thing.area is not None:
            return thing.area
        return area(thing.mask) if self.masks and thing.mask is not None else thing.box[2] * thing.box[3]


def fingerprint(*parts: bytes | str | Sequence) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else repr(part).encode())
    return digest.hexdigest()[:16]
