"""What one step of a training does, and the statistics of an accuracy, against independent computations."""

import copy
import functools
import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.data.mixup import mixup_target
from timm.utils.agc import adaptive_clip_grad
from torch import nn

from pocketformer.errors import UserError
from pocketformer.models import create_model
from pocketformer.models.layouts import names
from pocketformer.supernet import Supernet
from pocketformer.supernet.sampling import Sandwich
from pocketformer.training.batches import TrainBatches, eval_batches
from pocketformer.training.compute import Compute
from pocketformer.training.evaluation import (
    Outcome,
    accuracy_interval,
    evaluate,
    paired_difference,
    recalibrate,
)
from pocketformer.training.mixing import Mixing
from pocketformer.training.recipe import Recipe
from pocketformer.training.state import TrainingState
from pocketformer.training.tasks import DistillationTask, SandwichTask, SingleTask
from test_golden import FOLDER, golden, golden_model
from trainings import SPACE, Steps, assert_equal, go, gradients, model, noisy_brightness, watch

torch.set_num_threads(1)

ONE_STEP = Recipe.small_images(epochs=1, batch_size=32, checkpoint_every=1)
SIZE = (16, 16)


@pytest.fixture
def split():
    return noisy_brightness()


class Answering(nn.Module):
    """A teacher that is sure of given classes."""

    def __init__(self, *answers: int):
        super().__init__()
        self.answers = answers
        self.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return F.one_hot(torch.tensor(self.answers), 1000).to(images.dtype)


@pytest.mark.parametrize("name", ["efficientformer_l1", "efficientformerv2_s0"])
def test_a_step_is_that_of_the_published_code(name, tmp_path, monkeypatch):
    """Through the whole engine, in float64: loss, every gradient before and after adaptive clipping, every running
    statistic."""
    data, clipped = golden(name), np.load(FOLDER / "clipped.npz")[name]
    net, x = copy.deepcopy(golden_model(name))
    before, after = [], gradients(monkeypatch)
    clip = TrainingState.clip

    def look(state):
        before.extend(parameter.grad.clone() for parameter in state.model.parameters())
        clip(state)

    monkeypatch.setattr(TrainingState, "clip", look)
    recipe = Recipe.imagenet(1, batch_size=2, ema=0, mixup=0, cutmix=0)
    task = DistillationTask(net.double(), Answering(5, 11), label_smoothing=0)
    go(tmp_path, task, recipe, Steps((x.double(), torch.tensor([3, 7]))))
    ours = {theirs: key for key, theirs in names(net.architecture, "official", net.state_dict()).items()}
    parameters, buffers = [key for key, _ in net.named_parameters()], dict(net.named_buffers())
    before, after = dict(zip(parameters, before, strict=True)), after[0]
    wanted = zip(
        data["train_param_names"], data["train_grad_norm_f64"], data["train_grad_first4_f64"], clipped, strict=True
    )
    for theirs, norm, first, norm_after in wanted:
        key = ours[str(theirs)]
        if norm < 1e-8:  # zero in theory: rounding noise
            assert before[key].norm() < 1e-8, theirs
            continue
        assert before[key].norm().item() == pytest.approx(norm, rel=1e-7), theirs
        first = torch.from_numpy(first)[: before[key].numel()]
        torch.testing.assert_close(before[key].flatten()[:4], first, rtol=1e-6, atol=1e-9, msg=str(theirs))
        assert after[key].norm().item() == pytest.approx(norm_after, rel=1e-7), theirs
    for i, theirs in enumerate(data["train_bn_stat_names"]):
        statistic = buffers[ours[str(theirs)]]
        assert statistic.mean().item() == pytest.approx(data["train_bn_stat_mean_after_f64"][i], abs=1e-9), theirs
        assert statistic[0].item() == pytest.approx(data["train_bn_stat_first_f64"][i], abs=1e-9), theirs


