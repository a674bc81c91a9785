"""Fusing and exporting: equal outputs for every network, and a planted wrong operator is refused."""

import copy
import errno
import random
from functools import partial

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from timm.layers import freeze_batch_norm_2d
from torch import nn

from pocketformer.architecture import Architecture, SearchSpace
from pocketformer.deploy import export, fuse
from pocketformer.deploy.efficientformerv2 import Upsampling
from pocketformer.deploy.formats import onnx as onnx_format
from pocketformer.deploy.formats.onnx import OPSET
from pocketformer.errors import UserError, WorkError
from pocketformer.models import create_model
from pocketformer.models.layers import LayerScale


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny operators on two busy cores: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def perturbed(architecture, num_classes=10, distilled=True, seed=0, resolution=None):
    """A network in which nothing is at a value that hides a mistake: norms, biases, scales and statistics."""
    torch.manual_seed(seed)
    model = create_model(architecture, num_classes, resolution, distilled, layer_scale=0.3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
    return model


def images(model, count=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rough = torch.randn(count, 3, 5, 5, generator=generator)
    return nn.functional.interpolate(rough, size=model.resolution, mode="bilinear")


@pytest.fixture(scope="module")
def small():
    return perturbed(SearchSpace.named("pocket28").smallest, seed=3)


def networks():
    for name in ("pocket28", "pocket32"):
        space = SearchSpace.named(name)
        for seed in range(6):
            yield pytest.param(space.sample(seed), id=f"{name}-{seed}")
        yield pytest.param(space.largest, id=f"{name}-largest")
    yield pytest.param(Architecture.named("efficientformerv2_s0"), id="s0")


@pytest.mark.parametrize("architecture", networks())
def test_fused_equals_the_network_in_evaluation_mode(architecture):
    """In float64: some of these random networks are ill-conditioned, and only a wrong formula is at stake."""
    model = perturbed(architecture, distilled=random.Random(repr(architecture)).random() < 0.5).double()
    x = images(model).double()
    before = copy.deepcopy(model.state_dict())
    assert model.training
    fused = fuse(model)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        wanted = model.eval()(x)
        for net in (fused, fused.train()):
            torch.testing.assert_close(net(x), wanted, rtol=1e-9, atol=1e-9 * wanted.std().item())
    kinds = {type(module) for module in fused.modules()}
    assert not kinds & {nn.BatchNorm2d, LayerScale}
    assert not any(p.requires_grad for p in fused.parameters())
    own = {t.untyped_storage().data_ptr() for t in (*fused.parameters(), *fused.buffers())}
    assert not own & {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}


def test_fused_at_odd_and_oblong_grids(small):
    model = perturbed(small.architecture, resolution=(45, 31))
    x = images(model)
    with torch.no_grad():
        torch.testing.assert_close(fuse(model)(x), model.eval()(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("grid", "size"), [((7, 7), (14, 14)), ((4, 3), (7, 6)), ((12, 12), (24, 23))])
def test_upsampling_is_bilinear_as_matrix_and_as_interpolation(grid, size):
    x = torch.randn(2, 3, *grid)
    wanted = nn.functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
    module = Upsampling(grid, size)
    assert (module.matrix is None) == (grid == (12, 12))
    torch.testing.assert_close(module(x), wanted)


def test_fusing_something_else_is_a_users_mistake():
    with pytest.raises(UserError, match="cannot fuse a Linear"):
        fuse(nn.Linear(2, 2))


def test_a_network_without_classifier_is_not_fused(small):
    for change in (
        lambda model: model.reset_classifier(0),
        lambda model: model.reset_classifier(10, ""),
        lambda model: model.prune_intermediate_layers(1),
    ):
        model = copy.deepcopy(small)
        change(model)
        with pytest.raises(UserError, match="without a classifier: reset_classifier") as refusal:
            fuse(model)
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["efficientformerv2_s0", "efficientformer_l1"])
@pytest.mark.parametrize("stages", [None, 4, 2])
def test_a_new_classifier_is_fused(name, stages):
    """Also behind the first stages alone, which leaves no norm."""
    model = perturbed(Architecture.named(name).with_design(resolution=64))
    if stages is not None:
        model.prune_intermediate_layers([stages - 1], prune_norm=True)
    model.reset_classifier(3, "avg")
    model, x = model.double(), images(model).double()
    with torch.no_grad():
        torch.testing.assert_close(fuse(model)(x), model.eval()(x), rtol=1e-9, atol=1e-9)


def test_export_is_right(small, tmp_path):
    model, path = small, tmp_path / "new" / "model.onnx"
    x = images(model, count=6)
    state = copy.deepcopy(model.state_dict())
    report = export(model, path, x)
    assert model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert report.verified.images == 6
    assert report.verified.max_difference <= 1e-4 * report.verified.logits_std
    assert report.bytes == path.stat().st_size
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        wanted = copy.deepcopy(model).eval()(x[:1]).numpy()
    np.testing.assert_allclose(session.run(None, {"image": x[:1].numpy()})[0], wanted, rtol=1e-4, atol=1e-5)
    graph = onnx.load(str(path))
    assert next(o.version for o in graph.opset_import if o.domain == "") == OPSET
    assert report.details == f"ONNX opset {OPSET}"
    assert not {node.op_type for node in graph.graph.node} & {"BatchNormalization", "Gather", "Resize"}
    assert {p.name for p in path.parent.iterdir()} == {"model.onnx", "model.onnx.json"}


def _softmax_axis(graph):
    node = next(node for node in graph.node if node.op_type == "Softmax")
    node.attribute[0].i = 1


def _sub_for_add(graph):
    next(node for node in graph.node if node.op_type == "Add").op_type = "Sub"


def _no_such_operator(graph):
    graph.node[-1].op_type = "Gemmm"


def _not_finite(graph):
    weights = next(t for t in graph.initializer if len(t.dims) == 2)
    values = np.full(tuple(weights.dims), np.inf, dtype=np.float32)
    weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))


