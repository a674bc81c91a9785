"""Masks: codings and their refusals, crops that stay with their images, scores and pictures."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import shapes
from pocketformer.dense.segmentation import evaluation
from pocketformer.dense.segmentation.census import take_census
from pocketformer.dense.segmentation.crops import CropBatches, Crops, Photometric, scale_to
from pocketformer.dense.segmentation.drawing import label_map, overlay, palette
from pocketformer.dense.segmentation.folders import find_masks
from pocketformer.dense.segmentation.labels import IGNORE, Coding
from pocketformer.dense.segmentation.lists import read_classes
from pocketformer.dense.segmentation.maskfiles import read_mask
from pocketformer.dense.segmentation.presets import small
from pocketformer.errors import UserError, WorkError
from pocketformer.pipelines.segmenting import train_segmenter
from pocketformer.training.pixels import OURS
from pocketformer.training.workers import own_randomness, seed_sample
from shapes import asked, segmenter

torch.set_num_threads(1)


# --- masks


def test_codings():
    mask = np.array([[0, 1, 2, 150, 255]], np.int32)
    assert Coding().classes(mask).tolist() == [[0, 1, 2, 150, IGNORE]]
    ade = Coding(reduce_zero_label=True)
    assert ade.classes(mask).tolist() == [[IGNORE, 0, 1, 149, IGNORE]]
    assert ade.labels(np.array([0, 149])).tolist() == [1, 150]
    assert [ade.valid(label, 150) for label in (-1, 0, 1, 150, 151, 255)] == [False, True, True, True, False, True]
    assert Coding(11).classes(np.array([[10, 11]])).tolist() == [[10, IGNORE]]
    assert Coding(65535).classes(np.array([[300, 65535]])).tolist() == [[300, IGNORE]]


def test_masks_are_read_as_they_are(tmp_path):
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    image = Image.fromarray(labels)
    image.save(tmp_path / "grey.png")
    indexed = image.copy()
    indexed.putpalette([value for colour in palette() for value in colour])
    indexed.save(tmp_path / "indexed.png")
    Image.fromarray(labels.astype(np.uint16) * 100).save(tmp_path / "deep.png")
    for name, factor in (("grey", 1), ("indexed", 1), ("deep", 100)):
        assert (read_mask(tmp_path / f"{name}.png") == factor * labels.astype(int)).all(), name
    Image.new("RGB", (4, 3), (9, 0, 0)).save(tmp_path / "colour.png")
    with pytest.raises(ValueError, match=r"in colour \(mode RGB\)"):
        read_mask(tmp_path / "colour.png")


def test_names_of_classes(tmp_path):
    file = tmp_path / "classes.txt"
    file.write_text("sky\nroad \n\nvoid\n")
    assert read_classes(file, Coding())[0] == ("sky", "road", "void")
    assert read_classes(file, Coding(2))[0] == ("sky", "road")  # as CamVid's
    assert read_classes(file, Coding(3, reduce_zero_label=True))[0] == ("sky", "road")
    for text, coding, words in (
        ("sky\nroad\n", Coding(0), "label 0 is 'sky' there, but it is the ignored one"),
        ("sky\nsky\n", Coding(), "sky more than once"),
        ("\n", Coding(), "the file is empty"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=words):
            read_classes(file, coding)
    with pytest.raises(UserError, match="cannot be read"):
        read_classes(tmp_path / "none.txt", Coding())


def test_both_layouts_and_what_a_census_tells(tmp_path):
    camvid = shapes.write(tmp_path / "camvid", {"train": 3, "val": 1, "test": 2})
    found = find_masks(str(camvid), Coding())
    assert {name: len(pairs) for name, pairs in found.splits.items()} == {"train": 3, "val": 1, "test": 2}
    assert found.judged.name == "test"
    assert found.splits["val"].masks == ("valannot/03.png",)
    census = take_census(found, found.splits, 4, workers=2)
    pixels = np.bincount(np.concatenate([read_mask(p).ravel() for p in sorted((camvid / "testannot").iterdir())]))
    assert census.labels["test"] == {label: n for label, n in enumerate(pixels) if n}
    assert census.num_classes(Coding()) == 4

    ade = tmp_path / "ade"
    (ade / "images/test").mkdir(parents=True)
    for old, new in (("train", "training"), ("val", "validation")):
        (ade / "annotations").mkdir(exist_ok=True)
        (camvid / old).rename(ade / "images" / new)
        (camvid / f"{old}annot").rename(ade / "annotations" / new)
    theirs = find_masks(str(ade), Coding(reduce_zero_label=True))
    assert theirs.judged.name == "val"
    assert theirs.classes is None
    assert take_census(theirs, theirs.splits, None).num_classes(theirs.coding) == 3
    assert theirs.notes == (f"images/test/ of {ade} was not read, as there is no annotations/test/",)


def bad_folder(folder, spoil) -> str:
    shapes.write(folder, {"train": 5, "val": 1})
    spoil(folder)
    return str(folder)


def of_another_size(folder):
    for number in range(4):
        shapes.scene(number, 30, 40)[1].save(folder / f"trainannot/0{number}.png")


def with_strange_labels(folder):
    mask = np.zeros((64, 80), np.uint8)
    mask[5:, 7:] = np.arange(73) + 4
    Image.fromarray(mask).save(folder / "trainannot/02.png")


def without(folder, *names):
    for name in names:
        (folder / name).unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lambda f: without(f, *(f"trainannot/0{i}.png" for i in range(4))),
            "4 of 5 images in train/ have no mask of their name in trainannot/: 00.png, 01.png, 02.png, … (4 in all)",
        ),
        (lambda f: without(f, "val/05.png"), "val/ is empty"),
        (lambda f: without(f, "train/03.png"), "1 of 5 masks in trainannot/ have no image of their name in train/: 03"),
        (
            of_another_size,
            "4 of 5 masks of train have another size than their image: trainannot/00.png (40x30 px, its image "
            "80x64), trainannot/01.png (40x30 px, its image 80x64), trainannot/02",
        ),
        (
            with_strange_labels,
            "1 of 5 masks of train have labels outside the class list (0 to 3; ignored: 255): trainannot/02.png "
            "(4, 5, 6, … (73 in all))",
        ),
        (
            lambda f: Image.new("RGB", (80, 64), (9, 0, 0)).save(f / "trainannot/01.png"),
            "1 of 5 masks of train cannot be read as labels: trainannot/01.png (in colour (mode RGB), not one label",
        ),
        (lambda f: (f / "train/04.png").write_bytes(b"no"), "1 of 5 images of train cannot be read: train/04.png (not"),
        (lambda f: (f / "trainannot").rename(f / "masks"), "known layouts are ADE20K: images/training with"),
        (lambda f: (f / "classes.txt").write_text("a\nb\n"), "5 of 5 masks of train have labels outside"),
    ],
    ids=["masks", "empty", "images", "sizes", "labels", "colour", "damaged", "layout", "names"],
)
def test_bad_input_is_told_in_one_line_a_kind_before_anything_begins(spoil, words, tmp_path, capsys):
    settings = asked("efficientformerv2_s0", bad_folder(tmp_path / "data", spoil), small())
    with pytest.raises(UserError) as error:
        train_segmenter(settings, tmp_path / "run")
    told = [*capsys.readouterr().err.splitlines(), str(error.value)]
    assert sum(words in line for line in told) == 1
    if len([line for line in told if "…" not in line and "done in" not in line]) > 1:
        assert "kinds cannot be used, named above" in told[-1]
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


# --- crops


def crops(folder, size=(48, 56), seed=0) -> Crops:
    return Crops(find_masks(str(folder), Coding()).splits["train"], Coding(), size, seed, OURS)


def test_batches_are_a_function_of_seed_and_step_whatever_the_workers(tmp_path):
    pairs = find_masks(str(shapes.write(tmp_path / "data", {"train": 5})), Coding()).splits["train"]

    def made(first: int, workers: int, seed: int = 3) -> list:
        return list(CropBatches(pairs, Coding(), 2, (48, 56), seed, OURS, workers=workers).steps(first, 5))

    state = torch.get_rng_state()
    alone, two, late, other = made(0, 0), made(0, 2), made(3, 1), made(0, 0, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    for a, b in [*zip(alone, two, strict=True), *zip(alone[3:], late, strict=True)]:
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])
    assert not torch.equal(alone[0][0], other[0][0])
    images, targets = alone[0]
    assert images.shape == (2, 3, 48, 56)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert targets.dtype == torch.int64
    assert not torch.equal(alone[0][0], alone[2][0])  # the next epoch's


def test_masks_stay_with_their_images(tmp_path, monkeypatch):
    """Images that show nothing but their labels: crops of any scale and both directions agree but at the borders."""
    monkeypatch.setattr(Photometric, "forward", lambda self, x: x)
    found = crops(shapes.write(tmp_path / "data", {"train": 1}))
    _, mask = shapes.scene(0)
    labels = np.asarray(mask).astype(np.int16)
    image = Image.fromarray(np.repeat((np.where(labels == 255, 0, labels) * 80).astype(np.uint8)[..., None], 3, 2))
    classes = Coding().classes(np.asarray(mask).astype(np.int32))
    agreed, moved, sides = [], [], set()
    for seed in range(40):
        found.seed = seed
        with own_randomness():
            seed_sample(seed, 0, 0, 0)
            x, target = found.sample(image, classes)
        shown = ((x[..., 0] * 0.5 + 0.5) * 255 / 80).round()
        known = target >= 0
        agreed.append((shown[known] == target[known]).float().mean().item())
        moved += [
            (shown.roll(by, axis)[known] == target[known]).float().mean().item() for by in (1, -1) for axis in (0, 1)
        ]
        filled = (x.abs().sum(2) > 0).nonzero().amax(0) + 1  # zero is behind the edges
        sides.add(tuple(filled.tolist()))
        behind = target.clone()
        behind[: filled[0], : filled[1]] = IGNORE
        assert (behind == IGNORE).all()
    assert min(agreed) > 0.9
    assert np.mean(agreed) > np.reshape(moved, (-1, 4)).mean(0).max() + 0.005  # to the pixel
    assert (48, 56) in sides
    assert len(sides) > 5  # smaller than the crop where the scale is small


def test_few_crops_are_of_one_class_alone(tmp_path):
    found = crops(shapes.write(tmp_path / "data", {"train": 1}), (24, 24))
    classes = np.zeros((64, 80), np.int16)
    classes[:, 60:] = 1  # most places show class 0 alone
    image, mixed = Image.new("RGB", (80, 64)), 0
    seed_sample(0, 0, 0, 0)
    for _ in range(600):
        _, target = found.sample(image, classes)
        counts = target[target >= 0].bincount()
        mixed += counts.max() < 0.75 * counts.sum()
    assert mixed > 450  # without trying again about a quarter


def test_scales():
    assert scale_to(640, 480, (512, 512)) == 512 / 480
    assert scale_to(3000, 300, (512, 512)) == 2048 / 3000  # ADE20K's (2048, 512)
    assert evaluation.prepared(Image.new("RGB", (240, 180)), (180, 240), OURS, 32).shape == (1, 3, 180, 240)
    assert evaluation.prepared(Image.new("RGB", (1000, 10)), (64, 64), OURS, 32).shape == (1, 3, 32, 256)


def test_distortion_changes_colours_but_no_channels():
    """Grey stays grey, and red red, which swapped channels would not be."""
    torch.manual_seed(0)
    distort = Photometric()
    grey, red = torch.full((3, 4, 4), 100, dtype=torch.uint8), torch.zeros(3, 4, 4, dtype=torch.uint8)
    red[0] = 200
    values = set()
    for _ in range(30):
        found = distort(grey)
        assert found.float().std(0).max() < 2
        values.add(int(found[0, 0, 0]))
        assert (distort(red).argmax(0) == 0).all()
    assert len(values) > 10


def test_an_image_that_vanishes_while_work_goes_on(tmp_path):
    folder = shapes.write(tmp_path / "data", {"train": 2})
    pairs = find_masks(str(folder), Coding()).splits["train"]
    (folder / "train/00.png").unlink()
    for workers in (0, 1):
        batches = CropBatches(pairs, Coding(), 2, (32, 32), 0, OURS, workers=workers)
        with pytest.raises(WorkError, match=r"train/00.png cannot be read now \(missing\)"):
            list(batches.steps(0, 1))


# --- scores


def test_scores_are_those_of_a_count_over_pixels():
    rng = np.random.default_rng(0)
    truth = rng.integers(-1, 5, (3, 20, 30))
    truth[truth == 3] = 2  # class 3 is nowhere
    predicted = rng.integers(0, 3, truth.shape)
    total = sum(evaluation.count(t, p, 5) for t, p in zip(truth, predicted, strict=True))
    scores = evaluation.Scores(total, 3)
    ious = []
    for c in range(5):
        both = either = 0
        for t, p in zip(truth.flat, predicted.flat, strict=True):
            if t != -1:
                both += t == c and p == c
                either += t == c or p == c
        ious.append(both / either if either else None)
    assert ious[3] is None
    found = scores.to_dict("abcde")
    assert [x if x is None else pytest.approx(x) for x in ious] == list(found["iou"].values())
    known = [x for x in ious if x is not None]
    assert found["mIoU"] == pytest.approx(sum(known) / len(known))
    labelled = truth != -1
    assert found["pixel_accuracy"] == pytest.approx((truth == predicted)[labelled].mean())
    assert list(found["pixels"].values()) == [int((truth == c).sum()) for c in range(5)]


def test_classes_at_another_size_are_those_of_all_channels_at_once():
    logits = torch.randn(1, 40, 12, 15).round(decimals=1)
    for size in ((12, 15), (31, 20), (7, 9)):
        wanted = F.interpolate(logits, size, mode="bilinear", align_corners=False).argmax(1)[0]
        assert (evaluation.classes_at(logits, size) == wanted.numpy()).all()


def test_evaluation_judges_every_image_at_its_own_size(tmp_path):
    folder = shapes.write(tmp_path / "data", {"train": 3})
    for number, size in enumerate(((64, 80), (51, 90), (100, 70))):
        for part, image in zip(("train", "trainannot"), shapes.scene(number, *size), strict=True):
            image.save(folder / part / f"0{number}.png")
    model, pairs = segmenter().eval(), find_masks(str(folder), Coding()).splits["train"]
    scores = evaluation.evaluate(model, pairs, Coding(), (64, 80), OURS, workers=2)
    total = 0
    for number in range(3):
        image, mask = Image.open(folder / f"train/0{number}.png"), read_mask(folder / f"trainannot/0{number}.png")
        scale = 64 / min(image.size)
        shape = [round(side * scale) for side in image.size]
        pixels = np.asarray(image.resize(shape, Image.Resampling.BILINEAR))
        x = (torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 255 - 0.5) / 0.5
        with torch.no_grad():
            logits = F.interpolate(model(x), mask.shape, mode="bilinear", align_corners=False)
        total = total + evaluation.count(Coding().classes(mask), logits.argmax(1)[0].numpy(), 4)
    assert (scores.confusion == total).all()
    assert scores.confusion.sum() == 64 * 80 + 51 * 90 + 100 * 70 - 2 * (80 + 90 + 70)
    assert scores.images == 3


def test_pictures():
    labels = np.array([[0, 1], [2, 255]], np.int16)
    image = label_map(labels)
    assert image.mode == "P"
    assert (np.asarray(image) == labels).all()
    assert len(set(palette())) == 256
    assert (np.asarray(label_map(labels + 300)) == labels + 300).all()
    drawn = np.asarray(overlay(Image.new("RGB", (2, 2), (100, 100, 100)), labels))
    assert len({tuple(pixel) for pixel in drawn.reshape(-1, 3).tolist()}) == 4
