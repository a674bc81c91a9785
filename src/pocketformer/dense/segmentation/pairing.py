"""Which mask is that of which image, by their names."""

import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping

Names = Mapping[str, str]  # what is compared, and whose it is


def paired(images: Iterable[str], masks: Iterable[str]) -> dict[str, str]:
    """{name of an image: name of its mask}; names are paths without what stands behind their last dot.

    A mask has its image's name. Else its name but for case; else but for one and the same beginning or end (`a` and
    `a_mask`); else but for what all images, and all masks, begin and end with (`a_leftImg8bit` and `a_labelIds`). The
    first of these rules by which each image has a mask and each mask an image; if none does, the one that finds most.
    """
    images, masks = list(images), list(masks)
    rules = [({name: name for name in images}, {name: name for name in masks})]
    if set(images) != set(masks):
        one, other = ({_folded(name): name for name in names} for names in (images, masks))
        rules += [(one, other), *((one, without) for without in _more(one, other)), (_ends(one), _ends(other))]
    best: dict[str, str] = {}
    for mine, theirs in rules:
        found = {mine[key]: theirs[key] for key in mine if key in theirs}
        if len(found) == len(images) == len(masks):
            return found
        best = max(best, found, key=len)
    return best


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _more(images: Names, masks: Names) -> Iterator[Names]:
    """Masks by their names without what the first of them has more than some image."""
    folder, first = os.path.split(next(iter(masks), ""))
    fits = [os.path.split(name)[1] for name in images if os.path.split(name)[0] == folder]
    for stem in sorted({stem for stem in fits if stem in first}, key=len, reverse=True):
        front, _, back = first.partition(stem)
        found = {}
        for name, whole in masks.items():
            folder, stem = os.path.split(name)
            if stem.startswith(front) and stem.endswith(back) and len(stem) > len(front) + len(back):
                found[os.path.join(folder, stem[len(front) : len(stem) - len(back)])] = whole
        yield found


def _ends(names: Names) -> Names:
    """Without what the last parts of all paths begin and end with; digits belong to what tells them apart."""
    last = [os.path.split(name)[1] for name in names]
    if len(last) < 2:
        return {}
    front, back = _beginning(last), _beginning([name[::-1] for name in last])
    found = {}
    for name, whole in names.items():
        folder, stem = os.path.split(name)
        found[os.path.join(folder, stem[front : max(front, len(stem) - back)])] = whole
    return found


def _beginning(names: list[str]) -> int:
    """Length of what all begin with, without digits at its end."""
    first, last = min(names), max(names)
    same = next((place for place, letter in enumerate(first) if last[place] != letter), len(first))
    return len(first[:same].rstrip("0123456789"))
