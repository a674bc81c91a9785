"""Detectors: what they are made of, their loss, COCO's figures, and presets."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as reference_masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.models.detection.image_list import ImageList

import coco
from coco import batches, opened
from pocketformer.dense.backbone import Backbone
from pocketformer.dense.detection.detector import DetectionTask, Detector
from pocketformer.dense.detection.evaluation import detect, table, tables
from pocketformer.dense.detection.heads import Heads
from pocketformer.dense.detection.instances import Instances
from pocketformer.dense.detection.parts import Anchors, RoIAlign
from pocketformer.dense.detection.presets import PRESETS
from pocketformer.dense.recipe import DenseRecipe
from pocketformer.errors import UserError
from pocketformer.models import create_model
from pocketformer.training.compute import Compute
from pocketformer.training.pixels import OURS
from pocketformer.training.state import TrainingState
from shapes import architecture

torch.set_num_threads(1)
LIGHT = Heads(width=16, hidden=16, mask_convs=1, anchor_scale=6, samples=16, proposals=20, candidates=50)


def detector(heads: Heads = LIGHT, frozen: bool = False, name: str | None = None) -> Detector:
    torch.manual_seed(0)
    network = create_model(name or architecture(), num_classes=0, distilled=False, layer_scale=0.5)
    return Detector(Backbone(network, (96, 128), frozen), 3, heads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return coco.write_set(tmp_path_factory.mktemp("coco"), 6)


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


def test_an_image_learns_from_the_same_anchors_whatever_it_shares_a_batch_with():
    """Those in what the batch padded are neither an object nor background."""
    model = detector(replace(LIGHT, masks=False))
    small = {"boxes": torch.tensor([[10.0, 8.0, 60.0, 50.0]]), "labels": torch.tensor([1]), "size": (60, 70)}
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "size": (61, 90)}
    large = {"boxes": torch.tensor([[90.0, 100.0, 150.0, 150.0]]), "labels": torch.tensor([1]), "size": (160, 192)}

    def assigned(targets, height, width):
        images = torch.zeros(len(targets), 3, height, width)
        maps = [torch.zeros(1, 1, -(-height // s), -(-width // s)) for s in model.pyramid.strides]
        anchors = model.rpn.anchor_generator(ImageList(images, [target["size"] for target in targets]), maps)
        labels, boxes = model.rpn.assign_targets_to_anchors(anchors, targets)
        kinds = [{kind: a[found == kind] for kind in (0, 1)} for a, found in zip(anchors, labels, strict=True)]
        goals = [b[found == 1] for b, found in zip(boxes, labels, strict=True)]
        assert [len(found) for found in labels] == [len(a) for a in anchors]
        return kinds, goals

    together, goals = assigned([small, empty, large], 160, 192)
    for row, (target, height, width) in enumerate(((small, 64, 96), (empty, 64, 96), (large, 160, 192))):
        (alone,), (goal,) = assigned([target], height, width)
        assert len(alone[0]) > 20
        assert len(alone[1]) > 0 or target is empty
        for kind in (0, 1):
            assert torch.equal(together[row][kind], alone[kind])
        assert torch.equal(goals[row], goal)


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


def test_every_weight_decays_and_frozen_ones_are_not_given_to_the_optimiser():
    """As published: on norms, biases and layer scales too."""
    model, recipe = detector(frozen=True), DenseRecipe.detection()
    state = TrainingState(model, recipe, Compute(), 10)
    assert {group["weight_decay"] for group in state.optimiser.param_groups} == {0.05}
    given = sum(len(group["params"]) for group in state.optimiser.param_groups)
    assert given == sum(p.requires_grad for p in model.parameters()) < sum(1 for _ in model.parameters())


def test_rates_are_torchs_after_the_warm_up():
    """Steps down behind epochs 8 and 11, and poly decay, against torch's own schedulers, 7 steps an epoch."""
    optimiser = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    steps = replace(DenseRecipe.detection(), learning_rate=0.1, warmup_steps=10)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [8 * 7, 11 * 7])
    assert_rates(steps, schedule, 84)
    optimiser = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    poly = replace(DenseRecipe.segmentation(), learning_rate=0.1, warmup_steps=0, min_lr=0.0)
    assert_rates(poly, torch.optim.lr_scheduler.PolynomialLR(optimiser, 84, poly.power), 84)


def assert_rates(recipe, schedule, steps):
    for step in range(steps):
        warm = min(1, (step + 1) / max(recipe.warmup_steps, 1))
        assert recipe.rate(step, steps, 7, recipe.batch_size) == pytest.approx(warm * schedule.get_last_lr()[0])
        schedule.optimizer.step()
        schedule.step()


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


# --- heads and presets


def test_heads_refuse_what_they_cannot_be():
    found = Heads().with_text(["width=64.0", "score=1e-1"])  # YAML takes 1e-1 for a text
    assert found == replace(Heads(), width=64, score=0.1)
    assert isinstance(found.width, int)
    for wrong in (["width=0"], ["width=.inf"], ["hidden=1.5"], ["score=2"], ["masks=true"], ["colour=red"], ["width"]):
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
