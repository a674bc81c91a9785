"""Files of weights in the forms that other people's programs give them: 200 random ones, and those of reports."""

import argparse
import collections
import logging
import pickle
import random
import struct
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from foreign import write
from layouts import V2, images, saved, tiny
from pocketformer import files
from pocketformer.architecture import FFN, Architecture, Attention, Stage
from pocketformer.errors import UserError
from pocketformer.models import create_model, layouts, load_checkpoint
from workshop import write_data

torch.set_num_threads(1)


# --- at random

SHORT = Architecture((Stage(8, (FFN(1),)), Stage(8, (FFN(1),)), Stage(8, (FFN(1),)), Stage(8, (Attention(), FFN(1)))))


def test_random_files_load_right_or_end_in_one_line(tmp_path, caplog):
    """Bit-equal (but for the network's precision), and never is anything executed."""
    caplog.set_level(logging.ERROR)
    canary, counts = tmp_path / "canary", collections.Counter()
    source, model = tiny(SHORT), tiny(SHORT, seed=1)
    exports = {layout: source.export_checkpoint(layout) for layout in ("official", "timm", "pocketformer")}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    names = {layout: layouts.names(SHORT, layout, before) for layout in exports}
    for number in range(200):
        draw = random.Random(number)
        layout = draw.choice(list(exports))
        file = write(tmp_path, number, draw, exports[layout], canary)
        words = f"file {number}: {layout} {file.words}"
        error = report = None
        try:
            report = load_checkpoint(model, file.path)
        except UserError as caught:
            error = str(caught)
        if error is not None:
            assert not file.good, f"{words}: {error}"
            assert "\n" not in error, words
            assert file.path.name in error, words
            now = model.state_dict()
            assert all(torch.equal(now[name], before[name]) for name in before), words
            counts["refused"] += 1
        else:
            assert file.good is not False, words
            assert report.layout == layout, words
            for name, tensor in model.state_dict().items():
                expected = file.state.get(names[layout][name])
                expected = before[name] if expected is None else expected.to(tensor.dtype).view_as(tensor)
                assert torch.equal(tensor, expected), f"{words}: {name}"
            before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            counts["right"] += 1
        assert not canary.exists(), words
        file.path.unlink(missing_ok=True)
    print(f"random checkpoints: {dict(counts)}")
    assert counts["right"] > 120
    assert counts["refused"] > 25


# --- through the command


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("foreign")
    V2.with_design(resolution=(64, 64)).save(root / "shape.json")
    write_data(root / "data")
    saved(root / "plain.pth", tiny(classes=3).export_checkpoint("timm"))
    return root


def lightning(state: dict) -> dict:
    return {
        "epoch": 3,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": {**{f"model.{n}": t for n, t in state.items()}, "criterion.weight": torch.ones(3)},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}}],
        "callbacks": {"ModelCheckpoint": {"best_model_score": np.float64(0.9), "dirpath": Path("/x")}},
        "hyper_parameters": argparse.Namespace(lr=1e-3),
    }


FORMS = {
    "np.float64": lambda s: {"model": s, "best": np.float64(71.5)},
    "a path": lambda s: {"model": s, "out": Path("/data/run")},
    "net": lambda s: {"net": s, "acc": 71.5},
    "Lightning": lightning,
    "profiled": lambda s: s | {"total_ops": torch.zeros(1), "stem.total_params": torch.zeros(1)},
    "grey": lambda s: s | {"stem.conv1.conv.weight": s["stem.conv1.conv.weight"].sum(1, keepdim=True)},
    "deep": lambda s: {"ckpt": {"weights": {f"module.encoder.{n}": t.half() for n, t in s.items()}}, "t": np.arange(2)},
}


@pytest.mark.parametrize("form", FORMS)
def test_common_forms_are_evaluated(cli, shop, form):
    given = ["--architecture", shop / "shape.json", "--data", shop / "data", "--workers", 0, "--json", "--checkpoint"]
    state = torch.load(shop / "plain.pth")
    expected = cli("evaluate", *given, shop / "plain.pth").json()
    answer = cli("evaluate", *given, saved(shop / "form.pth", FORMS[form](state)))
    found = answer.json()
    if form == "grey":
        assert "repeated and scaled" in answer.err
        return
    assert found["correct"] == expected["correct"]
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-2 if form == "deep" else 1e-6)
    if form == "Lightning":
        assert "only its model was taken" not in answer.err  # a loss is expected beside it
    if form == "profiled":
        assert "left out of the file: total_ops" in answer.err


