"""One step of a supernet's training against four networks of their own, what it leaves alone, and its options."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pocketformer import Supernet
from pocketformer.errors import UserError
from pocketformer.supernet.sampling import LatencyAware, Sandwich, Uniform
from pocketformer.training.compute import Compute
from pocketformer.training.recipe import Recipe
from pocketformer.training.targets import InPlace, Labels, Taught
from pocketformer.training.tasks import SandwichTask
from subnets import scattered, shared_names
from trainings import SPACE, assert_equal, go, watch

torch.set_num_threads(1)


def supernet(drop_path=0.0):
    torch.manual_seed(0)
    return Supernet(SPACE, 3, distilled=False, layer_scale=0.5, drop_path=drop_path)


def macs(architecture):
    return architecture.macs(num_classes=3, distilled=False)


class Answering(nn.Module):
    """A teacher that takes the mean colour of images, under a normalisation of its own, for their class."""

    pretrained_cfg = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}  # noqa: RUF012

    def forward(self, x):
        return 3 * x.mean((2, 3))


# --- gradients


def batch(n=12):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, 16, 16, generator=generator).double(), torch.randint(3, (n,), generator=generator)


def teachers_answers(x):
    cfg = Answering.pretrained_cfg
    mean, std = (torch.tensor(cfg[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    return Answering()((x * 0.5 + 0.5 - mean) / std)


def losses_of(kind, x, labels):
    """Literally: (the largest's logits, a subnet's logits, whether it is the largest) to the subnet's loss."""

    def given(y):
        return F.cross_entropy(y, labels, label_smoothing=0.1)

    def hard(y):
        return given(y) / 2 + F.cross_entropy(y, teachers_answers(x).argmax(1)) / 2

    def soft(y):
        return given(y) / 2 - (teachers_answers(x).softmax(1) * y.log_softmax(1)).sum(1).mean() / 2

    def largest(top, y):
        return -(top.softmax(1) * y.log_softmax(1)).sum(1).mean()

    def in_place(first):
        return lambda top, y, is_top: first(y) if is_top else first(y) / 2 + largest(top, y) / 2

    return {
        "plain": lambda top, y, is_top: given(y),
        "hard teacher": lambda top, y, is_top: hard(y),
        "soft teacher": lambda top, y, is_top: soft(y),
        "in-place": in_place(given),
        "in-place alone": lambda top, y, is_top: given(y) if is_top else largest(top, y),
        "in-place, hard teacher": in_place(hard),
    }[kind]


TARGETS = {
    "plain": lambda: Labels(0.1),
    "hard teacher": lambda: Taught(Labels(0.1), Answering()),
    "soft teacher": lambda: Taught(Labels(0.1), Answering(), "soft"),
    "in-place": lambda: InPlace(Labels(0.1)),
    "in-place alone": lambda: InPlace(Labels(0.1), share=1),
    "in-place, hard teacher": lambda: InPlace(Taught(Labels(0.1), Answering())),
}


@pytest.mark.parametrize("kind", TARGETS)
def test_a_step_is_the_sum_of_four_networks(kind):
    net, (x, labels), rule = supernet().double().train(), batch(), Sandwich(SPACE, seed=4)
    subnets = rule.subnets(7)
    statics = [net.extract(subnet) for subnet in subnets]
    first = {name: buffer.clone() for name, buffer in net.named_buffers()}
    figures = SandwichTask(net, rule, TARGETS[kind]()).run(x, labels, 7, torch.Tensor.backward)

    expected, statistics, losses, top = {}, first, [], None
    for i, (static, subnet) in enumerate(zip(statics, subnets, strict=True)):
        before = {name: buffer.clone() for name, buffer in static.named_buffers()}
        logits = static(x)
        top = logits.detach() if i == 0 else top
        losses.append(losses_of(kind, x, labels)(top, logits, i == 0))
        losses[-1].backward()
        parameters = dict(static.named_parameters())
        for name, shared in shared_names(subnet, parameters).items():
            whole = scattered(parameters[name].grad, net.get_parameter(shared))
            expected[shared] = expected.get(shared, 0) + whole
        # A norm that several subnets share moves by each of their statistics, in their order.
        moved = {n: b for n, b in static.named_buffers() if "running" in n}
        for name, shared in shared_names(subnet, moved).items():
            seen = (moved[name] - 0.9 * before[name]) / 0.1
            statistics = {**statistics, shared: 0.9 * statistics[shared] + 0.1 * seen}

    for name, parameter in net.named_parameters():
        assert (parameter.grad is None) == (name not in expected), name
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-9, atol=1e-11, msg=name)
    for name, buffer in net.named_buffers():
        if "running" in name:
            torch.testing.assert_close(buffer, statistics[name], rtol=1e-9, atol=1e-11, msg=name)
    names = ("loss", "loss_smallest", "loss_random_1", "loss_random_2")
    assert [figures[name].item() for name in names] == pytest.approx([loss.item() for loss in losses])


