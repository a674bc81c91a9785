"""The static networks against timm's implementation and the official implementation's numbers."""

import copy
import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F

from perturbed import perturb
from pocketformer import Architecture, SearchSpace, create_model
from pocketformer.errors import UserError
from pocketformer.models import Network

torch.set_num_threads(1)

GOLDEN = np.load(Path(__file__).parent / "data" / "efficientformerv2_s0.npz")


def renamed(state: dict, rules: list[tuple[str, str]]) -> dict:
    result = {}
    for name, tensor in state.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        result[name] = tensor
    return result


OFFICIAL_TO_TIMM = [
    (r"^patch_embed\.0\.", "stem.conv1.conv."),
    (r"^patch_embed\.1\.", "stem.conv1.bn."),
    (r"^patch_embed\.3\.", "stem.conv2.conv."),
    (r"^patch_embed\.4\.", "stem.conv2.bn."),
    (r"^network\.([13])\.proj\.", lambda m: f"stages.{(int(m[1]) + 1) // 2}.downsample.conv.conv."),
    (r"^network\.([13])\.norm\.", lambda m: f"stages.{(int(m[1]) + 1) // 2}.downsample.conv.bn."),
    (r"^network\.5\.conv\.", "stages.3.downsample.conv.conv."),
    (r"^network\.5\.bn\.", "stages.3.downsample.conv.bn."),
    (r"^network\.5\.attn\.", "stages.3.downsample.attn."),
    (r"^network\.([0246])\.(\d+)\.", lambda m: f"stages.{int(m[1]) // 2}.blocks.{m[2]}."),
    (r"attn\.q\.local\.0\.", "attn.q.local."),
    (r"attn\.q\.proj\.0\.", "attn.q.proj.conv."),
    (r"attn\.q\.proj\.1\.", "attn.q.proj.bn."),
    (r"(attn|token_mixer)\.proj\.1\.", r"\1.proj.conv."),  # 0 is the GELU
    (r"(attn|token_mixer)\.proj\.2\.", r"\1.proj.bn."),
    (r"(attn|token_mixer)\.(k|q|v|v_local|stride_conv)\.0\.", r"\1.\2.conv."),
    (r"(attn|token_mixer)\.(k|q|v|v_local|stride_conv)\.1\.", r"\1.\2.bn."),
    (r"mlp\.(fc1|fc2|mid)\.(weight|bias)$", r"mlp.\1.conv.\2"),
    (r"mlp\.norm([12])\.", r"mlp.fc\1.bn."),
    (r"mlp\.mid_norm\.", "mlp.mid.bn."),
    (r"layer_scale_([12])$", r"ls\1.gamma"),
    (r"^dist_head\.", "head_dist."),
]


def from_timm(state: dict) -> dict:
    """timm's names to ours. A published block with a token mixer is two of ours: attention, then FFN."""
    mixers = {name.split(".token_mixer")[0] for name in state if ".token_mixer." in name}

    def block(match: re.Match) -> str:
        stage, index, rest = match[1], int(match[2]), match[3]
        before = sum(f"stages.{stage}.blocks.{i}" in mixers for i in range(index))
        attention = f"stages.{stage}.blocks.{index}" in mixers
        first = rest.startswith("token_mixer.") or rest == "ls1.gamma"
        return f"stages.{stage}.blocks.{index + before + (attention and not first)}.{rest}"

    return renamed(
        state,
        [
            (r"^stages\.(\d+)\.blocks\.(\d+)\.(.*)$", block),
            (r"(token_mixer|mlp)\.", ""),
            (r"ls[12]\.gamma$", "scale.gamma"),
            (r"attention_biases$", "bias.table"),
            (r"downsample\.attn\.q\.local\.", "downsample.q_local."),
            (r"downsample\.attn\.q\.proj\.", "downsample.q."),
            (r"downsample\.attn\.", "downsample."),
            (r"\.bn\.", ".norm."),
        ],
    )


def images(model: Network, n: int = 2, seed: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, model.in_chans, *model.resolution, generator=generator)


# --- timm


@pytest.mark.parametrize(
    ("resolution", "distilled"),
    [(224, True), (224, False), ((192, 256), True)],
    ids=["both", "one", "192x256"],
)
def test_equals_timm(resolution, distilled):
    """Evaluation and training (loss, every gradient, running statistics), in float64 and float32."""
    theirs = perturb(timm.create_model("efficientformerv2_s0", img_size=resolution, distillation=distilled))
    ours = create_model("efficientformerv2_s0", resolution=resolution, distilled=distilled)
    ours.load_state_dict(from_timm(theirs.state_dict()))  # strict: every name of both
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
    gradients = from_timm({name: p.grad for name, p in theirs.named_parameters()})
    for name, p in ours.named_parameters():
        assert torch.allclose(p.grad, gradients[name], rtol=1e-7, atol=1e-9), name
    statistics = from_timm(dict(theirs.named_buffers()))
    for name, buffer in ours.named_buffers():
        if name in statistics:
            assert torch.allclose(buffer, statistics[name], rtol=1e-9, atol=1e-9), name


