"""Annotations as they lie around, by the command: other names, places, ids and forms are read as they are meant; bad
parts are mended or left out, counted and said; what cannot be told is refused in one line."""

import copy
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import boxes
import coco
from asking import ask
from boxes import dump, moved, read, same, write
from pocketformer.dense.detection.pictures import open_image

torch.set_num_threads(1)


# --- where files lie


def roboflow(folder: Path) -> None:
    (folder / "val").rename(folder / "valid")
    moved(folder, "train/_annotations.coco.json", "train")
    moved(folder, "valid/_annotations.coco.json", "val")


def cvat(folder: Path) -> None:
    for name in ("train", "val"):
        (folder / "images").mkdir(exist_ok=True)
        (folder / name).rename(folder / "images" / name.title())
        moved(folder, f"annotations/instances_{name.title()}.json", name)


def in_the_root(folder: Path) -> None:
    moved(folder, "Train.json", "train")
    moved(folder, "my-valid-set.json", "val")


def with_captions(folder: Path) -> None:
    for name in ("captions_train2017", "person_keypoints_train2017", "captions_val2017"):
        dump(folder / f"annotations/{name}.json", {})


@pytest.mark.parametrize("lay", [roboflow, cvat, in_the_root, with_captions])
def test_layouts_of_other_programs(lay, tmp_path):
    folder, content = write(tmp_path / "data")
    lay(folder)
    found = read(folder)
    same(found.train, content)
    same(found.val, content)
    assert found.notes == ""


@pytest.mark.parametrize("name", ["annotations/instances_default.json", "result.json", "annotations/labels.json"])
def test_of_one_file_a_tenth_is_held_out(name, tmp_path):
    folder, content = write(tmp_path / "data", count=5)
    moved(folder, name, "train")
    (folder / "annotations/instances_val.json").unlink()
    (folder / "train").rename(folder / "images")
    found = read(folder)
    assert (len(found.train), len(found.val)) == (4, 1)
    assert f"note: {folder} has no val: 1 of 5 images are held out for it" in found.notes
    assert {p.file for p in (*found.train.pictures, *found.val.pictures)} == {i["file_name"] for i in content["images"]}


def test_annotations_by_option(tmp_path):
    folder, content = write(tmp_path / "data")
    moved(folder, "a/first.json", "train")
    moved(folder, "b/second.json", "val")
    first, second = folder / "a/first.json", folder / "b/second.json"
    found = read(folder / "train", "--annotations", first, "--val-annotations", second, "--val-images", folder / "val")
    same(found.train, content)
    assert found.val.folder == folder / "val"
    assert len(read(folder / "train", "--annotations", folder / "a/first.json").val) == 1
    read(folder).answer.fails(2, "there is no annotations/instances_train*.json", "name it by --annotations")
    read(folder, "--annotations", folder / "none.json").answer.fails(2, f"annotations not found: {folder}/none.json")
    dump(folder / "train.json", content)
    dump(folder / "my_train.json", content)
    read(folder).answer.fails(2, "which one is meant? my_train.json, train.json; name it by --annotations")


# --- names of images


def named(how):
    def change(content: dict) -> None:
        for image in content["images"]:
            image["file_name"] = how(image["file_name"])

    return change


@pytest.mark.parametrize(
    "how",
    [
        lambda name: f"C:\\Users\\ann\\photos\\{name}",
        lambda name: f"train\\{name}",
        lambda name: f"./{name}",
        lambda name: f"/home/ann/data/train/{name}",
        lambda name: f"..\\..\\media\\{name}",
        lambda name: f"http://localhost:8080/data/upload/1/{name}",
        lambda name: f"/data/local-files/?d=train/{name}",
        lambda name: name.replace("1", "%31"),
        lambda name: name.replace(".png", ".PNG"),
    ],
)
def test_names_of_images(how, tmp_path):
    folder, content = write(tmp_path / "data", named(how))
    found = read(folder)
    same(found.train, content)


def test_images_in_folders_of_folders(tmp_path):
    folder, content = write(tmp_path / "data")
    (folder / "train/a").mkdir()
    (folder / "train/1.png").rename(folder / "train/a/1.png")
    found = read(folder)
    same(found.train, content)
    assert f"1 image found by the end of their names alone: 1.png is {folder}/train/a/1.png" in found.notes
    (folder / "train/b").mkdir()
    (folder / "train/a/1.png").rename(folder / "train/b/1.png")
    (folder / "train/a/1.png").write_bytes(b"")
    read(folder).answer.fails(2, "1.png (missing)", f"{folder}/train/1.png, and", "a/1.png", "b/1.png are of its name")