def test_clipping_is_timms(tmp_path, monkeypatch):
    whole, clipped = gradients(monkeypatch), []
    for clip in (0.0, 0.02):
        go(tmp_path / str(clip), SingleTask(model()), Recipe.small_images(epochs=1, batch_size=96, clip=clip))
    net = model()
    for name, parameter in net.named_parameters():
        parameter.grad = whole[0][name].clone()
    adaptive_clip_grad([p for name, p in net.named_parameters() if not name.endswith("gamma")], 0.02)
    for name, parameter in net.named_parameters():
        if name.endswith("gamma"):  # timm takes a vector for one unit; of V2's layer scale each channel is one
            limit = 0.02 * parameter.abs().clamp(min=1e-3)
            parameter.grad.copy_(parameter.grad.clamp(-limit, limit))
        torch.testing.assert_close(whole[1][name], parameter.grad, msg=name)
        clipped.append(not torch.equal(whole[1][name], whole[0][name]))
    assert any(clipped)
    assert not all(clipped)


# --- mixing


@pytest.mark.parametrize("changes", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_mixing_is_timms_and_a_function_of_seed_and_step(changes, split):
    images, labels = next(iter(eval_batches(split, 8, SIZE)))
    mixing = Mixing(Recipe(**changes), 3, seed=5)
    np.random.seed(1)
    state, as_it_was = np.random.get_state(), images.clone()
    mixed = [mixing(images, labels, step) for step in (0, 1, 2, 3, 0)]
    assert torch.equal(images, as_it_was)
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), state, strict=True))
    assert torch.equal(mixed[0][0], mixed[4][0])
    assert torch.equal(mixed[0][1], mixed[4][1])
    assert not torch.equal(mixed[0][0], mixed[1][0])
    assert not torch.equal(mixed[0][0], Mixing(Recipe(**changes), 3, seed=6)(images, labels, 0)[0])
    for step, (found, targets) in enumerate(mixed[:4]):
        # The share of the labels is that of timm's own function, and it is the share of the images too.
        plain = F.one_hot(labels, 3) * 0.9 + 0.1 / 3
        shares = (targets - plain.flip(0)).norm() / (plain - plain.flip(0)).norm()
        torch.testing.assert_close(targets, mixup_target(labels, 3, float(shares), 0.1))
        is_blend = torch.allclose(found, images * shares + images.flip(0) * (1 - shares), atol=1e-5)
        of_first = (found == images).all(1)
        is_cut = bool((of_first | (found == images.flip(0)).all(1)).all())
        assert is_blend or is_cut, step
        assert (
            is_blend or not is_cut or of_first.float().mean(dim=(1, 2)).amin() == pytest.approx(float(shares), abs=0.02)
        )
        timms = Mixup(**{f"{k}_alpha": Recipe(**changes).__dict__[k] for k in ("mixup", "cutmix")}, num_classes=3)
        np.random.seed(np.random.SeedSequence([5, step]).generate_state(4))
        theirs, their_targets = timms(images.clone(), labels)
        assert torch.equal(found, theirs)
        assert torch.equal(targets, their_targets)


def test_mixed_batches_are_learned_from(tmp_path, split, monkeypatch):
    recipe = Recipe.small_images(epochs=1, batch_size=96, mixup=0.8, cutmix=1.0, crop_scale=(1, 1), flip=False)
    found, mixing = gradients(monkeypatch), Mixing(recipe, 3, 3)
    go(tmp_path, SingleTask(model(drop_path=0)), recipe, mix=mixing)
    net = model(drop_path=0).train()
    images, labels = TrainBatches(split, 96, SIZE, recipe.augmentation, 3).batch(0)
    mixed, targets = mixing(images, labels, 0)
    F.cross_entropy(net(mixed), targets).backward()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(found[0][name], parameter.grad, msg=name)


def test_mixing_needs_pairs(tmp_path, split):
    batches = Steps(next(iter(eval_batches(split, 5, SIZE))))
    with pytest.raises(UserError, match="even number of images a batch and process, not 5"):
        go(tmp_path, SingleTask(model()), ONE_STEP, batches, mix=Mixing(Recipe(mixup=0.8), 3, 0))


# --- the moving average


