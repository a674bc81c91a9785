"""Runtimes: crashes stay in their process, files of two parts are whole, lower precisions are checked and compared."""

import copy
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
import weakref
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

from perturbed import perturb
from pocketformer import files
from pocketformer.architecture import SearchSpace
from pocketformer.cli.main import main
from pocketformer.deploy import SUFFIXES, export, format_by_name, format_of, fuse, runtime_of
from pocketformer.deploy import efficientformerv2 as fused_forms
from pocketformer.errors import UserError, WorkError
from pocketformer.models import create_model
from pocketformer.pipelines import exporting
from pocketformer.pipelines.calibration import calibration_images
from pocketformer.runtimes import RUNTIMES, runtime
from pocketformer.runtimes.sessions import Sessions
from pocketformer.runtimes.worker import Worker
from pocketformer.training.data import open_data


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return perturb(create_model(SearchSpace.named("pocket28").smallest, 10))


def images(model, count, seed=0):
    rough = torch.randn(count, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(rough, size=model.resolution, mode="bilinear")


# The worker


def report_twice(progress):
    progress(1, "one")
    print("noise on stdout")
    progress(2, "two")
    return "done"


def fail(kind):
    raise kind("told in the other process")


def test_a_worker_answers_reports_and_raises():
    seen = []
    with Worker() as worker:
        assert worker.call(pow, 2, 10, what="power") == 1024
        assert worker.call(report_twice, what="report", progress=lambda *v: seen.append(v)) == "done"
        for kind in (UserError, WorkError):
            with pytest.raises(kind, match="told in the other process"):
                worker.call(fail, kind, what="fail")
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            worker.call(divmod, 1, 0, what="divide")
        assert worker.call(os.getpid, what="pid") != os.getpid()
    assert seen == [(1, "one"), (2, "two")]


def test_a_crash_is_one_line_and_the_next_call_works():
    with Worker() as worker:
        before = worker.call(os.getpid, what="pid")
        with pytest.raises(WorkError, match=r"^the runtime crashed over x: its process was killed by SIGABRT[^\n]*$"):
            worker.call(os.abort, what="the runtime crashed over x")
        with pytest.raises(WorkError, match="ended with code 3"):
            worker.call(os._exit, 3, what="leaving")
        assert worker.call(os.getpid, what="pid") != before


def test_a_worker_ends_with_its_caller():
    code = (
        "import os, signal\nfrom pocketformer.runtimes.worker import Worker\n"
        "worker = Worker()\nfolder = worker.call(os.getenv, 'TMPDIR', what='folder')\n"
        "print(worker.call(os.getpid, what='pid'), folder, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    pid, folder = found.stdout.split()
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]:
            break
        time.sleep(0.05)
    else:
        pytest.fail("the worker outlives its caller")
    assert not Path(folder).exists()


def test_what_a_runtime_unpacks_goes_with_its_process():
    with Worker() as worker:
        folder = worker.call(tempfile.mkdtemp, what="unpack")
        assert Path(folder).is_dir()
        compiled = worker.call(os.getenv, "TORCHINDUCTOR_CACHE_DIR", what="look")
        assert not Path(compiled).is_relative_to(Path(folder).parent)  # that is to stay
        with pytest.raises(WorkError):
            worker.call(os.abort, what="crash")
        assert not Path(folder).parent.exists()
        folder = worker.call(tempfile.mkdtemp, what="unpack")
    assert not Path(folder).parent.exists()


def test_a_script_without_a_main_guard_can_export(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import torch, pocketformer as pf\n"
        "from pocketformer.deploy import export\n"
        "model = pf.create_model(pf.SearchSpace.named('pocket28').smallest, 10)\n"
        "print(export(model, 'model.onnx', torch.randn(2, 3, 28, 28)).verified.images)\n"
    )
    found = subprocess.run([sys.executable, script.name], cwd=tmp_path, capture_output=True, text=True)
    assert found.stdout == "2\n", found.stderr


# Sessions


@pytest.mark.parametrize("content", [b"", b"no model at all", b"\x08\x09" * 400])
@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_damaged_file_is_told_in_one_line(tmp_path, name, content):
    pytest.importorskip(name)
    path = tmp_path / f"broken{SUFFIXES[runtime(name).FORMAT]}"
    for part in (path, path.with_suffix(".bin")):
        part.write_bytes(content)
    with Sessions(name) as sessions, pytest.raises((UserError, WorkError), match="load") as caught:
        sessions.load("broken", path)
    assert "\n" not in str(caught.value)


def model_of(*inputs):
    """An ONNX file's bytes, of a graph with such inputs (name, type, shape)."""
    given = [onnx.helper.make_tensor_value_info(*described) for described in inputs]
    nodes = [onnx.helper.make_node("Identity", [described[0]], [f"{described[0]}_out"]) for described in inputs]
    out = [onnx.helper.make_tensor_value_info(f"{name}_out", kind, shape) for name, kind, shape in inputs]
    if not inputs:
        value = onnx.helper.make_tensor("v", onnx.TensorProto.FLOAT, [1], [1.0])
        nodes, out = (
            [onnx.helper.make_node("Constant", [], ["y"], value=value)],
            [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])],
        )
    opset = [onnx.helper.make_opsetid("", 17)]
    return onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", given, out), opset_imports=opset, ir_version=8)


