"""V1's supernet: members against extracted networks, eq. 8 written out, cut widths against masks, trainings."""

import copy
import itertools
import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metapaths import ATTENTION, DEPTHS, TINY, all_kinds, images, member, perturbed_supernet
from pocketformer import MetaPathSupernet
from pocketformer.errors import UserError
from pocketformer.supernet.channels import sort_channels
from pocketformer.supernet.gumbel import Draw, Exploration
from pocketformer.training.recipe import Recipe
from pocketformer.training.targets import Labels
from pocketformer.training.tasks import MetaPathTask, SandwichTask
from trainings import assert_equal, go, watch

torch.set_num_threads(1)


# --- members with the supernet's weights


@torch.no_grad()
def test_a_member_is_its_extracted_network():
    net = perturbed_supernet().double().eval()
    x, outputs = images(5).double(), []
    chosen = [TINY.sample_selection(seed) for seed in range(40)]
    chosen += [TINY.whole, TINY.minimum, *(member(kinds, (4, 6, 10, 12)) for kinds in all_kinds()[::7])]
    for selection in dict.fromkeys(chosen):
        outputs.append(net(x, selection))
        static = net.extract(selection)
        assert torch.allclose(outputs[-1], static(x), rtol=0, atol=1e-9)
        assert static.architecture == selection.architecture
        numbers = sum(p.numel() for p in static.parameters())
        assert numbers == selection.architecture.parameters(7, distilled=False)
    assert torch.pdist(torch.stack(outputs).flatten(1)).min() > 1e-3  # the comparison can tell members apart


@torch.no_grad()
def test_calibrated_norms_are_those_of_an_extracted_copy():
    net = perturbed_supernet().double().eval()
    x = images(9).double()
    for selection in (TINY.sample_selection(1), member(all_kinds()[0], (4, 8, 10, 12))):
        before, static = net(x, selection), net.extract(selection)
        norms = [m for m in static.modules() if isinstance(m, nn.BatchNorm2d)]
        with net.calibrated(5):
            scores = net(x, selection)
        for norm in norms:  # in order of execution, those before already calibrated
            norm.reset_running_stats()
            norm.momentum = None  # the average over what it has seen: these images
            norm.train()
            static(x[:5])
            norm.eval()
        assert torch.allclose(static(x), scores, rtol=0, atol=1e-9)
        assert not torch.allclose(before, scores, atol=1e-2)
        assert torch.equal(net(x, selection), before)


def test_a_member_in_training():
    """Gradients land in the slices, statistics move as the network's own; alpha is left alone."""
    net, x = perturbed_supernet().double().train(), images(6).double()
    selection = member(("4D", "I", "4D", "4D", "3D", "3D", "3D"), (4, 8, 10, 12))
    static = net.extract(selection)
    for model, arguments in ((net, (x, selection)), (static, (x,))):
        F.cross_entropy(model(*arguments), torch.arange(6)).backward()
    ours = net.downsamples[1].conv
    theirs = static.stages[2].downsample.conv
    assert torch.allclose(ours.conv.weight.grad[:10, :8], theirs.conv.weight.grad, rtol=1e-9, atol=1e-11)
    assert ours.conv.weight.grad[10:].count_nonzero() == 0
    assert torch.allclose(ours.norm.running_mean[:10], theirs.norm.running_mean, rtol=1e-9, atol=1e-11)
    assert all(path.alpha.grad is None for path in net.paths)
    assert net.stages[0][1].local.fc1.conv.weight.grad is None


# --- eq. 8


