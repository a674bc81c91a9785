"""Detectors: what they are made of, their data, their batches, COCO's figures; and that they learn."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as reference_masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import coco
from pocketformer.dense.backbone import Backbone
from pocketformer.dense.detection import masks
from pocketformer.dense.detection.batches import DetectionBatches
from pocketformer.dense.detection.coco import CocoSet
from pocketformer.dense.detection.detector import DetectionTask, Detector
from pocketformer.dense.detection.evaluation import detect, table, tables
from pocketformer.dense.detection.folders import Reader, locate
from pocketformer.dense.detection.heads import Heads
from pocketformer.dense.detection.instances import Instances
from pocketformer.dense.detection.parts import Anchors, RoIAlign
from pocketformer.dense.detection.pictures import fitted, open_image
from pocketformer.dense.detection.presets import PRESETS
from pocketformer.errors import UserError, WorkError
from pocketformer.models import create_model
from pocketformer.training.pixels import OURS
from shapes import architecture

torch.set_num_threads(1)
LIGHT = Heads(width=16, hidden=16, mask_convs=1, anchor_scale=6, samples=16, proposals=20, candidates=50)


def opened(folder: Path, split: str = "train", masks: bool | None = None, skip: bool = False) -> CocoSet:
    return Reader(masks, skip)(*locate(folder, split))


def detector(heads: Heads = LIGHT, frozen: bool = False, name: str | None = None) -> Detector:
    torch.manual_seed(0)
    network = create_model(name or architecture(), num_classes=0, distilled=False, layer_scale=0.5)
    return Detector(Backbone(network, (96, 128), frozen), 3, heads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return coco.write_set(tmp_path_factory.mktemp("coco"), 6)


def batches(images: CocoSet, batch_size: int = 3, **more) -> DetectionBatches:
    return DetectionBatches(images, batch_size, (96, 128), 0, OURS, **more)


# --- the network


def test_the_published_detector_has_mmdetections_parts():
    network = create_model("efficientformerv2_s0", num_classes=0, distilled=False)
    model = Detector(Backbone(network, (64, 96)), 80, Heads())
    assert model.pyramid.strides == (4, 8, 16, 32, 64)
    maps = model.eval().pyramid(torch.randn(1, 3, 64, 96))
    assert [tuple(m.shape[1:]) for m in maps.values()] == [
        (256, 16, 24),
        (256, 8, 12),
        (256, 4, 6),
        (256, 2, 3),
        (256, 1, 2),
    ]
    assert torch.equal(list(maps.values())[4], list(maps.values())[3][..., ::2, ::2])
    cells = model.rpn.anchor_generator.cell_anchors
    assert [c.tolist()[1] for c in cells] == [[-4.0 * s, -4.0 * s, 4.0 * s, 4.0 * s] for s in (4, 8, 16, 32, 64)]
    for cell, stride in zip(cells, (4, 8, 16, 32, 64), strict=True):
        sides = cell[:, 2:] - cell[:, :2]
        assert (sides[:, 1] / sides[:, 0]).tolist() == pytest.approx([0.5, 1, 2])
        assert sides.prod(1).sqrt().tolist() == pytest.approx([8 * stride] * 3)
    # 2 shared linears of 1024 and 81 classes with a box each; 4 convolutions of 256 and 28 x 28 masks.
    shapes = {name: tuple(p.shape) for name, p in model.roi_heads.named_parameters()}
    assert shapes["box_head.fc6.weight"] == (1024, 256 * 7 * 7)
    assert shapes["box_head.fc7.weight"] == (1024, 1024)
    assert shapes["box_predictor.bbox_pred.weight"] == (81 * 4, 1024)
    assert [shapes[f"mask_head.{i}.0.weight"] for i in range(4)] == [(256, 256, 3, 3)] * 4
    assert model.roi_heads.mask_predictor(torch.zeros(1, 256, 14, 14)).shape == (1, 81, 28, 28)
    assert model.rpn._pre_nms_top_n == {"training": 2000, "testing": 1000}


def test_anchors_stand_at_the_strides_whatever_the_padding_is():
    from torchvision.models.detection.image_list import ImageList

    anchors = Anchors((4, 8, 16, 32, 64), 8)
    images = ImageList(torch.zeros(1, 3, 160, 160), [(150, 160)])
    found = anchors(images, [torch.zeros(1, 1, n, n, dtype=torch.bfloat16) for n in (40, 20, 10, 5, 3)])[0]
    assert found.dtype == torch.float32
    coarsest = found[-27:].reshape(3, 3, 3, 4)
    centres = (coarsest[..., :2] + coarsest[..., 2:]) / 2
    assert centres[0, :, 1, 0].tolist() == [0, 64, 128]


def test_roi_align_has_half_pixel_centres_and_takes_the_level_by_area():
    levels = RoIAlign((4, 8, 16, 32), 7)._levels(
        torch.tensor([[0, 0, side, side] for side in (1, 111, 112, 223, 224, 447, 448, 2000)], dtype=torch.float32)
    )
    assert levels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    ramp = torch.arange(16.0).expand(1, 1, 16, 16)  # the value of a pixel is its x
    box = torch.tensor([[8.0, 8.0, 36.0, 36.0]])  # on stride 4: 2 to 9, whose centre is 5.5, between pixels 4.5 and 5.5
    found = RoIAlign((4,), 7)({"0": ramp, "1": ramp}, [box], [(64, 64)])
    assert found[0, 0, 0].tolist() == pytest.approx([2, 3, 4, 5, 6, 7, 8])


@pytest.mark.parametrize("heads", [LIGHT, replace(LIGHT, masks=False)])
def test_several_sizes_in_one_batch(folder, heads):
    images, targets = next(batches(opened(folder, masks=heads.masks).for_training(), 6).steps(0, 1))
    assert len(set(targets.sizes)) > 1
    model = detector(heads)
    losses = model(images, targets.sizes, targets)
    assert set(losses) == {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"} | (
        {"loss_mask"} if heads.masks else set()
    )
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.eval()
    found = model(images, targets.sizes)
    assert len(found) == 6
    assert all(("masks" in each) == heads.masks for each in found)


@pytest.mark.parametrize("name", ["efficientformerv2_s0", "efficientformer_l1"])
def test_both_families_and_copies_of_them(name):
    model = detector(frozen=True, name=name)
    twin = copy.deepcopy(model).train()
    norms = [m for m in twin.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms
    assert not any(m.training or m.weight.requires_grad for m in norms)
    images = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        a, b = model.eval().pyramid(images), twin.eval().to(memory_format=torch.channels_last).pyramid(images)
    assert all(torch.allclose(a[k], b[k], atol=1e-4) for k in a)


def test_in_bfloat16_boxes_stay_exact(folder):
    images, targets = next(batches(opened(folder).for_training()).steps(0, 1))
    model = detector(replace(LIGHT, score=0.0))
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(images, targets.sizes, targets)
        found = model.eval()(images, targets.sizes)
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values())
    assert found[0]["boxes"].dtype == found[0]["masks"].dtype == torch.float32
    assert len(found[0]["boxes"])
    assert (found[0]["boxes"] != found[0]["boxes"].bfloat16()).any()


def test_targets_are_cut_as_images_are(folder):
    images, targets = next(batches(opened(folder).for_training(), 5).steps(0, 1))
    for parts in (1, 2, 3, 4, 7):
        pieces, chunks = targets.chunk(parts), images.chunk(parts)
        assert [len(p) for p in pieces] == [len(c) for c in chunks]
        assert torch.equal(torch.cat([p.boxes for p in pieces]), targets.boxes)
        assert torch.equal(torch.cat([p.masks for p in pieces]), targets.masks)
    moved = targets.to(torch.device("cpu"))
    assert isinstance(moved, Instances)
    assert moved.tensors()["counts"].tolist() == [2] * 5
    assert sorted(moved.tensors()) == ["boxes", "counts", "labels", "masks", "sizes"]


def test_the_loss_of_a_task_is_the_sum_of_all(folder):
    images, targets = next(batches(opened(folder).for_training()).steps(0, 1))
    told: list[torch.Tensor] = []
    figures = DetectionTask(detector()).run(images, targets, 0, told.append)
    parts = [value for name, value in figures.items() if name != "loss"]
    assert set(figures) == {"loss", "loss_rpn_class", "loss_rpn_box", "loss_class", "loss_box", "loss_mask"}
    assert float(figures["loss"]) == pytest.approx(float(sum(parts)), rel=1e-5)
    assert len(told) == 1


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


# --- COCO's figures


def guesses(truth: dict, seed: int = 0) -> list[dict]:
    """Made-up results: moved boxes, some of a wrong class, some missing, some of nothing at all."""
    rng = np.random.default_rng(seed)
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    categories, found = [c["id"] for c in truth["categories"]], []
    for entry in truth["annotations"]:
        for _ in range(int(rng.integers(0, 3))):
            height, width = sizes[entry["image_id"]]
            left, top, w, h = np.array(entry["bbox"]) * rng.uniform(0.85, 1.15, 4)
            right, low = min(left + w, width), min(top + h, height)
            if right - left < 2 or low - top < 2:
                continue
            mask = np.zeros((height, width), np.uint8)
            mask[round(top) : round(low), round(left) : round(right)] = 1
            runs = reference_masks.encode(np.asfortranarray(mask))
            category = entry["category_id"] if rng.random() < 0.8 else int(rng.choice(categories))
            box = [left, top, right - left, low - top]
            found.append(
                {
                    "image_id": entry["image_id"],
                    "category_id": category,
                    "bbox": [float(v) for v in box],
                    "score": float(rng.random()),
                    "segmentation": {"size": [height, width], "counts": runs["counts"].decode()},
                }
            )
    return found


def by_pycocotools(truth: dict, results: list[dict], kind: str, path: Path, capsys) -> list[float]:
    path.write_text(json.dumps(truth))
    own = COCO(str(path))
    counted = COCOeval(own, own.loadRes(copy.deepcopy(results)), kind)
    counted.evaluate()
    counted.accumulate()
    counted.summarize()
    capsys.readouterr()
    return counted.stats.tolist()


def test_figures_equal_pycocotools(tmp_path, capsys):
    folder = coco.write_set(tmp_path / "data", 12)
    truth = coco.read_json(folder, "train")
    rng = np.random.default_rng(3)
    for entry in truth["annotations"][::5]:  # a crowd, in run lengths
        height, width = next((i["height"], i["width"]) for i in truth["images"] if i["id"] == entry["image_id"])
        mask = np.zeros((height, width), np.uint8)
        mask[: int(rng.integers(20, height)), 5 : int(rng.integers(20, width))] = 1
        ones = np.diff(np.flatnonzero(np.diff(np.concatenate([[2], mask.ravel("F"), [2]]))))
        entry |= {
            "iscrowd": 1,
            "segmentation": {"size": [height, width], "counts": [*([0] * int(mask[0, 0])), *ones.tolist()]},
        }
    for entry in truth["annotations"][::3]:
        entry["area"] *= 30
    coco.write_json(folder, "train", truth)
    images = opened(folder)
    results = guesses(truth)
    for kind, name in (("boxes", "bbox"), ("masks", "segm")):
        wanted = by_pycocotools(truth, results, name, tmp_path / "truth.json", capsys)
        assert list(table(images, results, kind).values()) == pytest.approx(wanted, abs=1e-9)
        assert 0.05 < wanted[0] < 0.95
    assert capsys.readouterr().out == ""


def test_figures_of_nothing_found(folder):
    images = opened(folder)
    found = tables(images, [], True)
    assert found["boxes"]["AP"] == found["masks"]["AP"] == 0
    assert found["boxes"]["APl"] == -1
    assert list(tables(images, [], False)) == ["boxes"]


def test_what_is_found_is_in_px_of_the_image(folder):
    """A detector that gives back the truth, of images that are shown at another size."""
    images = opened(folder)

    class Oracle(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.heads = torch.nn.Parameter(torch.zeros(1)), LIGHT
            self.rows = iter(range(len(images)))

        def forward(self, x, sizes):
            picture = images.pictures[next(self.rows)]
            scale = sizes[0][1] / picture.size[1]
            boxes = torch.tensor([t.box for t in picture.things]) * scale
            boxes[:, 2:] += boxes[:, :2]
            labels = torch.tensor([images.labels[t.category] for t in picture.things])
            return [{"boxes": boxes, "labels": labels, "scores": torch.ones(2), "masks": torch.ones(2, 1, 28, 28)}]

    results = detect(Oracle(), images, (150, 150), OURS)
    assert table(images, results, "boxes")["AP"] == pytest.approx(1, abs=0.02)
    box = results[0]["bbox"]
    mask = reference_masks.decode(results[0]["segmentation"])
    assert mask.shape == images.pictures[0].size
    assert mask.sum() == pytest.approx(box[2] * box[3], rel=0.1)


# --- mistakes in the data


def spoil(folder: Path, what: str) -> None:
    content = coco.read_json(folder, "train")
    entries = content["annotations"]
    match what:
        case "image":
            for entry in entries[:4]:
                entry["image_id"] = 77
        case "empty box":
            entries[0]["bbox"][2], entries[1]["bbox"][3] = 0, -3
        case "outside":
            entries[5]["bbox"][0] = 500
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
        ("empty box", "2 annotations with a box of zero or negative size: annotation 1 (image 1): 0 x "),
        ("outside", "1 annotation with a box outside the image: annotation 6 (image 3)"),
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
    for what in ("empty box", "category", "missing file"):
        spoil(folder, what)
    with pytest.raises(UserError, match=r"4 mistakes of 3 kinds, named above; mend the file"):
        opened(folder)
    said = capsys.readouterr().err
    assert "2 annotations with a box of zero" in said
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


def test_heads_refuse_what_they_cannot_be():
    assert Heads().with_text(["width=64", "score=0.1"]) == replace(Heads(), width=64, score=0.1)
    for wrong in (["width=0"], ["hidden=1.5"], ["score=2"], ["masks=true"], ["colour=red"], ["width"]):
        with pytest.raises(UserError):
            Heads().with_text(wrong)
    assert Heads.from_dict(Heads().to_dict()) == Heads()


def test_presets():
    paper, heads = PRESETS["paper"]()
    assert (paper.epochs, paper.batch_size, paper.size, paper.milestones) == (12, 16, (800, 1333), (8, 11))
    assert (paper.learning_rate, paper.weight_decay, paper.warmup_steps, paper.clip) == (2e-4, 0.05, 500, 0)
    assert heads == Heads()
    small, light = PRESETS["small"]()
    assert small.size < paper.size
    assert light.width < heads.width
