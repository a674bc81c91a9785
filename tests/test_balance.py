"""Classes of uneven size: drawn equally often or weighed, at any step, by any processes; and what it gains."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from asking import ask
from photographs import FULL, stream, write_photos
from pocketformer.architecture import SearchSpace
from pocketformer.errors import UserError
from pocketformer.training.augmentation import Augmentation
from pocketformer.training.balance import class_weights, equal_shares, uneven
from pocketformer.training.batches import TrainBatches, train_batches
from pocketformer.training.data import Split
from pocketformer.training.mixing import Mixing
from pocketformer.training.orders import Order, Share
from pocketformer.training.recipe import Recipe
from pocketformer.training.targets import LabelLoss
from workshop import SPACE

SIZES = (57, 2, 11)
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(3), SIZES))


@pytest.mark.parametrize("labels", [LABELS, np.array([1, 1, 1, 0]), np.array([4, 7] * 3), np.arange(9)])
def test_an_epoch_has_equal_shares_and_uses_each_image_alike(labels):
    for epoch in range(4):
        positions = equal_shares(labels, 5, epoch)
        assert len(positions) == len(labels)
        drawn = np.unique(labels[positions], return_counts=True)[1]
        assert len(drawn) == len(np.unique(labels))
        assert np.ptp(drawn) <= 1
        times = np.bincount(positions, minlength=len(labels))
        for label in np.unique(labels):
            assert np.ptp(times[labels == label]) <= 1
        assert np.array_equal(positions, equal_shares(labels, 5, epoch))
    if len(labels) == len(LABELS):
        large = [set(equal_shares(labels, 5, e)) & set(np.flatnonzero(labels == 0)) for e in range(12)]
        assert len(set.union(*large)) > 0.9 * SIZES[0]  # in time, every image of a large class has its turn
        assert not np.array_equal(equal_shares(labels, 5, 0), equal_shares(labels, 6, 0))


@pytest.mark.parametrize("repeats", [1, 3])
def test_processes_share_out_the_same_batches(repeats):
    whole = Order(70, 10, 3, repeats, labels=LABELS)
    parts = [Order(70, 10, 3, repeats, Share(rank, 2), LABELS) for rank in range(2)]
    for step in (0, 5, 6, 13):
        both = [order.at(step) for order in parts]
        for name in ("positions", "copies"):
            assert np.array_equal(np.stack([getattr(p, name) for p in both], 1).ravel(), getattr(whole.at(step), name))
        samples = set(zip(whole.at(step).positions.tolist(), whole.at(step).copies.tolist(), strict=True))
        assert len(samples) == 10  # an image that comes again is not varied in the same way again


def test_batches_resume_anywhere_and_vary_images_that_come_again():
    pixels = np.random.default_rng(0).integers(0, 256, (70, 3, 18, 18), dtype=np.uint8)
    split = Split("fit", torch.from_numpy(pixels), torch.from_numpy(LABELS))

    def made(first, last, **more):
        return list(train_batches(split, 10, (16, 16), Augmentation(), 3, balanced=True, **more).steps(first, last))

    whole = made(0, 16)
    for one, other in zip(whole, [*made(0, 5), *made(5, 16)], strict=True):
        assert all(map(torch.equal, one, other))
    images, labels = (torch.cat(parts) for parts in zip(*whole[:7], strict=True))
    assert labels.bincount().tolist() in ([24, 23, 23], [23, 24, 23], [23, 23, 24])
    rare = images[labels == 1]
    assert len(torch.unique(rare.flatten(1), dim=0)) == len(rare) > 20  # of two images
    plain = TrainBatches(split, 10, (16, 16), Augmentation(), 3)
    assert torch.equal(plain.plan(0).rows, torch.from_numpy(Order(70, 10, 3).at(0).positions))  # as ever


def test_streams_are_balanced_for_any_workers(tmp_path):
    root = write_photos(tmp_path)
    for path in sorted((root / "train" / "emu").iterdir())[3:]:
        path.unlink()
    split = stream(root).final
    options = {"batch_size": 6, "size": (16, 18), "augmentation": FULL, "seed": 3, "balanced": True}
    here, there = (list(train_batches(split, workers=n, **options).steps(1, 4)) for n in (0, 2))
    assert all(torch.equal(a, b) for x, y in zip(here, there, strict=True) for a, b in zip(x, y, strict=True))
    epochs = train_batches(split, **{**options, "batch_size": 1, "augmentation": Augmentation()})
    labels = torch.cat([labels for _, labels in epochs.steps(0, epochs.steps_per_epoch)])
    assert sorted(labels.bincount().tolist()) == [6, 6, 7]


def test_weighed_losses_are_those_worked_by_hand():
    torch.manual_seed(0)
    weights = class_weights(LABELS, 4)
    assert weights.tolist() == pytest.approx([70 / (3 * 57), 70 / (3 * 2), 70 / (3 * 11), 0])
    assert weights[torch.from_numpy(LABELS)].mean() == pytest.approx(1, abs=1e-6)
    logits, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 0, 1])
    loss = LabelLoss(0.1, weights)
    each = torch.stack([F.cross_entropy(logits[[i]], labels[[i]], label_smoothing=0.1) for i in range(6)])
    assert loss(logits, labels) == pytest.approx(float((weights[labels] * each).sum() / 6), rel=1e-6)
    halves = (loss(logits[:3], labels[:3]) + loss(logits[3:], labels[3:])) / 2  # parts of a batch, or processes
    assert loss(logits, labels) == pytest.approx(float(halves), rel=1e-6)
    _, mixed = Mixing(Recipe(mixup=0.8, batch_size=6), 4, 0)(torch.randn(6, 3, 8, 8), labels, 0)
    share = float(((mixed[0] - 0.025) / 0.9)[labels[0]])  # of the image's own class; the rest is its partner's
    assert labels[5] == 1
    by_hand = weights[labels] * share + weights[labels.flip(0)] * (1 - share)
    each = -(mixed * logits.log_softmax(1)).sum(1)
    assert loss(logits, mixed) == pytest.approx(float((by_hand * each).mean()), rel=1e-5)
    assert LabelLoss(0.1)(logits, labels) == F.cross_entropy(logits, labels, label_smoothing=0.1)


def test_the_choice_is_part_of_the_recipe():
    assert "balance" not in Recipe().to_dict()  # runs of before there was a choice resume
    chosen = Recipe().with_text(["balance=sampling"])
    assert Recipe.from_dict(chosen.to_dict()) == chosen != Recipe()
    with pytest.raises(UserError, match="balance must be none, sampling or weights, not 'both'"):
        Recipe(balance="both")
    assert [uneven(np.array(counts)) for counts in ([50, 10], [51, 10], [51, 0], [0, 0])] == [False, True, False, False]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """95 : 5 images, whose brightnesses overlap: at best 76 % of either are right; the test split is even."""
    folder = tmp_path_factory.mktemp("uneven")
    rng = np.random.default_rng(0)
    for part, counts in (("train", (380, 20)), ("val", (80, 80))):
        for name, count in zip(("common", "rare"), counts, strict=True):
            (folder / "data" / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.normal(rng.normal(118 + 20 * (name == "rare"), 14), 10, (16, 16, 3))
                path = folder / "data" / part / name / f"{i}.png"
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    (folder / "tiny.yaml").write_text(SPACE)
    SearchSpace.load(folder / "tiny.yaml").smallest.save(folder / "smallest.json")
    return folder


def test_balance_lifts_the_rare_class(place):
    """Through the command: balanced accuracy rises by far, and a training that does nothing is told of it."""
    found = {}
    for balance in (None, "sampling", "weights"):
        out = place / str(balance)
        given = ["--data", place / "data", "--epochs", 6, "--batch-size", 32, "--out", out, "--json"]
        given += ["--learning-rate", 0.2, "--set", "label_smoothing=0"]
        given += ["--balance", balance] if balance else []
        answer = ask("train", "--architecture", place / "smallest.json", *given)
        found[balance] = answer.json()["test"]["balanced_accuracy"]
        told = "note: uneven classes: common has 380 images to learn from, rare 20; --balance sampling" in answer.err
        assert told == (balance is None), answer.err
    print(found)
    assert found[None] < 0.6
    assert min(found["sampling"], found["weights"]) > found[None] + 0.1
    config = (place / "sampling" / "config.yaml").read_text()
    assert "balance: sampling" in config
    again = ["train", "--architecture", place / "smallest.json", "--data", place / "data", "--epochs", 6]
    ask(*again, "--batch-size", 32, "--out", place / "sampling").fails(2, "balance")
    ask(*again, "--balance", "both", "--out", place / "new").fails(2, "both", "sampling", alone=True)


@pytest.mark.parametrize("balance", ["sampling", "weights"])
def test_supernets_and_teachers_take_it_too(place, tmp_path, balance):
    common = ["--data", place / "data", "--epochs", 1, "--batch-size", 16, "--balance", balance]
    ask("supernet", "--space", place / "tiny.yaml", *common, "--out", tmp_path / "supernet").succeeds()
    taught = ["--teacher", f"test_resnet={tmp_path}/teacher.pth", "--teacher-cache", 1, "--validate"]
    import timm

    torch.save(timm.create_model("test_resnet", num_classes=2).state_dict(), tmp_path / "teacher.pth")
    ask("train", "--architecture", place / "smallest.json", *common, *taught, "--out", tmp_path / "taught").succeeds()
    facts = json.loads((tmp_path / "taught" / "teacher" / "answers.json").read_text())
    assert facts.get("balance") == ("sampling" if balance == "sampling" else None)
    metrics = (tmp_path / "taught" / "metrics.jsonl").read_text()
    assert "balanced_accuracy_search" in metrics
