"""The networks against numbers measured on the official implementation, through its own checkpoint layout."""

import copy
import functools
import gzip
import hashlib
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pocketformer import create_model
from pocketformer.models import Network
from pocketformer.models.blank import Blank
from pocketformer.models.checkpoints import load_checkpoint
from pocketformer.models.layouts import names

torch.set_num_threads(1)

FOLDER = Path(__file__).parent / "data"
WHOLE = ("efficientformer_l1", "efficientformerv2_s0", "efficientformerv2_s0_r256")


def golden(name: str) -> dict:
    return dict(np.load(FOLDER / f"{name}.npz"))


def made_up_weights(keys: list[str], shapes: list[tuple[int, ...]], digest: str) -> dict[str, torch.Tensor]:
    """The weights that the numbers belong to, under the official names; float32 throughout."""
    result, found = {}, hashlib.sha256()
    for i, (key, shape) in enumerate(zip(keys, shapes, strict=True)):
        rng = np.random.Generator(np.random.PCG64(1000 + i))
        z = rng.standard_normal(int(np.prod(shape))).astype(np.float32).reshape(shape)
        t, leaf = np.float32(0.1) * z, key.split(".")[-1]
        if leaf == "weight" and len(shape) > 1:
            value = np.float32(1.0 / np.sqrt(np.prod(shape[1:]))) * z
        elif leaf == "weight":
            value = np.float32(1) + t
        elif leaf == "running_var":
            value = np.float32(1) + np.abs(t)
        elif leaf.startswith("layer_scale"):
            value = np.float32(0.5) + t
        elif leaf == "bias" and "talking_head" in key:
            value = np.float32(0.01) * z
        else:
            value = t
        found.update(value.astype("<f4").tobytes())
        result[key] = torch.from_numpy(value)
    assert found.hexdigest() == digest  # else numpy's random stream has changed
    return result


def weights_of(data: dict) -> dict[str, torch.Tensor]:
    shapes = [tuple(int(n) for n in str(shape).split(",")) for shape in data["shapes"]]
    return made_up_weights([str(n) for n in data["names"]], shapes, str(data["weights_sha256"]))


def picture(size: int, digest: str) -> torch.Tensor:
    x = np.random.default_rng(7).standard_normal((2, 3, size, size)).astype(np.float32)
    assert hashlib.sha256(x.astype("<f4").tobytes()).hexdigest() == digest
    return torch.from_numpy(x)


def split(name: str) -> tuple[str, int]:
    """A model's name and resolution."""
    base, _, resolution = name.partition("_r")
    return base, int(resolution or 224)


def loaded(name: str, file: Path) -> Network:
    base, resolution = split(name)
    with Blank():  # what the file did not fill would be seen
        model = create_model(base, resolution=resolution)
    load_checkpoint(model, file)
    return model


@functools.cache
def golden_model(name: str) -> tuple[Network, torch.Tensor]:
    """Not to be changed: copy it."""
    data = golden(name)
    with tempfile.TemporaryDirectory() as folder:
        torch.save({"model": weights_of(data)}, Path(folder) / "official.pth")
        model = loaded(name, Path(folder) / "official.pth")
    return model, picture(split(name)[1], str(data["input_sha256"]))


def check_map(data: dict, key: str, found: torch.Tensor) -> None:
    """A map (2, C, H, W), or tokens for V1's last stage, against statistics taken in float32."""
    shape = tuple(data[f"{key}_shape"])
    assert tuple(found.shape) == shape or (found.shape[0], found.shape[2] * found.shape[3], found.shape[1]) == shape
    found = found.double()
    for value, want in (
        (found.mean(), data[f"{key}_mean"]),
        (found.std(correction=0), data[f"{key}_std"]),
        (found[0].flatten()[:16], data[f"{key}_first16"]),
        (found.mean((2, 3)), data[f"{key}_chmean"]),
    ):
        torch.testing.assert_close(value, torch.as_tensor(want).double(), rtol=0, atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-9)], ids=str)
@pytest.mark.parametrize("name", WHOLE)
def test_outputs(name, dtype, tolerance):
    """Logits, each head, the maps of every stage, and statistics after every published block."""
    data = golden(name)
    model, x = copy.deepcopy(golden_model(name))
    model, x = model.eval().to(dtype), x.to(dtype)
    blocks = []  # after each published block: an attention block of ours is half of one
    for module in model.sequence():
        if type(module).__name__ not in ("Attention", "TokenAttention"):
            module.register_forward_hook(lambda _module, _input, y: blocks.append(y))
    final, maps = model.forward_intermediates(x, norm=False)
    statistics = torch.stack([torch.stack((y.mean(), y.std(correction=0), y.abs().max())) for y in blocks])
    features = model.forward_head(final, pre_logits=True)
    found = {
        "logits": model.forward_head(final),
        "head_logits": model.head(features),
        "dist_logits": model.head_dist(features),
    }
    for key, value in found.items():
        want = torch.from_numpy(data[f"{key}_f64"])
        torch.testing.assert_close(value.double(), want, rtol=0, atol=tolerance)
    for j, y in enumerate(maps, start=1):
        check_map(data, f"stage{j}", y)
    check_map(data, "final_norm", model.forward_intermediates(x, norm=True, intermediates_only=True)[-1])
    keep = [i for i, block in enumerate(data["block_names"]) if "flat" not in str(block).lower()]
    want = torch.from_numpy(data["block_stats"])
    if len(want) != len(statistics):  # V1's flatten module is a block of theirs, and changes nothing
        same = [i for i in range(1, len(want)) if torch.equal(want[i], want[i - 1])]
        keep = [i for i in keep if i not in same]
    torch.testing.assert_close(statistics.double(), want[keep], rtol=0, atol=2e-5)


