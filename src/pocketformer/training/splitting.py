"""Which images are in which split: a function of (seed, labels, order of files) alone.

It does not change with library versions: numbers come from a counter-based generator, and sorts are stable.
"""

import numpy as np

from pocketformer.errors import UserError
from pocketformer.training.sources import Found, some

SEARCH_SMALLEST, SEARCH_LARGEST = 500, 10_000


def stratified(labels: np.ndarray, count: int, seed: int, *, purpose: int = 0) -> np.ndarray:
    """Chooses about `count` of the labels at random, each class in proportion; bool (N,), True: chosen.

    Every class gets its share of `count` rounded down or up (largest remainders), at least one image; where
    many classes need that one, more than `count` are chosen. A class of one image is chosen whole.
    """
    classes, inverse, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    quotas = _quotas(sizes, count)
    rank = random_words(len(labels), seed, purpose)
    chosen = np.zeros(len(labels), bool)
    for c in range(len(classes)):
        rows = np.flatnonzero(inverse == c)
        chosen[rows[np.argsort(rank[rows], kind="stable")[: quotas[c]]]] = True
    return chosen


def _quotas(sizes: np.ndarray, count: int) -> np.ndarray:
    """Images to choose of each class, out of `sizes` int64 (C,)."""
    shares = sizes * (count / max(int(sizes.sum()), 1))
    # The share of one class is exact in binary only by luck: 29.999999 is 30.
    quotas = np.maximum(np.floor(shares + 1e-9), 1).astype(np.int64)
    remainders = np.where(shares > quotas, shares - quotas, -1.0)
    order = np.argsort(-remainders, kind="stable")
    extra = min(max(count - int(quotas.sum()), 0), int((remainders > 1e-9).sum()))
    quotas[order[:extra]] += 1
    return quotas


def stratified_groups(
    labels: np.ndarray, groups: np.ndarray, count: int, seed: int, *, purpose: int = 0, left: int = 1
) -> np.ndarray:
    """As `stratified`, but whole groups only: `groups` int64 (N,), equal within one. Where all are of one image, what
    is chosen is the same.

    Groups are taken in random order while that brings the classes nearer to their shares; of every class at least
    `left` groups stay, and at least one is chosen, where that can be.
    """
    classes, inverse, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    missing = _quotas(sizes, count).tolist()
    rank = random_words(len(labels), seed, purpose)
    members: dict[int, dict[int, int]] = {}  # group -> class -> images, in random order
    for row in np.argsort(rank, kind="stable").tolist():
        of = members.setdefault(int(groups[row]), {})
        of[int(inverse[row])] = of.get(int(inverse[row]), 0) + 1
    free = np.zeros(len(classes), np.int64)
    for of in members.values():
        free[list(of)] += 1
    taken, have = set(), [False] * len(classes)

    def take(group: int) -> None:
        taken.add(group)
        for c, n in members[group].items():
            missing[c] -= n
            free[c] -= 1
            have[c] = True

    def can_go(group: int) -> bool:
        return all(free[c] > left for c in members[group])

    for group, of in members.items():
        if sum((missing[c] - n) ** 2 - missing[c] ** 2 for c, n in of.items()) < 0 and can_go(group):
            take(group)
    for c in range(len(classes)):
        if not have[c]:
            fitting = [group for group, of in members.items() if c in of and can_go(group)]
            if fitting:
                take(min(fitting, key=lambda group: sum(members[group].values())))
    return np.isin(groups, list(taken))


def random_words(count: int, seed: int, *key: int) -> np.ndarray:
    """`count` random uint64, a function of the seed and the key that no numpy version changes."""
    if seed < 0:
        raise UserError(f"the seed is {seed}; it must not be negative")
    return np.random.Philox(np.random.SeedSequence([seed, *key])).random_raw(count)