def test_the_path_that_was_tried_is_told(tmp_path):
    folder, _ = write(tmp_path / "data", named(lambda name: f"C:\\x\\{name}"))
    (folder / "train/2.png").unlink()
    read(folder).answer.fails(2, f"C:\\x\\2.png (missing) at {folder}/train/2.png")
    folder, _ = write(tmp_path / "two", lambda c: c["images"][1].update(file_name="other/1.png"))
    read(folder).answer.fails(2, "other/1.png (missing)", "which is that of 1.png too")


# --- ids, numbers, categories


def ids(how, category=lambda c: c):
    def change(content: dict) -> None:
        for image in content["images"]:
            image["id"] = how(image["id"], True)
        for entry in content["annotations"]:
            entry["image_id"] = how(entry["image_id"], False)
            entry["category_id"] = category(entry["category_id"])
        for entry in content["categories"]:
            entry["id"] = category(entry["id"])

    return change


def each(kind: str, change) -> boxes.Change:
    return lambda content: [change(entry) for entry in content[kind]]


ANY_FORM = {
    "text": ids(lambda i, listed: f"frame_{i:03}"),
    "float": ids(lambda i, listed: float(i)),
    "text-number": ids(lambda i, listed: str(i) if listed else i, str),
    "spaces": ids(lambda i, listed: i if listed else f" {i} ", float),
    "kinds": ids(lambda i, listed: i * 10**15, lambda c: f"kind-{c}"),
    "no-size": each("images", lambda image: image.pop("height")),
    "size-text": each("images", lambda image: image.update(height=f"{image['height']}", width=float(image["width"]))),
    "box-text": each("annotations", lambda a: a.update(bbox=[f"{v}" for v in a["bbox"]], iscrowd="0")),
    "bare": each("annotations", lambda a: (a.pop("iscrowd"), a.pop("area"), a.pop("id"))),
    "order": lambda content: content["categories"].reverse(),
    "unused": lambda content: content["categories"].extend([{"id": 0, "name": "disc"}, {"id": 99, "name": "never"}]),
    "twice": lambda content: content["categories"].append(content["categories"][0]),
}


@pytest.mark.parametrize("change", ANY_FORM.values(), ids=ANY_FORM)
def test_ids_and_numbers_of_any_form(change, tmp_path):
    folder, content = write(tmp_path / "data", change)
    found = read(folder)
    same(found.train, content)
    names = {a["category_id"] for a in content["annotations"]}
    assert {t.category for p in found.val.pictures for t in p.things} <= set(found.train.classes)
    assert all(not t.crowd for p in found.train.pictures for t in p.things)
    assert len(names) <= len(found.train.classes) <= 4


def test_categories_of_one_name_are_refused(tmp_path):
    folder, _ = write(tmp_path / "data", lambda c: c["categories"][1].update(name=c["categories"][0]["name"]))
    read(folder).answer.fails(2, "categories 3 and 7 are both called 'disc'")
    folder, _ = write(tmp_path / "unused", lambda c: c["categories"].append({"id": 12, "name": "never"}))
    assert "no object is of 1 of 4 categories: never" in read(folder).notes


# --- boxes and masks


def change_first(**values):
    return lambda content: content["annotations"][0].update(values)


def test_boxes_are_cut_at_the_edge_and_only_bad_parts_dropped(tmp_path):
    def change(content: dict) -> None:
        first, second, third = content["annotations"][:3]
        first["bbox"][0] = -2.5
        second["segmentation"].append([3, 4, 5, 6])
        third["segmentation"] = third["segmentation"][0]
        content["annotations"][3]["segmentation"] = [
            [list(p) for p in np.reshape(content["annotations"][3]["segmentation"], (-1, 2)).tolist()]
        ]
        content["annotations"].append({**copy.deepcopy(first), "id": 90, "bbox": [-20, 5, 20.5, 30]})

    folder, content = write(tmp_path / "data", change)
    found = read(folder)
    first = content["annotations"][0]["bbox"]
    content["annotations"][0]["bbox"] = [0, first[1], first[2] - 2.5, first[3]]
    same(found.train, content)
    assert "1 box cut at the edge of the image: annotation 1 (image 1): -2.5, " in found.notes
    assert "1 box with less than 1 px within the image, left out: annotation 90 (image 1)" in found.notes
    assert "1 mask of which bad polygons are left out: annotation 2 (image 1): a polygon of fewer than 3" in found.notes
    for picture in found.train.pictures:
        for thing in picture.things:
            shown = thing.mask.bitmap(picture.size, False)
            assert shown.sum() == pytest.approx(thing.area or shown.sum(), rel=0.1)


