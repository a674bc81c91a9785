"""`segment`: four scenes learned by heart, judged, drawn and exported; two processes; mistakes told in one line."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import shapes
from asking import ask
from pocketformer.dense.segmentation import evaluation, fused
from pocketformer.dense.segmentation.maskfiles import read_mask
from pocketformer.deploy import SUFFIXES, facts_path
from pocketformer.files import Lines
from pocketformer.pipelines.segment_folders import load_segmenter
from pocketformer.runs import read_config
from processes import Team, command

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """Four scenes, and a segmenter that knows them."""
    folder = tmp_path_factory.mktemp("segment")
    shapes.write(folder / "data", {"train": 4})
    shapes.architecture().save(folder / "tiny.json")
    arguments = ["segment", "train", "--architecture", folder / "tiny.json", "--data", folder / "data"]
    arguments += ["--preset", "small", "--size", 64, 80, "--epochs", 130, "--batch-size", 4, "--learning-rate", 3e-3]
    arguments += ["--set", "warmup_steps=5", "--workers", 0, "--out", folder / "run", "--json"]
    ask(*arguments).succeeds()
    (folder / "data/train").rename(folder / "data/val")  # judged on what it has learned
    (folder / "data/trainannot").rename(folder / "data/valannot")
    shapes.write(folder / "more", {"train": 1})
    for part in ("train", "trainannot"):
        (folder / "more" / part).rename(folder / "data" / part)
    return folder


def test_four_scenes_are_learned_by_heart(learned, cli):
    told = json.loads((learned / "run/results.json").read_text())
    assert told["mIoU"] >= 0.9
    assert set(told["iou"]) == set(shapes.CLASSES)
    arguments = ["segment", "evaluate", "--checkpoint", learned / "run", "--data", learned / "data", "--workers", 0]
    found = cli(*arguments, "--json").json()
    assert found["split"] == "val"
    assert {n: found[n] for n in ("mIoU", "iou", "pixels")} == {n: told[n] for n in ("mIoU", "iou", "pixels")}
    text = cli(*arguments).succeeds().out
    assert text.startswith(f"mIoU {found['mIoU']:.2%}, pixel accuracy {found['pixel_accuracy']:.2%} on val (4 images)")
    for name in shapes.CLASSES:
        assert f"{found['iou'][name]:.2%}" in next(line for line in text.splitlines() if name in line.split())


def test_pictures_are_those_of_the_classes(learned, tmp_path, cli):
    with Image.open(learned / "data/val/00.png") as image:
        image.resize((160, 128)).save(tmp_path / "large.jpg")
    predict = ("segment", "predict", "--checkpoint", learned / "run", "--out")
    found = cli(*predict, tmp_path / "drawn", learned / "data/val", tmp_path / "large.jpg", "--json").json()
    assert found == json.loads((tmp_path / "drawn/results.json").read_text())
    names = {p.name for p in (tmp_path / "drawn").iterdir()}
    kinds = ("overlay", "labels")
    assert names == {"results.json", *(f"{n}_{k}.png" for n in ("00", "01", "02", "03", "large") for k in kinds)}
    confusion = 0
    for each in found["images"][:4]:
        labels = read_mask(tmp_path / "drawn" / each["labels"])
        truth = read_mask(learned / "data/valannot" / Path(each["image"]).name)
        truth[truth == shapes.VOID] = -1
        confusion = confusion + evaluation.count(truth, labels, 4)
        shares = {shapes.CLASSES[label]: float((labels == label).mean()) for label in np.unique(labels)}
        assert each["shares"] == pytest.approx(shares)
        assert list(each["shares"].values()) == sorted(each["shares"].values(), reverse=True)
    assert evaluation.Scores(confusion, 4).miou == json.loads((learned / "run/results.json").read_text())["mIoU"]
    assert found["images"][4]["size"] == [128, 160]
    with Image.open(tmp_path / "drawn/large_overlay.png") as drawn:
        assert drawn.size == (160, 128)
    with Image.open(tmp_path / "drawn/00_labels.png") as drawn:
        palette = drawn.getpalette()
    assert [c["colour"] for c in found["classes"]] == [palette[3 * k : 3 * k + 3] for k in range(4)]
    text = cli(*predict, tmp_path, tmp_path / "large.jpg").succeeds().out
    assert text.startswith(f"{tmp_path}/large.jpg: ground ")


@pytest.mark.parametrize("format", ["onnx", "openvino", "coreml"])
def test_an_exported_file_computes_the_same(learned, tmp_path, cli, format):
    if format != "onnx":
        pytest.importorskip({"openvino": "openvino", "coreml": "coremltools"}[format])
    file = tmp_path / f"model{SUFFIXES[format]}"
    arguments = ["--checkpoint", learned / "run", "--format", format, "--out", file, "--data", learned / "data"]
    report = cli("segment", "export", *arguments, "--size", 70, 90, "--json").json()
    facts, config = (json.loads(f.read_text()) for f in (facts_path(file), learned / "run/config.json"))
    assert {name: facts[name] for name in ("task", "classes", "mean", "std")}.items() <= config.items()
    assert (facts["size"], facts["shape"], facts["format"]) == ([70, 90], [1, 3, 70, 90], format)
    assert facts["fingerprint"] == read_config(learned / "run")["facts"]["data_fingerprint"]
    if format == "coreml" and sys.platform != "darwin":
        assert report["verified"] is None  # it runs on macOS only
        return
    assert report["verified"]["images"] == 4
    assert report["verified"]["max_difference"] < 1e-3 * report["verified"]["logits_std"]
    if format != "onnx":
        return
    x = torch.randn(1, 3, 70, 90)
    with torch.no_grad():
        wanted = load_segmenter(learned / "run").model(x).numpy()
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (found,) = session.run(["logits"], {"image": x.numpy()})
    assert found.shape == (1, 4, 70, 90)
    assert np.abs(found - wanted).max() < 1e-3 * wanted.std()
    kinds = {node.op_type for node in onnx.load(file).graph.node}
    assert "BatchNormalization" not in kinds


def test_a_wrong_file_is_refused(learned, tmp_path, cli, monkeypatch):
    right = fused.fused_head

    def wrong(head):
        found = right(head)
        found.branches[2][1][0].weight.data[0] *= 1.2  # one channel of one convolution
        return found

    monkeypatch.setattr(fused, "fused_head", wrong)
    (tmp_path / "model.onnx").write_text("before")
    arguments = ["segment", "export", "--checkpoint", learned / "run", "--out", tmp_path / "model.onnx"]
    said = cli(*arguments).fails(1).lines[-1]
    assert said.startswith("pocketformer: export refused: in float32, logits differ from PyTorch by up to")
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_text() == "before"


def test_mistakes(learned, tmp_path, cli):
    evaluate = ["segment", "evaluate", "--checkpoint", learned / "run", "--data"]
    other = shapes.write(tmp_path / "other", {"train": 1, "val": 1})
    (other / "classes.txt").write_text("a\nb\nc\nd\n")
    strange = shapes.write(tmp_path / "strange", {"train": 1, "val": 1}, names=False)
    Image.new("L", (80, 64), 9).save(strange / "valannot/01.png")
    alone = shapes.write(tmp_path / "alone", {"train": 1})
    predict = ["segment", "predict", "--checkpoint", learned / "run", "--out", tmp_path / "drawn"]
    (tmp_path / "damaged.png").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "01.jpg")
    train = ["segment", "train", "--architecture", learned / "tiny.json", "--data", other, "--out", tmp_path / "x"]
    export = ["segment", "export", "--checkpoint", learned / "run", "--out"]
    for arguments, words in (
        ([*evaluate, tmp_path / "none"], f"{tmp_path}/none: no such folder"),
        ([*evaluate, other], f"knows 4 classes (ground, disc, box, …), but {other} has 4 (a, b, c, …)"),
        ([*evaluate, strange], "1 of 1 masks of val have labels outside the class list (0 to 3; ignored: 255)"),
        ([*evaluate, alone], f"{alone}: has no val or test images to evaluate on"),
        ([*predict, tmp_path / "damaged.png"], "damaged.png cannot be read as an image (not an image)"),
        ([*predict, tmp_path / "none.png"], f"no such image: {tmp_path}/none.png"),
        ([*predict, tmp_path / "empty"], f"{tmp_path}/empty holds no images"),
        ([*predict, learned / "data/val", tmp_path / "01.jpg"], "would be written under the same name"),
        ([*predict[:3], tmp_path, *predict[4:], tmp_path / "01.jpg"], f"{tmp_path} holds no segmenter"),
        ([*train, "--size", 20, 20], "an image of 20x20 px is too small"),
        ([*train, "--set", "crop=3"], "unknown entry 'crop'"),
        ([*train, "--preset", "large"], "'large' is unknown; known: paper, small"),
        ([*train, "--init", tmp_path / "none.pth"], "no such file or folder"),
        ([*train, "--batch-size", 0], "greater than or equal to 1"),
        ([*export, tmp_path / "model.xml"], "ends in .onnx"),
        (["segment", "fly"], "No such command 'fly'"),
    ):
        cli(*arguments).fails(2, words)
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "drawn").exists()


def test_help(cli):
    assert "Semantic FPN" in cli("segment", "--help").succeeds().out
    for name in ("train", "evaluate", "predict", "export"):
        assert "Example" in cli("segment", name, "--help").succeeds().out
    said = subprocess.run([sys.executable, "-m", "pocketformer", "segment"], capture_output=True, text=True)
    assert said.returncode in (0, 2)
    assert "Traceback" not in said.stderr


def test_two_processes(tmp_path):
    """They train one network, are killed and go on, and count every image once."""
    shapes.write(tmp_path / "data", {"train": 4, "val": 1, "test": 3})
    shapes.architecture().save(tmp_path / "tiny.json")
    arguments = ["segment", "train", "--architecture", tmp_path / "tiny.json", "--data", tmp_path / "data"]
    arguments += ["--preset", "small", "--size", 32, 40, "--epochs", 3, "--batch-size", 2, "--workers", 0]
    arguments += ["--set", "checkpoint_every=1", "--json", "--out"]
    whole = Team(tmp_path / "o1", 2, command, *arguments, tmp_path / "whole")
    assert whole.end() == [0, 0], whole.errors
    result = json.loads(whole.said)
    assert sum(result["pixels"].values()) == 3 * 62 * 80
    killed = Team(tmp_path / "o2", 2, command, *arguments, tmp_path / "killed")
    ledger = tmp_path / "killed/work.jsonl"
    killed.wait(lambda: ledger.exists() and ledger.read_text().count("\n") > 2)
    killed.kill()
    assert killed.end() == [-9, -9]
    again = Team(tmp_path / "o3", 2, command, *arguments, tmp_path / "killed")
    assert again.end() == [0, 0], again.errors
    for name in ("model.safetensors", "best.safetensors", "metrics.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name
    assert [line["unit"] for line in Lines.read(tmp_path / "whole/work.jsonl")] == list(range(6))
    assert load_file(tmp_path / "whole/model.safetensors")
    evaluation = ["segment", "evaluate", "--checkpoint", tmp_path / "whole", "--data", tmp_path / "data", "--json"]
    alone = Team(tmp_path / "o4", 1, command, *evaluation)
    assert alone.end() == [0], alone.errors
    found = json.loads(alone.said)
    assert {name: result[name] for name in found} == found
    refused = Team(tmp_path / "o5", 2, command, "segment", "predict", "--checkpoint", "x", "--out", "y", "z")
    assert refused.end() == [2, 2]
    assert "segment predict runs in one process" in refused.errors