def test_a_training_begins_with_a_lightning_file(cli, shop, tmp_path):
    file = saved(tmp_path / "last.ckpt", lightning(torch.load(shop / "plain.pth")))
    train = ["train", "--architecture", shop / "shape.json", "--data", shop / "data", "--epochs", 1, "--workers", 0]
    cli(*train, "--learning-rate", "1e-30", "--init", file, "--out", tmp_path / "run").succeeds()
    found = create_model(V2, 3, 64)
    load_checkpoint(found, tmp_path / "run")
    assert torch.allclose(found.norm.weight, tiny(classes=3).norm.weight)


def test_programs_and_whole_networks_end_in_one_line(cli, shop, tmp_path):
    class Small(torch.nn.Module):
        def forward(self, x):
            return x

    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "script.pt")
    saved(tmp_path / "module.pth", {"model": torch.nn.Linear(2, 2), "optimizer": {"a": torch.ones(1)}})
    given = ["evaluate", "--architecture", shop / "shape.json", "--data", shop / "data", "--checkpoint"]
    cli(*given, tmp_path / "script.pt").fails(2, "script.pt", "TorchScript", "state_dict()")
    cli(*given, tmp_path / "module.pth").fails(2, "a whole pickled torch.nn", "Linear", "state_dict()")
    two = {f"net_{k}.{n}": t + i for i, k in enumerate("ab") for n, t in torch.load(shop / "plain.pth").items()}
    cli(*given, saved(tmp_path / "two.pth", two)).fails(2, "several networks (net_a and net_b)")


WRITTEN = {
    "Python's pickle": lambda s, path: path.write_bytes(pickle.dumps(s)),
    "pickle among others": lambda s, path: path.write_bytes(pickle.dumps({"net": s, "out": Path("/x")}, 2)),
    "safetensors under another name": lambda s, path: save_file(s, path),
    "sets as keys": lambda s, path: torch.save({"net": s, "groups": {frozenset((1, 2)): {"a"}}}, path),
    "packed again": lambda s, path: repacked(s, path),
    "a datamodule's names": lambda s, path: torch.save(
        {"state_dict": s, "datamodule_hyper_parameters": {"classes": ["dark", "grey", "light"]}}, path
    ),
}


def repacked(state, path):
    torch.save(state, path.with_suffix(".zip"))
    with zipfile.ZipFile(path.with_suffix(".zip")) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))


def test_other_writers_files_are_evaluated(cli, shop, tmp_path):
    given = ["--architecture", shop / "shape.json", "--data", shop / "data", "--workers", 0, "--json", "--checkpoint"]
    state = torch.load(shop / "plain.pth")
    expected = cli("evaluate", *given, shop / "plain.pth").json()["loss"]
    for number, (form, write_to) in enumerate(WRITTEN.items()):
        write_to(state, tmp_path / f"{number}.pth")
        answer = cli("evaluate", *given, tmp_path / f"{number}.pth")
        assert answer.json()["loss"] == pytest.approx(expected, rel=1e-6), form
        assert ("names no classes" in answer.err) == (form != "a datamodule's names"), form
    for number, bad in enumerate((float("nan"), float("inf"))):
        file = saved(tmp_path / f"bad{number}.pth", {**state, "norm.weight": state["norm.weight"] * bad})
        cli("evaluate", *given, file).fails(2, "norm.weight is not finite")


def archived(path, opcodes: bytes):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + opcodes)


def bomb(path):
    """As the archive's directory says."""
    archived(path, b"}.")
    data = bytearray(path.read_bytes())
    place = data.index(b"PK\x01\x02") + 24
    data[place : place + 4] = struct.pack("<I", 2**31)
    path.write_bytes(data)


def nested(state):
    state["config"] = state
    return state


# Small files that ask for much memory or time; the first are refused, the others hold weights all the same.
GREEDY = {
    "a bomb": lambda s, path: bomb(path),
    "bytes": lambda s, path: archived(path, b"\x96" + struct.pack("<Q", 2**45) + b"."),
    "nested": lambda s, path: archived(path, b"}K\x01\x85" + b"2\x86" * 60 + b"K\x01s."),
    "a storage's name": lambda s, path: archived(path, b"K\x00cx\nFloatStorage\nK\x01\x85" + b"2\x86" * 60 + b"\x87Q."),
    "repeated": lambda s, path: torch.save(s | {"stem.conv1.conv.weight": torch.ones(1).expand(8, 2**40, 3, 3)}, path),
    "a number": lambda s, path: torch.save({"model": s, 2**40000: {"a": torch.ones(1)}}, path),
    "a loop": lambda s, path: torch.save(nested({"model": s, "x": Path("/x")}), path),
    "JSON": lambda s, path: torch.save({"model": s, "classes": "[" * 200000}, path),
    "a name": lambda s, path: torch.save(s | {"a." * 200000: torch.ones(1)}, path),
}


