"""Checkpoints in and out: the official layout, timm's and ours; what may differ, and what is refused.

The official key lists and outputs are in test_golden.py.
"""

import argparse
import copy
import json
import logging
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.efficientformer import EfficientFormer
from timm.models.efficientformer_v2 import EfficientFormerV2

import pocketformer as pf
from perturbed import perturb
from pocketformer.architecture import FFN, NAMES, Architecture, Attention, SearchSpace, Stage
from pocketformer.architecture.design import EFFICIENTFORMER
from pocketformer.errors import UserError
from pocketformer.models import Network, create_model, load_checkpoint
from pocketformer.models.bias import resample
from pocketformer.training.checkpoint import load_model, save_model

torch.set_num_threads(1)

# Searched shapes under the published designs: fast to build, and named in both layouts.
V2 = Architecture(
    (
        Stage(8, (FFN(2),)),
        Stage(16, (FFN(1), FFN(3))),
        Stage(24, (FFN(2), Attention(), FFN(4))),
        Stage(32, (FFN(3), Attention(), FFN(2))),
    )
)
V1 = Architecture(
    (Stage(8, (FFN(4),)), Stage(16, (FFN(4),)), Stage(24, (FFN(4),)), Stage(32, (FFN(4), Attention(), FFN(4)))),
    EFFICIENTFORMER,
)


def tiny(architecture: Architecture = V2, classes: int = 5, resolution=64, seed: int = 0, **kwargs) -> Network:
    return perturb(create_model(architecture, classes, resolution, **kwargs), seed).eval()


def theirs(model: Network) -> torch.nn.Module:
    """timm's network of the same shape."""
    stages = model.architecture.stages
    depths = [sum(isinstance(b, FFN) for b in stage.blocks) for stage in stages]
    options = {"embed_dims": [stage.width for stage in stages], "num_vit": 1, "num_classes": model.num_classes}
    if model.architecture == V1:
        return EfficientFormer(depths, **options).eval()
    ratios = tuple(tuple(b.expansion for b in stage.blocks if isinstance(b, FFN)) for stage in stages)
    options |= {"mlp_ratios": ratios, "img_size": model.resolution, "distillation": model.distilled}
    return EfficientFormerV2(depths, **options).eval()


def images(model: Network, n: int = 1) -> torch.Tensor:
    return torch.randn(n, 3, *model.resolution, generator=torch.Generator().manual_seed(7))


def same(a: dict, b: dict) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


def saved(path: Path, value: object) -> Path:
    torch.save(value, path)
    return path