@torch.no_grad()
def test_maps_before_the_norms_of_a_backbone(tmp_path):
    """`fork_feat`: four maps, raw and behind a BatchNorm each, which is the detector's and not ours."""
    data = golden("efficientformerv2_s0_fork_feat")
    weights = weights_of(data)
    model = create_model("efficientformerv2_s0")
    rest = {key: value for key, value in model.export_checkpoint("official").items() if key not in weights}
    norms = {key: value for key, value in weights.items() if key.startswith("norm")}
    torch.save(rest | {key: value for key, value in weights.items() if key not in norms}, tmp_path / "backbone.pth")
    load_checkpoint(model, tmp_path / "backbone.pth")
    x = picture(224, str(data["input_sha256"]))
    maps = model.eval().forward_intermediates(x, intermediates_only=True)
    for j, y in enumerate(maps):
        check_map(data, f"stage{j + 1}_raw", y)
        norm = [norms[f"norm{2 * j}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
        check_map(data, f"feat{j + 1}", F.batch_norm(y, *norm))


@pytest.mark.parametrize("name", ["efficientformer_l1", "efficientformerv2_s0"])
def test_training_step(name):
    """Loss, every gradient and every running statistic of one step, in float64."""
    data = golden(name)
    model, x = copy.deepcopy(golden_model(name))
    model.double().train().set_distilled_training(True)
    head, distilled = model(x.double())
    loss = F.cross_entropy(head, torch.tensor([3, 7])) / 2 + F.cross_entropy(distilled, torch.tensor([5, 11])) / 2
    assert abs(loss.item() - float(data["train_loss_f64"])) < 1e-9
    loss.backward()
    ours = {theirs: key for key, theirs in names(model.architecture, "official", model.state_dict()).items()}
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    assert {ours[str(n)] for n in data["train_param_names"]} == set(parameters)
    dead = 0
    for i, theirs in enumerate(data["train_param_names"]):
        gradient, norm = parameters[ours[str(theirs)]].grad, float(data["train_grad_norm_f64"][i])
        if norm < 1e-8:  # zero in theory: rounding noise
            assert gradient.norm() < 1e-8, theirs
            dead += 1
            continue
        assert gradient.norm().item() == pytest.approx(norm, rel=1e-7), theirs
        first = torch.from_numpy(data["train_grad_first4_f64"][i])[: gradient.numel()]
        torch.testing.assert_close(gradient.flatten()[:4], first, rtol=1e-6, atol=1e-9, msg=str(theirs))
    assert dead < len(parameters) / 3
    for i, theirs in enumerate(data["train_bn_stat_names"]):
        statistic = buffers[ours[str(theirs)]]
        assert statistic.mean().item() == pytest.approx(data["train_bn_stat_mean_after_f64"][i], abs=1e-9), theirs
        assert statistic[0].item() == pytest.approx(data["train_bn_stat_first_f64"][i], abs=1e-9), theirs


# Of the other models and sizes: hash of the weights, mean, standard deviation and the five largest of each image.
with gzip.open(FOLDER / "published.json.gz") as file:
    PUBLISHED = json.load(file)


@torch.no_grad()
@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_all_published_networks(name, tmp_path):
    data = PUBLISHED[name]
    base, resolution = split(name)
    file = tmp_path / "official.pth"
    keys, shapes = zip(*((k, tuple(s)) for k, s, dtype in data["manifest"] if dtype.startswith("float")), strict=True)
    torch.save(made_up_weights(list(keys), list(shapes), data["weights_sha256"]), file)
    model = loaded(name, file).eval()
    logits = model(picture(resolution, data["input_sha256"]))
    tolerance = 5e-5 if base == "efficientformerv2_l" else 2e-5
    assert logits.mean().item() == pytest.approx(data["logits_mean"], abs=tolerance)
    assert logits.std().item() == pytest.approx(data["logits_std"], abs=tolerance)
    assert logits.topk(5).indices.tolist() == data["top5"]
    state = model.export_checkpoint("official")
    assert [[k, list(v.shape), str(v.dtype).removeprefix("torch.")] for k, v in state.items()] == data["manifest"]
