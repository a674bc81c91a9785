"""Lists of classes as people write them: names, and the labels or colours that masks have for them."""

import re
from dataclasses import replace
from pathlib import Path

from pocketformer.dense.segmentation.labels import Coding
from pocketformer.errors import UserError

VOID = ("void", "ignore", "ignored", "unlabeled", "unlabelled")  # in any case: classes that do not count
_COLOUR = r"(\d{1,3})[\s,;]+(\d{1,3})[\s,;]+(\d{1,3})"
_FORMS = (
    re.compile(rf"(?P<name>.+?)\s*[\s,;:]\s*{_COLOUR}\s*(?::[^:]*)*$"),  # NAME R G B; NAME,R,G,B; CVAT's NAME:R,G,B::
    re.compile(rf"{_COLOUR}\s*[\s,;:]\s*(?P<name>.+)$"),  # R G B NAME: CamVid's label_colors.txt
)
_NUMBERED = re.compile(r"(\d{1,5})\s*[\s,;:=]\s*(?P<name>.*\S)$")
_LAST = re.compile(r"(?P<name>.*?\S)\s*[\s,;:=]\s*(\d{1,5})$")
_COLUMNS = re.compile(
    r"(pixel|value|label|id|index)[\w ]*[,;\t]|(name|class)\w*\W+(label|id|index|value)$", re.IGNORECASE
)  # Roboflow's "Pixel Value, Class"
_HEAD = re.compile(
    r"(name|class|label)\w*\W+(r|red)\W+(g|green)\W+(b|blue)$|(r|red)\W+(g|green)\W+(b|blue)\W+\w+$", re.I
)


def read_classes(path: Path, coding: Coding) -> tuple[tuple[str, ...], Coding]:
    """Names of classes in the order of the file, one a line, and the coding that it tells.

    A line is a name (its label is its place, from 0 on), or a name and its colour (`road 128 64 128`, in either order;
    also CamVid's, CVAT's and CSV), or a label and a name (`255 person`; `person 1`, if such are 0 to N - 1), all lines
    alike. Colours and numbered labels named as `VOID` do not count. Of plain names a last one that is of the ignored
    label is left out. Raises `UserError` in one line.
    """
    lines = _lines(path)
    if coloured := _coloured(lines):
        names, labels = coloured
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            rgb = f"{twice[0] >> 16} {twice[0] >> 8 & 255} {twice[0] & 255}"
            raise UserError(f"class names {path}: colour {rgb} more than once")
        return _without_void(path, names, labels, replace(coding, colours=True))
    if numbered := _numbered(lines[1:] if lines and _COLUMNS.match(lines[0]) else lines):
        return _without_void(path, *numbered, coding)
    _refuse_twice(path, lines)
    if not lines:
        raise UserError(f"class names {path}: the file is empty; write one name a line")
    names, ignored = list(lines), coding.ignored - coding.reduce_zero_label
    if ignored == len(names) - 1:
        names.pop()
    elif 0 <= ignored < len(names):
        raise UserError(
            f"class names {path}: label {coding.ignored} is {names[ignored]!r} there, but it is the ignored one; "
            "only the last class can be ignored (or label 0, by --reduce-zero-label and without its name)"
        )
    return tuple(names), coding


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"class names {path} cannot be read: {getattr(error, 'strerror', 'not UTF-8')}") from None
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#") and not _HEAD.match(line)]


def _coloured(lines: list[str]) -> tuple[list[str], list[int]] | None:
    """Names and labels, if all lines have a colour in the same place."""
    for form in _FORMS:
        found = [form.match(line) for line in lines]
        if lines and all(found):
            names = [match.group("name").strip(" \t,;:\"'") for match in found]
            rgb = [_numbers(match) for match in found]
            if all(max(colour) < 256 for colour in rgb):
                return names, [r << 16 | g << 8 | b for r, g, b in rgb]
    return None


def _numbered(lines: list[str]) -> tuple[list[str], list[int]] | None:
    """Names and labels, if all lines have both: the label first; or last, where these are but 0 to N - 1 (else a number
    at the end belongs to a name)."""
    for form in (_NUMBERED, _LAST):
        found = [form.match(line) for line in lines]
        if lines and all(found):
            names, labels = [match.group("name") for match in found], [_numbers(match)[0] for match in found]
            plain = form is _LAST and (sorted(labels) != [*range(len(lines))] or len(set(names)) < len(names))
            if len(set(labels)) == len(labels) and not plain:
                return names, labels
    return None


def _numbers(match: re.Match) -> list[int]:
    """Those that are not the name."""
    name = match.re.groupindex["name"]
    return [int(value) for place, value in enumerate(match.groups(), 1) if place != name]


def _without_void(path: Path, names: list[str], labels: list[int], coding: Coding) -> tuple[tuple[str, ...], Coding]:
    void = [
        name.lower() in VOID or (not coding.colours and label == coding.ignore_index)
        for name, label in zip(names, labels, strict=True)
    ]
    kept = [name for name, out in zip(names, void, strict=True) if not out]
    _refuse_twice(path, kept)
    if not kept:
        raise UserError(f"class names {path}: no class that counts; all are {', '.join(VOID)}")
    values = tuple(label for label, out in zip(labels, void, strict=True) if not out)
    without = {label for label, out in zip(labels, void, strict=True) if out}
    if not coding.colours:
        without |= {coding.ignored, *([0] if coding.reduce_zero_label else [])} - {*values}
    return tuple(kept), replace(coding, values=values, void=tuple(sorted(without)))


def _refuse_twice(path: Path, names: list[str]) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"class names {path}: {', '.join(twice[:3])} more than once")