def test_the_moving_average_is_the_literal_one(tmp_path, monkeypatch):
    """timm's warm-up: the average follows the weights closely at first."""
    recipe, trail = Recipe.small_images(epochs=3, batch_size=32, ema=0.6), []
    watch(monkeypatch, lambda state, rate: trail.append(copy.deepcopy(state.model.state_dict())), after=True)
    state = go(tmp_path, SingleTask(model()), recipe)
    average = trail[0]
    for updates, weights in enumerate(trail[1:], 1):
        decay = min(0.6, 1 - (1 + updates) ** (-2 / 3))
        for name, tensor in weights.items():
            average[name] = decay * average[name] + (1 - decay) * tensor if tensor.is_floating_point() else tensor
    assert len(trail) == 9
    for name, tensor in state.averaged.state_dict().items():
        torch.testing.assert_close(tensor, average[name], msg=name)
    assert_equal(state.model.state_dict(), trail[-1])  # the weights that are trained are others
    assert not torch.equal(state.averaged.head.weight, state.model.head.weight)


# --- parts, precisions and memory


class Plain(nn.Sequential):
    """No norms: an image's gradient does not depend on its batch."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(nn.Conv2d(3, 8, 3, 2), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


@pytest.mark.parametrize("parts", [2, 3, 32])
def test_the_parts_of_a_batch_add_up_to_the_whole(parts, tmp_path, monkeypatch):
    found = gradients(monkeypatch)
    for compute in (Compute(), Compute(accumulate=parts)):
        go(tmp_path / str(compute.accumulate), SingleTask(Plain(), 0.1), ONE_STEP, compute=compute)
    assert len(found) == 6
    for name in found[0]:
        torch.testing.assert_close(found[3][name], found[0][name], msg=name)
    whole, in_parts = ((tmp_path / n / "metrics.jsonl").read_text() for n in ("1", str(parts)))
    losses = [[float(x) for x in re.findall(r'"loss": ([^,]*)', text)] for text in (whole, in_parts)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def supernet() -> Supernet:
    torch.manual_seed(0)
    return Supernet(SPACE, 3, distilled=False, layer_scale=0.5)


@pytest.mark.parametrize(
    "task", [lambda: SingleTask(model()), lambda: SandwichTask(supernet(), Sandwich(SPACE, seed=4))]
)
def test_bfloat16(task, tmp_path, monkeypatch):
    found = gradients(monkeypatch)
    for precision in ("float32", "bfloat16"):
        state = go(tmp_path / precision, task(), ONE_STEP, compute=Compute(precision=precision))
    assert {tensor.dtype for tensor in state.model.parameters()} == {torch.float32}
    assert state.finite()
    # The head's gradient follows from the features of all layers, and from nothing else that was rounded.
    full, half = found[0]["head.weight"], found[3]["head.weight"]
    assert 0 < (full - half).norm() < 0.1 * full.norm()
    assert all(g is None or g.dtype == torch.float32 for g in found[3].values())


def smallest() -> nn.Module:
    torch.manual_seed(0)
    return create_model(SPACE.smallest, 3, distilled=False, layer_scale=0.5)


def test_compiling_leaves_the_names_and_the_result(tmp_path, monkeypatch):
    monkeypatch.setattr(nn.Module, "compile", functools.partialmethod(nn.Module.compile, backend="aot_eager"))
    found, recipe = gradients(monkeypatch), Recipe.small_images(epochs=0.5, batch_size=48, ema=0.5)
    states = [
        go(tmp_path / str(compile), SingleTask(smallest()), recipe, compute=Compute(compile=compile))
        for compile in (False, True)
    ]
    assert states[1].model._compiled_call_impl is not None
    assert list(states[0].averaged.state_dict()) == list(states[1].averaged.state_dict())
    assert list(states[0].model.state_dict()) == list(states[1].model.state_dict())
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_recomputed_activations_give_the_same_gradients(tmp_path, monkeypatch):
    found = gradients(monkeypatch)
    for checkpointing in (False, True):
        go(tmp_path / str(checkpointing), SingleTask(model()), ONE_STEP, compute=Compute(checkpointing=checkpointing))
    for name in found[0]:
        torch.testing.assert_close(found[3][name], found[0][name], msg=name)
    with pytest.raises(UserError, match="gradient checkpointing: Linear has none"):
        Compute(checkpointing=True).prepare(nn.Linear(3, 3))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"precision": "float8"}, "precision is 'float8'; it must be one of float32, bfloat16, float16"),
        ({"precision": "float16"}, "needs a CUDA device"),
        ({"device": "tpu"}, "device is 'tpu'; it must be cpu or cuda"),
        ({"accumulate": 0}, "accumulate is 0"),
    ],
)
def test_what_cannot_compute_is_refused(wrong, words):
    with pytest.raises(UserError, match=re.escape(words)):
        Compute(**wrong)


# --- layers that learn less, or not


@pytest.mark.parametrize("stages", [1, 2, 4])
def test_frozen_stages_stay_bit_for_bit_and_the_rest_moves(stages, tmp_path):
    recipe = Recipe.small_images(epochs=2, batch_size=32, freeze=stages, ema=0.5, warmup_epochs=0)
    net = model()
    before = copy.deepcopy(net.state_dict())
    averaged = go(tmp_path, SingleTask(net), recipe).averaged
    recalibrate(net, noisy_brightness(), SIZE, 0)
    for after in (net, averaged):
        for name, tensor in after.state_dict().items():
            frozen = name.startswith(("stem.", *(f"stages.{i}." for i in range(stages))))
            assert torch.equal(tensor, before[name]) == frozen, name


def test_a_network_has_only_so_many_stages(tmp_path):
    with pytest.raises(UserError, match="freeze is 5; the network has 4 stages"):
        go(tmp_path, SingleTask(model()), Recipe(freeze=5))
    for recipe, words in (
        (Recipe(freeze=1), "freeze is 1; only single"),
        (Recipe(layer_decay=0.5), "layer_decay is 0.5"),
    ):
        with pytest.raises(UserError, match=words):
            go(tmp_path, SandwichTask(supernet(), Sandwich(SPACE)), recipe)


def test_rates_fall_from_layer_to_layer(tmp_path, monkeypatch):
    net, found = model(), {}
    # From the stem on, each block and each downsampling is a layer; the final norm belongs to the last block.
    order: list = ["stem."]
    for number, stage in enumerate(net.stages):
        order += [f"stages.{number}.downsample."] if list(stage.downsample.parameters()) else []
        order += [f"stages.{number}.blocks.{block}." for block in range(len(stage.blocks))]
    order[-1:] = [(order[-1], "norm."), "head."]

    def look(state, rate):
        by_tensor = {id(p): g["lr"] for g in state.optimiser.param_groups for p in g["params"]}
        found.update({name: by_tensor[id(p)] / rate for name, p in state.model.named_parameters()})

    watch(monkeypatch, look, after=True)
    go(tmp_path, SingleTask(net), Recipe.small_images(epochs=1, batch_size=96, layer_decay=0.8))
    scales = {}
    for name, scale in found.items():
        scales.setdefault(next(layer for layer in order if name.startswith(layer)), set()).add(round(scale, 9))
    assert [scales[layer] for layer in order] == [{round(0.8 ** (len(order) - 1 - i), 9)} for i in range(len(order))]


# --- accuracy


def test_training_learns_and_recalibrated_norms_match_plain_statistics(tmp_path, split):
    recipe = Recipe.small_images(epochs=12, batch_size=32, learning_rate=0.1, flip=False)
    net = model()
    go(tmp_path, SingleTask(net), recipe, TrainBatches(split, 32, SIZE, None, 0))
    recalibrate(net, split, SIZE, 0, images=96)
    assert evaluate(net.eval(), split, SIZE).accuracy > 0.9
    images, _ = next(iter(eval_batches(split, 96, SIZE)))
    first = net.stem.conv1.conv(images)  # the first norm sees the images alone
    assert torch.allclose(net.stem.conv1.norm.running_mean, first.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(net.stem.conv1.norm.running_var, first.var((0, 2, 3)), rtol=1e-3)


def test_intervals():
    low, high = accuracy_interval(80, 100)  # Wilson, worked by hand: 0.7112 to 0.8666
    assert (low, high) == pytest.approx((0.7112, 0.8666), abs=1e-4)
    rng = np.random.default_rng(0)
    a, b = (torch.from_numpy(rng.random(500) < p) for p in (0.8, 0.7))
    mean, half = paired_difference(*(Outcome(x.long(), torch.ones(500, dtype=torch.long), 0) for x in (a, b)))
    difference = a.double().numpy() - b.double().numpy()
    assert mean == pytest.approx(difference.mean())
    assert half == pytest.approx(1.96 * difference.std() / math.sqrt(500))
