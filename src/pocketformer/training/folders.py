"""Images in folders: the splits, if there are any, and one sub-folder per class (`layouts`)."""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pocketformer.errors import UserError
from pocketformer.files import as_text
from pocketformer.training.layouts import Classes, Layout, class_name, holds_splits, matched_classes, read_layout
from pocketformer.training.opening import open_image
from pocketformer.training.sources import Found, Sample, Spans, shown, some, stamp_and_sizes
from pocketformer.training.strings import Strings
from pocketformer.training.trees import passed_over, read_tree


@dataclass(frozen=True, eq=False)
class FolderImages:
    """Files below `root`, by row: `names` from there, `labels` int64 (N,), `sizes` int64 (N,) in bytes, `inner` int64
    (N,) where in the name the path below its class's folder begins."""

    root: Path
    names: Strings
    labels: np.ndarray
    sizes: np.ndarray
    inner: np.ndarray

    def load(self, row: int) -> Sample:
        raw = (self.root / self.names[row]).read_bytes()
        if not raw:
            raise ValueError("empty file")
        return Sample(open_image(io.BytesIO(raw)), raw, int(self.labels[row]))

    def read(self, row: int, spans: Spans) -> bytes:
        file = os.open(os.path.join(self.root, self.names[row]), os.O_RDONLY)
        try:
            return b"".join(os.pread(file, count, max(first, 0)) for first, count in spans)
        finally:
            os.close(file)

    def name(self, row: int) -> str:
        return shown(Path(self.names[row]).as_posix())

    def path(self, row: int) -> str:
        """Of a file, from its class's folder on."""
        return as_text(Path(self.names[row][self.inner[row] :]).as_posix())

    def identify(self, row: int) -> str:
        return f"{self.name(row)} {self.sizes[row]}"

    def known_labels(self) -> np.ndarray:
        return self.labels

    def known_sizes(self) -> np.ndarray:
        return self.sizes

    def bad(self) -> dict[int, str]:
        return {int(row): "empty file" if self.sizes[row] == 0 else "missing" for row in np.flatnonzero(self.sizes < 1)}


def find_folder(source: str, root: Path) -> Found:
    """Lists the images of a folder that is to be trained on; reads none."""
    layout = read_layout(source, read_tree(str(root)))
    notes, parts = list(layout.notes), layout.parts
    first = "train" if "train" in parts else ""
    if first not in parts:
        found = " and ".join(layout.names.values())
        raise UserError(
            f"{source}: has {found} but no train/; put the training images into train/ (to test on all of a folder, "
            "`evaluate` takes it)"
        )
    classes = _checked(parts[first], root / layout.names[first] if first else root)
    rest = [split for split in ("val", "test") if split in parts]
    for split in rest:
        parts[split] = matched_classes(parts[split], classes, layout.names[split], notes)
        _check_same(source, layout, first, split)
    notes += _roles(layout, rest)
    return _found(source, root, layout, [parts[split] for split in (first, *rest)], classes, notes, len(rest) > 1)


def find_labelled(source: str, root: Path, known: Sequence[str] | None) -> Found:
    """Lists the images of any folder of classes as one test split: its own test split (or `val/`), if it has several,
    else all that there is. `known`: the names of the classes, of which it may hold some only; None: its own."""
    layout = read_layout(source, read_tree(str(root)), tuple(map(class_name, known or ())), filled=False)
    notes, parts = list(layout.notes), layout.parts
    split = next(name for name in ("test", "val", "train", "") if name in parts)
    if unread := [layout.names[name] for name in parts if name != split]:
        notes.append(f"the images are those of {layout.names[split]}; not read: {', '.join(unread)}")
    where = layout.names[split] or f"{source}/"
    inside = f"{source.rstrip(os.sep)}/{layout.names[split].rstrip(os.sep)}" if layout.names[split] else source
    found = parts[split]
    if not found:
        raise UserError(f"{shown(str(root))}: has no class folders; images belong into one sub-folder per class")
    if known is None:
        return _found(inside, root, layout, [found], tuple(found), notes, all_test=True)
    names = {class_name(name): name for name in known}
    found = matched_classes(found, names, where, notes)
    filled = [name for name, folders in found.items() if any(folder.count for folder in folders)]
    if others := [name for name in filled if name not in names]:
        raise UserError(
            f"{source}: {some(others)} {'is' if len(others) == 1 else 'are'} none of the classes that are known "
            f"({some(list(known))})"
        )
    if missing := [name for name in names if name not in filled]:
        notes.append(f"no images of {some(missing)} in {where}")
    found = {name: found.get(name, []) for name in names}
    return _found(inside, root, layout, [found], tuple(known), notes, all_test=True)


