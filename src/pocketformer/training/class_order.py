"""Whose classes are whose: of weights that name theirs, and of weights that do not, where any order would do."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pocketformer import files
from pocketformer.errors import UserError
from pocketformer.models import labels

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
        names = labels.listed(files.read_json(path, OPTION)) if path.suffix == ".json" else _lines(path)
        if names is None:
            raise UserError(
                f"{OPTION} {text} holds no names of classes: one a line, each once, or a list of them in JSON"
            )
        return cls(text, names)

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


def rows(
    known: Sequence[str] | None,
    count: int,
    classes: Sequence[str],
    order: ClassOrder | None,
    what: str | os.PathLike,
    part: bool = False,
) -> list[int] | None:
    """Which of the `count` rows of a classifier stand for the data's classes, one by one; None: they are not for these
    classes. `known`: the names that `what` states; `part`: it may know others, too.

    Raises `UserError` where nothing says in which order they are.
    """
    known = known if known is not None and len(known) == count else None
    if known is None and order is not None:
        known = order.of(classes)
        if len(known) != count:
            raise UserError(f"{what} knows {count} classes, {OPTION} {order.rule} gives {len(known)}")
        if unknown := [name for name in classes if name not in known]:
            raise UserError(f"{OPTION} {order.rule} has no class {unknown[0]}, which the data has")
    if known is not None:
        place = {name: row for row, name in enumerate(known)}
        fits = all(name in place for name in classes) and (part or len(classes) == count)
        return [place[name] for name in classes] if fits else None
    if len(classes) != count:
        return None
    _check_orders(classes, what)
    return list(range(count))


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
