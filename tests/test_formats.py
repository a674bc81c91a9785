"""`export` in every format that installs here, through the command: float32, int8, dynamic batches; on which images."""

import json
import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from bench_of_formats import CLASSES, classes_in, open_place
from pocketformer.deploy import SUFFIXES, export, runtime_of
from pocketformer.deploy.formats import onnx as onnx_format
from pocketformer.errors import WorkError
from pocketformer.pipelines import exporting
from pocketformer.training import decoding, streaming
from pocketformer.training.checkpoint import load_model

torch.set_num_threads(1)
SLOW = "POCKETFORMER_SLOW" in os.environ
PARTS = {"openvino": "openvino", "executorch": "executorch", "coreml": "coremltools", "litert": "litert_torch"}
FLOAT32, BOTH, ANY = (), ("--int8", "--dynamic-batch"), ("--dynamic-batch",)
CELLS = [
    *(("onnx", options) for options in (FLOAT32, BOTH)),
    *(("openvino", options) for options in (FLOAT32, BOTH)),
    *(("executorch", options) for options in ((FLOAT32, ANY, BOTH) if SLOW else (FLOAT32,))),
    *(("litert", options) for options in (FLOAT32, ("--int8",))),
    *(("coreml", options) for options in (FLOAT32, ("--precision", "float16"))),
    *(("torch", options) for options in ((FLOAT32, ANY) if SLOW else (ANY,))),
    *(("aotinductor", options) for options in ((FLOAT32, ANY) if SLOW else ())),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return open_place(tmp_path_factory.mktemp("formats"))


@pytest.fixture(autouse=True)
def one_session(monkeypatch):
    """How fast a file is, is not tested here: of each session, most of the time goes into starting its process."""
    monkeypatch.setattr(exporting, "_SESSIONS", 1)


@pytest.fixture(scope="module")
def written() -> dict[str, bytes]:
    return {}


@pytest.fixture
def converted_once(written, monkeypatch):
    """For tests of what is done with a file: all get the one that is made of the place's network."""
    write = onnx_format.write

    def once(module, example, path, precision, *more, **options):
        if precision not in written:
            write(module, example, path, precision, *more, **options)
            written[precision] = path.read_bytes()
        path.write_bytes(written[precision])

    monkeypatch.setattr(onnx_format, "write", once)


def needs(format: str) -> None:
    if format in PARTS:
        pytest.importorskip(PARTS[format])
    if format == "aotinductor" and not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("no C++ compiler")


@pytest.mark.parametrize(
    ("format", "options"), CELLS, ids=lambda value: value if isinstance(value, str) else "".join(value)
)
def test_a_run_is_exported_and_evaluated(cli, place, format, options):
    """What a user gets who names the run and the format, and nothing else."""
    needs(format)
    file = place / "run" / "exported" / f"model{SUFFIXES[format]}"
    answer = cli("export", "--checkpoint", place / "run", "--format", format, *options, "--out", file, "--json")
    found = answer.json()
    assert json.loads(Path(f"{file}.json").read_text())["classes"] == list(CLASSES)
    lower = "--int8" in options
    if format == "coreml":
        return _check_core_ml(place, file, found)
    assert found["verified"]["images"] == 32
    if not lower:
        assert found["verified"]["max_difference"] <= 1e-3 * found["verified"]["logits_std"]
        assert found["verified"]["agreement"] == 1
    else:
        accuracy = found["compared"]["accuracy"]
        assert accuracy["float32"]["accuracy"] > 0.9
        assert accuracy["int8"]["images"] == accuracy["float32"]["images"] == 120
        assert abs(accuracy["int8"]["accuracy"] - accuracy["float32"]["accuracy"]) < 0.1
        assert {result["split"] for result in accuracy.values()} == {"search"}
        assert found["compared"]["latency_ratio"] > 0.1
    judged = (
        "evaluate",
        "--checkpoint",
        place / "run",
        "--data",
        place / "data",
        "--runtime",
        runtime_of(format),
        "--json",
    )
    assert cli(*judged).json()["accuracy"] > 0.9
    if format == "onnx" and not options:  # without --dynamic-batch it takes one image at a time
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        with pytest.raises(InvalidArgument, match="Got: 2 Expected: 1"):
            session.run(None, {"image": np.zeros((2, *session.get_inputs()[0].shape[1:]), np.float32)})


def _check_core_ml(place: Path, file: Path, found: dict) -> None:
    """Converted; what its operators say, PyTorch computes: Core ML itself runs on macOS only."""
    from mil import evaluated
    from pocketformer.deploy.formats import coreml

    model, x = load_model(place / "run")[0], torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        wanted, got = model(x), evaluated(coreml.load(file)[1], file, x)
    assert (got - wanted).abs().max() < (1e-3 if found["precision"] == "float32" else 0.05) * wanted.std()


@pytest.mark.parametrize(
    ("format", "options", "words"),
    [
        ("onnx", ("--precision", "float16"), "format onnx has no precision 'float16'; it has float32, int8"),
        ("executorch", ("--precision", "bfloat16"), "format executorch has no precision 'bfloat16'"),
        ("torch", ("--int8",), "format torch has no precision 'int8'"),
        ("aotinductor", ("--int8",), "format aotinductor has no precision 'int8'"),
        ("coreml", ("--int8",), "format coreml has no precision 'int8'"),
        ("coreml", ("--dynamic-batch",), "format coreml is for single images"),
        ("litert", ("--dynamic-batch",), "litert"),
        ("tensorrt", (), "tensorrt"),
    ],
)
def test_what_is_not_offered_is_refused_in_one_line(cli, place, tmp_path, format, options, words):
    if format == "coreml":
        needs(format)
    if format == "tensorrt" and find_spec("tensorrt"):
        pytest.skip("TensorRT is installed")
    file = tmp_path / f"m{SUFFIXES[format]}"
    cli("export", "--checkpoint", place / "run", "--format", format, *options, "--out", file).fails(2, words)
    assert list(tmp_path.iterdir()) == []


def _odd(x: torch.Tensor) -> dict[str, torch.Tensor]:
    return {
        "channels last": x.to(memory_format=torch.channels_last),
        "a view with rows and columns turned": x.transpose(2, 3).contiguous().transpose(2, 3),
        "every other of more": torch.stack([x, x], 4)[..., 0],
        "double": x.double(),
        "with a gradient": x.clone().requires_grad_(),
    }


@pytest.mark.parametrize("kind", [*_odd(torch.zeros(2, 3, 4, 4)), "half", "inference", "autocast", "network"])
def test_what_is_traced_is_plain(place, tmp_path, monkeypatch, kind):
    """Whatever strides, type, mode or surroundings the images and the network come in: F1 was channels last."""
    seen = []

    def write(module, example, *_):
        assert not torch.is_autocast_enabled("cpu")
        seen.extend([example, *module.parameters(), *module.buffers()])
        raise WorkError("seen")

    monkeypatch.setattr(onnx_format, "write", write)
    model, x = load_model(place / "run")[0], torch.randn(4, 3, 16, 16)
    x = x.half().float()
    images = _odd(x).get(kind, x.half() if kind == "half" else x)
    if kind == "network":
        model = model.to(memory_format=torch.channels_last).double()
    with (
        torch.inference_mode(kind == "inference"),
        torch.autocast("cpu", enabled=kind == "autocast"),
        pytest.raises(WorkError, match="seen"),
    ):
        export(model, tmp_path / "m.onnx", images.clone() if kind == "inference" else images)
    assert torch.equal(seen[0], x[:1])
    for tensor in seen:
        assert tensor.stride() == torch.empty(tensor.shape).stride()
        assert tensor.dtype in (torch.float32, torch.int64)
        assert not tensor.requires_grad
        assert not tensor.is_inference()


@pytest.fixture
def used(monkeypatch) -> dict:
    """What `export` was given, and how many images were decoded."""
    found, export = {"decoded": 0}, exporting.export

    def watched(model, out, images, format, **more):
        found.update(images=images, calibration=more["calibration"])
        return export(model, out, images, format, **more)

    def decode(*given, **more):
        found["decoded"] += 1
        return to_pixels(*given, **more)

    to_pixels = decoding.to_pixels
    monkeypatch.setattr(exporting, "export", watched)
    for module in (decoding, streaming):
        monkeypatch.setattr(module, "to_pixels", decode)
    return found


@pytest.mark.usefixtures("converted_once")
def test_all_classes_are_seen_and_no_other_image_is_decoded(cli, place, tmp_path, used):
    out = tmp_path / "model.onnx"
    cli("export", "--checkpoint", place / "run", "--data", place / "data", "--out", out).succeeds()
    assert sorted(classes_in(used["images"])) == [10, 11, 11]
    assert used["decoded"] == 32
    cli("export", "--checkpoint", place / "run", "--data", place / "data", "--int8", "--out", out).succeeds()
    assert min(classes_in(used["calibration"])) >= 40  # of the 120 of fit
    assert used["decoded"] == 32 + 32 + 120 + 2 * 120  # and the search split, by either file


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (("--data", "embedded"), "embedded has the classes"),
        (("moved",), "cannot be read here"),
        (("changed",), "does not hold those any more"),
    ],
)
def test_int8_is_not_calibrated_on_others_images(cli, place, tmp_path, data, words):
    """The network's own are found again without --data; where they are not, somebody has to name them."""
    run, out = place / "run", tmp_path / "model.onnx"
    if data[0] != "--data":
        run = shutil.copytree(run, tmp_path / "run")
        config = json.loads((run / "config.json").read_text())
        config["data"]["source"] = str(tmp_path / "moved" if data == ("moved",) else place / "data" / "train")
        (run / "config.json").write_text(json.dumps(config))
        data = ()
    cli("export", "--checkpoint", run, *data, "--int8", "--out", out).fails(2, words, "--calibration")
    assert not out.exists()


