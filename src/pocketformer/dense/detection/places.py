"""Where the annotations and images of a data set lie: layouts of COCO and of programs that write its format; images by
the names that files of annotations have for them."""

import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from pocketformer.errors import UserError
from pocketformer.training.sources import some
from pocketformer.training.trees import is_litter

SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
_WORDS = {word: split for split, words in SPLITS.items() for word in words}
_WHOLE = ("instances_default.json", "result.json", "result_coco.json", "_annotations.coco.json", "annotations.json")
_LAYOUTS = (
    "annotations/instances_{split}*.json (COCO), {split}/_annotations.coco.json (Roboflow), or one .json whose name "
    "says {split}"
)


Place = tuple[Path, Path]  # annotations, and the folder of their images


def chosen(file: Path, folder: Path) -> Place:
    """Annotations that a person names, and where their images are looked for."""
    if not file.is_file():
        raise UserError(f"annotations not found: {file}")
    if not folder.is_dir():
        raise UserError(f"images of {file}: no such folder: {folder}")
    return file, folder


def locate(data: Path, split: str) -> Place:
    """Annotations and images of "train" or "val" in a folder; `UserError` where there are none."""
    found = find(data, split)
    if found is None:
        raise UserError(f"--data {data}: there is no {_LAYOUTS.format(split=split)}; name it by --annotations")
    return found


def find(data: Path, split: str | None) -> Place | None:
    """Annotations and images of a split; None: of all images, where they are not split. None where there are none.

    COCO has `annotations/instances_train2017.json` and `train2017/`, with the same ending after the name of the split,
    or none. Raises `UserError` where several files could be meant.
    """
    if not data.is_dir():
        raise UserError(f"--data {data}: no such folder")
    for found in _files(data, split):
        if len(found) > 1:
            names = ", ".join(f.relative_to(data).as_posix() for f in found)
            raise UserError(f"--data {data}: which one is meant? {names}; name it by --annotations")
        if found:
            return found[0], _folder(data, found[0], split)
    return None


def _files(data: Path, split: str | None) -> Iterator[list[Path]]:
    """What could be meant, best first."""
    near = [*_jsons(data / "annotations"), *_jsons(data)]
    if split is None:
        yield [f for f in near if f.name in _WHOLE]
        yield near if not any(_split_of(f.stem) for f in near) else []
        return
    of_split = [f for f in near if _split_of(f.stem) == split]
    yield [f for f in of_split if f.name.lower().startswith("instances_")]
    for folder in (p for p in sorted(data.iterdir()) if p.is_dir() and p.name.lower() in SPLITS[split]):
        inside = _jsons(folder)
        yield [f for f in inside if f.name in _WHOLE] or inside
    yield of_split


def _jsons(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.suffix.lower() == ".json" and not p.name.startswith("."))


def _split_of(stem: str) -> str | None:
    """The split that a file's name says: `instances_train2017`, `train_coco`."""
    words = re.findall(r"[a-z]+", stem.lower())
    splits = {_WORDS[word] for word in words if word in _WORDS}
    return splits.pop() if len(splits) == 1 else None


def _folder(data: Path, file: Path, split: str | None) -> Path:
    name = file.stem.removeprefix("instances_")
    words = SPLITS[split] if split else ("default",)
    likely = [data / name, *(data / word for word in words), data / "images" / name]
    likely += [data / "images" / word for word in words]
    if file.parent.name == "annotations" and split:
        found = next((p for p in likely if p.is_dir()), None) or _in_any_case(data, words)
        found = found or next((p for p in (data / "images",) if p.is_dir()), None)
        if found is None:
            raise UserError(f"--data {data}: the images of {file.name} should be in {name}/, which is not there")
        return found
    own = [file.parent] if file.parent not in (data, data / "annotations") else []
    return next(p for p in (*own, *likely, data / "images", data) if p.is_dir())


def _in_any_case(data: Path, words: Sequence[str]) -> Path | None:
    for parent in (data, data / "images"):
        if parent.is_dir():
            for folder in sorted(parent.iterdir()):
                if folder.is_dir() and folder.name.lower() in words:
                    return folder
    return None


class ImageFiles:
    """The files of images below `folder`, or near the file of annotations, by the names that it has for them."""

    def __init__(self, folder: Path, annotations: Path):
        self.folder = folder
        near = (folder, annotations.parent, annotations.parent.parent)
        self.roots = tuple(dict.fromkeys(near))

    def find(self, name: str) -> tuple[Path | None, str]:
        """The file, and where it was looked for, or why none was taken.

        By the whole name from the folder on, as it is, with slashes for backslashes, or decoded as a URL is; else by
        ever shorter ends of it; else by its last part, anywhere in the folder, in any case, if but one file has it.
        """
        forms = list(_forms(name))
        for form in forms:
            if os.path.isabs(form) and _is_file(Path(form)):
                return Path(form), form
        for root in self.roots:
            for form in forms:
                if _is_file(path := root / form.lstrip("/")):
                    return path, str(path)
        for root in self.roots:
            for parts in map(_parts, forms):
                for start in range(1, len(parts)):
                    if _is_file(path := root.joinpath(*parts[start:])):
                        return path, str(path)
        last = {_folded(parts[-1]) for parts in map(_parts, forms) if parts}
        there = sorted({path for key in last for path in self._by_name.get(key, ())})
        if len(there) == 1:
            return there[0], str(there[0])
        form = name.replace("\\", "/")
        foreign = form.startswith("/") or ":" in form or ".." in form.split("/")
        first = self.folder / (form.rpartition("/")[2] if foreign else form)
        return None, str(first) + (f", and {some([str(p) for p in there])} are of its name" if there else "")

    def is_plain(self, name: str, path: Path) -> bool:
        """Whether the name itself leads there."""
        return path == self.folder / name

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for parent, folders, names in os.walk(self.folder):
            folders[:] = sorted(f for f in folders if not is_litter(f))
            for name in names:
                found.setdefault(_folded(name), []).append(Path(parent) / name)
        return found


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long a name, or a null in it
        return False


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _forms(name: str) -> Iterator[str]:
    """What a name may mean, as paths."""
    forms = [name, name.replace("\\", "/")]
    try:
        url = urlsplit(forms[1])
        forms += [unquote(forms[1])]
        if url.scheme or url.query:  # Label Studio: /data/local-files/?d=folder/name.jpg
            forms += [*parse_qs(url.query).get("d", ()), unquote(url.path)]
    except ValueError:
        pass
    yield from dict.fromkeys(form for form in forms if form.strip("/."))


def _parts(form: str) -> list[str]:
    """Of a path, behind the last step up."""
    parts = [part for part in form.split("/") if part not in ("", ".")]
    up = max((place for place, part in enumerate(parts) if part == ".."), default=-1)
    return ([""] if up >= 0 or form.startswith("/") else []) + parts[up + 1 :]