FLOAT, DOUBLE = onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE
UNFIT = {
    "no input": [],
    "two inputs": [("x", FLOAT, [1, 3, 8, 8]), ("z", FLOAT, [1, 3, 8, 8])],
    "a free side": [("x", FLOAT, [1, 3, "h", 8])],
    "doubles": [("x", DOUBLE, [1, 3, 8, 8])],
    "a number": [("x", FLOAT, [])],
}


@pytest.mark.parametrize("inputs", UNFIT.values(), ids=UNFIT)
@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_files_of_other_inputs_are_told_in_one_line(tmp_path, name, inputs):
    pytest.importorskip(name)
    path = tmp_path / f"odd{SUFFIXES[runtime(name).FORMAT]}"
    if name == "openvino":
        import openvino

        onnx.save(model_of(*inputs), tmp_path / "odd.onnx")
        openvino.save_model(openvino.convert_model(tmp_path / "odd.onnx"), str(path))
    else:
        onnx.save(model_of(*inputs), path)
    with pytest.raises(UserError, match=r"odd\.\w+: needs one float32 input of fixed size, as `export` writes it$"):
        runtime(name).load(path)


def test_only_a_free_number_of_images_is_taken_for_one(tmp_path):
    onnx.save(model_of(("x", FLOAT, ["n", 3, 8, 8])), tmp_path / "a.onnx")
    assert runtime("onnxruntime").load(tmp_path / "a.onnx").shape == (1, 3, 8, 8)
    onnx.save(model_of(("x", FLOAT, [4, 9, 6])), tmp_path / "b.onnx")  # tokens
    assert runtime("onnxruntime").load(tmp_path / "b.onnx").shape == (4, 9, 6)


def test_the_device_is_the_runtimes_first_unless_named(monkeypatch):
    module = runtime("onnxruntime")
    assert Sessions("onnxruntime").device == "cpu"
    monkeypatch.setattr(module, "DEVICES", ("cuda",))  # as tensorrt
    assert Sessions("onnxruntime").device == "cuda"
    with pytest.raises(UserError, match="does not run on 'cpu'"):
        Sessions("onnxruntime", device="cpu")


@pytest.mark.filterwarnings("ignore")
def test_onnx_runtime_without_its_cuda_is_not_taken_for_the_gpu(tmp_path, monkeypatch):
    module, path = runtime("onnxruntime"), tmp_path / "a.onnx"
    onnx.save(model_of(("x", FLOAT, [1, 3, 8, 8])), path)
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(module.onnxruntime, "get_available_providers", lambda: providers)
    with pytest.raises(UserError, match="cannot use CUDA here"):
        module.load(path, device="cuda")


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_what_is_timed_keeps_its_input(small, tmp_path, name):
    """OpenVINO went on reading the memory of an array that was gone, and crashed."""
    pytest.importorskip(name)
    chosen = runtime(name)
    path = tmp_path / f"model{SUFFIXES[chosen.FORMAT]}"
    format_of(chosen.FORMAT).write_quick(fuse(small), torch.zeros(1, 3, 28, 28), path)
    session, x = chosen.load(path), np.zeros((1, 3, 28, 28), np.float32)
    call, known = session.prepare(x), weakref.ref(x)
    del x
    gc.collect()
    assert known() is not None
    call()


