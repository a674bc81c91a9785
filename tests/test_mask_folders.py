"""Images and masks under other names than the layouts' own are found, by a rule, or it is said what is missing."""

from pathlib import Path

import pytest

import shapes
from asking import ask
from mask_sets import train
from pocketformer.dense.segmentation.folders import find_masks
from pocketformer.dense.segmentation.labels import Coding
from pocketformer.dense.segmentation.pairing import paired


def arranged(folder: Path, places: dict[str, str], name=lambda stem: stem, image=lambda stem: stem) -> Path:
    """A set in which parts of `shapes.write` lie elsewhere; `name`: of a mask, `image`: of an image."""
    shapes.write(folder / "before", {"train": 3, "val": 2})
    for part, place in places.items():
        (folder / place).mkdir(parents=True, exist_ok=True)
        for path in (folder / "before" / part).iterdir():
            called = (name if part.endswith("annot") else image)(path.stem)
            path.rename(folder / place / f"{called}{path.suffix}")
    return folder


@pytest.mark.parametrize(
    ("places", "name", "image"),
    [
        (("train/images", "train/masks", "valid/images", "valid/masks"), "{}_mask", "{}"),
        (("Images/Train", "Masks/Train", "Images/Val", "Masks/Val"), "{}_L", "{}"),
        (("train", "train_labels", "val", "val_labels"), "{}_gtFine_labelIds", "{}_leftImg8bit"),
        (("train", "train", "val", "val"), "{}_mask", "{}"),
        (("training/imgs", "training/gt", "validation/imgs", "validation/gt"), "mask_{}", "IMG_{}"),
        (("train", "trainannot", "val", "valannot"), "frame_{}", "FRAME_{}"),
    ],
)
def test_other_names(places, name, image, tmp_path):
    parts = ("train", "trainannot", "val", "valannot")
    folder = arranged(tmp_path / "data", dict(zip(parts, places, strict=True)), name.format, image.format)
    found = find_masks(str(folder), Coding())
    assert {split: len(pairs) for split, pairs in found.splits.items()} == {"train": 3, "val": 2}
    for pairs in found.splits.values():
        for image_file, mask in zip(pairs.images, pairs.masks, strict=True):
            digits = [[c for c in Path(file).stem if c.isdigit()][:2] for file in (image_file, mask)]
            assert digits[0] == digits[1]
            assert image_file != mask
    assert len(found.notes) == (2 if name != image else 0)


def test_vocs_layout_as_cvat_writes_it(tmp_path):
    parts = ("train", "trainannot", "val", "valannot")
    places = ("JPEGImages", "SegmentationClass") * 2
    folder = arranged(tmp_path / "data", dict(zip(parts, places, strict=True)))
    lists = folder / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "Train.txt").write_text("00\n02\n")
    (lists / "Validation.txt").write_text("03\n")
    (folder / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nground:0,0,0::\nother:1,1,1::\n")
    found = find_masks(str(folder), Coding())
    assert found.splits["train"].images == ("JPEGImages/00.png", "JPEGImages/02.png")
    assert found.splits["val"].masks == ("SegmentationClass/03.png",)
    assert found.classes == ("ground", "other")
    (lists / "Train.txt").write_text("00\n77\n")
    train(folder, tmp_path / "run").fails(2, "1 of 2 names of train in ImageSets/Segmentation/ have no mask: 77")


def test_one_folder_of_photographs_and_masks_as_roboflow_writes_it(tmp_path):
    places = {"train": "train", "trainannot": "train", "val": "valid", "valannot": "valid"}
    folder = arranged(tmp_path / "data", places, "{}_mask".format)
    (folder / "train/_classes.csv").write_text("Pixel Value, Class\n0, background\n1, disc\n2, box\n3, wedge\n")
    found = find_masks(str(folder), Coding())
    assert found.classes == ("background", "disc", "box", "wedge")
    assert found.coding.values == (0, 1, 2, 3)
    for path in sorted(folder.glob("*/*.png")):  # 00.jpg, and its mask 00.png
        if "_mask" not in path.name:
            path.rename(path.with_suffix(".jpg"))
    for path in folder.glob("*/*_mask.png"):
        path.rename(path.with_name(path.name.replace("_mask", "")))
    again = find_masks(str(folder), Coding())
    assert again.splits["train"].images == ("train/00.jpg", "train/01.jpg", "train/02.jpg")
    assert again.splits["val"].masks == ("valid/03.png", "valid/04.png")


def test_images_and_masks_without_splits_are_for_training(tmp_path):
    folder = arranged(tmp_path / "data", {"train": "images", "trainannot": "masks"})
    answer = train(folder, tmp_path / "run")
    assert answer.json()["split"] == "train"
    assert "note: there is no val or test: the scores are of images that it has learned from" in answer.lines
    found = ask("segment", "evaluate", "--checkpoint", tmp_path / "run", "--data", folder, "--workers", 0, "--json")
    assert found.json()["images"] == 3
    assert f"note: {folder} has no splits: all of its images are judged" in found.err


def test_what_is_missing_is_told(tmp_path):
    folder = arranged(tmp_path / "data", {"train": "train/images", "trainannot": "train/masks"}, "{}_mask".format)
    (folder / "train/masks/01_mask.png").unlink()
    train(folder, tmp_path / "run").fails(2, "1 of 3 images in train/images/ have no mask of their name", "01.png")
    (folder / "train/labels").mkdir()
    train(folder, tmp_path / "run").fails(2, "which masks are meant, those in train/masks/ or train/labels/?")


def test_names_pair_by_the_first_rule_that_fits_all():
    assert paired(["img1", "img10"], ["img1_m", "img10_m"]) == {"img1": "img1_m", "img10": "img10_m"}
    assert paired(["a", "b"], ["a", "b", "a_mask"]) == {"a": "a", "b": "b"}
    assert paired(["a/1", "b/1"], ["a/m1", "b/m1"]) == {"a/1": "a/m1", "b/1": "b/m1"}
    assert paired(["a"], ["b"]) == {}


def test_links_to_a_folder_around_them_end(tmp_path):
    folder = arranged(tmp_path / "data", {"train": "train", "trainannot": "trainannot"})
    for part in ("train", "trainannot"):
        (folder / part / "again").symlink_to(folder / part, target_is_directory=True)
    found = find_masks(str(folder), Coding())
    assert found.splits["train"].images == ("train/00.png", "train/01.png", "train/02.png")
