"""No stale state: whatever is done to a network, in any order, it answers as a fresh one with the same weights."""

import copy
import functools
import pickle

import pytest
import timm
import torch
import torch._dynamo.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.utils import ModelEmaV3

import pocketformer as pf
from perturbed import perturb
from pocketformer.architecture import FFN, Attention, Stage
from pocketformer.architecture.design import EFFICIENTFORMER
from pocketformer.models import Network
from pocketformer.models.bias import AttentionBias

torch.set_num_threads(1)

SIZE = (28, 28)
_SMALL = {"resolution": SIZE, "stem_strides": (2, 1), "stage_strides": (2, 1, 2), "heads": 2}
_STAGES = (
    Stage(8, (FFN(2),)),
    Stage(12, (FFN(2),)),
    Stage(16, (Attention(), FFN(3))),
    Stage(20, (Attention(), FFN(2))),
)
V2 = pf.Architecture(_STAGES).with_design(**_SMALL, downsampling_heads=2)
V1 = pf.Architecture((*_STAGES[:2], _STAGES[0], _STAGES[3]), EFFICIENTFORMER).with_design(**_SMALL, key_dim=8)
# One block of each kind: what a compiler takes grows with their number.
_FEW = (Stage(8, (FFN(2),)), Stage(8, (FFN(2),)), Stage(8, (FFN(2),)), Stage(12, (Attention(), FFN(2))))
FEW_V2 = pf.Architecture(_FEW).with_design(**_SMALL, downsampling_heads=2)
FAMILIES = pytest.mark.parametrize("arch", [V1, V2], ids=["v1", "v2"])


def build(arch: pf.Architecture, seed: int = 0, **arguments) -> Network:
    return perturb(pf.create_model(arch, 5, **arguments), seed).eval()


@functools.cache
def weights(arch: pf.Architecture, seed: int) -> dict:
    return build(arch, seed).state_dict()


def images(size: tuple[int, int] = SIZE, n: int = 2) -> torch.Tensor:
    return torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(1))


def fresh_answer(model: Network, x: torch.Tensor) -> torch.Tensor:
    """Of a new network that is given the weights of `model`."""
    fresh = pf.create_model(model.architecture, 5, model.resolution, dynamic=model.dynamic)
    fresh.load_state_dict(model.state_dict())
    with torch.no_grad():
        return fresh.eval()(x)


@FAMILIES
def test_a_family_has_biases_to_go_stale(arch):
    assert any(isinstance(m, AttentionBias) for m in build(arch).modules())


# --- in any order


def forward(model):
    model(images(model.resolution))
    return model


def train_step(model):
    """In eval mode too: weights change in place, right after a forward that might have kept something."""
    model.zero_grad()
    model(images(model.resolution)).logsumexp(1).sum().backward()
    with torch.no_grad():
        for p in model.parameters():
            p -= 0.01 * p.grad / (p.grad.norm() + 1e-9)
    return model


def change_tables(model):
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias.table"):
                p.mul_(-1)
    return model


def load(model, seed=1, **arguments):
    state = weights(model.architecture, seed)
    own = model.state_dict()
    model.load_state_dict({k: v if v.shape == own[k].shape else own[k] for k, v in state.items()}, **arguments)
    return model


def swap_with_average(model):
    """As trainers evaluate: the averaged weights in, a forward, the trained ones back."""
    ema = ModelEmaV3(model, decay=0.5)
    ema.update(perturb(copy.deepcopy(model), seed=3))
    trained = copy.deepcopy(model.state_dict())
    model.load_state_dict(ema.module.state_dict())
    with torch.no_grad():
        assert torch.equal(model.eval()(images(model.resolution)), ema.module.eval()(images(model.resolution)))
    model.load_state_dict(trained)
    return model


def in_inference_mode(act):
    def wrapped(model):
        with torch.inference_mode():
            act(model)
        return model

    return wrapped


ACTS = {
    "train": lambda model: model.train(),
    "eval": lambda model: model.eval(),
    "forward": forward,
    "train step": train_step,
    "change tables": change_tables,
    "load": load,
    "load by assignment": lambda model: load(model, 2, assign=True),
    "average": swap_with_average,
    "half": lambda model: model.half().float(),
    "bfloat16": lambda model: model.bfloat16().float(),
    "double": lambda model: model.double().float(),
    "channels last": lambda model: model.to(memory_format=torch.channels_last),
    "copy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "larger": lambda model: model.set_input_size((36, 28)) or model,
    "there and back": lambda model: model.set_input_size((20, 45)) or model.set_input_size(SIZE) or model,
    "dynamic": lambda model: model.set_dynamic() or model,
    "not dynamic": lambda model: model.set_dynamic(False) or model,
    "infer": in_inference_mode(forward),
    "resize while inferring": in_inference_mode(lambda model: model.set_input_size((31, 36))),
    "new classifier": lambda model: model.reset_classifier(5) or model,
    "freeze": lambda model: model.requires_grad_(False).requires_grad_(True),
}


@FAMILIES
@settings(max_examples=16, deadline=None)
@given(acts=st.lists(st.sampled_from(sorted(ACTS)), min_size=2, max_size=7))
def test_any_order(arch, acts):
    model = build(arch)
    for act in acts:
        model = ACTS[act](model)
    x = images(model.resolution)
    with torch.no_grad():
        found = model.eval()(x)
    # Rounding follows the memory layout of the weights; all else is exact.
    exact = "channels last" not in acts
    wanted = fresh_answer(model, x)
    assert torch.equal(found, wanted) if exact else torch.allclose(found, wanted, rtol=0, atol=1e-5)
    assert torch.equal(model(x), model(x))
    if model.dynamic:
        odd = images((33, 22))
        with torch.inference_mode():
            first = model(odd)
        with torch.no_grad():
            assert torch.equal(first, model(odd))
            assert torch.equal(model(x), found)
        assert torch.allclose(first, fresh_answer(model, odd), rtol=0, atol=1e-5)
    model.train()(x).sum().backward()  # nothing made while inferring is in the way
    assert all(p.grad is not None for name, p in model.named_parameters())


