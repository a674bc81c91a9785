"""Folders as they lie around: what is a split, what a class, and what only lies beside them."""

import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pocketformer.errors import UserError
from pocketformer.training.data import Data, open_data, open_labelled

SIZE = (8, 8)


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def fill(folder: Path, classes: str | list[str] = "cat dog", count: int = 4) -> Path:
    """A folder of `count` pictures a class, all different."""
    for name in classes.split() if isinstance(classes, str) else classes:
        for i in range(count):
            picture(folder / name / f"{i}.png", zlib.crc32(f"{folder} {name} {i}".encode()))
    return folder


def opened(root: Path) -> Data:
    return open_data(root, size=SIZE)


def counts(data: Data) -> tuple[int, int, int]:
    return len(data.fit), len(data.search), len(data.test)


def refusal(root: Path, *words: str) -> str:
    with pytest.raises(UserError) as caught:
        opened(root)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    return message


def told(data: Data, *words: str) -> None:
    assert any(all(word in note for word in words) for note in data.notes), data.notes


@pytest.mark.parametrize(
    ("train", "val"),
    [("Train", "Val"), ("TRAINING", "validation"), ("trn", "Dev"), ("training_set", "test_set"), ("train", "Testing")],
)
def test_splits_are_known_by_any_usual_name(tmp_path, train, val):
    fill(tmp_path / train)
    fill(tmp_path / val, count=2)
    data = opened(tmp_path)
    assert data.classes == ("cat", "dog")
    assert counts(data) == (4, 4, 4)
    told(data, f"{train}/ is for training", f"{val}/ is the test split")
    assert data.summary() == "2 classes: cat, dog; images: 4 in fit, 4 in search, 4 in test"


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Train", "valid", "Test"), ("trn", "dev", "eval")])
def test_of_three_splits_the_middle_one_is_for_the_search(tmp_path, names):
    train, val, test = names
    fill(tmp_path / train, count=5)
    fill(tmp_path / val, count=3)
    fill(tmp_path / test, count=2)
    data = opened(tmp_path)
    assert counts(data) == (10, 6, 4)
    assert data.fit.indices.tolist() == list(range(10))
    assert data.search.indices.tolist() == list(range(10, 16))
    assert data.final.indices.tolist() == list(range(16))
    assert data.test.indices.tolist() == list(range(16, 20))
    told(data, f"scored on {val}/", f"{test}/ is the test split")


def test_one_wrapper_around_the_images_is_descended_into(tmp_path):
    fill(tmp_path / "a" / "photos" / "images")
    (tmp_path / "a" / "photos" / "annotations").mkdir()
    (tmp_path / "a" / "photos" / "annotations" / "list.xml").write_text("x")
    data = opened(tmp_path / "a")
    assert data.classes == ("cat", "dog")
    told(data, "photos/images/")
    # As archives of Kaggle unpack: each split is wrapped once more.
    fill(tmp_path / "b" / "training_set" / "training_set", count=5)
    fill(tmp_path / "b" / "test_set" / "test_set", count=2)
    assert counts(opened(tmp_path / "b")) == (5, 5, 4)
    fill(tmp_path / "c" / "cat", "siamese")
    (tmp_path / "c" / "dog").mkdir()  # a class that waits for its images is not to be forgotten
    refusal(tmp_path / "c", "without images: dog")


def test_splits_of_less_usual_names_are_known_by_what_they_hold(tmp_path):
    for names in (("seg_train", "seg_test"), ("train1", "test1"), ("birds-train-2020", "birds-val-2020")):
        root = tmp_path / names[0]
        fill(root / names[0], count=5)
        fill(root / names[1], count=2)
        fill(root, "seg_pred")
        data = opened(root)
        assert data.classes == ("cat", "dog")
        assert counts(data) == (5, 5, 4)
        told(data, "seg_pred/ (4 images)")
    for fold in ("fold1", "fold2"):
        fill(tmp_path / "folds" / fold, "a b")
    data = opened(tmp_path / "folds")
    assert data.classes == ("fold1", "fold2")
    told(data, "taken for the classes", "a, b")


def test_splits_within_the_classes(tmp_path):
    for name in ("cat", "dog"):
        fill(tmp_path / name, "train", count=5)
        fill(tmp_path / name, "test", count=2)
    data = opened(tmp_path)
    assert data.classes == ("cat", "dog")
    assert counts(data) == (5, 5, 4)
    fill(tmp_path / "emu", "young old")
    data = opened(tmp_path)
    assert data.classes == ("cat", "dog", "emu")
    told(data, "parts of the class", "cat/test")


def test_a_class_may_be_called_like_a_split(tmp_path):
    data = opened(fill(tmp_path / "vehicles", "bus car train"))
    assert data.classes == ("bus", "car", "train")
    told(data, "train/ holds images directly", "taken for a class")
    assert opened(fill(tmp_path / "papers", "valid invalid")).classes == ("invalid", "valid")


