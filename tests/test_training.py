"""Recipe, engine, distillation and the statistics of an accuracy, against independent computations."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pocketformer.architecture import SearchSpace
from pocketformer.errors import UserError, WorkError
from pocketformer.models import create_model
from pocketformer.runs import Ledger
from pocketformer.supernet import Supernet
from pocketformer.supernet.sampling import Sandwich
from pocketformer.training.batches import TrainBatches, eval_batches
from pocketformer.training.data import Split
from pocketformer.training.engine import Job, train
from pocketformer.training.evaluation import (
    Outcome,
    accuracy_interval,
    evaluate,
    paired_difference,
    recalibrate,
)
from pocketformer.training.recipe import Recipe
from pocketformer.training.tasks import DistillationTask, SandwichTask, SingleTask, load_teacher

SPACE = SearchSpace.from_dict(
    {
        "name": "tiny",
        "design": {
            "resolution": 16,
            "stem_strides": [2, 1],
            "stage_strides": [1, 2, 2],
            "heads": 2,
            "key_dim": 4,
            "value_dim": 4,
            "downsampling_heads": 2,
            "downsampling_key_dim": 4,
            "downsampling_value_dim": 4,
        },
        "expansions": [1, 2],
        "stages": [
            {"depth": 1, "widths": [4, 6]},
            {"depth": 1, "widths": [6, 8]},
            {"depth": 2, "widths": [8, 12], "attention": True},
            {"depth": 1, "widths": [8, 16], "attention": True},
        ],
    }
)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def split() -> Split:
    """Three classes of noisy brightness: learnable at once."""
    rng = np.random.default_rng(0)
    labels = np.arange(96) % 3
    images = 40 + 80 * labels[:, None, None, None] + rng.integers(0, 40, (96, 3, 16, 16))
    return Split("fit", torch.from_numpy(images.astype(np.uint8)), torch.from_numpy(labels))


def model(distilled: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return create_model(SPACE.largest, 3, distilled=distilled, layer_scale=0.5, drop_path=0.2)


def test_learning_rate_is_warmup_then_half_a_cosine():
    recipe = Recipe(epochs=10, warmup_epochs=2, learning_rate=1e-3, min_lr=1e-5, batch_size=512)
    rates = [recipe.rate(s, 100, 10, 512) for s in range(100)]
    peak = 1e-3 * 512 / 1024
    assert rates[:20] == pytest.approx(np.linspace(peak / 20, peak, 20))
    # torch's own schedule over the 80 steps after the warm-up
    parameter = nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([parameter], lr=peak)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 80, eta_min=1e-5)
    expected = []
    for _ in range(80):
        expected.append(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()
    assert rates[20:] == pytest.approx(expected)


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"batch_size": -1}, {"learning_rate": math.nan}, {"drop_path": -0.1}])
def test_recipe_refuses(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        Recipe(**wrong)


def test_training_resumed_at_a_checkpoint_ends_bit_for_bit(tmp_path, split):
    """Drop path and augmentation included; the second part runs in a new model and optimiser."""
    recipe = Recipe.small_images(epochs=4, batch_size=32, checkpoint_every=5)  # 12 steps
    batches = TrainBatches(split, 32, (16, 16), recipe.augmentation, 3)

    def go(folder, task):
        with Ledger(folder / "work.jsonl") as ledger:
            train(task, batches, recipe, Job(folder, "t", ledger), 3)
        return task.model.state_dict()

    whole = go(tmp_path / "a", SingleTask(model()))

    class Killed(SingleTask):
        def backward(self, images, labels, step):
            if step == 7:
                raise KeyboardInterrupt
            return super().backward(images, labels, step)

    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "b", Killed(model()))
    torch.manual_seed(99)  # whatever the process did before must not matter
    resumed = go(tmp_path / "b", SingleTask(model()))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert (tmp_path / "a/metrics.jsonl").read_text() == (tmp_path / "b/metrics.jsonl").read_text()


def test_training_learns_and_recalibrated_norms_match_plain_statistics(tmp_path, split):
    recipe = Recipe.small_images(epochs=12, batch_size=32, learning_rate=0.1, flip=False)
    net = model()
    batches = TrainBatches(split, 32, (16, 16), None, 0)
    with Ledger(tmp_path / "work.jsonl") as ledger:
        train(SingleTask(net), batches, recipe, Job(tmp_path, "t", ledger), 0)
    recalibrate(net, split, (16, 16), 0, images=96)
    assert evaluate(net.eval(), split, (16, 16)).accuracy > 0.9
    images, _ = next(iter(eval_batches(split, 96, (16, 16))))
    first = net.stem.conv1.conv(images)  # the first norm sees the images alone
    assert torch.allclose(net.stem.conv1.norm.running_mean, first.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(net.stem.conv1.norm.running_var, first.var((0, 2, 3)), rtol=1e-3)


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path, split):
    net = model()
    net.head.bias.data[0] = math.inf
    batches = TrainBatches(split, 32, (16, 16), None, 0)
    with Ledger(tmp_path / "work.jsonl") as ledger, pytest.raises(WorkError, match="step 0"):
        train(SingleTask(net), batches, Recipe.small_images(epochs=1), Job(tmp_path, "t", ledger), 0)


def test_hard_distillation_is_half_labels_and_half_teacher(split):
    net = model(distilled=True)
    torch.manual_seed(1)
    teacher = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3)).eval()
    images, labels = next(iter(eval_batches(split, 12, (16, 16))))
    task = DistillationTask(net, teacher, label_smoothing=0.1)
    net.train()
    torch.manual_seed(5)
    figures = task.backward(images, labels, 0)
    torch.manual_seed(5)  # the same drop path
    head, distilled = net(images)
    # The student sees (x - 0.5) / 0.5; a teacher without a configuration expects ImageNet's mean and std.
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    answers = teacher((images * 0.5 + 0.5 - mean) / std).argmax(1)
    expected = 0.5 * F.cross_entropy(head, labels, label_smoothing=0.1) + 0.5 * F.cross_entropy(distilled, answers)
    assert figures["loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert net.head_dist.weight.grad.abs().sum() > 0


def test_teacher_from_a_file(tmp_path):
    import timm

    torch.manual_seed(0)
    source = timm.create_model("mobilenetv3_small_050", num_classes=3)
    torch.save(source.state_dict(), tmp_path / "teacher.pth")
    teacher = load_teacher(f"mobilenetv3_small_050={tmp_path / 'teacher.pth'}", 3)
    assert torch.equal(teacher.classifier.weight, source.classifier.weight)
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    with pytest.raises(UserError, match="not a timm model"):
        load_teacher("no_such_teacher", 3)


@pytest.mark.parametrize("in_place", [True, False])
def test_sandwich_gradients_are_the_sum_of_four_static_networks(split, in_place):
    torch.manual_seed(0)
    supernet = Supernet(SPACE, 3, distilled=False, layer_scale=0.5).train()
    images, labels = next(iter(eval_batches(split, 24, (16, 16))))
    rule = Sandwich(SPACE, seed=4)
    subnets = rule.subnets(7)
    statics = [supernet.extract(subnet) for subnet in subnets]  # norms as they were before the step
    # A switch that two subnets share is one norm: its statistics move twice, its gradient does not depend on it.
    SandwichTask(supernet, rule, 0.1, in_place).backward(images, labels, 7)
    target, expected = None, copy.deepcopy(supernet)
    for parameter in expected.parameters():
        parameter.grad = None
    for static, subnet in zip(statics, subnets, strict=True):
        logits = static(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=0.1)
        if in_place and target is not None:
            loss = F.cross_entropy(logits, target)
        loss.backward()
        if target is None:
            target = logits.detach().softmax(1)
        _scatter(expected, static, subnet)
    for (name, a), (_, b) in zip(supernet.named_parameters(), expected.named_parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None:
            assert torch.allclose(a.grad, b.grad, atol=1e-5), name


def _scatter(supernet: Supernet, static: nn.Module, subnet) -> None:
    """Adds a static network's gradients to the slices of the shared tensors that it was copied from, found by
    marking: every shared number is replaced by its own index, and the extraction then says where it went."""
    marked = copy.deepcopy(supernet).double()
    owners, count = [], 0
    for parameter in marked.parameters():
        size = parameter.numel()
        parameter.data = torch.arange(count, count + size, dtype=torch.float64).reshape(parameter.shape)
        owners.append((count, size))
        count += size
    flat = torch.zeros(count)
    used = torch.zeros(count, dtype=torch.bool)
    for place, own in zip(marked.extract(subnet).parameters(), static.parameters(), strict=True):
        index = place.detach().long().reshape(-1)
        flat[index] += own.grad.reshape(-1)
        used[index] = True
    for parameter, (start, size) in zip(supernet.parameters(), owners, strict=True):
        if used[start : start + size].any():
            addition = flat[start : start + size].reshape(parameter.shape)
            parameter.grad = addition if parameter.grad is None else parameter.grad + addition


def test_intervals():
    low, high = accuracy_interval(80, 100)  # Wilson, worked by hand: 0.7112 to 0.8666
    assert (low, high) == pytest.approx((0.7112, 0.8666), abs=1e-4)
    rng = np.random.default_rng(0)
    a, b = (torch.from_numpy(rng.random(500) < p) for p in (0.8, 0.7))
    mean, half = paired_difference(Outcome(a, 0), Outcome(b, 0))
    difference = a.double().numpy() - b.double().numpy()
    assert mean == pytest.approx(difference.mean())
    assert half == pytest.approx(1.96 * difference.std() / math.sqrt(500))
