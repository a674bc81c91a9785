"""COCO's annotations: masks in every form, batches that follow them, and every mistake told in one line."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as reference_masks

import coco
from coco import batches, opened
from pocketformer.dense.detection import masks
from pocketformer.dense.detection.pictures import fitted, open_image
from pocketformer.dense.detection.places import locate
from pocketformer.errors import UserError, WorkError
from pocketformer.training.orders import Share

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return coco.write_set(tmp_path_factory.mktemp("coco"), 6)


# --- images and annotations


@pytest.mark.parametrize(
    ("size", "wanted"),
    [((480, 640), (800, 1067)), ((640, 480), (1067, 800)), ((400, 1200), (444, 1333)), ((800, 800), (800, 800))],
)
def test_images_keep_their_shape_within_short_and_long_side(size, wanted):
    assert fitted(size, (800, 1333)) == wanted


def test_masks_equal_pycocotools_in_every_form():
    rng = np.random.default_rng(0)
    size = (40, 56)
    found = np.zeros(size, np.uint8)
    found[8:30, 10:41] = rng.integers(0, 2, (22, 31))
    compressed = reference_masks.encode(np.asfortranarray(found))
    given = {"size": list(size), "counts": compressed["counts"].decode()}
    assert np.array_equal(masks.parse(given, size).bitmap(size, False), found)
    assert np.array_equal(masks.parse(given, size).bitmap(size, True), found[:, ::-1])
    plain = masks.parse(given, size).to_coco()
    assert np.array_equal(masks.parse(plain, size).bitmap(size, False), found)
    polygons = [[5.5, 3.0, 30.2, 8.1, 20.0, 33.3], [30, 20, 50, 20, 50, 35, 30, 35]]
    wanted = reference_masks.decode(reference_masks.merge(reference_masks.frPyObjects(polygons, *size)))
    assert np.array_equal(masks.parse(polygons, size).bitmap(size, False), wanted)
    double = masks.parse(polygons, size).bitmap((80, 112), False)
    assert double.shape == (80, 112)
    assert double.sum(dtype=int) == pytest.approx(4 * wanted.sum(dtype=int), rel=0.05)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (None, "neither"),
        ([], "neither"),
        ([[1, 2, 3, 4]], "fewer than 3 points"),
        ([["a", 2, 3, 4, 5, 6]], "not a list of numbers"),
        ([[0, 0, 1e9, 0, 5, 5]], "far outside"),
        ([[0, 0, float("nan"), 0, 5, 5]], "far outside"),
        ({"size": [9, 9], "counts": [81]}, "9 x 9 px, not of the image's 4 x 6 px"),
        ({"size": [4, 6], "counts": [20]}, "do not add up"),
        ({"size": [4, 6], "counts": [30, -6]}, "whole numbers"),
        ({"size": [4, 6], "counts": "é"}, "damaged"),
        ({"size": [4, 6], "counts": "o"}, "cut short"),
        ({"size": [4, 6], "counts": "ooooooooooooooooo0"}, "damaged"),
    ],
)
def test_unusable_masks_are_told(given, why):
    with pytest.raises(ValueError, match=why):
        masks.parse(given, (4, 6))


def test_boxes_and_masks_follow_the_image(folder):
    images = opened(folder).for_training()
    several = batches(images, 6)
    for step in range(4):
        x, targets = several.steps(step, step + 1).__next__()
        assert x.shape[2] % 32 == x.shape[3] % 32 == 0
        assert x.is_contiguous(memory_format=torch.channels_last)
        for box, mask in zip(targets.boxes, targets.masks, strict=True):
            rows, columns = torch.nonzero(mask.any(1)).ravel(), torch.nonzero(mask.any(0)).ravel()
            extent = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
            assert torch.allclose(box, extent.float(), atol=1.6)
        for image, own in zip(x, targets.by_image(), strict=True):  # discs are red, boxes green, wedges blue
            for label, mask in zip(own["labels"], own["masks"], strict=True):
                assert image[:, mask.bool()].mean(1).argmax() == label - 1
        for image, (height, width) in zip(x, targets.sizes, strict=True):
            assert not image[:, height:].any()
            assert not image[:, :, width:].any()
    labels = images.labels
    assert labels == {3: 1, 7: 2, 9: 3}


def test_half_of_the_images_are_flipped_and_epochs_differ(folder):
    samples = batches(opened(folder).for_training())._samples
    flips = np.stack([samples._flips(epoch) for epoch in range(200)])
    assert abs(flips.mean() - 0.5) < 0.05
    assert (flips[0] != flips[1]).any()


def test_two_processes_share_the_images_of_a_step(folder):
    images = opened(folder).for_training()
    shared = [batches(images, 4, share=Share(rank, 2)) for rank in (0, 1)]
    for step in range(3):
        whole, *parts = (next(b.steps(step, step + 1))[1] for b in (batches(images, 4), *shared))
        assert [len(part) for part in (whole, *parts)] == [4, 2, 2]
        seen = [own["boxes"].tolist() for part in parts for own in part.by_image()]
        assert sorted(seen) == sorted(own["boxes"].tolist() for own in whole.by_image())
        assert len({str(boxes) for boxes in seen}) == 4


def test_neither_workers_nor_the_first_step_change_a_bit(folder):
    images = opened(folder).for_training()
    whole = list(batches(images).steps(0, 5))
    late = list(batches(images, workers=2).steps(2, 5))
    for (a, targets), (b, others) in zip(whole[2:], late, strict=True):
        assert torch.equal(a, b)
        assert targets.sizes == others.sizes
        assert all(torch.equal(t, others.tensors()[name]) for name, t in targets.tensors().items())


def test_a_picture_that_is_turned_by_its_exif_is_seen_as_its_annotations_are(tmp_path):
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:, :15] = 255
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[274] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    assert open_image(tmp_path / "turned.png", (30, 20)).size == (20, 30)
    assert open_image(tmp_path / "turned.png", (20, 30)).size == (30, 20)
    with pytest.raises(WorkError, match="no longer of the size"):
        open_image(tmp_path / "turned.png", (9, 9))


def test_crowds_and_slivers_are_not_learned(tmp_path):
    folder = coco.write_set(tmp_path)
    content = coco.read_json(folder, "train")
    for entry in content["annotations"]:
        if entry["image_id"] == 1:
            entry["iscrowd"] = 1
    content["annotations"][2]["bbox"][2] = 0.5
    coco.write_json(folder, "train", content)
    images = opened(folder)
    assert len(images) == 4
    learned = images.for_training()
    assert [p.number for p in learned.pictures] == [2, 3, 4]
    assert [len(p.things) for p in learned.pictures] == [1, 2, 2]
    fit, search = learned.held_out(seed=1)
    assert (len(fit), len(search)) == (2, 1)


# --- mistakes in the data


def spoil(folder: Path, what: str) -> None:
    content = coco.read_json(folder, "train")
    entries = content["annotations"]
    match what:
        case "image":
            for entry in entries[:4]:
                entry["image_id"] = 77
        case "empty boxes":
            for entry in entries[:5]:
                entry["bbox"][2] = 0
        case "category":
            entries[3]["category_id"] = 5
        case "mask":
            entries[2]["segmentation"] = [[1, 2, 3, 4]]
        case "mask of another size":
            entries[2]["segmentation"] = {"size": [5, 5], "counts": [25]}
        case "no box":
            del entries[6]["bbox"]
        case "missing file":
            (folder / "train" / "2.png").unlink()
        case "broken file":
            data = (folder / "train" / "3.png").read_bytes()
            (folder / "train" / "3.png").write_bytes(data[: len(data) // 2])
        case "other size":
            content["images"][0]["width"] = 130
        case "no images":
            content["images"] = []
        case "no lists":
            del content["categories"]
        case "twice":
            content["images"].append(content["images"][0])
        case "not JSON":
            (folder / "annotations" / "instances_train.json").write_text("{")
            return
    coco.write_json(folder, "train", content)


@pytest.mark.parametrize(
    ("what", "line"),
    [
        (
            "image",
            "4 annotations of images that the file does not list: annotation 1 (image 77), annotation 2 (image 77), "
            "annotation 3 (image 77), …",
        ),
        ("category", "1 annotation of a category that is not in its list: annotation 4 (image 2): category 5"),
        (
            "mask",
            "1 annotation without a mask that can be used: annotation 3 (image 2): a polygon of fewer than 3 points",
        ),
        ("mask of another size", "annotation 3 (image 2): a mask of 5 x 5 px, not of the image's 88 x 128 px"),
        ("no box", "1 annotation not of COCO's form: annotation 7 (image 4)"),
        ("missing file", "1 image unreadable, or not of the size that the file says: 2.png (missing)"),
        ("broken file", "3.png (truncated)"),
        ("other size", "1.png (96 x 120 px, not 96 x 130)"),
        ("no images", "the split is empty"),
        ("no lists", "is not a COCO file: it needs the lists images, annotations, categories"),
        ("twice", "1 image without an id of their own, file_name, height and width: entry 4"),
        ("not JSON", "is not valid JSON"),
    ],
)
def test_each_mistake_is_one_line(tmp_path, capsys, what, line):
    folder = coco.write_set(tmp_path)
    spoil(folder, what)
    with pytest.raises(UserError) as caught:
        opened(folder)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
    if line[0].isdigit() and "annotation" in line:
        rest = opened(folder, skip=True)
        assert sum(len(p.things) for p in rest.pictures) == 8 - int(line.split()[0])
        assert "left out" in capsys.readouterr().err


def test_several_kinds_of_mistakes_are_all_told(tmp_path, capsys):
    folder = coco.write_set(tmp_path)
    for what in ("empty boxes", "mask", "missing file"):
        spoil(folder, what)
    with pytest.raises(UserError, match=r"6 mistakes of 2 kinds, named above; mend the file"):
        opened(folder)
    said = capsys.readouterr().err
    assert "5 annotations with a box of zero" in said
    assert "1 image unreadable" in said


def test_layouts_that_cannot_be_used(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        locate(tmp_path / "nowhere", "train")
    with pytest.raises(UserError, match=r"there is no annotations/instances_train\*\.json"):
        locate(tmp_path, "train")
    folder = coco.write_set(tmp_path)
    (folder / "annotations" / "instances_train.json").rename(folder / "annotations" / "instances_train2017.json")
    assert locate(folder, "train")[1].name == "train"
    (folder / "train").rename(folder / "train2017")
    assert locate(folder, "train")[1].name == "train2017"
    coco.write_json(folder, "train", {})
    with pytest.raises(UserError, match="which one is meant"):
        locate(folder, "train")
