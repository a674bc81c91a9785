"""The static networks against timm's implementation, on any resolution, and their weights in use."""

import copy
import re

import pytest
import timm
import torch
import torch.nn.functional as F

from perturbed import perturb
from pocketformer import Architecture, SearchSpace, create_model
from pocketformer.errors import UserError
from pocketformer.models import Network
from pocketformer.models.layouts import names

torch.set_num_threads(1)


def images(model: Network, n: int = 2, seed: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, model.in_chans, *model.resolution, generator=generator)


# --- timm


@pytest.mark.parametrize(
    ("name", "resolution", "distilled"),
    [
        ("efficientformerv2_s0", 224, True),
        ("efficientformerv2_s0", 224, False),
        ("efficientformerv2_s0", (192, 256), True),
        ("efficientformer_l1", 224, True),
    ],
    ids=["v2", "v2-one-head", "v2-192x256", "v1"],
)
def test_equals_timm(name, resolution, distilled):
    """Evaluation and training (loss, every gradient, running statistics), in float64 and float32."""
    switches = {"img_size": resolution, "distillation": distilled} if "v2" in name else {}
    theirs = timm.create_model(name, **switches)
    ours = perturb(create_model(name, resolution=resolution, distilled=distilled))
    theirs.load_state_dict(ours.export_checkpoint("timm"))  # strict: every name of both
    x = images(ours)
    with torch.no_grad():
        assert torch.allclose(ours.eval()(x), theirs.eval()(x), rtol=0, atol=2e-5)
    ours.double(), theirs.double()
    x = x.double()
    with torch.no_grad():
        assert torch.allclose(ours(x), theirs(x), rtol=0, atol=1e-9)
    if resolution != 224:
        return
    labels = torch.tensor([3, 7])
    for model in (ours, theirs):
        model.train().zero_grad()
        if distilled:
            model.set_distilled_training(True)
    outputs = [model(x) if distilled else (model(x),) for model in (ours, theirs)]
    for mine, other in zip(*outputs, strict=True):
        assert torch.allclose(mine, other, rtol=0, atol=1e-9)
    for logits in outputs:
        sum(F.cross_entropy(y, labels + i) for i, y in enumerate(logits)).backward()
    named = names(ours.architecture, "timm", ours.state_dict())
    gradients = {key: p.grad for key, p in theirs.named_parameters()}
    assert len(gradients) == len(list(ours.parameters()))
    for key, p in ours.named_parameters():
        assert torch.allclose(p.grad, gradients[named[key]], rtol=1e-7, atol=1e-9), key
    statistics = dict(theirs.named_buffers())
    for key, buffer in ours.named_buffers():
        if key in named:
            assert torch.allclose(buffer, statistics[named[key]], rtol=1e-9, atol=1e-9), key


# --- resolutions, gradients

# A constant added to all keys' scores cancels in the softmax (and through the talking head in front of it).
DEAD = re.compile(r"(\.talking_head1\.bias|\.k\.conv\.bias|\.k\.norm\.bias)$")


@pytest.mark.parametrize(
    ("name", "resolution"),
    [
        ("efficientformerv2_s0", 208),  # ceil(208 / 16) = 13: the official code cannot run odd grids
        ("efficientformerv2_s0", (100, 171)),
        ("pocket28", 28),
        ("pocket28", (33, 26)),
        ("pocket32", (45, 32)),
    ],
    ids=str,
)
def test_any_resolution_runs_and_every_parameter_learns(name, resolution):
    network = SearchSpace.named(name).largest if name.startswith("pocket") else Architecture.named(name)
    model = perturb(create_model(network, 10, resolution)).eval().double()
    x = images(model).double().requires_grad_()
    logits = model(x)
    assert logits.shape == (2, 10)
    F.cross_entropy(logits, torch.tensor([1, 2])).backward()
    assert (x.grad != 0).float().mean() > 0.99
    dead = []
    for name, p in model.named_parameters():
        if DEAD.search(name):
            assert p.grad.abs().max() < 1e-12, name
            dead.append(name)
        else:  # every single number
            assert p.grad.abs().min() > 0, name
            assert p.grad.abs().max() > 1e-9, name
    assert dead
    with pytest.raises(UserError, match="takes images of shape"):
        model(x[:, :2])


# --- weights, copies, modes


@pytest.fixture(scope="module")
def small() -> Network:
    return perturb(create_model(SearchSpace.named("pocket28").largest, 10)).eval()


def test_weights_loaded_in_eval_mode_are_in_use_at_once(small):
    """The official and timm's models keep a bias gathered earlier (after the first forward in eval mode)."""
    model = perturb(create_model(small.architecture, 10), seed=1).eval()
    x = images(model)
    with torch.no_grad():
        before = model(x)
        model.load_state_dict(small.state_dict())
        assert torch.equal(model(x), small(x))
        assert not torch.allclose(before, model(x), atol=1e-2)
        tables = [p for name, p in model.named_parameters() if name.endswith("bias.table")]
        for table in tables:  # each table alone, changed in place, is seen too
            y = model(x)
            table.add_(torch.randn_like(table))
            assert not torch.equal(model(x), y)
    assert tables


def test_copies_precision_and_state_dict(small):
    x = images(small)
    with torch.no_grad():
        expected = small(x)
        duplicate = copy.deepcopy(small)
        assert torch.equal(duplicate(x), expected)
        duplicate.double()
        assert torch.allclose(duplicate(x.double()).float(), expected, atol=1e-5)
        perturb(duplicate, seed=2)
        assert torch.equal(small(x), expected)  # a copy shares nothing
        assert {p.data_ptr() for p in duplicate.parameters()}.isdisjoint(p.data_ptr() for p in small.parameters())
        fresh = create_model(small.architecture, 10).eval()
        fresh.load_state_dict(small.state_dict())
        assert torch.equal(fresh(x), expected)
    assert all(t.is_floating_point() or t.ndim == 0 for t in small.state_dict().values())  # no index tables


def test_heads(small):
    model = copy.deepcopy(small).train()
    x = images(model)
    mean = model(x)
    model.set_distilled_training(True)
    pair = model(x)
    assert isinstance(pair, tuple)
    assert torch.equal((pair[0] + pair[1]) / 2, mean)
    assert not torch.allclose(*pair)
    assert isinstance(model.eval()(x), torch.Tensor)
    model.train().set_distilled_training(False)
    assert isinstance(model(x), torch.Tensor)
    single = create_model(small.architecture, 10, distilled=False)
    with pytest.raises(UserError, match="distilled=True"):
        single.set_distilled_training(True)
    assert sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in single.parameters()) == 81 * 10


def test_stochastic_depth_rates_are_those_of_timm():
    """One rate a published block, linear over all blocks: an attention block shares its FFN's."""
    ours = create_model("efficientformerv2_s0", drop_path=0.3)
    theirs = timm.create_model("efficientformerv2_s0", drop_path_rate=0.3)
    expected = []
    for stage in theirs.stages:
        for block in stage.blocks:
            for path in ("drop_path1", "drop_path2"):
                if path == "drop_path2" or block.token_mixer is not None:
                    expected.append(getattr(getattr(block, path), "drop_prob", 0.0))
    found = [getattr(b.drop_path, "drop_prob", 0.0) for stage in ours.stages for b in stage.blocks]
    assert found == pytest.approx(expected)
    assert max(found) == pytest.approx(0.3)