def test_unknown_names_and_devices_are_refused():
    with pytest.raises(UserError, match=f"no runtime 'toaster'; known: {', '.join(RUNTIMES)}"):
        runtime("toaster")
    with pytest.raises(UserError, match="no export format 'paper'"):
        format_of("paper")
    with pytest.raises(UserError, match="onnxruntime does not run on 'npu'"):
        Sessions("onnxruntime", device="npu")


def test_formats_are_told_by_the_ends_of_names():
    for name, suffix in SUFFIXES.items():
        assert format_by_name(f"some/model{suffix}") == name
    assert format_by_name("model.safetensors") is None


def test_a_missing_package_is_told_with_its_extra(tmp_path):
    """In a process in which the package cannot be found."""
    code = (
        "import sys\nsys.modules['openvino'] = None\nfrom pocketformer.cli.main import main\n"
        "main(['export', '--checkpoint', 'x', '--format', 'openvino', '--out', 'm.xml'])"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    wanted = (
        "pocketformer: format openvino needs openvino, which is not installed: pip install 'pocketformer[openvino]'"
    )
    assert (found.returncode, found.stderr.splitlines()[-1:]) == (2, [wanted])
    assert list(tmp_path.iterdir()) == []


# Files of two parts


def write_new(path, error=None):
    with files.whole(path, ".bin") as temporary:
        temporary.write_text("new")
        temporary.with_suffix(".bin").write_text("new")
        if error is not None:
            raise error


def test_two_parts_are_replaced_together(tmp_path):
    path = tmp_path / "model.xml"
    for version in ("old", "new"):
        with files.whole(path, ".bin") as temporary:
            temporary.write_text(version)
            temporary.with_suffix(".bin").write_text(version)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"model.xml": "new", "model.bin": "new"}


def test_a_write_that_fails_keeps_the_older_pair(tmp_path):
    path = tmp_path / "model.xml"
    path.write_text("old")
    path.with_suffix(".bin").write_text("old")
    with pytest.raises(WorkError):
        write_new(path, WorkError("refused"))
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"model.xml": "old", "model.bin": "old"}


@pytest.mark.parametrize("at", [0, 1])
def test_a_kill_between_the_renames_leaves_no_mixed_pair(tmp_path, monkeypatch, at):
    path = tmp_path / "model.xml"
    path.write_text("old")
    path.with_suffix(".bin").write_text("old")
    replace, done = os.replace, []

    def killed(source, target):
        if len(done) == at:
            raise KeyboardInterrupt
        done.append(target)
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_new(path)
    assert not path.exists()  # the part that people name


def write_folder(path):
    with files.whole(path) as temporary:
        temporary.mkdir()
        (temporary / "new").write_text("new")


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(5, "broken")])
def test_a_folder_is_never_half_replaced(tmp_path, monkeypatch, stop):
    path = tmp_path / "model.mlpackage"
    path.mkdir()
    (path / "old").write_text("old")
    replace = os.replace

    def failing(source, target):
        if Path(target) == path and "old" not in Path(source).name:
            assert not list(path.glob("*"))
            raise stop
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", failing)
    with pytest.raises((KeyboardInterrupt, OSError)):
        write_folder(path)
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")] == [path.name, f"{path.name}/old"]


def test_targets_are_checked_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    files.check_target(tmp_path / "new" / "deep" / "x.json")
    files.check_target(tmp_path / "file")
    for wrong, message in ((tmp_path, "is a folder"), (tmp_path / "file" / "x.json", "file is not a folder")):
        with pytest.raises(UserError, match=message):
            files.check_target(wrong)


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "model.mlpackage"
    for version in ("old", "new"):
        with files.whole(path) as temporary:
            temporary.mkdir()
            (temporary / version).write_text(version)
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")] == [
        "model.mlpackage",
        "model.mlpackage/new",
    ]