class Literal:
    """V1's blocks by their equations, from a state dict."""

    def __init__(self, state):
        self.state = state

    def conv(self, x, name, stride=1):
        s, pad = self.state, self.state[f"{name}.conv.weight"].shape[-1] // 2
        x = F.conv2d(x, s[f"{name}.conv.weight"], s[f"{name}.conv.bias"], stride, pad)
        return self.batch_norm(x, f"{name}.norm")

    def batch_norm(self, x, name):
        vectors = ("running_mean", "running_var", "weight", "bias")
        mean, var, weight, bias = (self.state[f"{name}.{n}"][:, None, None] for n in vectors)
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    def norm(self, t, name):
        centred = t - t.mean(-1, keepdim=True)
        t = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return t * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def linear(self, t, name):
        return t @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def mb4d(self, x, name):
        ones = F.avg_pool2d(torch.ones_like(x), 3, 1, 1)
        pooled = F.avg_pool2d(x, 3, 1, 1) / ones  # padding is not counted
        x = x + self.state[f"{name}.mixer_scale.gamma"][:, None, None] * (pooled - x)
        y = self.conv(F.gelu(self.conv(x, f"{name}.fc1")), f"{name}.fc2")
        return x + self.state[f"{name}.scale.gamma"][:, None, None] * y

    def mb3d(self, x, name):
        size = x.shape[2:]
        t = x.flatten(2).transpose(1, 2)
        a = f"{name}.attention"
        qkv = self.linear(self.norm(t, f"{a}.norm"), f"{a}.qkv").unflatten(-1, (2, 14))  # q, k, v of each head: 4, 4, 6
        heads = []
        for head in range(2):
            q, k, v = qkv[:, :, head, :4], qkv[:, :, head, 4:8], qkv[:, :, head, 8:]
            place = torch.tensor(list(itertools.product(range(size[0]), range(size[1]))))
            offset = (place[:, None] - place[None]).abs()
            bias = self.state[f"{a}.bias.table"][head][offset[..., 0] * size[1] + offset[..., 1]]
            heads.append((q @ k.transpose(1, 2) / 2 + bias).softmax(-1) @ v)
        t = t + self.state[f"{a}.scale.gamma"] * self.linear(torch.cat(heads, -1), f"{a}.proj")
        m = f"{name}.mlp"
        y = self.linear(F.gelu(self.linear(self.norm(t, f"{m}.norm"), f"{m}.fc1")), f"{m}.fc2")
        t = t + self.state[f"{m}.scale.gamma"] * y
        return t.transpose(1, 2).unflatten(2, tuple(size))

    def network(self, x, noise, temperature):
        """Eq. 8 from image to logits. The head: with what share networks end on tokens, by the last block kept."""
        x = self.conv(F.relu(self.conv(x, "stem.conv1", 2)), "stem.conv2")
        x, noise = F.relu(x), iter(noise)
        for j, depth in enumerate(DEPTHS):
            if j > 0:
                x = self.conv(x, f"downsamples.{j - 1}.conv", (1, 1, 2, 2)[j])
            drawn = []
            for i in range(depth):
                name = f"stages.{j}.{i}"
                logits = (self.state[f"{name}.alpha"] + next(noise)) / temperature
                p = logits.exp() / logits.exp().sum()
                drawn.append(p)
                outputs = [self.mb4d(x, f"{name}.local"), *([self.mb3d(x, name)] if ATTENTION[j] else []), x]
                x = sum(share * y for share, y in zip(p, outputs, strict=True))
        # The last stage ends on tokens if its last block that is no identity is an MB3D.
        before, last = drawn
        tokens = last[1] + last[2] * before[1]
        on_map = self.batch_norm(x, "norms.bn").mean((2, 3))
        on_tokens = self.norm(x.flatten(2).transpose(1, 2), "norms.ln").mean(1)
        return self.linear((1 - tokens) * on_map + tokens * on_tokens, "head")


@pytest.mark.parametrize("temperature", [5.0, 0.5])
@torch.no_grad()
def test_a_training_forward_is_eq_8(temperature):
    net, x = perturbed_supernet().double().eval(), images(4).double()
    generator = torch.Generator().manual_seed(1)
    noise = tuple(torch.randn(n, generator=generator).double() for n in net.choices)
    wanted = Literal(net.state_dict()).network(x, noise, temperature)
    assert torch.allclose(net(x, Draw(noise, temperature)), wanted, rtol=0, atol=1e-9)
    assert net.choices == (2, 2, 2, 3, 3, 3, 3)


@torch.no_grad()
def test_one_path_alone_is_a_member():
    """With noise that decides, eq. 8 is the network of the paths decided for, its head included."""
    net, x = perturbed_supernet().double().eval(), images(4).double()
    places = {"4D": 0, "3D": 1}
    for kinds in all_kinds()[::5]:
        noise = []
        for kind, count in zip(kinds, net.choices, strict=True):
            noise.append(torch.full((count,), -1e4).double())
            noise[-1][places.get(kind, -1)] = 1e4
        assert torch.allclose(net(x, Draw(tuple(noise), 0.5)), net(x, member(kinds)), rtol=0, atol=1e-9)


