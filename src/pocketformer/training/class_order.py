"""Whose classes are whose: of weights that name theirs, and of weights that do not, where any order would do."""

import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from pocketformer import files
from pocketformer.errors import UserError
from pocketformer.models import labels
from pocketformer.training.data import Split

TIMM, SORTED = "timm", "sorted"
OPTION = "--class-order"


@dataclass(frozen=True)
class ClassOrder:
    """In which order weights that name no classes know a data set's: timm's, by code point (torchvision's), or that of
    the names of a file."""

    rule: str
    names: tuple[str, ...] | None = None

    @classmethod
    def parse(cls, text: str | None) -> "ClassOrder | None":
        """`timm`, `sorted`, or the path of a file: one name a line, or JSON: a list, {index: name} or {name: index}."""
        if text is None or text in (TIMM, SORTED):
            return text and cls(text)
        path = Path(text)
        if not path.is_file():
            raise UserError(f"{OPTION} {text} is neither {TIMM} nor {SORTED}, nor a file with the names of the classes")
        if path.suffix == ".json":  # a list, or a configuration that holds one
            value = files.read_json(path, OPTION)
            names = labels.stated(value) or labels.listed(value)
        else:
            names = _lines(path)
        if names is None:
            raise UserError(
                f"{OPTION} {text} holds no names of classes: one a line, each once, or a list of them in JSON"
            )
        return cls(text, names)

    def listed(self, count: int, what: str | os.PathLike) -> tuple[str, ...]:
        """The names of a file, where there are no data to name the classes."""
        if self.names is None:
            raise UserError(f"{OPTION} {self.rule}: no images here name the classes: give a file with their names")
        if len(self.names) != count:
            raise UserError(f"{what} knows {count} classes, {OPTION} {self.rule} names {len(self.names)}")
        return self.names

    def of(self, classes: Sequence[str]) -> tuple[str, ...]:
        """The data's classes in this order."""
        if self.rule == TIMM:
            return timms(classes)
        return tuple(sorted(classes)) if self.names is None else self.names


def timms(classes: Sequence[str]) -> tuple[str, ...]:
    """In the order in which timm numbers the folders of classes: 1, 2, 10, whatever the case."""
    from timm.utils.misc import natural_key

    try:
        found = sorted(classes, key=natural_key)
    except ValueError:  # of digits that are none to `int`
        raise UserError(f"timm cannot order the classes {few(classes)}: give {OPTION} {SORTED} or a file") from None
    keys = [natural_key(name) for name in found]
    if twin := next((i for i in range(1, len(keys)) if keys[i] == keys[i - 1]), None):
        raise UserError(
            f"in timm's order the classes {found[twin - 1]} and {found[twin]} come in any order: give {OPTION} FILE"
        )
    return tuple(found)


def names_of(
    known: Sequence[str] | None,
    count: int,
    classes: Sequence[str],
    order: ClassOrder | None,
    what: str | os.PathLike,
) -> tuple[str, ...] | None:
    """The names of a classifier's `count` rows. `known`: those that `what` states; else they are the data's `classes`
    in `order`, or as they are where timm's order and torchvision's agree. None: it is not of so many classes.

    Raises `UserError` where nothing says in which order they are.
    """
    if known is not None and len(known) == count:
        return tuple(known)
    if order is not None:
        names = order.of(classes)
        if len(names) != count:
            raise UserError(f"{what} knows {count} classes, {OPTION} {order.rule} gives {len(names)}")
        place = set(map(normal, names))
        if unknown := [name for name in classes if normal(name) not in place]:
            raise UserError(f"{OPTION} {order.rule} has no class {unknown[0]}, which the data has")
        return names
    if len(classes) != count:
        return None
    _check_orders(classes, what)
    return tuple(classes)


def rows(
    known: Sequence[str] | None,
    count: int,
    classes: Sequence[str],
    order: ClassOrder | None,
    what: str | os.PathLike,
    part: bool = False,
) -> list[int] | None:
    """Which rows of a classifier stand for the data's classes, one by one; None: they are not for these classes, or
    for more, unless they are to be a `part`. The rest as `names_of`."""
    names = names_of(known, count, classes, order, what)
    place = {normal(name): row for row, name in enumerate(names or ())}
    fits = names is not None and all(normal(name) in place for name in classes)
    if not fits or (len(classes) < count and not part):
        return None
    return [place[normal(name)] for name in classes]


def relabelled(split: Split, rows: Sequence[int]) -> Split:
    """The split with the numbers of a classifier's rows as labels: of class i, `rows[i]`. Labels below zero stay."""
    if list(rows) == list(range(len(rows))):
        return split
    labels, numbers = split.labels.numpy(), np.asarray(rows)
    return replace(split, labels=torch.from_numpy(np.where(labels < 0, labels, numbers[labels])))


def normal(name: str) -> str:
    """One form for what reads the same: file systems write accents in two."""
    return unicodedata.normalize("NFC", name)


def _check_orders(classes: Sequence[str], what: str | os.PathLike) -> None:
    """Of classes in the order of their names; a data set that has an order of its own is taken at its word."""
    if list(classes) != sorted(classes):
        return
    try:
        others = timms(classes)
    except UserError as error:
        raise UserError(f"{what} names no classes; {error}") from None
    for i, (ours, theirs) in enumerate(zip(classes, others, strict=True)):
        if ours != theirs:
            raise UserError(
                f"{what} names no classes: class {i} would be {theirs} if trained by timm, {ours} by torchvision "
                f"({few(others)} or {few(classes)}): give {OPTION} {TIMM}, {SORTED}, or FILE (a name a line)"
            )


def _lines(path: Path) -> tuple[str, ...] | None:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{OPTION} {path} is not text (UTF-8)") from None
    names = [line.strip() for line in text.splitlines() if line.strip()]
    return labels.listed(text) or labels.listed(names)


def few(names: Sequence[str]) -> str:
    """The first of many names, for a message."""
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