def corners(content: dict) -> None:
    for entry in content["annotations"]:
        left, top, width, height = entry["bbox"]
        entry["bbox"] = [left, top, left + width, top + height]


def flat(content: dict) -> None:
    for entry in content["annotations"]:
        entry["bbox"][3] = 0


def nameless(content: dict) -> None:
    for image in content["images"]:
        image["coco_url"] = image.pop("file_name")


def shares(content: dict) -> None:
    for entry in content["annotations"]:
        entry["bbox"] = [value / 128 for value in entry["bbox"]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (corners, ("none would if they were left, top, right, bottom", "COCO's are left, top, width, height")),
        (shares, ("they look like shares of the image's sides",)),
        (flat, ("6 annotations with a box of zero or negative size", "--bad-annotations skip")),
        (nameless, ("3 images without an id of their own, file_name",)),
        (change_first(bbox={"x": 1}), ("1 annotation not of COCO's form",)),
        (change_first(segmentation=[]), ("1 annotation without a mask that can be used", "--no-masks")),
        (lambda c: c["categories"][0].update(id=None), ("each category needs an id",)),
        (lambda c: c.update(images=[[1]]), ("is not a COCO file",)),
    ],
)
def test_what_cannot_be_told_is_refused(change, words, tmp_path):
    folder, _ = write(tmp_path / "data", change)
    read(folder).answer.fails(2, *words)


@pytest.mark.parametrize("box", [[3, 3, 0, 5], [30, 30, -10, -10], [500, 5, 3, 3], [-50, 5, 30, 30]])
def test_a_box_that_shows_nothing_is_left_out(box, tmp_path):
    folder, before = write(tmp_path / "data", change_first(bbox=box))
    found = read(folder)
    same(found.train, {**before, "annotations": before["annotations"][1:]})
    assert "1 annotation with a box " in found.notes
    assert ", left out: annotation 1 (image 1)" in found.notes


def test_a_file_that_is_listed_again_is_one_image(tmp_path):
    """As where each object has an entry of its own, or sets were put together."""

    def change(content: dict) -> None:
        content["images"] += [{**image, "id": 10 + image["id"]} for image in content["images"]]
        content["annotations"][1]["image_id"] += 10
        content["annotations"].append({**content["annotations"][2], "image_id": 10 + 2})

    folder, before = write(tmp_path / "data", change)
    found = read(folder)
    same(found.train, before)
    assert "3 images listed again by another id, taken as one with all objects: 11 (1.png), 12 (2.png)" in found.notes


def test_nesting_without_end(tmp_path):
    folder, _ = write(tmp_path / "data")
    (folder / "annotations/instances_train.json").write_text("[" * 200_000)
    read(folder).answer.fails(2, "is not valid JSON")


# --- EXIF


@pytest.mark.parametrize(
    ("size", "listed", "more", "stored", "words"),
    [
        ((96, 128), (96, 128), (), True, "1 image has the size that it says before EXIF turns it"),
        ((96, 128), (128, 96), (), False, ""),
        ((96, 96), (96, 96), (), False, "annotated as shown: as annotation tools show images; if not: --exif stored"),
        ((96, 96), (96, 96), ("--exif", "stored"), True, "annotated as stored: --exif stored"),
        ((96, 96), None, ("--exif", "stored"), True, "annotated as stored: --exif stored"),
    ],
)
def test_images_that_exif_turns(size, listed, more, stored, words, tmp_path):
    def change(content: dict) -> None:
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 1]
        content["annotations"].append({"id": 90, "image_id": 1, "category_id": 3, "bbox": [4, 8, 20, 30]})
        for name, value in zip(("height", "width"), listed or (None, None), strict=True):
            content["images"][0][name] = value

    folder, _ = write(tmp_path / "data", change)
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[0, 0] = 255
    Image.fromarray(pixels).save(folder / "train/1.png", exif=exif)
    found = read(folder, "--no-masks", *more)
    picture = found.train.pictures[0]
    assert picture.stored == stored
    assert picture.size == (size if stored else size[::-1])
    shown = np.asarray(open_image(found.train.path(0), picture.size, picture.stored))
    assert shown[0, 0 if stored else -1].min() == 255
    assert words in found.notes
    if not words:
        assert "EXIF" not in found.notes