def test_small_files_that_ask_for_much(cli, shop, tmp_path):
    given = ["evaluate", "--architecture", shop / "shape.json", "--data", shop / "data", "--workers", 0, "--checkpoint"]
    for number, (form, write_to) in enumerate(GREEDY.items()):
        path = tmp_path / f"{number}.pth"
        write_to(torch.load(shop / "plain.pth"), path)
        begun, answer = time.monotonic(), cli(*given, path)
        assert time.monotonic() - begun < 10, form
        if number < 5:
            words = {"a bomb": "would unpack to 2.0 GiB", "nested": "holds no weights"}
            answer.fails(2, words.get(form, "cannot be read"))
        else:
            assert answer.succeeds().out.startswith("accuracy"), form
        path.unlink()


# --- in Python


@torch.no_grad()
def test_other_channels_there_and_back(tmp_path):
    source = tiny()
    path = saved(tmp_path / "rgb.pth", source.export_checkpoint())
    weight, x = source.stem.conv1.conv.weight, images(source)
    grey, five = tiny(in_chans=1), tiny(in_chans=5)
    report = load_checkpoint(grey, path)
    assert "summed" in str(report)
    assert torch.allclose(grey(x[:, :1]), source(x[:, :1].expand(-1, 3, -1, -1)), atol=1e-4)
    load_checkpoint(five, path)
    expected = timm.models._manipulate.adapt_input_conv(5, weight)
    assert torch.equal(five.stem.conv1.conv.weight, expected)
    again = tiny(seed=1)
    report = load_checkpoint(again, saved(tmp_path / "grey.pth", grey.export_checkpoint("pocketformer")))
    assert "repeated and scaled" in str(report)
    assert torch.allclose(again(x[:, :1].expand(-1, 3, -1, -1)), grey(x[:, :1]), atol=1e-4)
    again.load_state_dict(grey.state_dict())  # torch's own way, too
    with pytest.raises(UserError, match="do not fit"):
        load_checkpoint(
            again, saved(tmp_path / "cut.pth", {**source.export_checkpoint(), "norm.weight": torch.ones(3)})
        )


@torch.no_grad()
@pytest.mark.parametrize("wrapper", ["getter", "list", "dict", "hook", "fx"])
def test_features_of_a_checkpoint_path(tmp_path, wrapper):
    source = tiny()
    x, maps = images(source), source.forward_intermediates(images(source), intermediates_only=True)
    given = {"architecture": V2, "img_size": 64, "features_only": True, "feature_cls": wrapper, "out_indices": (1, 2)}
    for layout in ("official", "pocketformer"):
        state = {f"model.{name}": tensor for name, tensor in source.export_checkpoint(layout).items()}
        path = saved(tmp_path / "a.pth", {"state_dict": state})
        found = timm.create_model("pocket_custom", checkpoint_path=path, **given).eval()
        answer = found(x)
        answer = list(answer.values()) if isinstance(answer, dict) else answer
        assert all(map(torch.equal, answer, maps[1:3]))
        found.load_state_dict(found.state_dict())  # its own names stay its own
        assert torch.equal(next(found.parameters()), source.stem.conv1.conv.weight)


def test_weights_in_several_files(tmp_path):
    state, listed = tiny().export_checkpoint("timm"), {}
    for i, names in enumerate((list(state)[:50], list(state)[50:])):
        save_file({name: state[name] for name in names}, tmp_path / f"model-{i}.safetensors")
        listed |= {name: f"model-{i}.safetensors" for name in names}
    index = tmp_path / "model.safetensors.index.json"
    files.write_json(index, {"weight_map": listed})
    for path in (tmp_path, index):
        model = tiny(seed=1)
        load_checkpoint(model, path)
        assert torch.equal(model.norm.weight, tiny().norm.weight)
    files.write_json(index, {"weight_map": {"a": "../x.safetensors"}})
    with pytest.raises(UserError, match="no index of weights"):
        load_checkpoint(model, tmp_path)
