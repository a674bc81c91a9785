"""A data set as a person names it: a folder in COCO's layout, or a file of annotations and its images."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pocketformer.dense.detection.coco import CocoSet
from pocketformer.dense.detection.reading import read
from pocketformer.errors import UserError
from pocketformer.progress import stage


@dataclass(frozen=True)
class Reader:
    """How files are read: whether masks are (None: if there are any), whether mistakes are left out, by how many
    threads images are looked at."""

    masks: bool | None = None
    skip: bool = False
    workers: int = 0

    def __call__(self, file: Path, folder: Path) -> CocoSet:
        with stage(f"look through {file.name}") as progress:
            show: Callable[[int, int], None] = lambda done, total: progress.update(done, total=total)  # noqa: E731
            return read(file, folder, self.masks, self.skip, self.workers, show)


def locate(data: Path, split: str) -> tuple[Path, Path]:
    """Annotations and images of "train" or "val" in a folder: `annotations/instances_train2017.json` and
    `train2017/`, with the same ending after the name of the split, or none."""
    if not data.is_dir():
        raise UserError(f"--data {data}: no such folder")
    found = sorted((data / "annotations").glob(f"instances_{split}*.json"))
    if not found:
        raise UserError(f"--data {data}: there is no annotations/instances_{split}*.json")
    if len(found) > 1:
        raise UserError(f"--data {data}: which one is meant? {', '.join(f.name for f in found)} are in annotations/")
    name = found[0].stem.removeprefix("instances_")
    folders = [p for p in (data / name, data / split, data / "images" / name, data / "images" / split) if p.is_dir()]
    if not folders:
        raise UserError(f"--data {data}: the images of {found[0].name} should be in {name}/, which is not there")
    return found[0], folders[0]


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
