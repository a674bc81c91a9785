"""Other people's folders through the command: what `train` learns and tests on, and what it says."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pocketformer.architecture import SearchSpace
from tiny import TINY


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("network") / "tiny.json"
    SearchSpace.from_dict(TINY).smallest.save(path)
    return path


def fill(root: Path, folders: str, count: int = 4) -> None:
    """`count` images, all different, in each of the folders."""
    for number, name in enumerate(folders.split()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            seed = 1000 * len(list(root.rglob("*"))) + 10 * number + i
            pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")


def thumbnails(root: Path) -> None:
    for image in list(root.rglob("*.png")):
        folder = image.parent / "@eaDir" / image.name
        folder.mkdir(parents=True)
        shutil.copy(image, folder / "SYNOPHOTO_THUMB_XL.png")


@pytest.mark.parametrize(
    ("folders", "change", "classes", "images", "words"),
    [
        ("Train/cat Train/dog Val/cat Val/dog", None, "cat dog", (4, 4, 8), ["Val/ is the test split"]),
        ("TRAINING/a TRAINING/b testing/a testing/b", None, "a b", (4, 4, 8), ["testing/ is the test split"]),
        ("x/Train/cat x/Train/dog x/Valid/cat x/Valid/dog", None, "cat dog", (4, 4, 8), ["those in x/"]),
        (
            "train/a train/b val/a val/b test/a test/b",
            None,
            "a b",
            (8, 8, 8),
            ["scored on val/, test/ is the test split"],
        ),
        ("a b", lambda root: (root / "a" / "loop").symlink_to(root / "a"), "a b", (3, 3, 2), ["1 link to a folder"]),
        ("a b", thumbnails, "a b", (3, 3, 2), ["passed over: 2 folders @eaDir"]),
        ("train bus", None, "bus train", (3, 3, 2), ["train/ holds images directly", "taken for a class"]),
        (
            "a b",
            lambda root: shutil.copy(root / "a" / "0.png", root / "a" / "9.png"),
            "a b",
            None,
            ["1 image is a copy"],
        ),
    ],
)
def test_what_a_training_takes_from_a_folder(network, tmp_path, cli, folders, change, classes, images, words):
    root = tmp_path / "data"
    fill(root, folders)
    if change:
        change(root)
    tiny = ("--architecture", network, "--epochs", 1, "--batch-size", 8, "--workers", 0)
    said = cli("train", *tiny, "--data", root, "--out", tmp_path / "run").succeeds()
    names = classes.split()
    assert f"{len(names)} classes: {', '.join(names)}; images: " in said.err
    for word in words:
        assert word in said.err
    assert "small set" not in said.err  # of the search split, which is not used
    assert json.loads((tmp_path / "run" / "config.json").read_text())["classes"] == names
    if images:
        fit, search, test = images
        assert f"images: {fit} in fit, {search} in search, {test} in test" in said.err
        assert json.loads((tmp_path / "run" / "results.json").read_text())["test"]["images"] == test
    if folders == "train bus":
        validated = cli("train", *tiny, "--validate", "--data", root, "--out", tmp_path / "other").succeeds()
        assert "note: small set: the search split is half" in validated.err


def test_doubtful_folders_are_refused_before_anything_is_written(network, tmp_path, cli):
    fill(tmp_path / "a", "val/x val/y")
    fill(tmp_path / "b", "Train/x Train/y train/x train/y")
    fill(tmp_path / "c", "train test")
    for name, word in (
        ("a", "has val/ but no train/"),
        ("b", "both Train/ and train/"),
        ("c", "directly in test/, train/"),
    ):
        tiny = ("--architecture", network, "--epochs", 1, "--out", tmp_path / "run")
        cli("train", *tiny, "--data", tmp_path / name).fails(2, word, alone=True)
        assert not (tmp_path / "run").exists()


def raws(root: Path) -> None:
    """As cameras write them beside their JPEGs; Pillow opens such a file as its preview."""
    for name in ("0.NEF", "1.dng", "2.cr2"):
        shutil.copy(root / "a" / "0.png", root / "a" / name)


def others(root: Path) -> None:
    """The same photographs in another format."""
    for image in list((root / "a").glob("*.png")):
        Image.open(image).save(image.with_suffix(".jpg"))


def previews(root: Path) -> None:
    """Of other programs than Synology's: smaller, so that they are no copies, and of another format."""
    for image in list(root.rglob("*.png")):
        folder = image.parent / ("thumbs" if image.parent.name == "a" else "Thumbnails")
        folder.mkdir(exist_ok=True)
        Image.open(image).resize((8, 8)).save(folder / f"{image.stem}.jpg")


@pytest.mark.parametrize(
    ("folders", "change", "code", "words"),
    [
        ("a b", previews, 0, ["passed over: 2 folders of thumbnails", "images: 3 in fit, 3 in search, 2 in test"]),
        ("a b", others, 0, ["4 images are called like another", "--group-by '(.+)\\.\\w+$' keeps"]),
        ("thumbs a", None, 0, ["2 classes: a, thumbs; images: 3 in fit, 3 in search, 2 in test"]),
        ("a b", raws, 0, ["passed over: 1 .cr2 file, 1 .dng file, 1 .nef file", "images: 3 in fit, 3 in search, 2 in"]),
        (
            "train/a_b train/c val/a\u200b\u00a0b val/C",
            None,
            0,
            ["classes of val/ that are written otherwise: C (c)"],
        ),
        ("train/a train/b", lambda root: shutil.copytree(root / "train", root / "val"), 2, ["8 images are left out"]),
        (
            "a b",
            lambda root: [p.rename(p.with_suffix(".npy")) for p in root.glob("b/*")],
            2,
            ["b (4 .npy files,"],
        ),
        (
            "a b",
            lambda root: shutil.copy(root / "a/0.png", root / "b/9.png"),
            0,
            ["\nwarning: copies of one image"],
        ),
        ("a b", lambda root: [p.write_bytes(b"?") for p in root.rglob("*.*")], 2, ["; convert them (docs/images.md)"]),
    ],
)
def test_what_else_lies_in_folders(network, tmp_path, cli, folders, change, code, words):
    root = tmp_path / "data"
    for name in folders.split(" "):
        fill(root, "x")
        (root / name).parent.mkdir(exist_ok=True)
        (root / "x").rename(root / name)
    if change:
        change(root)
    tiny = ("--architecture", network, "--epochs", 1, "--batch-size", 8, "--workers", 0)
    said = cli("train", *tiny, "--data", root, "--out", tmp_path / "run")
    assert said.code == code, said.err
    for word in words:
        assert word in said.err


def test_a_run_among_its_images_is_no_class(network, tmp_path, cli):
    root = tmp_path / "data"
    fill(root, "a b")
    given = ("--architecture", network, "--epochs", 1, "--batch-size", 8, "--workers", 0, "--data", root)
    cli("train", *given, "--out", root / "runs" / "one").succeeds()
    for name in ("one", "two"):  # resumed, and beside it
        said = cli("train", *given, "--out", root / "runs" / name).succeeds()
        assert "passed over: 1 folder of a run" in said.err
        assert "2 classes: a, b; images: 3 in fit, 3 in search, 2 in test" in said.err
    new = tmp_path / "new"
    fill(new, "a")
    for name in ("b", "unknown"):  # to be filled one day
        (new / name).mkdir()
    said = cli("evaluate", "--checkpoint", root / "runs" / "one", "--data", new).succeeds()
    assert "note: no images of b in" in said.err
    assert "of 4 images" in said.out
    cli("train", *given[:-1], "", "--out", tmp_path / "run").fails(2, "the name of the images is empty", alone=True)