def test_importance_and_entropy():
    net = perturbed_supernet().double()
    values = [path.alpha.softmax(0).tolist() for path in net.paths]
    wanted = [sum(p[:-1]) / p[-1] for p in values]
    assert [i for stage in net.importances() for i in stage] == pytest.approx(wanted)
    entropies = [-sum(q * math.log(q) for q in p) for p in values]
    assert net.entropy().item() == pytest.approx(sum(entropies) / 7)


def test_noise_and_temperature():
    exploration = Exploration(101, seed=3)
    found = [exploration.temperature(step) for step in (0, 50, 100, 200)]
    assert found == pytest.approx([5, math.sqrt(2.5), 0.5, 0.5])
    assert exploration.temperature(31) / exploration.temperature(30) == pytest.approx(0.1**0.01)
    assert all(map(torch.equal, exploration.draw((2, 3), 7).noise, Exploration(101, seed=3).draw((2, 3), 7).noise))
    assert not torch.equal(exploration.draw((3,), 7).noise[0], exploration.draw((3,), 8).noise[0])
    # With Gumbel's noise the likeliest path of a draw is distributed as softmax(alpha).
    alpha = torch.tensor([1.0, 0.0, -1.0])
    first = Counter(int((alpha + exploration.draw((3,), step).noise[0]).argmax()) for step in range(4000))
    assert [first[i] / 4000 for i in range(3)] == pytest.approx(alpha.softmax(0).tolist(), abs=0.025)
    uniform = torch.cat([Exploration(9, noise="paper").draw((4,), step).noise[0] for step in range(500)])
    assert 0 <= uniform.min() < 0.01 < 0.99 < uniform.max() < 1
    assert uniform.mean().item() == pytest.approx(0.5, abs=0.02)
    with pytest.raises(UserError, match="known: gumbel, paper"):
        Exploration(9, noise="white")


# --- widths


def folded_rows(layer, scale=None):
    """The numbers that write each channel: filters times norm times layer scale."""
    conv = getattr(layer, "conv", layer)
    rows = conv.weight.flatten(1)
    if hasattr(layer, "conv"):
        rows = rows * (layer.norm.weight / (layer.norm.running_var + 1e-5).sqrt())[:, None]
    return rows if scale is None else rows * scale[:, None]


def largest(rows, count):
    """A mask of the `count` channels of largest norm."""
    norms = torch.cat(rows, 1).norm(dim=1)
    return torch.zeros_like(norms).index_fill(0, norms.topk(count).indices, 1.0)


class MaskedNorm(nn.LayerNorm):
    def forward(self, x):
        count, mask = self.mask.sum(), self.mask
        mean = (x * mask).sum(-1, keepdim=True) / count
        var = ((x - mean).square() * mask).sum(-1, keepdim=True) / count
        return ((x - mean) / (var + self.eps).sqrt() * self.weight + self.bias) * mask


def masked(net, static, selection):
    """The widest network of the kept blocks, with every channel that is cut set to zero wherever it is written."""

    def zero(module, mask, map_=True):
        mask = mask[:, None, None] if map_ else mask
        module.register_forward_hook(lambda *_args: _args[2] * mask)

    mids = largest([folded_rows(net.stem.conv1)], selection.widths[0] // 2)
    zero(static.stem.conv1, mids)
    writers = [net.stem.conv2, *(d.conv for d in net.downsamples)]
    for j, (stage, width) in enumerate(zip(static.stages, selection.widths, strict=True)):
        rows = [folded_rows(writers[j])]
        for path in net.stages[j]:
            rows.append(folded_rows(path.local.fc2, path.local.scale.gamma))
            if path.attention is not None:
                rows.append(folded_rows(path.attention.proj, path.attention.scale.gamma))
                rows.append(folded_rows(path.mlp.fc2, path.mlp.scale.gamma))
        mask = largest(rows, width)
        zero(static.stem if j == 0 else stage.downsample, mask)
        for block in stage.blocks:
            zero(block, mask)
            if hasattr(block, "fc1"):
                zero(block.act, largest([folded_rows(block.fc1)], 2 * width), hasattr(block.fc1, "conv"))
            if hasattr(block, "norm"):
                block.norm.__class__, block.norm.mask = MaskedNorm, mask
    if isinstance(static.norm, nn.LayerNorm):
        static.norm.__class__, static.norm.mask = MaskedNorm, mask
    else:
        zero(static.norm, mask)
    return static


@pytest.mark.parametrize("widths", [(4, 8, 10, 12), (6, 6, 8, 16), (4, 6, 8, 12)])
@torch.no_grad()
def test_a_narrow_member_is_the_wide_one_with_its_weakest_channels_masked(widths):
    net, x = perturbed_supernet().double().eval(), images(4).double()
    sorted_ = copy.deepcopy(net)
    synchronised = torch.nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(net))  # as trained on several GPUs
    for either in (sorted_, synchronised):
        sort_channels(either)
    for name, tensor in sorted_.state_dict().items():
        assert torch.equal(synchronised.state_dict()[name], tensor), name
    for kinds in all_kinds()[::6]:
        assert torch.allclose(net(x, member(kinds)), sorted_(x, member(kinds)), rtol=0, atol=1e-9)
        narrow = member(kinds, widths)
        wanted = masked(net, net.extract(member(kinds)), narrow)(x)
        assert torch.allclose(sorted_(x, narrow), wanted, rtol=0, atol=1e-9)
        assert torch.allclose(sorted_.extract(narrow)(x), wanted, rtol=0, atol=1e-9)
        assert not torch.allclose(net(x, narrow), wanted, atol=1e-3)  # the first channels are others
    noise = tuple(torch.zeros(n).double() for n in net.choices)
    assert torch.allclose(net(x, Draw(noise, 1.0)), sorted_(x, Draw(noise, 1.0)), rtol=0, atol=1e-9)


