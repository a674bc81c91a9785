"""Random folders of images, as people have them: each is read as an independent model says, or refused in one line."""

import os
import unicodedata
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pocketformer.errors import UserError
from pocketformer.training.data import Data, open_data

LAYOUTS = 500
POOL = 150
NAMES = {
    "train": ["train", "Train", "TRAIN", "training", "Training", "trn", "training_set", "train images"],
    "val": ["val", "Val", "valid", "VALIDATION", "Validation", "dev", "val-set"],
    "test": ["test", "Test", "TESTING", "testing", "eval", "test_set", "Test Data"],
}
KINDS = [[], ["train"], ["train", "val"], ["train", "test"], ["train", "val", "test"], ["val"], ["test"]]
CLASSES = ["cat", "dog", "Emu", "10", "2", "-x", "a b", "caf\u00e9", "日本", "😀", "new\nline", "l" * 200, "trainer"]
BYTES = os.fsdecode(b"na\xefve")
LITTER = ["@eaDir", "__MACOSX", ".thumbnails", "$RECYCLE.BIN", "lost+found", "#recycle", ".git", ".ipynb_checkpoints"]
SIDE = ["._a.png", ".DS_Store", "Thumbs.db", "desktop.ini", "a.txt", "a.json", "a.XMP", "a.aae", "a.mov", "a.foo"]


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> list[Path]:
    """8 px images; the first pixel of each is its number."""
    folder, files = tmp_path_factory.mktemp("pool"), []
    for number in range(POOL):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        pixels[0, 0] = number
        files.append(folder / f"{number}.png")
        Image.fromarray(pixels).save(files[-1])
    return files


class Layout:
    """A random folder, and what is in it: rows of (split or "", class, number of the image)."""

    def __init__(self, root: Path, seed: int, pool: list[Path]):
        self.rng, self.pool, self.root = np.random.default_rng(seed), pool, root
        self.rows: list[tuple[str, str, int]] = []
        self.splits = KINDS[self.rng.integers(len(KINDS))]
        self.fresh = iter(self.rng.permutation(POOL).tolist())
        self.classes = [str(c) for c in self.rng.choice(CLASSES, self.rng.integers(1, 5), replace=False)]
        if self.chance(0.1):
            self.classes.append(BYTES)
        self.wrong = ""  # why it is to be refused
        self.unsure = False  # whether it may be
        top = root
        for name in self.rng.choice(["data", "images", "Photos"], self.rng.choice([0, 0, 0, 1, 2]), replace=False):
            top = top / name
        top.mkdir(parents=True)
        by_class = len(self.splits) > 1 and self.chance(0.1)
        for split in self.splits or [""]:
            folder = top / str(self.rng.choice(NAMES[split])) if split else top
            wrapped = split and self.chance(0.1)
            for name in self.classes:
                if split and split != "train" and not by_class and self.chance(0.03):
                    self.wrong = "another class is missing"
                    continue
                inner = folder / folder.name if wrapped else folder
                place = top / name / folder.name if by_class else inner / name
                self.fill(place, split, name)
            if split and not by_class:
                self.litter(folder)
        if self.chance(0.03):
            (top / self.splits[0] / "empty" if self.splits == ["train"] else top / "empty").mkdir(parents=True)
            self.unsure = True
        self.litter(top)
        if top != root:
            self.litter(root)

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def fill(self, folder: Path, split: str, name: str) -> None:
        if self.chance(0.15) and name != BYTES:  # as a Mac would have it
            folder = Path(unicodedata.normalize("NFD", str(folder)))
        folder.mkdir(parents=True, exist_ok=True)
        count = self.rng.integers(1, 3) if self.chance(0.04) else self.rng.integers(4, 6)
        numbers = [next(self.fresh) for _ in range(count)]
        if self.chance(0.15):  # copies, of this class's or of another's
            others = [number for _, _, number in self.rows] or numbers
            numbers.append(int(self.rng.choice(others if self.chance(0.5) else numbers)))
        for i, number in enumerate(numbers):
            deep = folder / "more" / "still more" if self.chance(0.1) else folder
            deep.mkdir(parents=True, exist_ok=True)
            ending = self.rng.choice([".png", ".PNG", ".jpg", ".png_large", ""])
            os.link(self.pool[number], deep / f"{i}{ending}")
            self.rows.append((split, name, number))
        self.litter(folder)

    def litter(self, folder: Path) -> None:
        if self.chance(0.3):
            place = folder / str(self.rng.choice(LITTER))
            place.mkdir(parents=True, exist_ok=True)
            os.link(self.pool[0], place / "0.png")
        folder.mkdir(parents=True, exist_ok=True)
        for name in self.rng.choice(SIDE, self.rng.integers(0, 3), replace=False):
            (folder / str(name)).write_bytes(b"x")
        if self.chance(0.1):
            (folder / "loop").symlink_to(self.rng.choice([str(folder), str(self.root), str(self.root.parent)]))
        if self.chance(0.1):
            (folder / "gone").symlink_to(folder / "nowhere")
        if self.chance(0.02):
            (folder / "bad.png").write_bytes(b"x")
            self.unsure = True