# OpenVINO, dynamic batches, lower precisions


@pytest.mark.parametrize("format", ["onnx", "openvino"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_exported_files_agree_and_take_the_batches_they_say(small, tmp_path, format, dynamic):
    path = tmp_path / f"model{SUFFIXES[format]}"
    x = images(small, 7)
    report = export(small, path, x, format, dynamic_batch=dynamic)
    assert report.verified.max_difference <= 1e-4 * report.verified.logits_std
    assert report.bytes == sum(p.stat().st_size for p in tmp_path.iterdir())
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
def test_a_wrong_operator_is_refused_in_every_precision(tmp_path, monkeypatch, precision):
    pytest.importorskip("openvino")
    torch.manual_seed(0)
    model = perturb(create_model(SearchSpace.named("pocket28").largest, 10))
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
    arguments = ["train", "--architecture", str(folder / "a.json"), "--data", "embedded", "--epochs", "0.2"]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--out", str(folder / "run")])
    assert stop.value.code == 0
    return folder / "run"


def command(*arguments):
    with pytest.raises(SystemExit) as stop, warnings.catch_warnings():
        main([*map(str, arguments)])
    return stop.value.code


def test_int8_is_compared_with_float32(trained, tmp_path, capsys):
    out = tmp_path / "model.onnx"
    capsys.readouterr()
    assert command("export", "--checkpoint", trained, "--int8", "--out", out, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    accuracy = found["compared"]["accuracy"]
    assert {result["split"] for result in accuracy.values()} == {"search"}
    assert abs(accuracy["int8"]["accuracy"] - accuracy["float32"]["accuracy"]) < 0.1
    assert found["compared"]["latency_ratio"] > 0.1
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_a_failed_comparison_is_a_note(trained, tmp_path, capsys, monkeypatch):
    def fail(*_, **__):
        raise WorkError("the runtime crashed")

    monkeypatch.setattr(exporting, "_compared", fail)
    out = tmp_path / "model.onnx"
    assert command("export", "--checkpoint", trained, "--int8", "--out", out) == 0
    assert "note: int8 could not be compared with float32: the runtime crashed" in capsys.readouterr().err
    assert out.exists()


def test_a_name_of_another_format_is_refused_before_anything_is_read(tmp_path, capsys):
    arguments = ["export", "--checkpoint", tmp_path / "none", "--format", "torch", "--out", tmp_path / "model.onnx"]
    assert command(*arguments) == 2
    assert "a file of format torch ends in .pt2" in capsys.readouterr().err


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
    plain = calibration_images(model, str(tmp_path / "photos" / "val"), data, (28, 28), 0)
    assert (len(plain), plain.min() > 0) == (8, True)


def test_a_calibration_folder_without_images_is_refused(trained, tmp_path, capsys):
    (tmp_path / "empty" / "deep").mkdir(parents=True)
    (tmp_path / "empty" / "deep" / "notes.txt").write_text("no image")
    out = tmp_path / "model.onnx"
    arguments = ["export", "--checkpoint", trained, "--int8", "--calibration", tmp_path / "empty", "--out", out]
    assert command(*arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == f"pocketformer: --calibration {tmp_path / 'empty'}: holds no images that can be read (1 files)"
    assert not out.exists()


def test_evaluate_runs_any_exported_file(trained, tmp_path, capsys):
    pytest.importorskip("openvino")
    folder = trained / "exported"
    assert command("export", "--checkpoint", trained, "--format", "openvino", "--out", folder / "model.xml") == 0
    found = {}
    for name, extra in (("torch", []), ("openvino", ["--runtime", "openvino"])):
        capsys.readouterr()
        assert command("evaluate", "--checkpoint", trained, "--data", "embedded", "--json", *extra) == 0
        found[name] = json.loads(capsys.readouterr().out)
        assert found[name]["runtime"] == name
    assert found["openvino"]["correct"] == pytest.approx(found["torch"]["correct"], abs=2)
    assert (
        command("evaluate", "--checkpoint", folder / "model.xml", "--runtime", "onnxruntime", "--data", "embedded") == 2
    )
    assert "is a file of format openvino, but onnxruntime runs onnx" in capsys.readouterr().err
