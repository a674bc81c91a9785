"""Masks as they lie around: what their values are taken for is right and said, or they are refused in one line; what is
predicted is written as the masks were."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import shapes
from asking import ask
from mask_sets import balance, labels, notes, train, write

torch.set_num_threads(1)
COLOURS = np.array([[0, 0, 0], [128, 64, 128], [64, 0, 128], [192, 128, 128]], np.uint8)

COLOUR_LIST = "name,r,g,b\nroad,128,64,128\nbox,64,0,128\nVoid,0,0,0\nsky,192,128,128\n"


def grey(values: list[int]):
    """Labels 0 to 3 as these values."""
    return lambda mask, number: Image.fromarray(np.array(values, np.uint8)[mask])


def black_white(mask: np.ndarray, number: int) -> Image.Image:
    return Image.fromarray(((mask > 0) * 255).astype(np.uint8))


def smoothed(mask: np.ndarray, number: int) -> Image.Image:
    image = black_white(mask, number)
    return image if number == 0 else image.resize((40, 32)).resize((80, 64), 2)


def smoothed_shades(mask: np.ndarray, number: int) -> Image.Image:
    image = Image.fromarray(np.array([0, 127, 255, 255], np.uint8)[mask])
    return image.resize((60, 48), Image.Resampling.BILINEAR).resize((80, 64), Image.Resampling.BILINEAR)


def objects(mask: np.ndarray, number: int) -> Image.Image:
    """A number for each, as masks of instances have."""
    rows, columns = np.indices(mask.shape) // 2
    return Image.fromarray((rows * (mask.shape[1] // 2) + columns).astype(np.uint16))


def by_jpeg(mask: np.ndarray, number: int) -> Image.Image:
    black_white(mask, number).save(file := io.BytesIO(), "JPEG")
    return Image.open(file)


def colours(mask: np.ndarray, number: int) -> Image.Image:
    return Image.fromarray(COLOURS[mask])


def palettes(mask: np.ndarray, number: int) -> Image.Image:
    image = Image.fromarray((mask > 0).astype(np.uint8) ^ (number == 1))
    image.putpalette([200, 0, 0, 0, 0, 0] if number == 1 else [0, 0, 0, 200, 0, 0])
    return image


def grey_palettes(mask: np.ndarray, number: int) -> Image.Image:
    image = Image.fromarray((mask > 0).astype(np.uint8) ^ (number == 1))
    image.putpalette([255, 255, 255, 0, 0, 0] if number == 1 else [0, 0, 0, 255, 255, 255])
    return image


def one_bit(mask: np.ndarray, number: int) -> Image.Image:
    return black_white(mask, number).convert("1")


def mixed_bits(mask: np.ndarray, number: int) -> Image.Image:
    return (one_bit if number == 1 else black_white)(mask, number)


def binary(truth: np.ndarray) -> list[int]:
    return [int((truth == 0).sum()), int((truth > 0).sum())]


def test_scenes_that_are_learned_and_judged_are_told(tmp_path):
    data = write(tmp_path / "data", black_white, ".png")
    for part in ("", "annot"):
        shutil.copy(data / f"train{part}/00.png", data / f"val{part}/again.png")
    told = train(data, tmp_path / "run").succeeds().err
    assert f"copies of training images in val: 1 of 2 ({data}/val/again.png of {data}/train/00.png)" in told


@pytest.mark.parametrize(
    ("draw", "ending", "save", "names", "note"),
    [
        (black_white, ".png", {}, ("label 0", "label 255"), "masks of 0 and 255 alone: two classes: 0 is class 0, 255"),
        (lambda m, n: black_white(m, n).convert("RGB"), ".webp", {"lossless": True}, ("label 0", "label 255"), "0 and"),
        (lambda m, n: black_white(m, n).convert("LA"), ".png", {}, ("label 0", "label 255"), "0 and 255 alone"),
        (mixed_bits, ".png", {}, ("label 0", "label 255"), "0 and 255 alone"),
        (one_bit, ".tif", {}, ("class 0", "class 1"), "by their masks there are 2"),
        (grey_palettes, ".png", {}, ("label 0", "label 255"), "0 and 255 alone"),
        (smoothed, ".png", {}, ("label 0", "label 255"), "only at edges; each counts as the nearer of the two"),
        (grey([0, 85, 170, 255]), ".bmp", {}, tuple(f"label {v}" for v in (0, 85, 170, 255)), "4 shades as labels: 0"),
        (
            grey([0, 1, 5, 255]),
            ".png",
            {},
            ("label 0", "label 1", "label 5"),
            "labels 0, 1, 5 occur in the masks, 2 to",
        ),
        (
            grey([3, 4, 9, 10]),
            ".gif",
            {},
            tuple(f"label {v}" for v in (3, 4, 9, 10)),
            "0 to 2, 5 to 8 never: 4 classes",
        ),
    ],
    ids=["0-255", "rgb-webp", "alpha", "bits-beside", "bits", "palettes", "smoothed", "shades", "gap", "gaps"],
)
def test_what_values_mean(draw, ending, save, names, note, tmp_path):
    data = write(tmp_path / "data", draw, ending, **save)
    answer = train(data, tmp_path / "run")
    found = answer.json()
    assert tuple(found["iou"]) == names
    assert note in answer.err
    assert "copies of training images" not in answer.err
    shapes.write(tmp_path / "plain", {"train": 2, "val": 1}, names=False)
    truth = labels(tmp_path / "plain/valannot/02.png")
    if len(names) == 3:
        assert "label 255 does not count" in notes(answer)
    wanted = binary(truth) if len(names) == 2 else np.bincount(truth.ravel())[: len(names)].tolist()
    slack = 120 if draw is smoothed else 0
    assert np.abs(np.array(list(found["pixels"].values())) - wanted).max() <= slack


@pytest.mark.parametrize(
    ("draw", "ending", "save", "words"),
    [
        (grey([0, 200, 200, 200]), ".jpg", {}, ("trainannot/00.jpg (JPEG)", "save masks anew from the labels as PNG")),
        (black_white, ".jpeg", {"quality": 100}, ("compressed with loss", "as PNG")),
        (lambda m, n: black_white(m, n).convert("RGB"), ".webp", {"quality": 90}, ("WEBP with lossy compression",)),
        (black_white, ".avif", {}, ("(AVIF)", "as PNG")),
        (black_white, ".tif", {"compression": "jpeg"}, ("TIFF with lossy compression", "as PNG")),
        (black_white, ".jp2", {}, ("(JPEG2000)", "as PNG")),
        (by_jpeg, ".png", {}, ("scattered as noise", "once compressed with loss (JPEG)", "as PNG")),
        (colours, ".png", {}, ("--classes FILE, a line each: NAME R G B", "(64, 0, 128)")),
        (palettes, ".png", {}, ("a number has other colours from file to file", "--classes FILE")),
        (smoothed_shades, ".png", {}, ("only at edges between others", "nearest neighbour")),
        (objects, ".png", {}, ("labels, too many", "numbers of objects")),
    ],
    ids=["jpg", "jpeg", "webp", "avif", "tiff", "jp2", "jpeg-in-png", "colours", "palettes", "smoothed", "objects"],
)
def test_what_cannot_be_labels_is_refused(draw, ending, save, words, tmp_path):
    data = write(tmp_path / "data", draw, ending, **save)
    answer = train(data, tmp_path / "run")
    assert answer.code == 2
    for word in words:
        assert word in answer.err, answer.err
    assert words[0] in answer.lines[-1] or words[-1] in answer.lines[-1] or "as PNG" in answer.lines[-1]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("draw", "listed", "names", "values"),
    [
        (grey([0, 255, 255, 255]), None, ["label 0", "label 255"], {0, 255}),
        (grey([0, 255, 255, 255]), "ground\nthing\n", ["ground", "thing"], {0, 255}),
        (grey([9, 1, 200, 200]), "1 disc\n200: other\n9,ground\n", ["disc", "other", "ground"], {1, 9, 200}),
        (colours, COLOUR_LIST, ["road", "box", "sky"], {}),
    ],
    ids=["0-255", "0-255-named", "numbered", "colours"],
)
def test_predictions_are_written_as_the_masks_are(draw, listed, names, values, tmp_path):
    """And read back they are all right."""
    data = write(tmp_path / "data", draw)
    if listed:
        (data / "classes.txt").write_text(listed)
    found = train(data, tmp_path / "run").json()
    assert list(found["iou"]) == names
    balance(tmp_path / "run", data / "val/02.png")
    checkpoint = ("--checkpoint", tmp_path / "run")
    ask("segment", "predict", *checkpoint, "--out", tmp_path / "drawn", data / "val").succeeds()
    (data / "valannot/02.png").unlink()
    (tmp_path / "drawn/02_labels.png").rename(data / "valannot/02.png")
    with Image.open(data / "valannot/02.png") as drawn:
        there = np.unique(np.asarray(drawn).reshape(-1, len(drawn.getbands())), axis=0)
    assert {tuple(c) for c in there.tolist()} <= ({(v,) for v in values} or set(map(tuple, COLOURS[1:].tolist())))
    assert len(there) > 1
    again = ask("segment", "evaluate", *checkpoint, "--data", data, "--workers", 0, "--json").json()
    assert again["pixel_accuracy"] == again["mIoU"] == 1
    assert json.loads((tmp_path / "drawn/results.json").read_text())["classes"][0]["name"] == names[0]


def test_a_list_of_names_wins(tmp_path):
    data = write(tmp_path / "data", grey([0, 1, 5, 255]))
    (data / "classes.txt").write_text("\n".join("abcdefg"))
    answer = train(data, tmp_path / "run")
    assert list(answer.json()["iou"]) == list("abcdefg")
    assert "note: 4 of 7 classes are on no mask of train: c, d, e, g" in answer.lines
    (data / "classes.txt").write_text("\n".join("abc"))
    train(data, tmp_path / "other").fails(2, "2 kinds cannot be used")


def test_indexed_masks_whose_numbers_change_places_are_refused_whatever_names_there_are(tmp_path):
    data = write(tmp_path / "data", palettes)
    (data / "classes.txt").write_text("ground\nthing\n")
    train(data, tmp_path / "run").fails(2, "in its indexed masks a number has other colours from file to file")


def test_labels_below_0_are_told(tmp_path):
    data = write(tmp_path / "data", lambda mask, number: Image.fromarray(mask.astype(np.int32) - 1), ".tif")
    answer = train(data, tmp_path / "run")
    answer.fails(2)
    assert "labels outside the class list (none is below 0): trainannot/00.tif (-1)" in answer.err


def test_other_shades_of_the_same_classes_are_read_in_their_order(tmp_path):
    data = write(tmp_path / "data", grey([0, 1, 1, 1]))
    train(data, tmp_path / "run").succeeds()
    other = write(tmp_path / "other", black_white)
    wanted, found = (
        ask("segment", "evaluate", "--checkpoint", tmp_path / "run", "--data", folder, "--workers", 0, "--json")
        for folder in (data, other)
    )
    assert found.json() == wanted.json()
    assert "masks of 0 and 255 alone: two classes: 0 is class 0, 255 is class 1" in notes(found)
    config = json.loads((tmp_path / "run/config.json").read_text())
    (tmp_path / "run/config.json").write_text(json.dumps({**config, "ignores": True}))  # of a training that had 255
    found = ask("segment", "evaluate", "--checkpoint", tmp_path / "run", "--data", other, "--workers", 0)
    assert "on these masks class 0 alone counts: label 255 is ignored, as in the training" in notes(found)


def test_two_values_are_one_class_where_255_is_said_to_be_ignored(tmp_path):
    data = write(tmp_path / "data", black_white)
    train(data, tmp_path / "run", "--ignore-index", 255).fails(2, "one class to tell apart; label 255 is ignored")


def test_lists_of_classes(tmp_path):
    from pocketformer.dense.segmentation.labels import Coding
    from pocketformer.dense.segmentation.lists import read_classes

    def read(text: str):
        Path(tmp_path / "list").write_text(text)
        return read_classes(tmp_path / "list", Coding())

    names, coding = read("64 128 64\tAnimal\n192 0 128  Arch way\n0 0 0\t\tVoid\n")
    assert names == ("Animal", "Arch way")
    assert (coding.values, coding.void, coding.colours) == ((0x408040, 0xC00080), (0,), True)
    names, coding = read("# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:255,0,127::\n")
    assert (names, coding.values) == (("background", "cat"), (0, 0xFF007F))
    names, coding = read("0 background\n255 cell\n")
    assert (names, coding.values, coding.colours) == (("background", "cell"), (0, 255), False)
    names, coding = read("name,id\ncell,1\nbackground,0\n")
    assert (names, coding.values) == (("cell", "background"), (1, 0))
    assert read("stage 0\nstage 1\n")[0] == ("stage 0", "stage 1")
    assert read("Boeing 737\nAirbus 320\n")[0] == ("Boeing 737", "Airbus 320")
    names, coding = read("1 euro\n1 cent\n2 cents\n")  # no numbers of labels: 1 is there twice
    assert (names[0], coding.values) == ("1 euro", ())