def model(layout: Layout) -> tuple[list[str], Counter, Counter, str]:
    """Names of the classes, (class, image) to train on and to test on (empty: a tenth of all), why it is refused."""
    wrong = layout.wrong
    if layout.splits in (["val"], ["test"]):
        wrong = wrong or "nothing to train on"
    name_of = {c: r"na\xefve" if c == BYTES else c for c in layout.classes}
    if len(name_of) < 2:
        wrong = wrong or "one class"
    order = [split for split in ("train", "val", "test") if split in layout.splits] or [""]
    rows = [(order.index(split), name_of[c], number) for split, c, number in layout.rows]
    last = {}
    for side, _, number in rows:
        last[number] = max(side, last.get(number, 0))
    kept = [(side, c, number) for side, c, number in rows if side == last[number]]
    test = Counter((c, n) for side, c, n in kept if side == len(order) - 1) if len(order) > 1 else Counter()
    train = Counter((c, n) for side, c, n in kept if not test or side < len(order) - 1)
    for c in name_of.values():
        if len(order) == 3:
            few = any(not any(s == side and name == c for s, name, _ in kept) for side in range(3))
        else:
            few = len({n for name, n in train if name == c}) < (2 if test else 3)
        if few:
            wrong = wrong or "too few"
    return sorted(name_of.values()), train, test, wrong


def opened(root: Path, seed: int) -> tuple[Data | None, str | None]:
    try:
        return open_data(root, size=(8, 8), seed=seed), None
    except UserError as error:
        return None, str(error)


def found(data: Data, split: str) -> Counter:
    part = getattr(data, split)
    rows = part.indices.tolist()
    return Counter((data.classes[part.labels[row]], int(part.images[row, 0, 0, 0])) for row in rows)


def test_random_folders_are_read_as_they_are_or_refused_in_one_line(pool, tmp_path):
    outcomes = Counter()
    for seed in range(LAYOUTS):
        layout = Layout(tmp_path / f"{seed}", seed, pool)
        classes, train, test, wrong = model(layout)
        data, refused = opened(layout.root, seed)
        if refused is not None:
            assert wrong or layout.unsure or _shared(layout), (seed, refused)
            assert refused.count("\n") == 0 < len(refused), seed
            outcomes["refused"] += 1
            continue
        assert not wrong, (seed, wrong)
        assert list(data.classes) == classes, seed
        fit, search, tested = (found(data, split) for split in ("fit", "search", "test"))
        if test:
            assert tested == test, seed
            assert fit + search == train, seed
        else:
            assert fit + search + tested == train, seed
        sides = [{number for _, number in side} for side in (fit, search, tested)]
        for one, other in combinations(sides, 2):
            assert not one & other, seed
        if len(layout.splits) == 3:
            validation = {(_name(c), number) for split, c, number in layout.rows if split == "val"}
            assert search == Counter({key: n for key, n in train.items() if key in validation}), seed
        assert f"{len(classes)} classes: " in data.summary()
        outcomes["read"] += 1
    print(f"{LAYOUTS} random folders: {outcomes['read']} read as they are, {outcomes['refused']} refused in one line")
    assert outcomes["read"] > LAYOUTS / 3
    assert outcomes["refused"] > LAYOUTS / 10


def _name(c: str) -> str:
    return r"na\xefve" if c == BYTES else c


def _shared(layout: Layout) -> bool:
    """Whether copies of one image are in several classes, so that few groups may be left to split."""
    classes = {}
    for _, c, number in layout.rows:
        classes.setdefault(number, set()).add(c)
    return any(len(names) > 1 for names in classes.values())
