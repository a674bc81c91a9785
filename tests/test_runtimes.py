"""Runtimes: crashes stay in their process, damaged and unfit files and names are told in one line."""

import gc
import os
import subprocess
import sys
import tempfile
import time
import weakref
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from errands import fail, file_of, report_twice
from perturbed import perturb
from pocketformer.architecture import SearchSpace
from pocketformer.deploy import SUFFIXES, format_by_name, format_of, fuse
from pocketformer.errors import UserError, WorkError
from pocketformer.models import create_model
from pocketformer.runtimes import RUNTIMES, runtime
from pocketformer.runtimes.sessions import Sessions
from pocketformer.runtimes.worker import Worker


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return perturb(create_model(SearchSpace.named("pocket28").smallest, 10))


# The worker


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


def test_a_worker_ends_with_its_caller_in_the_middle_of_its_work():
    code = (
        "import os, signal\nfrom pocketformer.runtimes.worker import Worker\nfrom errands import report_forever\n"
        "def end(pid, folder):\n    print(pid, folder, flush=True)\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "Worker().call(report_forever, what='work', progress=end)"
    )
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=here)
    pid, folder = found.stdout.split()
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists() and not Path(folder).exists():
            break
        time.sleep(0.05)
    else:
        pytest.fail("the worker, or its folder, outlives its caller")


def test_files_in_the_folder_of_the_user_are_not_run(tmp_path, monkeypatch):
    for name in ("numpy", "queue", "onnx"):
        (tmp_path / f"{name}.py").write_text(f"open('{name} was run', 'w')")
    monkeypatch.chdir(tmp_path)
    with Worker() as worker:
        for name in ("numpy", "queue", "onnx"):
            assert Path(worker.call(file_of, name, what="import")).parent != tmp_path
    assert len(list(tmp_path.iterdir())) == 3


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
    with pytest.raises(
        UserError, match=r"odd\.\w+: needs one float32 or uint8 input of fixed size, as `export` writes it$"
    ):
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