@pytest.mark.usefixtures("converted_once")
@pytest.mark.parametrize(("lost", "options", "code"), [(4, (), 1), (4, ("--max-loss", "4"), 0)])
def test_int8_that_loses_accuracy_is_not_written(cli, place, tmp_path, monkeypatch, lost, options, code):
    def result(correct):
        return {"accuracy": correct / 120, "interval95": [0, 1], "correct": correct, "images": 120}

    compared = {"runtime": "onnxruntime", "latency_ratio": 1.0}
    monkeypatch.setattr(
        exporting,
        "_compared",
        lambda *_: {**compared, "accuracy": {"float32": result(118), "int8": result(118 - lost)}},
    )
    out = tmp_path / "model.onnx"
    out.write_text("before")
    answer = cli("export", "--checkpoint", place / "run", "--int8", *options, "--out", out)
    if code:
        answer.fails(1, "int8 loses 3.3 points of accuracy", "118 to 114 of 120 images", "allowed are 2 (--max-loss)")
        assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
        assert out.read_text() == "before"
    else:
        assert "float32 98.3%" in answer.succeeds().out
        assert out.stat().st_size > 100


@pytest.mark.usefixtures("converted_once")
def test_a_failed_comparison_is_a_note(cli, place, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise WorkError("the runtime crashed")

    monkeypatch.setattr(exporting, "_compared", fail)
    out = tmp_path / "model.onnx"
    answer = cli("export", "--checkpoint", place / "run", "--int8", "--out", out).succeeds()
    assert "note: int8 could not be compared with float32: the runtime crashed" in answer.err
    assert {p.name for p in tmp_path.iterdir()} == {"model.onnx", "model.onnx.json"}


@pytest.mark.usefixtures("converted_once")
def test_the_splits_are_those_of_the_training(cli, place, tmp_path):
    given = ("export", "--checkpoint", place / "run", "--out", tmp_path / "model.onnx", "--seed", 5)
    cli(*given, "--int8").fails(2, "was trained with --seed 0", "give --seed 0")
    assert not list(tmp_path.iterdir())
    cli(*given).succeeds()  # float32 is but compared with PyTorch


def test_a_calibration_folder_without_images_is_refused(cli, place, tmp_path):
    (tmp_path / "empty" / "deep").mkdir(parents=True)
    (tmp_path / "empty" / "deep" / "notes.txt").write_text("no image")
    out = tmp_path / "model.onnx"
    arguments = ["export", "--checkpoint", place / "run", "--int8", "--calibration", tmp_path / "empty", "--out", out]
    error = cli(*arguments).fails(2).lines[-1]
    assert error == f"pocketformer: {tmp_path / 'empty'} holds no images"
    assert not out.exists()


def test_names_of_other_formats_are_refused(cli, place, tmp_path):
    arguments = ["export", "--checkpoint", tmp_path / "none", "--format", "torch", "--out", tmp_path / "model.onnx"]
    cli(*arguments).fails(2, "a file of format torch ends in .pt2")  # before anything is read
    file = shutil.copytree(place / "run", tmp_path / "run") / "exported" / "model.xml"
    file.parent.mkdir(exist_ok=True)
    file.write_text("<net/>")
    answer = cli("evaluate", "--checkpoint", file, "--runtime", "onnxruntime", "--data", place / "data")
    answer.fails(2, "onnxruntime runs onnx files (.onnx), not this one")


@pytest.mark.usefixtures("converted_once")
def test_evaluate_says_the_command_that_writes_the_file(cli, place, tmp_path):
    run = shutil.copytree(place / "run", tmp_path / "run", ignore=shutil.ignore_patterns("exported"))
    judged = ("evaluate", "--checkpoint", run, "--data", place / "data", "--runtime", "onnxruntime", "--json")
    said = cli(*judged).fails(2, "no exported file").lines[-1]
    name, *command = said.split("`")[1].split()
    assert name == "pocketformer"
    cli(*command).succeeds()
    assert cli(*judged).json()["accuracy"] > 0.9
