"""What the values of masks mean where no list of classes says so."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from pocketformer.dense.segmentation.labels import Coding, ranges
from pocketformer.errors import UserError

_BLACK_WHITE = {0, 255}
_SPREAD = 16  # values at least so far apart are shades, not numbers of classes
_ODD = 0.9  # share of a value's pixels that no area of a label has: then it is none (see `Values.odd`)
_BETWEEN = 0.85  # share of such pixels between a lower and a higher one: smoothed; after a JPEG it is 0.5 to 0.75
_MOST = 256  # labels without a list of classes


@dataclass
class Values:
    """Pixels of the masks by value, and what tells labels from shades: `between`: pixels with a lower and a higher
    value next to them; `odd`: those, and pixels with fewer than two equal ones of the four next to them. `bits`: pixels
    of masks of 1 bit, by 0 and 1, which are in no other count. `palettes`: colours of indexed masks by value."""

    counts: Counter = field(default_factory=Counter)
    between: Counter = field(default_factory=Counter)
    odd: Counter = field(default_factory=Counter)
    bits: Counter = field(default_factory=Counter)
    palettes: dict[int, set] = field(default_factory=dict)

    def add(self, other: "Values") -> None:
        for name in ("counts", "between", "odd", "bits"):
            getattr(self, name).update(getattr(other, name))
        for value, colours in other.palettes.items():
            self.palettes.setdefault(value, set()).update(colours)


def look_at(mask: np.ndarray) -> Values:
    """Of one mask, int32 (H, W)."""
    values, counts = np.unique(mask, return_counts=True)
    found = Values(Counter(dict(zip(values.tolist(), counts.tolist(), strict=True))))
    if len(values) < 3:  # nothing lies between two
        return found
    around = np.pad(mask, 1, mode="edge")
    high, wide = mask.shape
    near = [around[i : i + high, j : j + wide] for i in range(3) for j in range(3)]
    low, top = np.minimum.reduce(near), np.maximum.reduce(near)
    equal = sum((near[place] == mask).astype(np.int8) for place in (1, 3, 5, 7))
    between = (low < mask) & (mask < top)
    for name, where in (("between", between), ("odd", between | (equal < 2))):
        there, count = np.unique(mask[where], return_counts=True)
        getattr(found, name).update(dict(zip(there.tolist(), count.tolist(), strict=True)))
    return found


def refuse_mixed(source: str, palettes: Mapping[int, set], listed: bool) -> None:
    """Where a number of indexed masks has several colours: then it is no label. Of masks whose labels are `listed` only
    where another number has one of them too: palettes may differ, but not what they number."""
    mixed = {value: colours for value, colours in palettes.items() if len(colours) > 1}
    if listed:
        owners = Counter(colour for colours in palettes.values() for colour in colours)
        mixed = {value: colours for value, colours in mixed.items() if any(owners[colour] > 1 for colour in colours)}
    if mixed:
        value = min(mixed)
        colours = ", ".join(map(str, sorted(mixed[value])[:3]))
        raise UserError(
            f"{source}: in its indexed masks a number has other colours from file to file ({value}: {colours}): name "
            "the colours of the classes by --classes FILE (a line each: NAME R G B), or save all as grey labels"
        )


def decide(source: str, seen: Values, coding: Coding) -> tuple[Coding, list[str]]:
    """The coding of masks without a list of classes, and notes on what was taken for what. Raises `UserError` in one
    line for values that are no labels."""
    refuse_mixed(source, seen.palettes, listed=False)
    seen = _with_bits(source, seen)
    counts, notes = dict(seen.counts), []
    values = set(counts)
    middle = values - _BLACK_WHITE
    if values > _BLACK_WHITE and any(_SPREAD <= v <= 255 - _SPREAD for v in middle) and _is_smooth(seen, middle):
        share = sum(counts[v] for v in middle) / sum(counts.values())
        notes.append(
            f"masks of 0 and 255 that were smoothed: {len(middle)} values lie between ({share:.2%} of pixels), only at "
            "edges; each counts as the nearer of the two"
        )
        values, coding = _BLACK_WHITE, replace(coding, rounded=True)
    else:
        _refuse_odd(source, seen)
    return _of_values(source, values, counts, coding, notes)


def _is_smooth(seen: Values, values: set[int]) -> bool:
    """Whether these lie between others, and are fewer."""
    total = sum(seen.counts[v] for v in values)
    return sum(seen.between[v] for v in values) >= _BETWEEN * total and 2 * total < sum(seen.counts.values())


def _refuse_odd(source: str, seen: Values) -> None:
    """Where values that no area has are a third of all, and not but numbers of rare classes."""
    odd = {v for v, n in seen.counts.items() if seen.odd[v] >= _ODD * n}
    if len(odd) < 2 or 3 * len(odd) < len(seen.counts) or max(odd - {255}) < _SPREAD:
        return
    what = f"{source}: the masks have {len(seen.counts)} values, {len(odd)} of them "
    if _is_smooth(seen, odd):
        raise UserError(
            f"{what}only at edges between others: they were smoothed, and labels were lost; scale masks by nearest "
            "neighbour, without smoothing"
        )
    raise UserError(
        f"{what}scattered as noise: pictures, or masks that were once compressed with loss (JPEG); save masks anew "
        "from the labels as PNG"
    )


def shades_of(source: str, seen: Values, coding: Coding, num_classes: int) -> tuple[Coding, list[str]] | None:
    """The same where a list has plain names: only shades of grey, as many as there are names, stand for them in their
    order. Else None: a label is the place of a name."""
    if coding.values or coding.ignore_index is not None or coding.reduce_zero_label or len(seen.counts) < 2:
        return None
    numbers = set(range(num_classes)) | {coding.ignored}
    if set(seen.counts) <= numbers and not (set(seen.counts) == _BLACK_WHITE and num_classes == 2):
        return None
    try:
        found, notes = decide(source, seen, coding)
    except UserError:  # no labels at all; that they are not in the list says it shorter
        return None
    return (found, notes) if len(found.values) == num_classes and _apart(set(found.values)) else None


def _of_values(
    source: str, values: set[int], counts: Mapping[int, int], coding: Coding, notes: list[str]
) -> tuple[Coding, list[str]]:
    asked = coding.ignore_index is not None
    kept = sorted(values - {coding.ignored} - ({0} if coding.reduce_zero_label else set()))
    if len(kept) > _MOST:
        raise UserError(
            f"{source}: the masks have {len(kept)} labels, too many to be classes without a list of them (--classes "
            "FILE): are they numbers of objects, or depths?"
        )
    shades = not coding.reduce_zero_label and len(values) > 1 and _apart(values)
    if shades and not asked:
        kept = sorted(values)
    if shades and len(kept) > 1:
        first = (
            "masks of 0 and 255 alone: two classes" if set(kept) == _BLACK_WHITE else f"{len(kept)} shades as labels"
        )
        which = ", ".join(f"{value} is class {place}" for place, value in enumerate(kept[:6]))
        more = "" if asked or 255 not in kept else " (to ignore 255: train with --ignore-index 255)"
        notes.append(f"{first}: {which}{', …' if len(kept) > 6 else ''}{more}")
        return replace(coding, values=tuple(kept)), notes
    if not asked and coding.ignored in values:
        share = counts[coding.ignored] / sum(counts.values())
        notes.append(f"label {coding.ignored} does not count ({share:.1%} of pixels); else name another --ignore-index")
    first = int(coding.reduce_zero_label)
    if kept and kept != list(range(first, first + len(kept))):
        missing = sorted(set(range(first, kept[-1])) - set(kept))
        notes.append(
            f"labels {ranges(kept)} occur in the masks, {ranges(missing)} never: {len(kept)} classes, numbered in this "
            "order; a list of all names (classes.txt, or --classes) gives each label its own"
        )
        return replace(coding, values=tuple(kept)), notes
    return coding, notes


def _apart(values: set[int]) -> bool:
    order = sorted(values)
    return all(b - a >= _SPREAD for a, b in pairwise(order))


def _with_bits(source: str, seen: Values) -> Values:
    """Masks of 1 bit beside others: white is 255 where the others are black and white, else 1."""
    if not seen.bits:
        return seen
    others = set(seen.counts)
    white = 255 if 255 in others and others <= _BLACK_WHITE else 1
    if 255 in others and not others <= _BLACK_WHITE and 1 not in others:
        raise UserError(f"{source}: some masks have 1 bit, others the values {ranges(others)}: save all in one way")
    counts = seen.counts + Counter({value * white: n for value, n in seen.bits.items()})
    return Values(counts, seen.between, seen.odd)
