"""`design`, `profile` and `benchmark` for every runtime that installs here, and what is verified before their work."""

import copy
import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from bench_of_formats import classes_in, open_place
from pocketformer.deploy.formats import onnx as onnx_format
from pocketformer.devices import LatencyTable
from pocketformer.pipelines import design, profiling

torch.set_num_threads(1)
slow = pytest.mark.skipif("POCKETFORMER_SLOW" not in os.environ, reason="minutes: set POCKETFORMER_SLOW=1")
PARTS = {"openvino": "openvino", "executorch": "executorch", "litert": "litert_torch"}
SLOW = ("torch", "executorch", "litert", "torch-compile", "aotinductor")  # each process imports torch, or compiles


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return open_place(tmp_path_factory.mktemp("runtimes"))


@pytest.fixture(autouse=True)
def one_short_session(monkeypatch):
    """What is timed is not what is tested: most of the time goes into starting processes."""
    monkeypatch.setattr(profiling, "_SESSIONS", 1)
    monkeypatch.setattr(profiling, "_WHOLE_ROUNDS", 3)


def needs(name: str) -> None:
    if name in PARTS:
        pytest.importorskip(PARTS[name])
    if name in ("aotinductor", "torch-compile") and not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("no C++ compiler")


def designing(place: Path, out: Path, runtime: str, *more: object) -> list:
    given = ["design", "--data", place / "data", "--space", place / "space.yaml", "--runtime", runtime, "--workers", 0]
    short = ["--epochs", 1, "--final-epochs", 2, "--batch-size", 16]
    return [*given, *short, "--max-parameters", "99%", "--out", out, *more]


@pytest.mark.parametrize("runtime", ["openvino", *(pytest.param(name, marks=slow) for name in SLOW)])
def test_design(cli, place, tmp_path, monkeypatch, runtime):
    """From images to a file that computes what the network does; verified first, with images of all classes."""
    needs(runtime)
    given, export = [], design.export

    def watched(model, path, images, *more, **options):
        given.append(images)
        return export(model, path, images, *more, **options)

    monkeypatch.setattr(design, "export", watched)
    run = designing(place, tmp_path / "run", runtime, "--latency", place / "table.json", "--json")
    answer = cli(*run)
    said = answer.succeeds().err
    assert 0 < said.index("verify the export of the smallest network") < said.index("train the supernet")
    assert [sorted(classes_in(images)) for images in given] == [[10, 11, 11]]
    judge = ("evaluate", "--checkpoint", tmp_path / "run", "--data", place / "data", "--json")
    in_file, in_torch = cli(*judge, "--runtime", runtime).json(), cli(*judge).json()
    assert in_file["correct"] == in_torch["correct"]
    out = tmp_path / "model.onnx"
    found = cli("export", "--checkpoint", tmp_path / "run", "--out", out, "--json").json()
    assert found["verified"]["max_difference"] <= 1e-3 * found["verified"]["logits_std"]
    assert "verify the export" not in cli(*run).succeeds().err  # done is done


@pytest.mark.parametrize("runtime", ["openvino", *(pytest.param(name, marks=slow) for name in SLOW)])
def test_profile_and_benchmark(cli, place, tmp_path, runtime):
    needs(runtime)
    few = ("--rounds", 3, "--networks", 0, "--checks", 0, "--runtime", runtime)
    table = tmp_path / "table.json"
    profile = ("profile", "--space", place / "space.yaml", "--classes", 3, *few, "--out", table)
    said = cli(*profile).succeeds().err
    assert "verify the export of the smallest network" in said
    assert LatencyTable.load(table).fingerprint["runtime"] == runtime
    rows = cli("benchmark", place / "shape.json", "--runtime", runtime, "--rounds", 5, "--json").json()["networks"]
    assert all(row["median_ms"] > 0 for row in rows)


@pytest.mark.parametrize("command", ["design", "profile"])
def test_core_ml_is_refused_at_once(cli, place, tmp_path, command):
    if not find_spec("coremltools"):
        pytest.skip("coremltools is not installed")
    given = {
        "design": designing(place, tmp_path / "run", "coreml"),
        "profile": ["profile", "--space", place / "space.yaml", "--runtime", "coreml", "--out", tmp_path / "t.json"],
    }[command]
    cli(*given).fails(2, "Core ML runs on macOS only", alone=True)
    assert list(tmp_path.iterdir()) == []


def wrong(write):
    """A converter that takes the head's bias for zero, as silently as XNNPACK took the rows for the channels."""

    def planted(module, *more, **options):
        module = copy.deepcopy(module)
        next(part for part in module.modules() if isinstance(part, torch.nn.Linear)).weight.data[0] *= -1
        return write(module, *more, **options)

    return planted


@pytest.mark.parametrize("command", ["design", "profile", "emit"])
def test_a_runtime_that_cannot_be_written_for_is_told_first(cli, place, tmp_path, monkeypatch, command):
    monkeypatch.setattr(onnx_format, "write", wrong(onnx_format.write))
    profile = ["profile", "--space", place / "space.yaml", "--classes", 3]
    answer = {
        "design": lambda: cli(*designing(place, tmp_path / "run", "onnxruntime")),
        "profile": lambda: cli(*profile, "--out", tmp_path / "table.json"),
        "emit": lambda: cli(*profile, "--format", "onnx", "--emit-models", tmp_path / "models"),
    }[command]()
    said = answer.fails(1, "export refused: in float32, logits differ from PyTorch").err
    assert not any(words in said for words in ("profile onnxruntime", "train", "write onnx"))
    assert {p.name for p in tmp_path.iterdir()} <= {"run"}
    assert not (tmp_path / "run" / "supernet").exists()


def test_networks_are_not_timed_unverified(cli, place, tmp_path, monkeypatch):
    """The quick files that decide what ships are not those that ship."""
    monkeypatch.setattr(onnx_format, "write_quick", wrong(onnx_format.write_quick))
    run = designing(place, tmp_path / "run", "onnxruntime", "--latency", place / "table.json")
    said = cli(*run).fails(1, "export refused: in float32, logits differ from PyTorch").err
    assert "time whole networks" in said
    assert "train found" not in said