@pytest.fixture(scope="module")
def right(small, tmp_path_factory):
    """The file of `small`, in which mistakes are planted."""
    path = tmp_path_factory.mktemp("right") / "model.onnx"
    export(small, path, images(small))
    return path


def _write_wrong(right, plant, module, example, path, *settings):
    graph = onnx.load(str(right))
    plant(graph.graph)
    onnx.save(graph, str(path))


@pytest.mark.parametrize("plant", [_softmax_axis, _sub_for_add, _no_such_operator, _not_finite])
def test_a_wrong_file_is_refused(small, right, tmp_path, monkeypatch, plant):
    monkeypatch.setattr(onnx_format, "write", partial(_write_wrong, right, plant))
    with pytest.raises(WorkError, match=r"^export refused: [^\n]+$"):
        export(small, tmp_path / "model.onnx", images(small))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", ["write", "write_quick"])
def test_what_the_exporter_raises_is_one_line(tmp_path, write):
    class Odd(nn.Module):
        def forward(self, x):
            raise KeyError("first\nsecond")

    with pytest.raises(WorkError, match=r"^export refused: PyTorch's ONNX exporter rejects this network \([^\n]+\)$"):
        getattr(onnx_format, write)(Odd(), torch.zeros(1, 3, 8, 8), tmp_path / "model.onnx")


def test_a_full_disk_is_not_the_networks_fault(small, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch.onnx, "export", full)
    with pytest.raises(OSError, match="No space left"):
        onnx_format.write_quick(nn.Identity(), torch.zeros(1, 3, 8, 8), tmp_path / "model.onnx")
    with pytest.raises(WorkError, match=r"^cannot write .*: No space left on device$"):
        export(small, tmp_path / "model.onnx", images(small))


def test_a_refused_export_leaves_the_older_file(small, right, tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_text("older")
    monkeypatch.setattr(onnx_format, "write", partial(_write_wrong, right, _not_finite))
    with pytest.raises(WorkError, match="not finite"):
        export(small, path, images(small))
    assert path.read_text() == "older"


def test_a_broken_network_is_refused(small, tmp_path):
    broken = copy.deepcopy(small)
    with torch.no_grad():
        broken.head.bias.fill_(float("nan"))
    with pytest.raises(WorkError, match="own output is not finite"):
        export(broken, tmp_path / "model.onnx", images(small))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "batch", "format", "message"),
    [
        ("file/model.onnx", torch.zeros(1, 3, 28, 28), "onnx", "cannot write"),
        ("folder.onnx", torch.zeros(1, 3, 28, 28), "onnx", "cannot write"),
        ("model", torch.zeros(1, 3, 28, 28), "openvino", r"a file of format openvino ends in \.xml"),
        ("model.pt2", torch.zeros(1, 3, 28, 28), "aotinductor", r"a file of format aotinductor ends in \.aoti\.pt2"),
        ("model.onnx", torch.zeros(1, 3, 32, 32), "onnx", r"shape \(N, 3, 28, 28\)"),
        ("model.onnx", torch.zeros(0, 3, 28, 28), "onnx", "N >= 1"),
        ("model.onnx", torch.zeros(1, 3, 28, 28, dtype=torch.uint8), "onnx", "uint8"),
        ("model.onnx", torch.zeros(1, 3, 28, 28), "paper", "no export format 'paper'"),
    ],
)
def test_mistakes_are_told_in_one_line(small, tmp_path, name, batch, format, message):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.onnx").mkdir()
    if format == "openvino":
        pytest.importorskip("openvino")
    with pytest.raises(UserError, match=message) as caught:
        export(small, tmp_path / name, batch, format)
    assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.onnx"]


@torch.no_grad()
def test_synchronised_and_frozen_norms_are_folded():
    model = perturbed(SearchSpace.named("pocket28").sample(4), seed=1).eval().double()
    x = images(model).double()
    for convert in (nn.SyncBatchNorm.convert_sync_batchnorm, freeze_batch_norm_2d):
        other = convert(copy.deepcopy(model))
        net = fuse(other)
        assert not any("norm" in type(module).__name__.lower() for module in net.modules())
        torch.testing.assert_close(net(x), model(x), rtol=1e-9, atol=1e-9)
    with pytest.raises(UserError, match="no statistics"):
        fuse(create_model(model.architecture).apply(lambda m: setattr(m, "running_var", None)))


def test_a_network_in_half_precision_is_folded_in_single(tmp_path):
    model = perturbed(SearchSpace.named("pocket28").sample(4), seed=1).eval().bfloat16()
    report = export(model, tmp_path / "model.onnx", images(model))
    assert report.verified.max_difference < 1e-4 * report.verified.logits_std
