"""Exports of ONNX and OpenVINO: dynamic batches, lower precisions that are checked and compared, and the command."""

import copy

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

from asking import ask
from perturbed import perturb
from pocketformer.architecture import SearchSpace
from pocketformer.deploy import SUFFIXES, export, format_of, runtime_of
from pocketformer.deploy import efficientformerv2 as fused_forms
from pocketformer.errors import UserError, WorkError
from pocketformer.models import create_model
from pocketformer.pipelines import exporting
from pocketformer.pipelines.calibration import calibration_images
from pocketformer.runtimes import runtime
from pocketformer.training.data import open_data


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return perturb(create_model(SearchSpace.named("pocket28").smallest, 10))


def images(model, count, seed=0):
    rough = torch.randn(count, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(rough, size=model.resolution, mode="bilinear")


# OpenVINO, dynamic batches, lower precisions


@pytest.mark.parametrize("format", ["onnx", "openvino"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_exported_files_agree_and_take_the_batches_they_say(small, tmp_path, format, dynamic):
    path = tmp_path / f"model{SUFFIXES[format]}"
    x = images(small, 7)
    report = export(small, path, x, format, dynamic_batch=dynamic)
    assert report.verified.max_difference <= 1e-4 * report.verified.logits_std
    assert report.bytes == sum(p.stat().st_size for p in tmp_path.iterdir() if p.suffix != ".json")
    session = runtime(runtime_of(format)).load(path)
    assert session.shape == (1, 3, 28, 28)
    if dynamic:
        with torch.no_grad():
            wanted = small.eval()(x).numpy()
        np.testing.assert_allclose(session.run(x.numpy()), wanted, rtol=1e-3, atol=1e-4 * wanted.std())
    else:
        with pytest.raises(Exception, match=r"(?i)dimension|shape"):
            session.run(x.numpy())


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_int8_is_quantised_smaller_and_checked(small, tmp_path, format):
    if format == "openvino":
        pytest.importorskip("nncf")
    path = tmp_path / f"model{SUFFIXES[format]}"
    model = create_model(SearchSpace.named("pocket28").largest, 10)
    full = export(model, path, images(model, 8), format)
    float32 = tmp_path / f"float32{SUFFIXES[format]}"
    settings = {"precision": "int8", "calibration": images(model, 16, seed=1), "float32": float32}
    report = export(model, path, images(model, 8), format, **settings)
    assert report.precision == "int8"
    assert float32.stat().st_size > path.stat().st_size or format == "openvino"
    assert report.bytes < 0.75 * full.bytes
    found = report.verified
    assert full.verified.rms_difference < found.rms_difference < 0.5 * found.logits_std
    if format == "onnx":
        kinds = [node.op_type for node in onnx.load(str(path)).graph.node]
        assert kinds.count("QuantizeLinear") > 20
    else:
        assert path.read_text().count('type="FakeQuantize"') > 20


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_a_wrong_operator_is_refused_in_every_precision(small, tmp_path, monkeypatch, precision):
    pytest.importorskip("openvino")
    model = small
    calibration = images(model, 4) if precision == "int8" else None
    path = tmp_path / "model.xml"
    monkeypatch.setattr(fused_forms.FusedFFN, "forward", lambda self, x: x - self.fc2(self.act(self.mid(self.fc1(x)))))
    with pytest.raises(WorkError, match=r"^export refused: in float32, logits differ [^\n]+$"):
        export(model, path, images(model, 4), "openvino", precision=precision, calibration=calibration)
    assert list(tmp_path.iterdir()) == []


def test_a_fault_in_one_block_is_refused_in_int8(small, tmp_path, monkeypatch):
    """A fault that is smaller than what int8 may round away."""
    chosen, path, wrong, model = format_of("onnx"), tmp_path / "model.onnx", [], small
    write = chosen.write

    def write_wrong(module, example, path, precision, *settings):
        if not wrong or precision in wrong:
            module = copy.deepcopy(module)
            block = next(m for m in module.modules() if isinstance(m, fused_forms.FusedFFN))
            block.fc2.weight.mul_(-1 if not wrong else -300)
        write(module, example, path, precision, *settings)

    monkeypatch.setattr(chosen, "write", write_wrong)
    settings = {"precision": "int8", "calibration": images(model, 8, seed=1)}
    with pytest.raises(WorkError, match=r"^export refused: in float32"):
        export(model, path, images(model, 8), **settings)
    wrong.append("int8")  # in its own conversion
    with pytest.raises(WorkError, match=r"^export refused: in int8"):
        export(model, path, images(model, 8), **settings)
    assert list(tmp_path.iterdir()) == []


def test_precision_and_calibration_go_together(small, tmp_path):
    x = images(small, 2)
    for options, message in (
        ({"precision": "float16"}, "format onnx has no precision 'float16'; it has float32, int8"),
        ({"precision": "int8"}, "int8 needs them"),
        ({"calibration": x}, "belong to int8"),
        ({"precision": "int8", "calibration": x[:, :, :9]}, "calibration needs float images"),
    ):
        with pytest.raises(UserError, match=message):
            export(small, tmp_path / "model.onnx", x, **options)
    assert list(tmp_path.iterdir()) == []


# The command


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    SearchSpace.named("pocket28").smallest.save(folder / "a.json")
    known = ("--architecture", folder / "a.json", "--data", "embedded", "--epochs", 0.2)
    ask("train", *known, "--out", folder / "run").succeeds()
    return folder / "run"


def test_int8_is_compared_with_float32(trained, tmp_path, cli):
    out = tmp_path / "model.onnx"
    found = cli("export", "--checkpoint", trained, "--int8", "--out", out, "--json").json()
    accuracy = found["compared"]["accuracy"]
    assert {result["split"] for result in accuracy.values()} == {"search"}
    assert abs(accuracy["int8"]["accuracy"] - accuracy["float32"]["accuracy"]) < 0.1
    assert found["compared"]["latency_ratio"] > 0.1
    assert {p.name for p in tmp_path.iterdir()} == {"model.onnx", "model.onnx.json"}


def test_the_splits_are_those_of_the_training(trained, tmp_path, cli):
    given = ("export", "--checkpoint", trained, "--out", tmp_path / "model.onnx", "--seed", 5)
    cli(*given, "--int8").fails(2, "was trained with --seed 0", "give --seed 0")
    assert not list(tmp_path.iterdir())
    cli(*given).succeeds()  # float32 is but compared with PyTorch


def test_a_failed_comparison_is_a_note(trained, tmp_path, cli, monkeypatch):
    def fail(*_, **__):
        raise WorkError("the runtime crashed")

    monkeypatch.setattr(exporting, "_compared", fail)
    out = tmp_path / "model.onnx"
    answer = cli("export", "--checkpoint", trained, "--int8", "--out", out).succeeds()
    assert "note: int8 could not be compared with float32: the runtime crashed" in answer.err
    assert out.exists()


def test_a_name_of_another_format_is_refused_before_anything_is_read(tmp_path, cli):
    arguments = ["export", "--checkpoint", tmp_path / "none", "--format", "torch", "--out", tmp_path / "model.onnx"]
    cli(*arguments).fails(2, "a file of format torch ends in .pt2")


def test_nothing_is_calibrated_on_the_test_split(trained, tmp_path):
    """Of a folder with train/ and val/; the one's images are dark, the other's bright."""
    for part, shade, count in (("train", 10, 8), ("val", 200, 4)):
        for label in ("a", "b"):
            (tmp_path / "photos" / part / label).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (28, 28), (shade + i,) * 3).save(tmp_path / "photos" / part / label / f"{i}.png")
    model = create_model(SearchSpace.named("pocket28").smallest, 2)
    data = open_data("embedded", size=(28, 28))
    settings = (model, str(tmp_path / "photos"), data, (28, 28), 0)
    assert calibration_images(*settings).max() < 0
    mixed = open_data(tmp_path / "photos" / "train", size=(28, 28))  # a tenth of it is set aside
    own = calibration_images(model, str(tmp_path / "photos" / "train"), mixed, (28, 28), 0)
    assert len(own) == len(mixed.fit) < 16
    whole = open_data(tmp_path / "photos", size=(28, 28))
    for part in ("val", "train", "train/a"):  # which of them is tested on, these splits say
        with pytest.raises(UserError, match="lies within"):
            calibration_images(model, str(tmp_path / "photos" / part), whole, (28, 28), 0)
    plain = calibration_images(model, str(tmp_path / "photos" / "val"), data, (28, 28), 0)
    assert (len(plain), plain.min() > 0) == (8, True)


def test_a_calibration_folder_without_images_is_refused(trained, tmp_path, cli):
    (tmp_path / "empty" / "deep").mkdir(parents=True)
    (tmp_path / "empty" / "deep" / "notes.txt").write_text("no image")
    out = tmp_path / "model.onnx"
    arguments = ["export", "--checkpoint", trained, "--int8", "--calibration", tmp_path / "empty", "--out", out]
    error = cli(*arguments).fails(2).lines[-1]
    assert error == f"pocketformer: --calibration {tmp_path / 'empty'}: holds no images that can be read (1 files)"
    assert not out.exists()


def test_evaluate_runs_any_exported_file(trained, tmp_path, cli):
    pytest.importorskip("openvino")
    folder = trained / "exported"
    cli("export", "--checkpoint", trained, "--format", "openvino", "--out", folder / "model.xml").succeeds()
    found = {}
    for name, extra in (("torch", []), ("openvino", ["--runtime", "openvino"])):
        found[name] = cli("evaluate", "--checkpoint", trained, "--data", "embedded", "--json", *extra).json()
        assert found[name]["runtime"] == name
    assert found["openvino"]["correct"] == pytest.approx(found["torch"]["correct"], abs=2)
    answer = cli("evaluate", "--checkpoint", folder / "model.xml", "--runtime", "onnxruntime", "--data", "embedded")
    answer.fails(2, "is a file of format openvino, but onnxruntime runs onnx")
