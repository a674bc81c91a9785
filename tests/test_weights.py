"""Weights as they come: in folders, as state dicts, with how they saw images; what is refused, and what stays."""

import copy
import json
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

import pocketformer as pf
from layouts import V1, V2, images, of_timm, same, saved, tiny
from pocketformer.architecture import FFN, Architecture, Attention, SearchSpace, Stage
from pocketformer.errors import UserError
from pocketformer.models import Network, create_model, load_checkpoint
from pocketformer.training.checkpoint import load_model, save_model

torch.set_num_threads(1)


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
        "code as safetensors": (folder / "bare.safetensors", "pickled posix.mkdir.* not loaded"),
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