def test_uniform_sampling_learns_from_the_labels_alone():
    net, (x, labels), rule = supernet().double().train(), batch(), Uniform(SPACE, 2, seed=1)
    with pytest.raises(UserError, match="needs the largest subnet in every step") as refusal:
        SandwichTask(net, rule)
    assert "\n" not in str(refusal.value)
    figures = SandwichTask(net, rule, Labels()).run(x, labels, 0, torch.Tensor.backward)
    with torch.no_grad():
        found = [F.cross_entropy(net(x, subnet), labels).item() for subnet in rule.subnets(0)]
    assert [figures[f"loss_random_{i}"].item() for i in (1, 2)] == pytest.approx(found)
    assert figures["loss"].item() == pytest.approx(sum(found) / 2)


def test_what_no_subnet_uses_stays(tmp_path, monkeypatch):
    """AdamW with weight decay, two steps: also what only the first of them used does not move in the second."""
    rule, states = Uniform(SPACE, 1, seed=3), []
    watch(monkeypatch, lambda state, rate: states.append(copy.deepcopy(state.model.state_dict())))
    recipe = Recipe.small_images(epochs=1, batch_size=48, weight_decay=0.5, warmup_epochs=0, ema=0)
    states.append(go(tmp_path, SandwichTask(supernet(), rule, Labels()), recipe).model.state_dict())
    before, between, after = states
    names = [name for name, _ in supernet().named_parameters()]
    for step, (old, new) in enumerate(((before, between), (between, after))):
        (subnet,) = rule.subnets(step)
        used = set(shared_names(subnet, supernet().extract(subnet).state_dict()).values())
        moved = {name for name in names if not torch.equal(old[name], new[name])}
        assert moved == used.intersection(names)
        assert moved < set(names)
    assert any(not torch.equal(before[n], between[n]) and torch.equal(between[n], after[n]) for n in names)


# --- gradient checkpointing


def test_checkpointing_changes_nothing_but_memory():
    """Bit for bit: gradients, running statistics and their counters, with paths dropped at random."""
    found, calls, (x, labels) = [], [], batch()
    for checkpointing in (False, True):
        net = Compute(checkpointing=checkpointing).prepare(supernet(drop_path=0.5)).double().train()
        net.stages[2][1].fc1.conv.register_forward_hook(lambda *_, kind=checkpointing: calls.append(kind))
        torch.manual_seed(5)
        figures = SandwichTask(net, Sandwich(SPACE, seed=4)).run(x, labels, 7, torch.Tensor.backward)
        gradients = {f"gradient of {n}": p.grad for n, p in net.named_parameters() if p.grad is not None}
        found.append({**figures, **gradients, **dict(net.named_buffers())})
    assert_equal(*found)
    assert calls.count(True) == 2 * calls.count(False) > 0
    # Neither evaluation nor the search computes anything twice.
    with torch.no_grad():
        net(x, SPACE.whole)
    net.eval()(x, SPACE.whole)
    assert calls.count(True) == 2 * calls.count(False) + 2


def test_checkpointing_keeps_less():
    kept = []
    for checkpointing in (False, True):
        net, sizes = supernet().train(), []
        net.set_grad_checkpointing(checkpointing)
        with torch.autograd.graph.saved_tensors_hooks(lambda x, s=sizes: s.append(x.nbytes) or x, lambda x: x):
            net(torch.randn(16, 3, 16, 16), SPACE.whole)
        kept.append(sum(sizes))
    assert kept[1] < 0.5 * kept[0]


# --- killed and resumed


class Killed(SandwichTask):
    def run(self, images, targets, step, backward):
        if step == 4:
            raise KeyboardInterrupt
        return super().run(images, targets, step, backward)


OPTIONS = {
    "uniform": (lambda: Uniform(SPACE, 2, seed=1), Labels, Compute()),
    "latency, teacher": (
        lambda: LatencyAware(SPACE, macs, 1, seed=1, budget=0.5 * macs(SPACE.largest)),
        lambda: InPlace(Taught(Labels(), Answering(), "soft")),
        Compute(checkpointing=True),
    ),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_killed_and_resumed(options, tmp_path):
    rule, targets, compute = options
    recipe = Recipe.small_images(epochs=2, batch_size=32, checkpoint_every=3)  # six steps
    whole = go(tmp_path / "whole", SandwichTask(supernet(0.2), rule(), targets()), recipe, compute=compute)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "broken", Killed(supernet(0.2), rule(), targets()), recipe, compute=compute)
    again = go(tmp_path / "broken", SandwichTask(supernet(0.2), rule(), targets()), recipe, compute=compute)
    assert_equal(whole.averaged.state_dict(), again.averaged.state_dict())
