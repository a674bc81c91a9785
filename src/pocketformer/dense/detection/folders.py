"""Data sets of annotated images read, and their categories compared."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pocketformer.dense.detection.coco import CocoSet
from pocketformer.dense.detection.reading import read
from pocketformer.errors import UserError
from pocketformer.progress import say, stage


@dataclass(frozen=True)
class Reader:
    """How files are read: whether masks are (None: if there are any), whether mistakes are left out, by how many
    threads images are looked at, and what `exif` does not tell (`orientation.settle`)."""

    masks: bool | None = None
    skip: bool = False
    workers: int = 0
    exif: str = "auto"

    def __call__(self, file: Path, folder: Path) -> CocoSet:
        with stage(f"look through {file.name}") as progress:
            show: Callable[[int, int], None] = lambda done, total: progress.update(done, total=total)  # noqa: E731
            return read(file, folder, self.masks, self.skip, self.workers, show, self.exif)


def matched(one: CocoSet, other: CocoSet) -> CocoSet:
    """The other with the categories of the first, by their names. Raises `UserError` where an object has one that the
    first does not list."""
    if dict(one.classes) == dict(other.classes):
        return other
    numbers = {name: number for number, name in one.classes.items()}
    used = {thing.category for picture in other.pictures for thing in picture.things}
    if not {other.classes[number] for number in used} <= set(numbers):
        check_classes(one, other)
    say(f"note: {other.source} lists its categories otherwise than {one.source}: they are told by their names")
    pictures = [
        replace(picture, things=tuple(replace(t, category=numbers[other.classes[t.category]]) for t in picture.things))
        for picture in other.pictures
    ]
    return replace(other, classes=one.classes, pictures=tuple(pictures))


def check_classes(one: CocoSet, other: CocoSet) -> None:
    """Raises `UserError` unless both have the same categories by the same ids."""
    if dict(one.classes) != dict(other.classes):
        differ = sorted(
            number for number in {*one.classes, *other.classes} if one.classes.get(number) != other.classes.get(number)
        )
        number = differ[0]
        names = " and ".join(
            repr(found.classes[number]) if number in found.classes else "none" for found in (one, other)
        )
        raise UserError(
            f"{other.source} has other categories than {one.source}: {len(differ)} differ, first id {number} ({names})"
        )
