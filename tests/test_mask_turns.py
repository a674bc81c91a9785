"""Images that EXIF turns, and masks that were drawn on their one form or the other: they lie on one another, by a rule
that is said."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import shapes
from asking import ask
from mask_sets import balance, train
from pocketformer.dense.orientation import turned
from pocketformer.dense.segmentation.census import take_census
from pocketformer.dense.segmentation.crops import read_pair
from pocketformer.dense.segmentation.folders import find_masks
from pocketformer.dense.segmentation.labels import Coding

torch.set_num_threads(1)
BACK = {turn: {5: 5, 6: 8, 7: 7, 8: 6}.get(turn, turn) for turn in range(1, 9)}  # what undoes a turn


def save(path: Path, pixels: np.ndarray, turn: int = 1, stored: bool = True) -> None:
    """Pixels as seen, in a file that is turned by EXIF; else as the file of that image stores them, with no EXIF."""
    exif = Image.Exif()
    if stored and turn != 1:
        exif[0x0112] = turn
    more = {"lossless": True} if path.suffix == ".webp" else {}
    Image.fromarray(turned(pixels, BACK[turn])).save(path, exif=exif, **more)


def write(
    folder: Path,
    sizes: list[tuple[int, int]],
    turns: list[int],
    drawn: list[str],
    plain: bool = False,
    endings: tuple[str, str] = (".png", ".png"),
) -> Path:
    """Pairs for training and one for judging; masks were drawn on "shown" or "stored", or are turned as their "own"
    EXIF says. `plain`: images of noise that has nothing to do with the masks."""
    shapes.write(folder, {"train": len(sizes) - 1, "val": 1})
    for number, (size, turn, where) in enumerate(zip(sizes, turns, drawn, strict=True)):
        image, mask = (np.asarray(x) for x in shapes.scene(number, *size))
        if plain:
            image = np.random.default_rng(number).integers(0, 255, image.shape, np.uint8)
        split = "train" if number < len(sizes) - 1 else "val"
        for part in (split, f"{split}annot"):
            (folder / part / f"{number:02}.png").unlink()
        save(folder / split / f"{number:02}{endings[0]}", image, turn)
        save(
            folder / f"{split}annot" / f"{number:02}{endings[1]}", mask, 1 if where == "shown" else turn, where == "own"
        )
    return folder


def agreement(folder: Path, exif: str = "auto") -> list[float]:
    """Share of each pair's pixels whose colour is that of their class."""
    data = find_masks(str(folder), Coding())
    data = take_census(data, data.splits, 4, exif=exif).applied(data)
    found = []
    for pairs in data.splits.values():
        for row in range(len(pairs)):
            image, classes = read_pair(pairs, row, data.coding)
            pixels, known = np.asarray(image).astype(int), classes >= 0
            nearest = np.abs(pixels[:, :, None] - np.array(shapes._COLOURS)).sum(3).argmin(2)
            found.append(float((nearest == classes)[known].mean()))
    return found


@pytest.mark.parametrize("drawn", ["shown", "stored", "own"])
@pytest.mark.parametrize("size", [(64, 80), (64, 64)])
def test_masks_lie_on_their_images_however_they_are_turned(drawn, size, tmp_path):
    folder = write(tmp_path / "data", [size] * 9, [*range(1, 9), 6], [drawn] * 9)
    assert min(agreement(folder)) > 0.99


@pytest.mark.parametrize("drawn", ["shown", "stored", "own"])
@pytest.mark.parametrize("endings", [(".jpg", ".webp"), (".webp", ".tif"), (".tif", ".png")])
def test_whatever_the_files_are(drawn, endings, tmp_path):
    """Pillow turns TIFF itself, and looks for EXIF behind the pixels of PNG."""
    if ".tif" in endings and drawn == "stored":
        pytest.skip("told apart by their sizes alone, which Pillow swaps")
    Image.init()
    folder = write(tmp_path / "data", [(64, 80)] * 4, [6, 3, 5, 8], [drawn] * 4, endings=endings)
    assert min(agreement(folder)) > 0.9


def test_what_sizes_do_not_tell_is_as_the_others_or_as_asked_or_as_shown(tmp_path):
    sizes, turns = [(64, 64), (80, 64), (64, 64)], [6, 8, 3]
    for drawn in ("shown", "stored"):  # nothing in the images tells: that of another shape does
        folder = write(tmp_path / drawn, sizes, turns, [drawn] * 3, plain=True)
        data = find_masks(str(folder), Coding())
        census = take_census(data, data.splits, 4)
        assert census.turns == ({} if drawn == "shown" else {"train": {0: 6, 1: 8}, "val": {0: 3}})
        assert any("as the others of this set" in note and note.startswith("2 masks fit") for note in census.notes)
    folder = write(tmp_path / "alone", [(64, 64)] * 2, [6, 6], ["stored"] * 2, plain=True)
    data = find_masks(str(folder), Coding())
    census = take_census(data, data.splits, 4)
    assert census.turns == {}
    assert "as annotation tools show images; if not: --exif stored" in census.notes[0]
    assert take_census(data, data.splits, 4, exif="stored").turns == {"train": {0: 6}, "val": {0: 6}}


def test_through_the_command(tmp_path):
    """What a network predicts of an upright image is all right where a mask holds it in any form."""
    data = write(tmp_path / "data", [(64, 64), (80, 64), (64, 80)], [6, 8, 5], ["stored"] * 3)
    answer = train(data, tmp_path / "run")
    answer.succeeds()
    assert "note: 2 masks have the size of the image as stored" in answer.err
    assert "note: 1 mask fits its image with and without the turn" in answer.err
    balance(tmp_path / "run", data / "val/02.png")
    checkpoint = ("--checkpoint", tmp_path / "run")
    for number, size, turn, drawn, more in (
        (1, (64, 64), 6, "stored", ("--exif", "stored")),
        (2, (64, 64), 3, "shown", ("--exif", "shown")),
        (3, (64, 64), 8, "own", ("--exif", "shown")),
        (4, (64, 80), 2, "stored", ("--exif", "stored")),
    ):
        other = write(tmp_path / f"other{number}", [size] * 2, [turn] * 2, [drawn] * 2)
        ask("segment", "predict", *checkpoint, "--out", tmp_path / "drawn", other / "val").succeeds()
        mask = np.array(Image.open(tmp_path / "drawn/01_labels.png"))
        assert mask.shape == size
        assert len(np.unique(mask)) > 1
        save(other / "valannot/01.png", mask, 1 if drawn == "shown" else turn, drawn == "own")
        said = ask("segment", "evaluate", *checkpoint, "--data", other, "--workers", 0, "--json", *more)
        assert said.json()["pixel_accuracy"] == 1, (number, said.err)
    save(other / "valannot/01.png", np.zeros((30, 40), np.uint8))
    ask("segment", "evaluate", *checkpoint, "--data", other, "--workers", 0).fails(2, "64 as EXIF turns it)")
    ask("segment", "evaluate", *checkpoint, "--data", other, "--exif", "left").fails(2, "known: auto, shown, stored")
