"""LiteRT, Core ML and TensorRT: right files, wrong ones refused, and one line for what is missing."""

import copy
import importlib
import importlib.util
import sys
from functools import partial
from types import ModuleType

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import told
from perturbed import perturb
from pocketformer.architecture import Architecture, SearchSpace
from pocketformer.deploy import eager, export, fuse, read_facts
from pocketformer.deploy.channels_last import channels_last
from pocketformer.deploy.efficientformerv2 import FusedFFN, Upsampling
from pocketformer.deploy.formats import SUFFIXES, format_of
from pocketformer.errors import UserError, WorkError
from pocketformer.models import create_model
from pocketformer.runtimes import runtime


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny operators on two busy cores: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def small():
    return perturb(create_model(SearchSpace.named("pocket28").smallest, 10, distilled=True))


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    rough = torch.randn(6, 3, 5, 5, generator=generator)
    return nn.functional.interpolate(rough, size=(28, 28), mode="bilinear")


@pytest.fixture(scope="module")
def litert():
    pytest.importorskip("litert_torch", reason="the extra litert is not installed")
    return format_of("litert")


@pytest.fixture(scope="module")
def coreml():
    pytest.importorskip("coremltools", reason="the extra coreml is not installed")
    return format_of("coreml")


def architectures():
    for seed in range(4):
        yield pytest.param(SearchSpace.named("pocket28").sample(seed), id=f"pocket28-{seed}")
    for name in ("efficientformerv2_s0", "efficientformer_l1"):
        yield pytest.param(Architecture.named(name).with_design(resolution=(96, 64)), id=name)


@pytest.mark.parametrize("rewritten", [channels_last, eager])
@pytest.mark.parametrize("architecture", architectures())
def test_rewritten_for_channels_last_is_the_same_function(architecture, rewritten):
    fused = fuse(perturb(create_model(architecture)).double())
    kinds = [type(module) for module in fused.modules()]
    x = torch.randn(2, 3, *architecture.design.resolution, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(rewritten(fused)(x), fused(x), rtol=1e-9, atol=1e-9)
    assert [type(module) for module in fused.modules()] == kinds
    assert all(p.is_contiguous() for p in fused.state_dict().values())


def test_the_form_for_pytorch_itself_leaves_other_networks_alone():
    """Peers are timed as they are."""
    plain = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.Conv2d(4, 4, 3))
    assert all(type(part) is torch.nn.Conv2d and part.weight.is_contiguous() for part in eager(plain))


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_litert_files_are_right(litert, small, images, tmp_path, capfd, precision):
    path = tmp_path / "model.tflite"
    report = export(
        small, path, images, "litert", precision=precision, calibration=images if precision == "int8" else None
    )
    assert capfd.readouterr() == ("", "")
    assert {p.name for p in tmp_path.iterdir()} == {"model.tflite", "model.tflite.json"}
    assert told.metadata("litert", path) == read_facts(path).metadata() == litert.read_metadata(path)
    assert report.verified.images == len(images)
    assert report.details.endswith("all builtin")
    if precision == "float32":
        assert report.verified.max_difference < 1e-4 * report.verified.logits_std
        found = litert.operators(path)
        assert found["GELU"]
        assert found["SOFTMAX"]
        assert report.details == f"TFLite, {found.total()} operators, all builtin"
    else:
        assert report.bytes < 4 * sum(p.numel() for p in fuse(small).parameters())

    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(path)).get_signature_runner()
    ((name, given),), ((out, got),) = runner.get_input_details().items(), runner.get_output_details().items()
    assert (name, tuple(given["shape"]), given["dtype"]) == ("image", (1, 3, 28, 28), np.float32)
    assert (out, tuple(got["shape"]), got["dtype"]) == ("logits", (1, 10), np.float32)


