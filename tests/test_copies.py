"""Copies of one image, and groups that a person names, stay on one side of every split."""

import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pocketformer.architecture import SearchSpace
from pocketformer.errors import UserError
from pocketformer.training.data import Data, open_data
from pocketformer.training.splitting import stratified, stratified_groups
from tiny import TINY

SIZE = (8, 8)
SPLITS = ("fit", "search", "test")


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(zlib.crc32(str(path).encode())).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def fill(folder: Path, count: int = 12, names: str = "{i:02}.png") -> Path:
    for c in ("cat", "dog"):
        for i in range(count):
            picture(folder / c / names.format(i=i, burst=i // 3))
    return folder


def sides(root: Path, data: Data) -> dict[str, set[str]]:
    """Split -> names of its files, by the order of the rows."""
    given = [root / name for name in ("train", "val", "test") if (root / name).is_dir()]
    names = [p for part in given or [root] for p in sorted(part.rglob("*.png"))]
    assert len(names) == len(data.fit.labels)
    return {part: {str(names[i].relative_to(root)) for i in getattr(data, part).indices.tolist()} for part in SPLITS}


def told(data: Data, *words: str) -> None:
    said = (*data.notes, *data.warnings)
    assert any(all(word in line for word in words) for line in said), said


@pytest.mark.parametrize("stream", [False, True])
def test_copies_stay_on_one_side(tmp_path, stream):
    root = fill(tmp_path / "d", 20)
    plain = open_data(root, size=SIZE, stream=stream)
    assert not any("cop" in note for note in plain.notes)
    for i in range(20):
        shutil.copy(root / "cat" / f"{i:02}.png", root / "cat" / f"{i:02} - copy.png")
    for seed in range(4):
        data = open_data(root, size=SIZE, stream=stream, seed=seed)
        told(data, "20 images are copies of others", "00.png")
        found = sides(root, data)
        for i in range(20):
            where = [part for part in SPLITS for kind in ("", " - copy") if f"cat/{i:02}{kind}.png" in found[part]]
            assert len(where) == 2
            assert len(set(where)) == 1
        assert len(found["test"]) == 6
        assert {name[:3] for name in found["test"]} == {"cat", "dog"}
    shutil.copy(root / "cat" / "03.png", root / "dog" / "99.png")
    told(open_data(root, size=SIZE, stream=stream), "different classes (1 in all)", "dog/99.png is dog")


@pytest.mark.parametrize("stream", [False, True])
def test_copies_of_given_test_images_are_not_trained_on(tmp_path, stream):
    root = tmp_path / "d"
    for split, count in (("train", 10), ("val", 4), ("test", 3)):
        fill(root / split, count)
    shutil.copy(root / "test" / "cat" / "00.png", root / "train" / "cat" / "t.png")
    shutil.copy(root / "test" / "cat" / "00.png", root / "val" / "cat" / "t.png")
    shutil.copy(root / "val" / "dog" / "00.png", root / "train" / "dog" / "v.png")
    data = open_data(root, size=SIZE, stream=stream)
    found = sides(root, data)
    assert [len(found[part]) for part in SPLITS] == [20, 8, 6]
    assert not {"train/cat/t.png", "val/cat/t.png", "train/dog/v.png"} & set.union(*found.values())
    told(data, "3 images are left out of training and the search", "in the test split or of validation")
    shutil.rmtree(root / "val")
    data = open_data(root, size=SIZE, stream=stream)
    told(data, "1 image is left out of training: copies of images in the test split")
    assert len(data.final) == 21
    assert len(data.test) == 6


@pytest.mark.parametrize(
    ("by", "names"),
    [
        ("prefix", "burst{burst}_{i:02}.png"),
        ("prefix", "seq-{burst}-frame{i:03}.png"),
        ("folder", "s{burst}/{i:02}.png"),
        (r"(?:s|p)(\d+)\.", "s{burst}.{i:02}.png"),
    ],
)
def test_groups_stay_on_one_side(tmp_path, by, names):
    root = fill(tmp_path / "d", 30, names)
    data = open_data(root, size=SIZE, group_by=by)
    told(data, f"--group-by {by}: 60 images are 10 groups, the largest of 6")
    found = sides(root, data)
    for burst in range(10):
        members = {
            f"{c}/{names.format(i=i, burst=burst)}" for c in ("cat", "dog") for i in range(3 * burst, 3 * burst + 3)
        }
        assert sum(members <= found[part] for part in SPLITS) == 1
    assert len(found["test"]) == 6
    assert len(found["search"]) == 24 or len(found["search"]) == 30
    assert open_data(root, size=SIZE).split_fingerprint != data.split_fingerprint


def test_groups_that_leave_nothing_to_split_are_refused(tmp_path):
    root = fill(tmp_path / "d", 8, "IMG_{i}.png")
    for by, words in (
        ("prefix", "too few groups of images that must stay together to split: cat (1)"),
        ("folder", "puts no two images"),
        ("(", "neither prefix nor folder"),
        ("patient", "puts no two images"),
    ):
        with pytest.raises(UserError) as caught:
            open_data(root, size=SIZE, group_by=by)
        assert words in str(caught.value)
    with pytest.raises(UserError, match="takes a folder"):
        open_data("embedded", size=(28, 28), group_by="prefix")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=12, max_size=80), st.integers(0, 999), st.floats(0.1, 0.5), st.data())
def test_grouped_strata(labels, seed, share, data):
    labels = np.array([*labels, *(4 * [0, 1, 2, 3])])
    count = int(share * len(labels))
    alone = np.arange(len(labels))
    assert (stratified_groups(labels, alone, count, seed) == stratified(labels, count, seed)).all()
    groups = np.array(data.draw(st.lists(st.integers(0, 30), min_size=len(labels), max_size=len(labels))))
    chosen = stratified_groups(labels, groups, count, seed)
    assert not set(groups[chosen]) & set(groups[~chosen])
    assert (chosen == stratified_groups(labels, groups, count, seed)).all()
    for c in range(4):
        of = set(groups[labels == c])
        assert len(of) < 2 or set(groups[(labels == c) & ~chosen])


def test_groups_by_the_command(tmp_path, cli):
    """A run keeps its groups when it is resumed, and those that judge it split the same way."""
    fill(tmp_path / "data", 30, "s{burst}_{i:02}.png")
    SearchSpace.from_dict(TINY).smallest.save(tmp_path / "tiny.json")
    tiny = ("--architecture", tmp_path / "tiny.json", "--epochs", 1, "--batch-size", 8, "--workers", 0)
    train = ("train", *tiny, "--data", tmp_path / "data", "--out", tmp_path / "run", "--group-by")
    said = cli(*train, "prefix").succeeds()
    assert "60 images are 10 groups" in said.err
    assert "2 classes: cat, dog; images: " in said.err
    assert "small set" not in said.err  # the search split is not used
    cli(*train, "prefix").succeeds()
    cli(*train, "folder").fails(2, 'group_by was "prefix"')
    judged = cli("evaluate", "--checkpoint", tmp_path / "run", "--data", tmp_path / "data", "--workers", 0).succeeds()
    assert "60 images are 10 groups" in judged.err
    assert "warning" not in judged.err