# --- training


def fresh(drop_path=0.2):
    torch.manual_seed(0)
    return MetaPathSupernet(TINY, 3, layer_scale=0.5, drop_path=drop_path)


class Killed(MetaPathTask):
    def run(self, images, targets, step, backward):
        if step == 4:
            raise KeyboardInterrupt
        return super().run(images, targets, step, backward)


def test_killed_and_resumed(tmp_path):
    recipe = Recipe.small_images(epochs=2, batch_size=32, checkpoint_every=3)  # six steps
    exploration = Exploration(6, seed=1)
    whole = go(tmp_path / "whole", MetaPathTask(fresh(), exploration, Labels(0.1)), recipe)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "broken", Killed(fresh(), exploration, Labels(0.1)), recipe)
    again = go(tmp_path / "broken", MetaPathTask(fresh(), exploration, Labels(0.1)), recipe)
    assert_equal(whole.averaged.state_dict(), again.averaged.state_dict())
    texts = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "broken")]
    assert texts[0] == texts[1]
    assert texts[0].count('"entropy"') == texts[0].count('"temperature"') == 6
    moved = [path.alpha for path in whole.model.paths]
    assert all(alpha.abs().min() > 0 for alpha in moved)  # every path has a gradient


def test_alpha_learns_faster_and_without_decay(tmp_path, monkeypatch):
    found = []
    watch(monkeypatch, lambda state, rate: found.append((rate, state.optimiser.param_groups)), after=True)
    net = fresh()
    go(tmp_path, MetaPathTask(net, Exploration(3)), Recipe.small_images(epochs=1, batch_size=32, weight_decay=0.3))
    for rate, groups in found[-1:]:
        held = {id(p): group for group in groups for p in group["params"]}
        assert len(held) == len(list(net.parameters())) == sum(len(group["params"]) for group in groups)
        for name, parameter in net.named_parameters():
            group, alpha = held[id(parameter)], name.endswith("alpha")
            assert group["lr"] == pytest.approx(rate * (10 if alpha else 1))
            decays = parameter.ndim > 1 and not name.endswith("bias.table")
            assert group["weight_decay"] == (0.3 if decays else 0)


def test_checkpointing_changes_nothing():
    found, x = [], images(12).double()
    for checkpointing in (False, True):
        net = fresh(drop_path=0.5).double().train()
        net.set_grad_checkpointing(checkpointing)
        torch.manual_seed(5)
        figures = MetaPathTask(net, Exploration(9)).run(x, torch.arange(12) % 3, 4, torch.Tensor.backward)
        gradients = {f"gradient of {n}": p.grad for n, p in net.named_parameters()}
        found.append({**figures, **gradients, **dict(net.named_buffers())})
    assert_equal(*found)


def test_a_single_member_trains_too(tmp_path):
    """As progressive shrinking does."""

    class One:
        roles = ("state",)

        def subnets(self, step):
            return (member(all_kinds()[0], (4, 6, 8, 12)),)

    recipe = Recipe.small_images(epochs=4, batch_size=32)
    state = go(tmp_path, SandwichTask(fresh(), One(), Labels()), recipe)
    assert state.step == 12
