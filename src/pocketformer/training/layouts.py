"""Which folders are splits, which are classes, and which only lie around them: by their names and what they hold."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from pocketformer.errors import UserError
from pocketformer.files import as_text
from pocketformer.training.sources import shown, some
from pocketformer.training.trees import Tree, ending

# What people call the splits, in any case, also with "set", "data", "images" or "split" behind.
SPLITS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "tst", "eval", "evaluation", "holdout"),
}
_NAMES = "|".join(f"(?P<{split}>{'|'.join(names)})" for split, names in SPLITS.items())
_SPLIT = re.compile(f"(?:{_NAMES})(?:[ _.-]?(?:set|data|dataset|images|imgs|split|folder))?", re.IGNORECASE)

Classes = dict[str, list[Tree]]


@dataclass(frozen=True)
class Layout:
    """`parts`: split ("train", "val", "test", or "" of classes that lie in no split) -> class name -> its folders.

    `names`: split -> how its folder is called; `around`: the folders that hold splits or classes, whose own files are
    in no class.
    """

    parts: dict[str, Classes]
    names: dict[str, str]
    around: tuple[Tree, ...]
    notes: tuple[str, ...]

    @property
    def used(self) -> list[Tree]:
        return [tree for classes in self.parts.values() for trees in classes.values() for tree in trees]


def class_name(name: str) -> str:
    """The name of a class from that of its folder: in UTF-8 and in the composed form (NFC), whatever the file system's
    are; bytes that are no UTF-8 stand as \\xNN."""
    return unicodedata.normalize("NFC", as_text(name))


def split_of(name: str) -> str | None:
    """The split that a folder's name stands for, if any."""
    found = _SPLIT.fullmatch(name.strip())
    return found.lastgroup if found else None