def search_count(rest: int) -> int:
    """Images of the search split out of `rest`: a tenth, within 500 and 10,000, never more than half."""
    return min(max((rest + 5) // 10, SEARCH_SMALLEST), SEARCH_LARGEST, rest // 2)


def split_rows(
    found: Found,
    labels: np.ndarray,
    classes: tuple[str, ...],
    seed: int,
    notes: list[str],
    search_notes: list[str],
    groups: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Ascending rows of "fit", "search", "fit+search" and "test"; rows labelled -1 are in none.

    `groups` int64 (N,), equal within one: each is on one side of the splits that are made here.

    Appends to the notes what the user did not ask for, and to `search_notes` what concerns the search split alone.
    Raises `UserError` if a class has too few images.
    """
    good, row = labels >= 0, np.arange(len(found))
    is_test = row >= found.train + found.search
    rest, test = np.flatnonzero(good & ~is_test), np.flatnonzero(good & is_test)
    if not found.train:
        return {"fit": rest, "search": rest, "fit+search": rest, "test": _some_images(found, test)}
    if len(classes) < 2:
        raise UserError(f"{found.source}: has only one class; at least two are needed")
    if found.search:
        fit, search = rest[rest < found.train], rest[rest >= found.train]
        for what, rows in (("training", fit), ("validation", search), ("test", test)):
            _check_classes(found.source, f"{what} images", labels[rows], classes, 1)
        return {"fit": fit, "search": search, "fit+search": rest, "test": test}
    least = 2 if found.test else 3
    _check_classes(found.source, "training images", labels[rest], classes, least)
    if groups is not None:
        firsts = rest[np.unique(np.stack([labels[rest], groups[rest]]), axis=1, return_index=True)[1]]
        _check_classes(found.source, "groups of images that must stay together", labels[firsts], classes, least)
    if found.test:
        _check_classes(found.source, "test images", labels[test], classes, 1)
    else:
        chosen = _chosen(labels[rest], groups, rest, (len(rest) + 5) // 10, seed, purpose=1, left=2)
        test, rest = rest[chosen], rest[~chosen]
        notes.append(f"no val/: a stratified tenth ({len(test)} images, seed {seed}) was set aside as the test split")
    count = search_count(len(rest))
    chosen = _chosen(labels[rest], groups, rest, count, seed, purpose=2)
    search, fit = rest[chosen], rest[~chosen]
    if groups is not None:
        for what, rows in (("fit", fit), ("search", search), ("test", test)):
            where = f"images in {what}, with these groups and --seed {seed},"
            _check_classes(found.source, where, labels[rows], classes, 1)
    if count < SEARCH_SMALLEST:
        half = f"{len(search)} of {len(rest)}"
        search_notes.append(f"small set: the search split is half of the images besides test ({half})")
    elif len(rest) < 10 * SEARCH_SMALLEST - 5:
        search_notes.append(f"small set: the search split has its minimum of {count} images ({len(rest)} besides test)")
    return {"fit": fit, "search": search, "fit+search": rest, "test": test}


def _chosen(
    labels: np.ndarray, groups: np.ndarray | None, rows: np.ndarray, count: int, seed: int, purpose: int, left: int = 1
) -> np.ndarray:
    if groups is None:
        return stratified(labels, count, seed, purpose=purpose)
    return stratified_groups(labels, groups[rows], count, seed, purpose=purpose, left=left)


def _some_images(found: Found, rows: np.ndarray) -> np.ndarray:
    if not len(rows):
        raise UserError(f"{found.source}: holds no images that can be read")
    return rows


def _check_classes(source: str, what: str, labels: np.ndarray, classes: tuple[str, ...], least: int) -> None:
    if labels.max(initial=0) >= len(classes):
        raise UserError(f"{source}: a label is {labels.max()}, but there are only {len(classes)} classes")
    counts = np.bincount(labels, minlength=len(classes))
    if few := [f"{c} ({n})" for c, n in zip(classes, counts, strict=True) if n < least]:
        raise UserError(f"{source}: too few {what} to split: {some(few)}; each class needs at least {least}")