# --- the official implementation


def golden_weights() -> dict[str, torch.Tensor]:
    """The made-up weights under the official names; float32 throughout, as the recipe says."""
    result, digest = {}, hashlib.sha256()
    for i, (name, shape) in enumerate(zip(GOLDEN["names"], GOLDEN["shapes"], strict=True)):
        shape = tuple(int(n) for n in str(shape).split(","))
        rng = np.random.Generator(np.random.PCG64(1000 + i))
        z = rng.standard_normal(int(np.prod(shape))).astype(np.float32).reshape(shape)
        t, leaf = np.float32(0.1) * z, name.split(".")[-1]
        if leaf == "weight" and len(shape) > 1:
            value = np.float32(1.0 / np.sqrt(np.prod(shape[1:]))) * z
        elif leaf == "weight":
            value = np.float32(1) + t
        elif leaf == "running_var":
            value = np.float32(1) + np.abs(t)
        elif leaf.startswith("layer_scale"):
            value = np.float32(0.5) + t
        elif leaf == "bias" and "talking_head" in name:
            value = np.float32(0.01) * z
        else:
            value = t
        digest.update(value.astype("<f4").tobytes())
        result[str(name)] = torch.from_numpy(value)
    assert digest.hexdigest() == str(GOLDEN["weights_sha256"])
    return result


def from_official(state: dict) -> dict:
    return from_timm(renamed(state, OFFICIAL_TO_TIMM))


def golden_model() -> tuple[Network, torch.Tensor]:
    model = create_model("efficientformerv2_s0")
    state = {
        name: value.flatten() if name.endswith("gamma") else value
        for name, value in from_official(golden_weights()).items()
    }
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    x = np.random.default_rng(7).standard_normal((2, 3, 224, 224)).astype(np.float32)
    assert hashlib.sha256(x.astype("<f4").tobytes()).hexdigest() == str(GOLDEN["input_sha256"])
    return model, torch.from_numpy(x)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-9)], ids=str)
def test_equals_the_official_outputs(dtype, tolerance):
    model, x = golden_model()
    model, x = model.eval().to(dtype), x.to(dtype)
    blocks = []  # after each published block: an attention block of ours is half of one
    for module in (model.stem, *(b for s in model.stages for b in (s.downsample, *s.blocks))):
        if type(module).__name__ not in ("Attention", "Identity"):
            module.register_forward_hook(lambda _module, _input, y: blocks.append(y))
    with torch.no_grad():
        features = model.forward_head(model.forward_features(x), pre_logits=True)
        found = {"head_logits": model.head(features), "dist_logits": model.head_dist(features)}
        statistics = [torch.stack((y.mean(), y.std(correction=0), y.abs().max())) for y in blocks]
        found["logits"] = model(x)
    for name, value in found.items():
        assert torch.allclose(value.double(), torch.from_numpy(GOLDEN[f"{name}_f64"]), rtol=0, atol=tolerance)
    expected = torch.from_numpy(GOLDEN["block_stats"])  # taken in float32
    assert torch.allclose(torch.stack(statistics).double(), expected, rtol=0, atol=2e-5)


def test_equals_the_official_training_step():
    model, x = golden_model()
    model.double().train().set_distilled_training(True)
    head, distilled = model(x.double())
    loss = F.cross_entropy(head, torch.tensor([3, 7])) / 2 + F.cross_entropy(distilled, torch.tensor([5, 11])) / 2
    assert abs(loss.item() - float(GOLDEN["train_loss_f64"])) < 1e-9
    loss.backward()
    names = from_official({str(n): i for i, n in enumerate(GOLDEN["train_param_names"])})
    parameters = dict(model.named_parameters())
    assert set(names) == set(parameters)
    for name, i in names.items():
        norm = float(GOLDEN["train_grad_norm_f64"][i])
        gradient = parameters[name].grad
        if norm < 1e-8:  # zero in theory: rounding noise
            assert gradient.norm() < 1e-8, name
            continue
        assert gradient.norm().item() == pytest.approx(norm, rel=1e-7), name
        first = torch.from_numpy(GOLDEN["train_grad_first4_f64"][i])[: gradient.numel()]
        assert torch.allclose(gradient.flatten()[:4], first, rtol=1e-6, atol=1e-9), name
    buffers = dict(model.named_buffers())
    for name, i in from_official({str(n): i for i, n in enumerate(GOLDEN["train_bn_stat_names"])}).items():
        assert buffers[name].mean().item() == pytest.approx(GOLDEN["train_bn_stat_mean_after_f64"][i], abs=1e-9)
        assert buffers[name][0].item() == pytest.approx(GOLDEN["train_bn_stat_first_f64"][i], abs=1e-9)


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