class _Subtracting(nn.Module):
    """x + f(x) as x - f(x)."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        return 2 * x - self.block(x)


def _sub_for_add(module, patch):
    place = next(i for i, block in enumerate(module) if isinstance(block, FusedFFN))
    module[place] = _Subtracting(module[place])


def _softmax_axis(module, patch):
    softmax = torch.Tensor.softmax
    patch.setattr(torch.Tensor, "softmax", lambda x, dim: softmax(x, dim=1))


def _write_wrong(write, plant, module, *settings):
    with pytest.MonkeyPatch.context() as patch:
        plant(module, patch)
        write(module, *settings)


@pytest.mark.parametrize("plant", [_softmax_axis, _sub_for_add])
def test_a_wrong_litert_file_is_refused(litert, small, images, tmp_path, monkeypatch, plant):
    monkeypatch.setattr(litert, "write", partial(_write_wrong, litert.write, plant))
    with pytest.raises(WorkError, match=r"^export refused: in float32, logits differ[^\n]+$"):
        export(small, tmp_path / "model.tflite", images, "litert")
    assert list(tmp_path.iterdir()) == []


def test_litert_rejects_upsampling_an_oblong_grid_by_a_product(litert, tmp_path):
    """Its converter then writes a matrix product of the wrong rank; as an interpolation it is right."""
    upsampling, x, path = Upsampling((1, 3), (1, 5)), torch.randn(1, 6, 1, 3), tmp_path / "model.tflite"
    module = nn.Sequential(nn.Conv2d(6, 6, 1), upsampling, nn.Conv2d(6, 4, 1)).eval()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(litert, "channels_last", lambda plain: plain)
        with pytest.raises(WorkError, match=r"LiteRT's converter rejects this network \([^\n]+\)$"):
            litert.write(module, x, path)
    litert.write(module, x, path)
    with torch.no_grad():
        np.testing.assert_allclose(runtime("litert").load(path).run(x.numpy()), module(x).numpy(), atol=1e-5)


@pytest.mark.parametrize("format", ["litert", "coreml"])
def test_what_a_converter_rejects_is_told_in_one_line(request, small, images, tmp_path, monkeypatch, format):
    request.getfixturevalue(format)

    def refuse(*_, **__):
        raise ValueError("no such operator\nand more")

    where = {"litert": "litert_torch.convert", "coreml": "coremltools.convert"}[format]
    monkeypatch.setattr(where, refuse)
    with pytest.raises(WorkError, match=r"^export refused: .* rejects this network \(no such operator\)$"):
        export(small, tmp_path / f"model{SUFFIXES[format]}", images, format)
    with pytest.raises(UserError, match=r"no dynamic batch$"):
        export(small, tmp_path / f"model{SUFFIXES[format]}", images, format, dynamic_batch=True)
    assert list(tmp_path.iterdir()) == []


def test_litert_says_which_torch_its_converter_needs(monkeypatch):
    pytest.importorskip("ai_edge_litert", reason="the extra litert is not installed")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "litert_torch" else find(name))
    for version, message in (("2.15.0", "needs torch < 2.15, and this is 2.15.0"), ("2.14.1", "is not installed")):
        monkeypatch.delitem(sys.modules, "pocketformer.deploy.formats.litert", raising=False)
        monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion(version))
        with pytest.raises(UserError, match=rf"^[^\n]*{message}[^\n]*pip install 'pocketformer\[litert\]'\)?$"):
            format_of("litert")


def test_litert_files_that_cannot_be_loaded_are_told_in_one_line(tmp_path):
    pytest.importorskip("ai_edge_litert", reason="the extra litert is not installed")
    (tmp_path / "broken.tflite").write_bytes(b"not a model")
    for name, message in (("none.tflite", "model file not found"), ("broken.tflite", "LiteRT cannot load")):
        with pytest.raises(UserError, match=rf"^{message}[^\n]+$"):
            runtime("litert").load(tmp_path / name)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_core_ml_packages_compute_the_network(coreml, small, images, tmp_path, capfd, precision):
    """Core ML runs on macOS only; elsewhere PyTorch computes what the package's operators say."""
    path = tmp_path / "model.mlpackage"
    report = export(small, path, images, "coreml", precision=precision)
    assert capfd.readouterr() == ("", "")
    assert sorted(p.name for p in path.iterdir()) == ["Data", "Manifest.json"]
    assert report.details.startswith("Core ML program of ")
    assert told.metadata("coreml", path) == read_facts(path).metadata()
    spec, operators = coreml.load(path)
    (given,), (got,) = spec.description.input, spec.description.output
    assert (given.name, tuple(given.type.multiArrayType.shape)) == ("image", (1, 3, 28, 28))
    assert (got.name, tuple(got.type.multiArrayType.shape)) == ("logits", (1, 10))
    assert {port.type.multiArrayType.dataType for port in (given, got)} == {65568}  # float32
    mil = importlib.import_module("mil")
    with torch.no_grad():
        wanted = copy.deepcopy(small).eval()(images[:1])
        computed = mil.evaluated(operators, path, images[:1])
    assert (computed - wanted).abs().max() < (1e-4 if precision == "float32" else 0.02) * wanted.std()
    if sys.platform != "darwin":
        assert report.verified is None
        assert report.details.endswith("not run here, as Core ML runs on macOS only")
        with pytest.raises(UserError, match=r"^runtime coreml cannot be used here: Core ML runs on macOS only$"):
            runtime("coreml")


def test_tensorrt_names_what_is_missing():
    if importlib.util.find_spec("tensorrt") is not None:
        pytest.skip("tensorrt is installed")
    for part in (partial(format_of, "tensorrt"), partial(runtime, "tensorrt")):
        with pytest.raises(UserError, match=r"^[^\n]+ needs tensorrt, [^\n]+ pip install 'pocketformer\[tensorrt\]'$"):
            part()


def test_tensorrt_is_given_float16_between_float32_ends(small, images, tmp_path, monkeypatch):
    """The ONNX file only, which ONNX Runtime computes as well: the rest needs TensorRT and a GPU."""
    if importlib.util.find_spec("tensorrt") is None:
        stand_in = ModuleType("tensorrt")
        stand_in.ILogger = type("ILogger", (), {"Severity": int})
        monkeypatch.setitem(sys.modules, "tensorrt", stand_in)
        for name in ("deploy.formats.tensorrt", "runtimes.tensorrt"):
            monkeypatch.delitem(sys.modules, f"pocketformer.{name}", raising=False)
    format = format_of("tensorrt")
    monkeypatch.setattr(format, "_engine", lambda path: path.read_bytes())
    fused, path = fuse(small), tmp_path / "model.onnx"
    format.write(fused, images[:1], path, "float16")
    assert {p.dtype for p in fused.parameters()} == {torch.float32}
    graph = onnx.load(str(path)).graph
    ends = {port.type.tensor_type.elem_type for port in (*graph.input, *graph.output)}
    assert ends == {onnx.TensorProto.FLOAT}
    weights = {t.data_type for t in graph.initializer if len(t.dims) > 1}
    assert weights == {onnx.TensorProto.FLOAT16}
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        wanted = fused(images[:1]).numpy()
    assert np.abs(session.run(None, {"image": images[:1].numpy()})[0] - wanted).max() < 0.05 * wanted.std()
    with pytest.raises(UserError, match=r"no dynamic batch$"):
        format.write(fused, images[:1], path, dynamic_batch=True)
    for name in ("deploy.formats.tensorrt", "runtimes.tensorrt"):  # they hold the stand-in
        sys.modules.pop(f"pocketformer.{name}", None)
