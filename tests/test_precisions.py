"""Exports of ONNX and OpenVINO: dynamic batches, lower precisions that are checked, and what calibrates them."""

import copy

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

from perturbed import perturb
from pocketformer.architecture import FFN, Architecture, Attention, Design, Stage
from pocketformer.deploy import SUFFIXES, export, format_of, runtime_of
from pocketformer.deploy import efficientformerv2 as fused_forms
from pocketformer.errors import UserError, WorkError
from pocketformer.models import create_model
from pocketformer.pipelines.calibration import calibration_images
from pocketformer.runtimes import runtime
from pocketformer.training.data import open_data

# Every kind of part once: what a converter costs goes by their number, and not by their width.
DESIGN = Design(
    resolution=28,
    stem_strides=(2, 2),
    stage_strides=(1, 2),
    downsampling=("conv", "conv"),
    attention_strides=(1, 1, 1),
    heads=2,
    key_dim=8,
    value_dim=8,
)


def shape(*widths):
    blocks = [FFN(1)], [FFN(1)], [FFN(1), Attention()]
    return Architecture(tuple(map(Stage, widths, blocks)), DESIGN)


SMALL, WIDE = shape(8, 12, 16), shape(48, 64, 96)


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return perturb(create_model(SMALL, 10))


def images(model, count, seed=0):
    rough = torch.randn(count, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(rough, size=model.resolution, mode="bilinear")


# OpenVINO, dynamic batches, lower precisions


@pytest.mark.parametrize(("format", "dynamic"), [("onnx", True), ("openvino", False)])
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
    model = create_model(WIDE, 10)
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


def test_nothing_is_calibrated_on_the_test_split(tmp_path):
    """Of a folder with train/ and val/; the one's images are dark, the other's bright."""
    for part, shade, count in (("train", 10, 8), ("val", 200, 4)):
        for label in ("a", "b"):
            (tmp_path / "photos" / part / label).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (28, 28), (shade + i,) * 3).save(tmp_path / "photos" / part / label / f"{i}.png")
    model = create_model(SMALL, 2)
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