def split_within(name: str) -> str | None:
    """The split that a word of a folder's name stands for, if any: `seg_train`, `test1`."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((split for split, names in SPLITS.items() if not set(words).isdisjoint(names)), None)


def read_layout(source: str, top: Tree, known: Collection[str] = (), filled: bool = True) -> Layout:
    """What the folders in `top` are. `known`: names of classes, which are no folders to descend into. `filled`: whether
    each class must have images.

    Raises `UserError` in one line where that is doubtful.
    """
    notes: list[str] = []
    around = _unwrapped(top, known, notes, stop_at_splits=True)
    splits = _splits(source, around[-1], notes)
    if splits:
        parts, names, inner = {}, {}, []
        for split, folder in splits.items():
            way = _unwrapped(folder, known, notes, stop_at_splits=False)
            inner += way
            if classes := _labelled(split, way[-1], splits, notes, filled):
                parts[split], names[split] = classes, f"{shown(folder.name)}/"
        return Layout(parts, names, (*around, *inner), tuple(dict.fromkeys(notes)))
    turned = _splits_in_classes(source, around[-1], notes, filled)
    if turned:
        inner = [folder for folder in around[-1].folders]
        return Layout(turned, {split: f"CLASS/{split}/" for split in turned}, (*around, *inner), tuple(notes))
    classes = around[-1].holding
    if len(shared := _shared_names(classes)) > 1 and not any(folder.files for folder in classes):
        notes.append(
            f"{_names(classes)} are taken for the classes, though each has the folders {some(shared)}: if those are "
            "the classes, give one of the folders around them, or call these train/ and test/"
        )
    return Layout({"": _classes(around[-1], notes, filled)}, {"": ""}, tuple(around), tuple(notes))


def holds_splits(top: Tree) -> bool:
    """Whether the folders in `top` are splits. Raises `UserError` where that is doubtful."""
    return bool(_splits(as_text(top.path), _unwrapped(top, (), [], stop_at_splits=True)[-1], []))


def is_split(folder: Tree) -> bool:
    """Whether a folder holds class folders, and not images itself."""
    return len(folder.holding) > 1 or (len(folder.holding) == 1 and not folder.files)


def _unwrapped(top: Tree, known: Collection[str], notes: list[str], stop_at_splits: bool) -> list[Tree]:
    """The way from `top` down through folders that hold but one folder of images: `data/data/cat`, or `top/images/cat`
    beside `top/annotations`."""
    way = [top]
    while len(way[-1].holding) == 1 and not way[-1].files:
        only = way[-1].holding[0]
        empty = any(folder.empty for folder in way[-1].folders if folder is not only)  # a class that is to be filled
        if only.files or not only.holding or empty or class_name(only.name) in known:
            break
        if stop_at_splits and split_of(only.name):
            break
        way.append(only)
    if len(way) > 1:
        notes.append(f"the images are those in {_path(top, way[-1])}, the only folder there")
    return way


def _path(top: Tree, below: Tree) -> str:
    return shown(below.path[len(top.path) :].strip("/")) + "/"


def _splits(source: str, top: Tree, notes: list[str]) -> dict[str, Tree]:
    """Split -> folder; none if the folders in `top` are classes."""
    role = split_of
    splits = [folder for folder in top.folders if role(folder.name) and is_split(folder)]
    if not splits:  # less usual names count where the folders hold the same classes
        loosely = [folder for folder in top.holding if split_within(folder.name) and is_split(folder)]
        if _agree(loosely) and "train" in {split_within(folder.name) for folder in loosely}:
            role, splits = split_within, loosely
    named = [folder for folder in top.folders if role(folder.name)]
    others = [folder for folder in top.holding if role(folder.name) is None]
    flat = [folder for folder in named if folder.count and not is_split(folder)]
    if not splits:
        if flat and (len(flat) > 1 or not others):
            raise UserError(
                f"{source}: images lie directly in {_names(flat)}, which has no class folders; images belong into one "
                f"sub-folder per class ({shown(flat[0].name)}/CLASS/…)"
            )
        if flat:
            notes.append(f"{_names(flat)} holds images directly, as {_names(others)} do: taken for a class")
        elif named and not others:
            where = "them" if len(named) > 1 else "it"
            raise UserError(f"{source}: {_names(named)}: no images in {where}{_other_files(named)}")
        return {}
    found: dict[str, Tree] = {}
    for folder in splits:
        split = role(folder.name)
        if split in found:
            raise UserError(
                f"{source}: both {shown(found[split].name)}/ and {shown(folder.name)}/ look like the {split} split; "
                "join them, or give one of them another name"
            )
        found[split] = folder
    if len(others) > 1 and not _agree(splits):
        raise UserError(
            f"{source}: {_names(splits)} looks like a split (it holds {_names(splits[0].holding)}), but beside it lie "
            f"{_names(others)}, which look like classes; move the one or the others away, or rename {_names(splits)}"
        )
    if others:
        notes.append(f"not read, as beside {_names(splits)}: {_names(others)} ({_images(others)})")
    for folder in flat:
        notes.append(
            f"{shown(folder.name)}/ was not read: its {_images([folder])} lie in no class folders, so their classes "
            "are not known"
        )
    for folder in named:
        if not folder.count:
            notes.append(f"{shown(folder.name)}/ was not read: it holds no images")
    return found


def _agree(splits: list[Tree]) -> bool:
    """Whether several folders hold classes of the same names."""
    return bool(_shared_names(splits))


def _shared_names(folders: list[Tree]) -> list[str]:
    """Names of folders with images that are in each of several folders, whatever lies between."""
    inner = [_unwrapped(folder, (), [], stop_at_splits=False)[-1].holding for folder in folders]
    names = [{class_name(folder.name) for folder in holding} for holding in inner]
    return sorted(set.intersection(*names)) if len(names) > 1 else []


def _labelled(split: str, folder: Tree, splits: dict[str, Tree], notes: list[str], filled: bool) -> Classes:
    """The classes of a split; none of a `test/` all of whose images lie in one folder that is no class."""
    classes = _classes(folder, notes, filled)
    if split != "train" and "train" in splits and len(folder.holding) == 1:
        only = folder.holding[0]
        train = _unwrapped(splits["train"], (), [], stop_at_splits=False)[-1]
        names = {class_name(f.name) for f in train.folders}
        if not _matched({class_name(only.name)}, names) and len(names) > 1 and not only.holding:
            notes.append(
                f"{shown(splits[split].name)}/ was not read: its {_images([folder])} lie in {shown(only.name)}/, which "
                "is no class"
            )
            return {}
    return classes


def _splits_in_classes(source: str, top: Tree, notes: list[str], filled: bool) -> dict[str, Classes]:
    """Split -> classes, where each class has folders of splits: `cat/train`, `cat/test`, `dog/train`, …"""
    classes = top.holding
    inner = [[folder for folder in c.holding if split_of(folder.name)] for c in classes]
    if not any(inner) or len(classes) < 2:
        return {}
    if any(c.files or len(found) != len(c.holding) for c, found in zip(classes, inner, strict=True)):
        mixed = [f"{shown(c.name)}/{shown(f.name)}" for c, found in zip(classes, inner, strict=True) for f in found]
        notes.append(f"folders called like splits, within classes, are read as parts of the class: {some(mixed)}")
        return {}
    parts: dict[str, Classes] = {}
    for c, found in zip(classes, inner, strict=True):
        for folder in found:
            named = parts.setdefault(split_of(folder.name), {}).setdefault(class_name(c.name), [])
            if named:
                raise UserError(
                    f"{source}: both {shown(named[0].name)}/ and {shown(folder.name)}/ in {shown(c.name)}/ look like "
                    f"the {split_of(folder.name)} split; join them, or give one of them another name"
                )
            named.append(folder)
    if filled:
        _check_filled(source, top)
    notes.append(f"each class has folders of its own for the splits: {', '.join(f'CLASS/{split}/' for split in parts)}")
    return parts


def _check_filled(source: str, top: Tree) -> None:
    if empty := [f"{folder.name}{_other_files([folder])}" for folder in top.folders if not folder.count]:
        raise UserError(f"{source}: class folders without images: {some(empty)}; fill or remove them")


def _other_files(folders: list[Tree]) -> str:
    """What lies in folders without images, if there is anything: ` (20 .dcm files)`."""
    kinds = Counter(ending(name) or "unnamed" for f in folders for tree in f.walk() for name in tree.side)
    named = ", ".join(f"{n} {kind} file{'s' * (n > 1)}" for kind, n in kinds.most_common(3))
    return f" ({named}{', …' if len(kinds) > 3 else ''}, which are not read as images)" if named else ""


def _classes(top: Tree, notes: list[str], filled: bool) -> Classes:
    """Class name -> its folders, one but where names differ by their Unicode form only. May be empty; with `filled` a
    class without images is an error."""
    if filled:
        _check_filled(shown(top.path), top)
    classes: Classes = {}
    for folder in top.folders:
        classes.setdefault(class_name(folder.name), []).append(folder)
    classes = dict(sorted(classes.items()))
    for name, folders in classes.items():
        if len(folders) > 1:
            notes.append(f"{some([name])} is there {len(folders)} times, in other Unicode forms: read as one class")
    if alike := [names for names in _grouped(classes, _plain) if len(names) > 1]:
        pairs = [" and ".join(map(_quoted, names)) for names in alike]
        notes.append(f"classes whose names are read alike: {some(pairs)}")
    if escaped := [as_text(f.name) for folders in classes.values() for f in folders if not _is_utf8(f.name)]:
        notes.append(f"class folders whose names are no UTF-8; their bytes are written as \\xNN: {some(escaped)}")
    return classes


def _is_utf8(name: str) -> bool:
    try:
        return bool(name.encode("utf-8", "surrogateescape").decode("utf-8"))
    except UnicodeError:
        return False


def _plain(name: str) -> str:
    """The same for names that are read alike: without marks that are not seen, spaces at the ends, or a difference of
    upper and lower case, of full and half width, of `_` and a space."""
    seen = "".join(c for c in unicodedata.normalize("NFKC", name) if unicodedata.category(c) != "Cf")
    return " ".join(seen.casefold().replace("_", " ").split())


def _quoted(name: str) -> str:
    return f"'{name}'" if name != name.strip() else name


def _grouped(names: Iterable[str], key: Callable[[str], str]) -> list[list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(key(name), []).append(name)
    return list(groups.values())


def _matched(names: Collection[str], known: Collection[str]) -> dict[str, str]:
    """Name -> the known class that it is: the same, or the only one that is read alike (`_plain`)."""
    alike = {_plain(group[0]): group[0] for group in _grouped(known, _plain) if len(group) == 1}
    twice = {name for group in _grouped(names, _plain) if len(group) > 1 for name in group}
    found = {name: name for name in names if name in known}
    for name in names:
        if name not in known and name not in twice and _plain(name) in alike:
            found[name] = alike[_plain(name)]
    return found


def matched_classes(classes: Classes, known: Collection[str], where: str, notes: list[str]) -> Classes:
    """The classes under the names that are known; those of other names stay as they are."""
    found = _matched(classes.keys(), known)
    if other := [f"{_quoted(name)} ({_quoted(as_known)})" for name, as_known in found.items() if name != as_known]:
        notes.append(f"classes of {where} that are written otherwise: {some(other)}")
    return {found.get(name, name): folders for name, folders in classes.items()}


def _names(folders: list[Tree]) -> str:
    return some([f"{shown(folder.name)}/" for folder in folders])


def _images(folders: list[Tree]) -> str:
    count = sum(folder.count for folder in folders)
    return f"{count} image{'s' * (count != 1)}"
