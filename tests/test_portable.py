"""ONNX files for others: old opsets, bytes in, and the same logits without a line of ours."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

import shop
from asking import ask
from perturbed import perturb
from pocketformer import SearchSpace, create_model
from pocketformer.training import checkpoint
from pocketformer.training.decoding import to_pixels
from pocketformer.training.pixels import centre_crop

MEAN, STD = [0.4, 0.5, 0.55], [0.2, 0.25, 0.3]
slow = pytest.mark.skipif("POCKETFORMER_SLOW" not in os.environ, reason="half a minute: set POCKETFORMER_SLOW=1")
PLAIN = Path(__file__).with_name("plain.py")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A network whose images are larger than what it sees, of another normalisation than ours; photographs of several
    shapes and modes."""
    folder = tmp_path_factory.mktemp("portable")
    shop.write_images(folder / "data", 24)
    (folder / "space.yaml").write_text(shop.TINY)
    shape = SearchSpace.load(folder / "space.yaml").smallest.with_design(resolution=(72, 64))
    model = perturb(create_model(shape, 3))
    model.pretrained_cfg |= {"mean": tuple(MEAN), "std": tuple(STD)}
    checkpoint.save_model(folder / "network", model, shop.CLASSES, {"source": "none", "stored_size": [82, 73]})
    rng = np.random.default_rng(0)
    for i, (height, width) in enumerate([(90, 200), (301, 77), (82, 73), (30, 41)]):
        rough = Image.fromarray(rng.integers(0, 256, (7, 9, 3), np.uint8))
        rough.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    with Image.open(folder / "0.png") as image:
        image.convert("L").save(folder / "4.png")
        turned = Image.Exif()
        turned[0x0112] = 6
        image.save(folder / "5.png", exif=turned)
    return folder


@pytest.fixture(scope="module")
def export(place):
    def call(name, *arguments):
        source = ["--checkpoint", place / "network", "--data", place / "data", "--workers", 0]
        ask("export", *source, "--out", place / name, *arguments, "--json").succeeds()
        return place / name

    return call


@pytest.fixture(scope="module")
def photographs(place):
    """Their paths, pixels (N, H, W, 3), and PyTorch's logits."""
    paths = sorted(place.glob("*.png"))
    model, config = checkpoint.load_model(place / "network")
    stored = []
    for path in paths:
        with Image.open(path) as image:
            stored.append(to_pixels(image, config["data"]["stored_size"]))
    pixels = centre_crop(torch.from_numpy(np.stack(stored)), model.resolution)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (MEAN, STD))
    with torch.no_grad():
        return paths, pixels.permute(0, 2, 3, 1).numpy(), model((pixels / 255 - mean) / std).numpy()


def versions(path):
    model = onnx.load(path)
    return next(o.version for o in model.opset_import if o.domain == ""), model.ir_version


@pytest.mark.parametrize("more", [[], ["--raw"]])
def test_pillow_numpy_and_onnx_runtime_give_pytorchs_logits(photographs, export, more):
    paths, _, wanted = photographs
    path = export("plain.onnx", *more)
    assert versions(path) == (17, 8)
    run = subprocess.run(
        [sys.executable, "-P", PLAIN, path, *paths], capture_output=True, text=True, check=True, env={}
    )
    found = json.loads(run.stdout)
    assert found["facts"]["shape"] == ([1, 72, 64, 3] if more else [1, 3, 72, 64])
    assert np.abs(np.array(found["logits"]) - wanted).max() < 1e-4 * max(1, wanted.std())


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--opset", 17, "--int8", "--dynamic-batch"], (17, 8)),
        (["--opset", 18, "--dynamic-batch"], (18, 8)),
        (["--opset", 19], (19, 9)),
        (["--opset", 20, "--raw", "--dynamic-batch"], (20, 9)),
    ],
)
def test_any_opset_is_reached(photographs, export, arguments, wanted):
    _, pixels, logits = photographs
    path = export("opset.onnx", *arguments)
    assert versions(path) == wanted
    x = pixels if "--raw" in arguments else ((pixels / 255 - MEAN) / STD).astype(np.float32).transpose(0, 3, 1, 2)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    batches = [x] if "--dynamic-batch" in arguments else np.split(x, len(x))
    found = np.concatenate([session.run(["logits"], {"image": batch})[0] for batch in batches])
    assert np.abs(found - logits).max() < (0.3 if "--int8" in arguments else 1e-3) * logits.std()


@pytest.mark.parametrize(
    "format", ["openvino", pytest.param("torch", marks=slow), pytest.param("executorch", marks=slow)]
)
def test_bytes_are_taken_by_every_format_that_can(export, format):
    pytest.importorskip(format)
    name = {"openvino": "raw.xml", "torch": "raw.pt2", "executorch": "raw.pte"}[format]
    path = export(name, "--format", format, "--raw")
    facts = json.loads(path.with_name(f"{name}.json").read_text())
    assert (facts["layout"], facts["dtype"], facts["shape"]) == ("NHWC", "uint8", [1, 72, 64, 3])
    assert (facts["mean"], facts["std"]) == (MEAN, STD)


def test_a_raw_file_is_judged_and_timed_like_any_other(place, export, cli):
    export("network/exported/model.onnx", "--raw")
    evaluate = ["evaluate", "--checkpoint", place / "network", "--data", place / "data", "--workers", 0, "--json"]
    found = [cli(*evaluate, *more).json() for more in ([], ["--runtime", "onnxruntime"])]
    assert found[0]["accuracy"] == found[1]["accuracy"]
    assert found[1]["loss"] == pytest.approx(found[0]["loss"], rel=1e-4)
    path = place / "network/exported/model.onnx"
    timed = cli("benchmark", path, "--rounds", 5, "--json").json()
    assert [row["name"] for row in timed["networks"]] == [str(path), "MobileNetV2x1.0 at 72x64 px"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--opset", 16, "--out", "a.onnx"], ["--opset 16", "17, 18, 19, 20"]),
        (["--opset", 24, "--out", "a.onnx"], ["--opset 24", "17, 18, 19, 20"]),
        (["--opset", 18, "--format", "torch", "--out", "a.pt2"], ["--opset belongs to format onnx"]),
        (["--raw", "--format", "coreml", "--out", "a.mlpackage"], ["coreml has no --raw"]),
    ],
)
def test_what_cannot_be_written_is_told_in_one_line(place, cli, tmp_path, monkeypatch, arguments, words):
    if "coreml" in arguments:
        pytest.importorskip("coremltools")
    monkeypatch.chdir(tmp_path)
    cli("export", "--checkpoint", place / "network", "--data", place / "data", *arguments).fails(2, *words, alone=True)
    assert not list(tmp_path.iterdir())