# --- timm and the official layout, both ways


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "resolution", "distilled"),
    [*((name, 224, True) for name in NAMES), ("efficientformerv2_s0", (192, 256), False)],
    ids=str,
)
def test_timm_runs_our_weights_and_we_its(name, resolution, distilled, tmp_path):
    ours = perturb(create_model(name, resolution=resolution, distilled=distilled)).eval()
    options = {"img_size": resolution, "distillation": distilled} if "v2" in name else {}
    other = timm.create_model(name, **options).eval()
    state = ours.export_checkpoint("timm")
    other.load_state_dict(state)  # strict
    assert list(state) == list(other.state_dict())
    x = images(ours)
    torch.testing.assert_close(ours(x), other(x), rtol=0, atol=2e-5)
    save_file(other.state_dict(), tmp_path / "timm.safetensors")
    again = create_model(name, resolution=resolution, distilled=distilled)
    assert str(load_checkpoint(again, tmp_path / "timm.safetensors")).endswith("timm layout")
    assert same(again.state_dict(), ours.state_dict())
    ours.double(), other.double()
    torch.testing.assert_close(ours(x.double()), other(x.double()), rtol=0, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("distilled", [True, False])
@pytest.mark.parametrize("architecture", [V1, V2], ids=["V1", "V2"])
def test_searched_shapes_run_in_timm(architecture, distilled):
    """As the docstring of `export_checkpoint` says; timm's V1 has two heads whatever ours has."""
    ours = tiny(architecture, resolution=224, distilled=distilled)
    other = theirs(ours)
    other.load_state_dict(ours.export_checkpoint("timm"))
    torch.testing.assert_close(ours(images(ours)), other(images(ours)), rtol=0, atol=2e-5)


@pytest.mark.parametrize("layout", ["official", "timm", "pocketformer"])
@pytest.mark.parametrize("architecture", [V1, V2, Architecture.named("efficientformerv2_s0")], ids=["V1", "V2", "S0"])
def test_what_is_written_is_read_back_bit_for_bit(architecture, layout, tmp_path):
    source = tiny(architecture, resolution=224)
    state = source.export_checkpoint(layout)
    assert {t.data_ptr() for t in state.values()}.isdisjoint(t.data_ptr() for t in source.state_dict().values())
    copied = create_model(architecture, 5)
    report = load_checkpoint(copied, saved(tmp_path / "a.pth", state))
    assert (report.layout, report.notes) == (layout, ())
    assert same(copied.state_dict(), source.state_dict())
    assert same(copied.export_checkpoint(layout), state)


CONTAINERS = {
    "bare": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "model": lambda s: {"model": s, "optimizer": {"state": {}}, "args": argparse.Namespace(lr=1e-3, data="/x")},
    "model_ema": lambda s: {"model_ema": s},
    "parallel": lambda s: {"model": {f"module.{name}": t for name, t in s.items()}},
    "wrapped": lambda s: {"n_averaged": torch.tensor(3)} | {f"module._orig_mod.{name}": t for name, t in s.items()},
    "wrapped otherwise": lambda s: {
        f"_orig_mod.module.{name}".replace(".mlp.", ".mlp._orig_mod."): t for name, t in s.items()
    },
    "half": lambda s: {name: t.half() if t.is_floating_point() else t for name, t in s.items()},
    "no indices": lambda s: {n: t for n, t in s.items() if not n.endswith(("_idxs", "tracked"))},
    "other spelling": lambda s: {n.replace("dist_head", "head_dist"): t for n, t in s.items()},
    "timm, other spelling": None,
}


@pytest.mark.parametrize("name", CONTAINERS)
@pytest.mark.parametrize("architecture", [V1, V2], ids=["V1", "V2"])
def test_containers_and_spellings(architecture, name, tmp_path):
    source = tiny(architecture)
    if architecture == V1:
        source.set_input_size(224)
    if name.startswith("timm"):
        state = {n.replace("head_dist", "dist_head"): t for n, t in source.export_checkpoint("timm").items()}
    else:
        state = CONTAINERS[name](source.export_checkpoint("official"))
    model = create_model(architecture, 5, source.resolution)
    report = load_checkpoint(model, saved(tmp_path / "c.pth", state))
    assert report.layout == ("timm" if name.startswith("timm") else "official")
    for key, tensor in source.state_dict().items():
        assert torch.allclose(model.state_dict()[key], tensor, atol=2e-3 if name == "half" else 0), key


def test_averaged_weights(tmp_path):
    a, b = tiny(seed=1), tiny(seed=2)
    for outer, averaged in (("model", "model_ema"), ("state_dict", "state_dict_ema")):
        path = saved(tmp_path / "t.pth.tar", {averaged: b.export_checkpoint("timm"), outer: a.export_checkpoint()})
        model = tiny(seed=3)
        for ema, source in ((False, a), (True, b)):
            load_checkpoint(model, path, ema=ema)
            assert same(model.state_dict(), source.state_dict())
    with pytest.raises(UserError, match="no averaged weights"):
        load_checkpoint(model, saved(tmp_path / "a.pth", a.export_checkpoint()), ema=True)


def test_our_folders(tmp_path):
    source = tiny(resolution=(64, 96))
    save_model(tmp_path / "run", source, tuple("abcde"), {})
    for path in (tmp_path / "run", tmp_path / "run" / "model.safetensors"):
        model = create_model(V2, 5, (64, 96))
        assert load_checkpoint(model, path).layout == "pocketformer"
        assert same(model.state_dict(), source.state_dict())
    with pytest.raises(UserError, match="no weights at"):
        load_checkpoint(model, tmp_path)


# --- another resolution


@pytest.mark.parametrize("size", [256, 384, (192, 320)], ids=str)
@pytest.mark.parametrize("layout", ["official", "timm", "pocketformer"])
def test_another_resolution_resamples_the_tables(layout, size, tmp_path):
    source = tiny(resolution=224)
    path = saved(tmp_path / "a.pth", source.export_checkpoint(layout))
    model, expected = create_model(V2, 5, size).eval(), copy.deepcopy(source)
    report = load_checkpoint(model, path)
    expected.set_input_size(size)
    assert same(model.state_dict(), expected.state_dict())
    tables = [name for name in model.state_dict() if name.endswith("bias.table")]
    assert sorted(report.resampled) == sorted(tables)
    assert "re-sampled" in str(report)
    grid = model.stages[3].blocks[1].bias.grid
    table = source.stages[3].blocks[1].bias.table.detach()
    assert torch.equal(model.stages[3].blocks[1].bias.table.detach(), resample(table, (7, 7), grid))
    with torch.no_grad():
        assert torch.equal(model(images(model)), expected(images(model)))


def test_the_grid_that_tables_are_from(tmp_path):
    """64x256 and 128x128 have tables of equal lengths."""
    wide = tiny(resolution=(64, 256))
    square = create_model(V2, 5, 128)
    expected = copy.deepcopy(wide)
    expected.set_input_size(128)
    timms = saved(tmp_path / "timm.pth", wide.export_checkpoint("timm"))
    load_checkpoint(square, timms, resolution=(64, 256))
    assert same(square.state_dict(), expected.state_dict())
    assert load_checkpoint(create_model(V2, 5, 128), timms).resampled == ()  # nothing says otherwise
    save_model(tmp_path / "run", wide, tuple("abcde"), {})
    (tmp_path / "run" / "model.safetensors").rename(tmp_path / "moved.safetensors")  # no config.json beside it
    square = create_model(V2, 5, 128)
    load_checkpoint(square, tmp_path / "moved.safetensors")
    assert same(square.state_dict(), expected.state_dict())

    back = create_model(V2, 5, (64, 256))
    assert load_checkpoint(back, saved(tmp_path / "o.pth", expected.export_checkpoint("official"))).resampled
    odd = saved(tmp_path / "odd.pth", tiny(resolution=(64, 96)).export_checkpoint("timm"))
    with pytest.raises(UserError, match="resolution="):
        load_checkpoint(create_model(V2, 5, 128), odd)
    with pytest.raises(UserError, match="2x2 at that resolution"):
        load_checkpoint(create_model(V2, 5, 128), odd, resolution=64)
    load_checkpoint(create_model(V2, 5, 128), odd, resolution=(64, 96))


# --- heads


HEADS = {  # classes and heads of the file, of the model: dropped, copied, words of the note
    "other classes": (
        (10, True),
        (5, True),
        ("head", "head_dist"),
        (),
        "head and head_dist of 10 classes were dropped",
    ),
    "none here": ((10, True), (0, True), ("head", "head_dist"), (), "this model has none"),
    "one for two": ((5, False), (5, True), (), ("head_dist",), "head_dist is a copy"),
    "two for one": ((5, True), (5, False), ("head_dist",), (), "head_dist was dropped: this model has one head"),
    "one, other classes": ((10, False), (5, True), ("head",), (), "head of 10 classes was dropped"),
    "none there": ((0, True), (5, True), (), (), "the file has no head"),
}


@pytest.mark.parametrize("layout", ["official", "timm", "pocketformer"])
@pytest.mark.parametrize("name", HEADS)
def test_heads(name, layout, tmp_path, caplog):
    (classes, distilled), (wanted, two), dropped, copied, words = HEADS[name]
    source = tiny(classes=classes, distilled=distilled)
    model = tiny(classes=wanted, distilled=two, seed=1)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    path = saved(tmp_path / "a.pth", source.export_checkpoint(layout))
    with caplog.at_level(logging.WARNING, "pocketformer"):
        report = load_checkpoint(model, path)
    assert (report.dropped, report.copied) == (dropped, copied)
    assert words in str(report)
    assert [record.getMessage() for record in caplog.records] == [f"{path}: {note}" for note in report.notes]
    after, given = model.state_dict(), source.state_dict()
    for key in after:
        head = key.split(".")[0]
        if not head.startswith("head"):
            expected = given[key]
        elif head in copied:
            expected = given[key.replace("head_dist", "head")]
        else:
            expected = given[key] if classes == wanted and key in given else before[key]
        assert torch.equal(after[key], expected), key


# --- backbones


def of_timm(name: str, **arguments) -> torch.nn.Module:
    return timm.create_model("pocket_custom", architecture={"V1": V1, "V2": V2}[name], **arguments).eval()


@torch.no_grad()
@pytest.mark.parametrize("layout", ["official", "timm", "pocketformer"])
@pytest.mark.parametrize("name", ["V1", "V2"])
def test_backbones(name, layout, tmp_path, caplog):
    """timm's wrapper of features, pruned or not: the whole network's maps; what is not there is told once."""
    source = tiny({"V1": V1, "V2": V2}[name], resolution=224)
    path = saved(tmp_path / "a.pth", source.export_checkpoint(layout))
    x = images(source)
    maps = source.forward_intermediates(x, intermediates_only=True)
    for indices, gone in (((0, 1, 2, 3), ""), ((0, 1, 2), "stages.3, "), ((0,), "stages.1, stages.2, stages.3, ")):
        wrapper = of_timm(name, features_only=True, out_indices=indices)
        caplog.clear()
        report = load_checkpoint(wrapper, path)
        assert report.notes == (f"this model was pruned: {gone}norm, head, head_dist of the file left out",)
        assert len(caplog.records) == 1
        assert all(torch.equal(y, maps[j]) for y, j in zip(wrapper(x), indices, strict=True))
        again = of_timm(name, features_only=True, out_indices=indices)
        load_checkpoint(again, saved(tmp_path / "b.pth", wrapper.state_dict()))  # `model.` in front of all
        assert same(again.state_dict(), wrapper.state_dict())
        plain = of_timm(name, features_only=True, out_indices=indices).model
        plain.load_state_dict(source.export_checkpoint(layout) if layout != "pocketformer" else plain.state_dict())
        assert layout == "pocketformer" or same(plain.state_dict(), wrapper.model.state_dict())
    with pytest.raises(UserError, match=r"do not fit this model|fit neither this model"):
        load_checkpoint(create_model(source.architecture, 5), tmp_path / "b.pth")
    for other in (timm.create_model("resnet18"), timm.create_model("resnet18", features_only=True), None):
        with pytest.raises(UserError, match=r"takes a network of ours, not (ResNet|Feature|None)"):
            load_checkpoint(other, path)


def test_wrapped_models(tmp_path):
    source = tiny()
    path = saved(tmp_path / "a.pth", source.export_checkpoint())
    for wrap in (torch.compile, torch.nn.DataParallel):
        model = tiny(seed=1)
        load_checkpoint(wrap(model), path)
        assert same(model.state_dict(), source.state_dict())


@pytest.mark.parametrize("architecture", [V1, V2], ids=["V1", "V2"])
def test_files_of_backbones(architecture, tmp_path):
    """Official detection and segmentation: no final norm, no heads, a norm behind each map."""
    source = tiny(architecture, resolution=224)
    state = {n: t for n, t in source.export_checkpoint().items() if not n.startswith(("norm", "head", "dist_head"))}
    detector = {f"backbone.{name}": tensor for name, tensor in state.items()}
    detector |= {f"backbone.norm{i}.weight": torch.ones(8) for i in (0, 2, 4, 6)}
    detector |= {"neck.convs.weight": torch.ones(1), "bbox_head.weight": torch.ones(1)}
    for contained, more in ((state, ()), ({"state_dict": detector, "meta": {}}, ("neck, bbox_head", "norm0, norm2"))):
        path = saved(tmp_path / "b.pth", contained)
        for model in (create_model(architecture, 0), of_timm("V1" if architecture == V1 else "V2", features_only=True)):
            report = load_checkpoint(model, path)
            network = getattr(model, "model", model)
            assert ("the file has no final norm: this model keeps its own" in report.notes) is (network is model)
            assert all(words in str(report) for words in more)
            own, given = network.state_dict(), source.state_dict()
            assert all(torch.equal(t, given[n]) for n, t in own.items() if not n.startswith("norm."))
        with pytest.raises(UserError, match=r"norm.weight 32 is missing"):
            load_checkpoint(create_model(architecture, 5), path)


# --- how the weights saw images


def test_normalisation_belongs_to_the_weights(tmp_path):
    source = tiny()
    for layout in ("official", "timm"):
        path = saved(tmp_path / "a.pth", source.export_checkpoint(layout))
        for model in (tiny(), of_timm("V2", num_classes=5, img_size=64), of_timm("V2", features_only=True)):
            model.pretrained_cfg |= {"mean": (0.5,) * 3, "std": (0.5,) * 3}
            report = load_checkpoint(model, path)
            assert report.normalisation == (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
            data = timm.data.resolve_model_data_config(model)
            assert (data["mean"], data["std"]) == report.normalisation
            assert "mean" not in str(report)
    mine = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    source.pretrained_cfg |= mine
    save_model(tmp_path / "run", source, tuple("abcde"), {})
    shutil.copy(tmp_path / "run" / "model.safetensors", tmp_path / "moved.safetensors")
    for path in (tmp_path / "run", tmp_path / "moved.safetensors"):
        model = of_timm("V2", num_classes=5, img_size=64)
        assert load_checkpoint(model, path).normalisation == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
        save_model(tmp_path / "again", model, tuple("abcde"), {})
        config = json.loads((tmp_path / "again" / "config.json").read_text())
        assert mine.items() <= config.items()
        assert mine.items() <= config["pretrained_cfg"].items()
    model = tiny()
    assert load_checkpoint(model, saved(tmp_path / "b.pth", source.state_dict())).normalisation is None
    assert model.pretrained_cfg["mean"] == (0.5,) * 3
    save_file(source.state_dict(), tmp_path / "bad.safetensors", {"pocketformer": '{"mean": [0.5], "std": [0]}'})
    with pytest.raises(UserError, match="stated mean and std are none"):
        load_checkpoint(model, tmp_path / "bad.safetensors")


# --- folders


@pytest.mark.parametrize("safe", [True, False])
def test_folders_as_hugging_face_has_them(safe, tmp_path):
    """Their config.json says the resolution (the grids are not square) and how images were normalised."""
    name = "efficientformerv2_s0"
    other = timm.create_model(name, img_size=(96, 64), num_classes=5)
    other.pretrained_cfg["mean"] = (0.1, 0.2, 0.3)
    timm.models.save_for_hf(other, tmp_path, safe_serialization=safe)
    model = create_model(name, 5, 128)
    report = load_checkpoint(model, tmp_path)
    assert report.layout == "timm"
    assert report.resampled
    assert model.pretrained_cfg["mean"] == (0.1, 0.2, 0.3)
    again = create_model(name, 5, (96, 64))
    load_checkpoint(again, tmp_path)
    assert same(again.export_checkpoint("timm"), other.state_dict())


def test_folders_restore_what_they_were_saved_with(tmp_path):
    model = Network(V2, 5, 64, dynamic=True, global_pool="")
    save_model(tmp_path / "a", model, tuple("abcde"), {})
    again = load_model(tmp_path / "a")[0]
    assert (again.dynamic, again.global_pool) == (True, "")
    grey = timm.create_model("pocket_custom", architecture=V2, in_chans=1, num_classes=5)
    save_model(tmp_path / "b", grey, tuple("abcde"), {})
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert config["mean"] == config["pretrained_cfg"]["mean"] == [pytest.approx(0.449)]
    assert len(load_model(tmp_path / "b")[0].pretrained_cfg["std"]) == 1
    for pruned in ({"indices": [0, 1]}, {"indices": 1, "prune_norm": True}):
        model = tiny()
        model.prune_intermediate_layers(**pruned)
        with pytest.raises(UserError, match="taken out cannot be saved"):
            save_model(tmp_path / "c", model, tuple("abcde"), {})
    assert not (tmp_path / "c").exists()


# --- state dicts


@pytest.mark.parametrize("layout", ["official", "timm"])
@pytest.mark.parametrize("architecture", [V1, V2], ids=["V1", "V2"])
def test_foreign_state_dicts(architecture, layout, caplog):
    source = tiny(architecture, resolution=224)
    state = source.export_checkpoint(layout)
    for strict in (True, False):
        for prefix in ("", "module."):
            model = create_model(architecture, 5, 224)
            result = model.load_state_dict({prefix + name: t for name, t in state.items()}, strict=strict)
            assert (result.missing_keys, result.unexpected_keys) == ([], [])
            assert same(model.state_dict(), source.state_dict())
    assert not caplog.records

    model = tiny(architecture, seed=1, resolution=224)
    before = copy.deepcopy(model.state_dict())
    part = {name: t for name, t in state.items() if not name.startswith(("norm.", "head", "dist_head"))}
    with pytest.raises(UserError, match=r"given state dict .* do not fit .*norm.weight 32 is missing") as error:
        model.load_state_dict(part)
    assert "weights given" not in str(error.value)
    assert same(model.state_dict(), before)
    missing = model.load_state_dict(part | {"more": torch.ones(1)}, strict=False).missing_keys
    assert {name.split(".")[0] for name in missing} == {"norm", "head", "head_dist"}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, (before if name in missing else source.state_dict())[name]), name
    headless = {name: t for name, t in state.items() if "head" not in name or "talking" in name}
    model = tiny(architecture, seed=1, resolution=224)
    model.load_state_dict(headless)
    assert torch.equal(model.head.weight, before["head.weight"])  # its own, not a fresh one
    assert torch.equal(model.norm.weight, source.norm.weight)


def test_our_own_names_are_torchs_to_load():
    state, model = tiny().state_dict(), tiny(seed=1)
    last = {name: t for name, t in state.items() if name.startswith("stages.3")}
    others = {name for name in state if name not in last and not name.endswith("tracked")}  # those torch makes up
    assert set(model.load_state_dict(last, strict=False).missing_keys) == others
    assert torch.equal(model.stages[3].blocks[0].fc1.conv.weight, last["stages.3.blocks.0.fc1.conv.weight"])
    assert model.load_state_dict({"nonsense": torch.ones(1)}, strict=False).unexpected_keys == ["nonsense"]
    for part in (last, {name: t for name, t in state.items() if not name.startswith("head.")}):
        with pytest.raises(RuntimeError, match="Missing key"):
            model.load_state_dict(part)


# --- what is refused, and what stays


class Payload:
    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Files, and what is to be said of each."""
    official = tiny().export_checkpoint()
    whole = saved(folder / "whole.pth", official).read_bytes()
    proof = folder / "executed"
    (folder / "cut.pth").write_bytes(whole[: len(whole) // 2])
    (folder / "start.pth").write_bytes(whole[:9999])
    (folder / "empty.pth").write_bytes(b"")
    (folder / "text.bin").write_text("once upon a time")
    (folder / "bare.pkl").write_bytes(pickle.dumps(Payload(proof)))
    (folder / "old.pkl").write_bytes(pickle.dumps(Payload(proof), protocol=0))
    (folder / "bare.safetensors").write_bytes(pickle.dumps(Payload(proof)))
    save_file({"head.weight": torch.ones(5, 5)}, folder / "short.safetensors")
    save_file(tiny().state_dict(), folder / "resolution.safetensors", {"pocketformer": '{"resolution": [0, 64]}'})
    (folder / "part.safetensors").write_bytes((folder / "resolution.safetensors").read_bytes()[:3000])
    wider = replace(V2, stages=(*V2.stages[:3], replace(V2.stages[3], width=40)))
    deeper = replace(V2, stages=(Stage(8, (FFN(2), FFN(2))), *V2.stages[1:]))
    ints = {name: t.char() if name.endswith("fc1.weight") else t for name, t in official.items()}
    sparse = {name: t.to_sparse() if name.endswith("fc1.weight") else t for name, t in official.items()}
    flat = {name: t.flatten() if name.endswith("biases") else t for name, t in official.items()}
    lost = {name: t for name, t in official.items() if not name.startswith("norm.")}
    return {
        "missing": (folder / "nowhere.pth", "no weights at"),
        "missing safetensors": (folder / "nowhere.safetensors", "no weights at"),
        "cut": (folder / "cut.pth", "cannot be read"),
        "start": (folder / "start.pth", "cannot be read"),
        "empty": (folder / "empty.pth", "cannot be read"),
        "text": (folder / "text.bin", "cannot be read"),
        "code": (saved(folder / "code.pth", {"model": official, "x": Payload(proof)}), "posix.mkdir.* not loaded"),
        "bare code": (folder / "bare.pkl", "pickled posix.mkdir.* not loaded"),
        "bare code, old": (folder / "old.pkl", "pickled posix.mkdir.* not loaded"),
        "code as safetensors": (folder / "bare.safetensors", "cannot be read"),
        "a whole module": (saved(folder / "module.pth", tiny()), "Network.* not loaded; save the state dict"),
        "cut safetensors": (folder / "part.safetensors", "cannot be read"),
        "stated resolution": (folder / "resolution.safetensors", "resolution"),
        "a tensor": (saved(folder / "t.pth", torch.ones(3)), "no weights but a Tensor"),
        "no tensors": (saved(folder / "n.pth", {"epoch": 3}), "no weights; its first entries are epoch"),
        "nothing alike": (
            saved(folder / "r.pth", timm.create_model("resnet18").state_dict()),
            "begin with conv1.weight",
        ),
        "only a head": (folder / "short.safetensors", "begin with head.weight"),
        "V1": (saved(folder / "v1.pth", tiny(V1, resolution=224).export_checkpoint()), "do not fit"),
        "wider": (
            saved(folder / "wide.pth", tiny(wider).export_checkpoint("timm")),
            r"\(timm layout\).* first stages.3.downsample.conv.conv.weight is 40x24x3x3, not 32x24x3x3",
        ),
        "deeper": (
            saved(folder / "deep.pth", tiny(deeper).export_checkpoint()),
            "network.0.1.layer_scale_2 is not this model's",
        ),
        "of bytes": (saved(folder / "int.pth", ints), "network.0.0.mlp.fc1.weight is of another kind .int8"),
        "sparse": (saved(folder / "sparse.pth", sparse), "another kind|cannot be read"),
        "flat tables": (saved(folder / "flat.pth", flat), "attention_biases is 32, not 8x4"),
        "empty tables": (
            saved(folder / "none.pth", {n: t[:, :0] if n.endswith("biases") else t for n, t in official.items()}),
            "attention_biases is 8x0, not 8x4",
        ),
        "escapes": (saved(folder / "esc.pth", official | {"\33[2J\n": torch.ones(1)}), r"'.x1b\[2J.n' is not this"),
        "no norm": (saved(folder / "lost.pth", lost), "4 differences, first norm.weight 32 is missing"),
        "half a head": (
            saved(folder / "head.pth", {n: t for n, t in official.items() if n != "head.bias"}),
            "head.bias 5 is missing",
        ),
        "head of another": (
            saved(folder / "head2.pth", official | {"head.weight": torch.ones(5, 7)}),
            "head.weight is 5x7, not 5x32",
        ),
    }


def test_bad_files_are_refused_in_one_line_and_change_nothing(tmp_path):
    model = tiny(seed=1)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    for name, (path, words) in bad_files(tmp_path).items():
        with pytest.raises(UserError, match=words) as caught:
            load_checkpoint(model, path)
        assert "\n" not in str(caught.value), name
        assert len(str(caught.value)) < 500, name
        assert path.name in str(caught.value), name
        assert caught.value.__suppress_context__ or caught.value.__context__ is None, name
        assert same(model.state_dict(), before), name
        assert not (tmp_path / "executed").exists(), name


def test_another_published_model_is_named_by_differences(tmp_path):
    path = saved(tmp_path / "s1.pth", {"model": create_model("efficientformerv2_s1").export_checkpoint()})
    expected = r"s1.pth \(official layout\) do not fit this model: \d+ differences, first network\.\S+ is .*, not "
    with pytest.raises(UserError, match=expected):
        load_checkpoint(create_model("efficientformerv2_s0"), path)


@torch.no_grad()
@pytest.mark.parametrize("training", [False, True])
def test_a_model_in_use_answers_with_the_new_weights_at_once(training, tmp_path):
    source, model = tiny().double(), tiny(seed=1).double().train(training)
    x = images(model).double()
    model(x)
    assert pf.load_checkpoint is load_checkpoint
    load_checkpoint(model, saved(tmp_path / "a.pth", tiny().export_checkpoint()))
    assert all(module.training == training for module in model.modules())
    assert all(p.dtype == torch.float64 and p.requires_grad for p in model.parameters())
    if not training:
        assert torch.equal(model(x), source(x))


SMALL = SearchSpace.named("pocket28").largest
REFUSED = {
    "layout": (V2, 64, "onnx", "'onnx' is unknown; known: pocketformer, official, timm"),
    "small images": (V2.with_design(stem_strides=(2, 1)), 64, "timm", "stem strides"),
    "switch": (V2.with_design(talking_heads=False), 64, "official", "talking_heads=False"),
    "heads": (SMALL, 28, "timm", "timm layout cannot hold"),
    "alone": (
        replace(V2, stages=(*V2.stages[:3], Stage(32, (FFN(3), Attention())))),
        64,
        "official",
        "attention block without an FFN behind it .stage 4, block 2",
    ),
    "not square": (V2, (64, 96), "official", "not square"),
    "V1, larger": (V1, 256, "timm", "grid of 8x8: only 7x7"),
    "V1, no attention": (
        replace(V1, stages=(*V1.stages[:3], Stage(32, (FFN(4),)))),
        224,
        "official",
        "no attention in",
    ),
    "V1, earlier": (
        replace(V1, stages=(*V1.stages[:2], Stage(24, (Attention(), FFN(4))), V1.stages[3])),
        224,
        "timm",
        "attention in stage 3",
    ),
    "V1, between": (
        replace(V1, stages=(*V1.stages[:3], Stage(32, (Attention(), FFN(4), FFN(4))))),
        224,
        "official",
        "an FFN without attention",
    ),
    "five stages": (
        Architecture(
            (*V2.stages, Stage(32, (FFN(1),))),
            replace(
                V2.design,
                stage_strides=(2, 2, 2, 1),
                downsampling=("conv", "conv", "dual-path", "conv"),
                attention_strides=(1, 1, 2, 1, 1),
            ),
        ),
        64,
        "official",
        "5 stages",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_layout_cannot_hold(name, tmp_path):
    architecture, resolution, layout, words = REFUSED[name]
    model = tiny(architecture, resolution=resolution)
    with pytest.raises(UserError, match=words):
        model.export_checkpoint(layout)
    copied = create_model(architecture, 5, resolution)  # our own holds everything
    load_checkpoint(copied, saved(tmp_path / "a.pth", model.export_checkpoint("pocketformer")))
    assert same(copied.state_dict(), model.state_dict())


def test_other_strides_may_start_from_published_weights(tmp_path):
    model = create_model(V2.with_design(stem_strides=(1, 1)), 5, 64)
    source = tiny()
    load_checkpoint(model, saved(tmp_path / "a.pth", source.export_checkpoint()))
    assert torch.equal(model.stages[3].blocks[0].fc1.conv.weight, source.stages[3].blocks[0].fc1.conv.weight)


def test_a_pruned_network_is_not_exported():
    model = tiny()
    model.prune_intermediate_layers([0, 1])
    with pytest.raises(UserError, match="taken out"):
        model.export_checkpoint()