# --- precision, devices


@FAMILIES
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_precision(arch, dtype):
    """There, loaded there, and back: the index of a table is no number to be rounded."""
    model, x = build(arch), images()
    indices = {name: b.clone() for name, b in model.named_buffers() if name.endswith("bias.index")}
    with torch.no_grad():
        wanted = model(x)
        model.to(dtype)
        found = model(x.to(dtype))
        assert found.dtype == dtype
        assert (found.float() - wanted).abs().max() < {torch.float16: 0.02, torch.bfloat16: 0.15}.get(dtype, 1e-5)
        model.load_state_dict(weights(arch, 1))
        assert next(model.parameters()).dtype == dtype
        model.float()
        rounded = {k: v.to(dtype).to(v.dtype) if v.is_floating_point() else v for k, v in weights(arch, 1).items()}
        other = build(arch)
        other.load_state_dict(rounded)
        assert torch.equal(model(x), other(x))
    for name, b in model.named_buffers():
        assert name not in indices or torch.equal(b, indices[name])
    assert indices
    assert not any("index" in name for name in model.state_dict())


@FAMILIES
@pytest.mark.parametrize("assign", [False, True])
def test_meta_device(arch, assign):
    with torch.device("meta"):
        model = pf.create_model(arch, 5)
        model.set_input_size((36, 28))
        model.set_input_size(SIZE)
    assert all(t.is_meta for t in (*model.parameters(), *model.buffers()))
    if not assign:
        model.to_empty(device="cpu")
        for buffer in model.buffers():
            buffer.fill_(77)  # whatever there was in memory
    model.load_state_dict(weights(arch, 1), assign=assign)
    with torch.no_grad():
        assert torch.equal(model.eval()(images()), build(arch, 1)(images()))
    other = build(arch)
    other.set_input_size((36, 28))  # what the meta device saw has not reached this one
    assert other(images((36, 28))).isfinite().all()


# --- compilers


@pytest.mark.parametrize("arch", [V1, FEW_V2], ids=["v1", "v2"])
@torch.no_grad()
def test_compiled(arch):
    """One whole graph; weights that change later are seen without compiling anew, another size by compiling anew."""
    torch._dynamo.reset()
    model, x = build(arch), images()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    assert torch.allclose(compiled(x), model(x), rtol=0, atol=1e-5)
    model.load_state_dict(weights(arch, 1))
    assert torch.allclose(compiled(x), build(arch, 1)(x), rtol=0, atol=1e-5)
    change_tables(model)
    assert torch.allclose(compiled(x), model(x), rtol=0, atol=1e-5)
    assert counter.frame_count == 1
    model.set_input_size((36, 28))
    x = images((36, 28))
    assert torch.allclose(compiled(x), model(x), rtol=0, atol=1e-5)
    model.set_dynamic()
    for size in (SIZE, (33, 30), (36, 28)):
        x = images(size)
        assert torch.allclose(compiled(x), model(x), rtol=0, atol=1e-5)
        assert type(model(x)) is torch.Tensor


@FAMILIES
def test_compiled_in_training(arch):
    torch._dynamo.reset()
    model = perturb(pf.create_model(arch, 5)).train()
    twin = copy.deepcopy(model)
    x = images(n=4)
    for net in (torch.compile(model, backend="aot_eager", fullgraph=True), twin):
        net(x).logsumexp(1).sum().backward()
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, rtol=1e-3, atol=1e-4), name


@FAMILIES
@torch.no_grad()
def test_exported(arch):
    """Static, and for any batch size; a dynamic network at a size it was not built for, which leaves nothing behind."""
    create = functools.partial(timm.create_model, "pocket_custom", architecture=arch, img_size=SIZE)
    model = perturb(create(num_classes=5, dynamic_img_size=True)).eval()
    x = images()
    assert torch.allclose(torch.export.export(model, (x,)).module()(x), model(x), rtol=0, atol=1e-5)
    batch = torch.export.Dim("batch", min=1, max=64)
    anyhow = torch.export.export(model, (x,), dynamic_shapes=({0: batch},)).module()
    for n in (1, 2, 5):
        x = images(n=n)
        assert torch.allclose(anyhow(x), model(x), rtol=0, atol=1e-5)
    x = images((40, 31))
    wanted = model(x)
    other = torch.export.export(model, (x,)).module()
    assert torch.allclose(other(x), wanted, rtol=0, atol=1e-5)
    assert torch.equal(model(x), wanted)
    features = create(features_only=True).eval()
    exported = torch.export.export(features, (x,)).module()(x)
    assert all(torch.allclose(y, w, rtol=0, atol=1e-5) for y, w in zip(exported, features(x), strict=True))


@FAMILIES
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_and_back(arch):
    model, x = build(arch), images()
    with torch.no_grad():
        wanted = model(x)
        model.cuda()
        assert torch.allclose(model(x.cuda()).cpu(), wanted, atol=1e-3)
        model.load_state_dict(weights(arch, 1))
        model.set_dynamic()
        assert torch.allclose(model(x.cuda()).cpu(), build(arch, 1)(x), atol=1e-3)
        larger = images((45, 33))
        found = model(larger.cuda()).cpu()
        with torch.autocast("cuda", torch.float16):
            assert model(x.cuda()).isfinite().all()
        model.cpu()
        assert torch.allclose(found, model(larger), atol=1e-3)
