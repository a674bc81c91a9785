"""Runtimes: crashes stay in their process, files of two parts are whole, lower precisions are checked and compared."""

import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from perturbed import perturb
from pocketformer import files
from pocketformer.architecture import SearchSpace
from pocketformer.cli.main import main
from pocketformer.deploy import SUFFIXES, export, format_by_name, format_of
from pocketformer.deploy import efficientformerv2 as fused_forms
from pocketformer.errors import UserError, WorkError
from pocketformer.models import create_model
from pocketformer.runtimes import RUNTIMES, runtime
from pocketformer.runtimes.sessions import Sessions
from pocketformer.runtimes.worker import Worker


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
        "worker = Worker()\nprint(worker.call(os.getpid, what='pid'), flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    pid = int(found.stdout)
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]:
            break
        time.sleep(0.05)
    else:
        pytest.fail("the worker outlives its caller")


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
    chosen, path = format_of(format), tmp_path / f"model{SUFFIXES[format]}"
    x = images(small, 7)
    report = export(small, path, x, format, dynamic_batch=dynamic)
    assert report.verified.max_difference <= 1e-4 * report.verified.logits_std
    assert report.bytes == sum(p.stat().st_size for p in tmp_path.iterdir())
    session = runtime(chosen.RUNTIME).load(path)
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
    report = export(model, path, images(model, 8), format, precision="int8", calibration=images(model, 16, seed=1))
    assert report.precision == "int8"
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
    with pytest.raises(WorkError, match=rf"^export refused: in {precision}, logits differ [^\n]+$"):
        export(model, path, images(model, 4), "openvino", precision=precision, calibration=calibration)
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