# --- all at once


ODDITIES = [  # one of each, or none
    [named(lambda name: f"D:\\set\\{name}"), named(lambda name: f"/abs/{name}"), named(lambda name: f"a%20b/{name}")],
    [ANY_FORM[name] for name in ("text", "float", "text-number", "spaces", "kinds")],
    [ANY_FORM["no-size"], ANY_FORM["size-text"]],
    [ANY_FORM["box-text"], ANY_FORM["bare"], each("annotations", lambda a: a.pop("area"))],
    [each("annotations", lambda a: a["segmentation"].insert(0, [1, 1, 2, 2]))],
    [ANY_FORM["order"], ANY_FORM["twice"], lambda c: c["categories"].append({"id": "x", "name": "never"})],
    [lambda c: random.Random(0).shuffle(c["annotations"])],
]
BAD = [
    lambda c: [a.update(bbox=[1e4, 0, 5, 5]) for a in c["annotations"]],
    lambda c: [a.update(bbox=[5, 5, 0, 9]) for a in c["annotations"]],
    lambda c: c["annotations"][0].update(bbox=None),
    lambda c: c["annotations"][0].update(image_id="nowhere"),
    lambda c: c["annotations"][0].update(category_id=[]),
    lambda c: c["annotations"][0].update(segmentation={"size": [1, 1], "counts": "é"}),
    lambda c: c["images"][0].update(file_name="no\0where"),
    lambda c: c["images"][0].update(height=-3, width=4),
    lambda c: c.update(annotations={}),
]


def test_a_hundred_sets_are_read_right_or_refused_in_one_line(tmp_path):
    folder, plain = write(tmp_path / "data")
    counts = {"right": 0, "refused": 0}
    for seed in range(100):
        rng = random.Random(seed)
        content = copy.deepcopy(plain)
        for kinds in ODDITIES:
            if change := rng.choice([None, *kinds]):
                change(content)
        bad = seed % 3 == 0
        if bad:
            rng.choice(BAD)(content)
        coco.write_json(folder, "train", content)
        found = read(folder)
        if bad:
            found.answer.fails(2)
            counts["refused"] += 1
        else:
            same(found.train, plain)
            counts["right"] += 1
    print(counts)
    assert counts == {"right": 66, "refused": 34}


def test_a_training_on_annotations_by_option_is_judged_and_evaluated(tmp_path):
    """To the end, with ids that are text, and predictions that COCO's evaluation takes."""
    folder, _ = write(tmp_path / "data", ids(lambda i, listed: f"frame-{i}", lambda c: f"kind-{c}"))
    moved(folder, "train/_annotations.coco.json", "train")
    content = coco.read_json(folder, "val")
    dump(tmp_path / "val.json", content)
    (folder / "annotations/instances_val.json").unlink()
    boxes.architecture().save(tmp_path / "tiny.json")
    light = ("width=32", "hidden=64", "mask_convs=1", "samples=32", "proposals=50", "candidates=100")
    given = [x for name in light for x in ("--set", f"detector.{name}")]
    given += ["--epochs", 1, "--batch-size", 3, "--size", 96, 128, "--workers", 0, "--set", "warmup_steps=0", "--json"]
    given += ["--val-annotations", tmp_path / "val.json", "--val-images", folder / "val", "--no-masks"]
    told = ask("detect", "train", "--architecture", tmp_path / "tiny.json", "--data", folder, "--out", tmp_path / "run",
               *given)  # fmt: skip
    assert told.json()["images"] == 3
    assert "they are told by their names" in told.err
    assert f"copies of training images in val: 3 of 3 ({folder}/val/1.png of {folder}/train/1.png, …)" in told.err
    again = ask("detect", "evaluate", "--checkpoint", tmp_path / "run", "--annotations", tmp_path / "val.json",
                "--images", folder / "val", "--workers", 0, "--json").json()  # fmt: skip
    assert again["boxes"] == told.json()["test"]["boxes"]
