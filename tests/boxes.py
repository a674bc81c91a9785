"""Sets of annotated images as other people's programs write them, and what `detect train` reads of them. Shared by the
tests of annotations."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import coco
from asking import Answer, ask
from pocketformer.dense.detection.coco import CocoSet
from pocketformer.errors import WorkError
from pocketformer.pipelines import detecting
from shapes import architecture

Change = Callable[[dict], None]


@dataclass(frozen=True)
class Read:
    """What the command said, and the splits that it would have trained and judged on; None: it was refused."""

    answer: Answer
    train: CocoSet | None
    val: CocoSet | None

    @property
    def notes(self) -> str:
        return "\n".join(line for line in self.answer.lines if line.startswith("note: "))


def read(data: Path, *more: object) -> Read:
    """`detect train`, up to where the training would begin."""
    described = data.parent / ".tiny.json"
    architecture().save(described)
    splits: list = [None, None]
    opened = detecting._open

    def stop(settings: object) -> None:
        splits[:] = opened(settings)
        raise WorkError("enough")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detecting, "_open", stop)
        given = ("--architecture", described, "--data", data, "--out", data.parent / "run", "--workers", 0)
        answer = ask("detect", "train", *given, *more)
    assert answer.code in (1, 2), answer
    assert (answer.code == 1) == (splits[0] is not None), answer.err
    return Read(answer, *splits)


def write(folder: Path, change: Change | None = None, count: int = 3) -> tuple[Path, dict]:
    """COCO's layout, train changed; and the content as it was before."""
    coco.write_set(folder, count)
    before = coco.read_json(folder, "train")
    if change:
        content = copy.deepcopy(before)
        change(content)
        coco.write_json(folder, "train", content)
    return folder, before


def moved(folder: Path, place: str, name: str) -> None:
    """Annotations of "train" or "val" to another path."""
    old = folder / "annotations" / f"instances_{name}.json"
    (folder / place).parent.mkdir(parents=True, exist_ok=True)
    old.rename(folder / place)
    if not list((folder / "annotations").iterdir()):
        (folder / "annotations").rmdir()


def same(found: CocoSet, content: dict) -> None:
    """All boxes, names and masks are those of the content."""
    names = {c["id"]: c["name"] for c in content["categories"]}
    wanted = [
        sorted((names[a["category_id"]], *a["bbox"]) for a in content["annotations"] if a["image_id"] == image["id"])
        for image in content["images"]
    ]
    mine = [sorted((found.classes[t.category], *t.box) for t in picture.things) for picture in found.pictures]
    assert [[each[0] for each in row] for row in mine] == [[each[0] for each in row] for row in wanted]
    for row, other in zip(mine, wanted, strict=True):
        assert np.allclose([each[1:] for each in row], [each[1:] for each in other], atol=1e-6)
    for picture, image in zip(found.pictures, content["images"], strict=True):
        assert picture.size == (image["height"], image["width"])
        assert (found.folder / picture.file).resolve().is_file()


def dump(path: Path, content: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path