def test_doubtful_splits_are_refused_in_one_line(tmp_path):
    fill(tmp_path / "a" / "train", "steam electric")
    fill(tmp_path / "a", "bus car")
    refusal(tmp_path / "a", "train/ looks like a split", "bus/, car/")
    for name in ("train", "val", "valid"):
        fill(tmp_path / "b" / name)
    refusal(tmp_path / "b", "both val/ and valid/", "val split")
    fill(tmp_path / "c" / "Train")
    fill(tmp_path / "c" / "train")
    refusal(tmp_path / "c", "both Train/ and train/")
    refusal(fill(tmp_path / "d", "train test"), "images lie directly in test/, train/", "CLASS")
    (tmp_path / "e" / "train" / "cat").mkdir(parents=True)
    refusal(tmp_path / "e", "train/", "no images")
    for split in ("Val", "test"):
        fill(tmp_path / split / split)
        refusal(tmp_path / split, f"has {split}/ but no train/")


def test_what_lies_beside_the_splits_is_told(tmp_path):
    fill(tmp_path / "train", count=5)
    fill(tmp_path, "test extra", count=3)  # as in many competitions, whose test images have no labels
    data = opened(tmp_path)
    assert data.classes == ("cat", "dog")
    told(data, "test/ was not read", "3 images")
    told(data, "not read, as beside train/: extra/ (3 images)")
    fill(tmp_path / "valid", "unknown", count=3)
    told(opened(tmp_path), "valid/ was not read", "unknown/, which is no class")


def test_litter_is_passed_over_with_a_count(tmp_path):
    fill(tmp_path, count=6)
    for name in ("@eaDir", "__MACOSX", ".thumbnails", "$RECYCLE.BIN", "lost+found", ".ipynb_checkpoints", "#recycle"):
        fill(tmp_path / name, count=1)
        fill(tmp_path / "cat" / name, "0.png", count=1)
    for name in ("._0.png", ".DS_Store", "Thumbs.db", "0.txt", "0.json", "0.xmp", "0.AAE", "clip.mov", "notes.xyz"):
        (tmp_path / "cat" / name).write_bytes(b"x")
    (tmp_path / "dog" / "8.jpg_large").write_bytes((tmp_path / "dog" / "0.png").read_bytes() + b"x")
    os.mkfifo(tmp_path / "dog" / "pipe.png")
    data = opened(tmp_path)
    assert data.classes == ("cat", "dog")
    assert len(data.fit.labels) == 13
    for words in ("2 folders @eaDir", "4 hidden folders", "2 hidden files", "1 .xyz file"):
        told(data, "passed over", words) if words != "1 .xyz file" else told(data, "in all")
    told(data, "1 file without an image's ending read")
    (tmp_path / "cat" / "bad.png").write_bytes(b"x")
    refusal(tmp_path, "1 of 14 files", "cat/bad.png (not an image)")


def test_loops_of_links_end_and_a_folder_is_read_once(tmp_path):
    root = fill(tmp_path / "data", count=6)
    (root / "cat" / "loop").symlink_to(root / "cat")
    (root / "dog" / "up").symlink_to(tmp_path)
    (root / "again").symlink_to(root)
    (root / "cat" / "dogs").symlink_to(root / "dog")
    (root / "kitty").symlink_to(root / "cat")
    (root / "cat" / "self").symlink_to(root / "cat" / "self")
    (root / "cat" / "gone").symlink_to(root / "nowhere")
    data = opened(root)
    assert data.classes == ("cat", "dog")
    assert len(data.fit.labels) == 12
    told(data, "5 links to a folder that is read anyway")
    told(data, "2 broken links")
    store = fill(tmp_path / "store", "x y")
    linked = tmp_path / "linked"
    linked.mkdir()
    for name, target in (("a", "x"), ("b", "y"), ("c", "x")):
        (linked / name).symlink_to(store / target)
    data = opened(linked)
    assert data.classes == ("a", "b")
    told(data, "1 link to a folder that is read anyway", "linked/c → ")
    (linked / "a.png").symlink_to(linked / "nowhere")
    (store / "x" / "9.png").symlink_to(linked / "nowhere")
    refusal(linked, "a/9.png (missing)")


def test_any_labelled_folder_is_read_in_full(tmp_path):
    known = ("cat", "dog", "emu")
    plain = fill(tmp_path / "plain", "Dog cat", count=3)
    data = open_labelled(plain, known, size=SIZE)
    assert data.classes == known
    assert counts(data) == (0, 0, 6)
    assert data.test.take(torch.arange(6))[1].tolist() == [0, 0, 0, 1, 1, 1]
    told(data, "no images of emu")
    told(data, "Dog (dog)")
    assert data.summary() == "3 classes: cat, dog, emu; images: 6 in test"
    assert open_labelled(plain, None, size=SIZE).classes == ("Dog", "cat")
    fill(tmp_path / "split" / "val", known, count=2)
    assert len(open_labelled(tmp_path / "split", known, size=SIZE).test) == 6
    assert len(open_labelled(tmp_path / "split" / "val", known, size=SIZE).test) == 6
    fill(tmp_path / "split" / "Train", known, count=5)
    fill(tmp_path / "split" / "Test", ["dog"], count=5)
    data = open_labelled(tmp_path / "split", known, size=SIZE)
    assert len(data.test) == 5
    told(data, "those of Test/", "Train/, val/")
    with pytest.raises(UserError, match="cow is none of the classes"):
        open_labelled(fill(plain, "cow"), known, size=SIZE)
    with pytest.raises(UserError, match="no class folders"):
        open_labelled(plain / "cat", known, size=SIZE)
    assert len(open_labelled("embedded", None, size=SIZE).test) == 2000
