"""Checkpoints in and out: the official layout, timm's and ours, at another resolution, with other heads or none.

The official key lists and outputs are in test_golden.py.
"""

import argparse
import copy
import logging

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.efficientformer import EfficientFormer
from timm.models.efficientformer_v2 import EfficientFormerV2

from layouts import V1, V2, images, of_timm, same, saved, tiny
from perturbed import perturb
from pocketformer.architecture import FFN, NAMES, Architecture
from pocketformer.errors import UserError
from pocketformer.models import Network, create_model, load_checkpoint
from pocketformer.models.bias import resample
from pocketformer.models.blank import Blank
from pocketformer.training.checkpoint import save_model

torch.set_num_threads(1)


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


# --- timm and the official layout, both ways


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "resolution", "distilled"),
    [*((name, 224, True) for name in NAMES), ("efficientformerv2_s0", (192, 256), False)],
    ids=str,
)
def test_timm_runs_our_weights_and_we_its(name, resolution, distilled, tmp_path):
    options = {"img_size": resolution, "distillation": distilled} if "v2" in name else {}
    with Blank():
        ours, again = (create_model(name, resolution=resolution, distilled=distilled) for _ in range(2))
        other = timm.create_model(name, **options).eval()
    perturb(ours).eval()
    state = ours.export_checkpoint("timm")
    other.load_state_dict(state)  # strict
    assert list(state) == list(other.state_dict())
    x = images(ours)
    torch.testing.assert_close(ours(x), other(x), rtol=0, atol=2e-5)
    save_file(other.state_dict(), tmp_path / "timm.safetensors")
    assert str(load_checkpoint(again, tmp_path / "timm.safetensors")).endswith("timm layout")
    assert same(again.state_dict(), ours.state_dict())
    if name in ("efficientformer_l1", "efficientformerv2_s0"):  # the blocks of the others are the same
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


@pytest.mark.parametrize(
    ("size", "layout"),
    [(256, "official"), (384, "timm"), *(((192, 320), layout) for layout in ("official", "timm", "pocketformer"))],
    ids=str,
)
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


def test_networks_of_others_are_refused(tmp_path):
    path = saved(tmp_path / "a.pth", tiny().export_checkpoint())
    with Blank():
        resnets = [timm.create_model("resnet18", features_only=features) for features in (False, True)]
    for other in (*resnets, None):
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