def has_splits(folder: Path) -> bool:
    """Whether a folder of images has folders for splits."""
    try:
        return holds_splits(read_tree(str(folder)))
    except UserError:  # told when it is opened as such
        return True


def _checked(classes: Classes, folder: Path) -> tuple[str, ...]:
    where = shown(str(folder))
    if not classes:
        raise UserError(f"{where}: has no class folders; images belong into one sub-folder per class")
    if len(classes) == 1:
        raise UserError(f"{where}: has only one class folder ({some(list(classes))}); at least two are needed")
    return tuple(classes)


def _check_same(source: str, layout: Layout, first: str, other: str) -> None:
    """Raises `UserError` unless two splits have the same classes."""
    one, two = layout.parts[first], layout.parts[other]
    differences = [
        f"only in {layout.names[split]}: {some(sorted(names))}"
        for split, names in ((first, one.keys() - two.keys()), (other, two.keys() - one.keys()))
        if names
    ]
    if differences:
        where = f"{layout.names[other]} and {layout.names[first]}"
        raise UserError(
            f"{source}: {where} have different classes ({'; '.join(differences)}): each split needs images of all"
        )


def _roles(layout: Layout, rest: list[str]) -> list[str]:
    """What the person is told of the splits, unless they are called as they are used."""
    names = {split: name for split, name in layout.names.items() if split}
    if len(rest) > 1:
        return [
            f"the search and --validate are scored on {names['val']}, {names['test']} is the test split, and the final "
            f"training learns from {names['train']} and {names['val']}"
        ]
    if rest and names != {"train": "train/", "val": "val/"}:
        return [f"{names['train']} is for training, {names[rest[0]]} is the test split"]
    if not rest and names and names != {"train": "train/"}:
        return [f"{names['train']} is for training"]
    return []


def _found(
    source: str,
    root: Path,
    layout: Layout,
    parts: list[Classes],
    classes: tuple[str, ...],
    notes: list[str],
    three: bool = False,
    all_test: bool = False,
) -> Found:
    """`parts`: the classes of train and, if there are such splits, of search and test; or with `all_test` of test."""
    prefix = len(os.path.join(layout.around[0].path, ""))
    paths: list[str] = []
    labels: list[int] = []
    inner: list[int] = []
    counts = []
    for part in parts:
        before = len(paths)
        for label, folders in enumerate(part[name] for name in ([*part] if all_test else classes)):
            for folder in folders:
                found = folder.images()
                paths += found
                labels += [label] * len(found)
                inner += [len(folder.path) + 1 - prefix] * len(found)
        counts.append(len(paths) - before)
    stamp, sizes = stamp_and_sizes(paths, source, str(root.resolve()))
    loose = [name for tree in layout.around for name in (*tree.side, *map(os.path.basename, tree.files))]
    if loose:
        notes.append(f"not read, as beside the class folders of {source}: {some(loose)}")
    notes += passed_over(layout.used, layout.around)
    twins = len(paths) - len({os.path.splitext(path)[0] for path in paths})
    if twins and not all_test:
        notes.append(
            f"{twins} image{'s are' if twins > 1 else ' is'} called like another beside it but for the ending; "
            "if they show the same, --group-by '(.+)\\.\\w+$' keeps them on one side of every split"
        )
    images = FolderImages(
        root, Strings(path[prefix:] for path in paths), np.array(labels, np.int64), sizes, np.array(inner, np.int64)
    )
    return Found(
        source=source,
        classes=classes,
        train=0 if all_test else counts[0],
        search=counts[1] if three else 0,
        test=counts[-1] if all_test or len(counts) > 1 else 0,
        stamp=stamp,
        name=images.name,
        notes=tuple(notes),
        load=images.load,
        labels=images.known_labels,
        identify=images.identify,
        path=images.path,
        sizes=images.known_sizes,
        read=images.read,
        bad=images.bad(),
        place=root,
    )
