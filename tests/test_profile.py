"""The profile as a whole: it resumes, and neither other settings nor a table of another device is taken for its own."""

import dataclasses
import json
import math
import runpy
import shutil
import sys
from pathlib import Path

import pytest

from pocketformer import runs
from pocketformer.architecture import SearchSpace
from pocketformer.cli.profile import _print_table
from pocketformer.devices import LatencyTable, whole
from pocketformer.devices import profile as profiling
from pocketformer.devices.bench import Bench
from pocketformer.devices.host import host
from pocketformer.devices.whole import measure_whole
from pocketformer.errors import UserError
from pocketformer.pipelines.design import design
from pocketformer.pipelines.profiling import profile_file
from pocketformer.pipelines.refusals import check_measured_here
from pocketformer.pipelines.settings import DesignSettings, ProfileSettings
from pocketformer.pipelines.tables import told, warn
from tiny import TINY


@pytest.fixture(scope="module")
def space():
    return SearchSpace.from_dict(TINY)


@pytest.fixture(scope="module")
def profiled(space, tmp_path_factory):
    """A finished profile: its table and its work folder."""
    work = tmp_path_factory.mktemp("profile")
    return profiling.profile(space, "onnxruntime", 10, work=work, **QUICK), work


QUICK = {"rounds": 4, "networks": 4, "checks": 2}


def test_a_profile_measures_the_space(profiled, space, tmp_path):
    table, work = profiled
    assert table.missing(space) == []
    assert all(entry.latency > 0 and len(entry.samples) == 4 for entry in table.entries.values())
    assert len(table.check.networks) == 2
    assert all(len(n.repeats) == 2 for n in table.check.networks)
    assert table.check.repeatability > 0
    assert "two passes differ by" in told(table)
    assert math.isfinite(table.check.mean)
    assert table.check.mean <= table.check.worst
    assert table.unit > 0
    assert table.latency(space.largest) > table.latency(space.minimum.architecture)
    assert table.fingerprint["runtime"] == "onnxruntime"
    assert [p.name for p in work.iterdir()] == [profiling.JOURNAL]
    table.save(tmp_path / "table.json")
    assert LatencyTable.load(tmp_path / "table.json") == table


def test_an_interrupted_profile_goes_on(profiled, space, tmp_path, monkeypatch):
    table, work = profiled
    lines = (work / profiling.JOURNAL).read_text().splitlines(keepends=True)
    assert len(lines) >= 4
    journal = tmp_path / profiling.JOURNAL
    journal.write_text("".join(lines[:-1]) + lines[-1][: len(lines[-1]) // 2])  # killed while writing
    measured, interleaved = [], Bench.interleave

    def counting(bench, names, *args, **kwargs):
        measured.append(set(names))
        return interleaved(bench, names, *args, **kwargs)

    monkeypatch.setattr(Bench, "interleave", counting)
    monkeypatch.setattr(profiling, "host", lambda on: {**host(on), "cores": 1234})  # started by taskset this time
    profiling.profile(space, "onnxruntime", 10, work=tmp_path, **QUICK)
    assert measured == [set(json.loads(lines[-1])["samples"])]
    again = profiling.profile(space, "onnxruntime", 10, work=tmp_path, **QUICK)
    assert len(measured) == 1
    assert again.entries.keys() == table.entries.keys()


def test_other_settings_start_anew(profiled, space, tmp_path, monkeypatch):
    lines = (profiled[1] / profiling.JOURNAL).read_text()
    (tmp_path / profiling.JOURNAL).write_text(lines)
    monkeypatch.setattr(profiling, "write_candidate", lambda format, plan, name, path, batch: path.touch())
    for call in ("load", "drop"):
        monkeypatch.setattr(Bench, call, lambda *_: None)
    monkeypatch.setattr(Bench, "interleave", lambda bench, names, *a, **k: {name: [1.0, 1.0] for name in names})
    profiling.profile(space, "onnxruntime", 10, work=tmp_path, **{**QUICK, "rounds": 2})
    text = (tmp_path / profiling.JOURNAL).read_text()
    assert text.splitlines()[0] != lines.splitlines()[0]
    assert all(set(json.loads(line)["samples"].popitem()[1]) == {1.0} for line in text.splitlines()[1:])


def test_whole_files_are_timed_beside_the_reference(profiled, space, tmp_path):
    table = profiled[0]
    profiling.write_reference(space, "onnxruntime", 10, tmp_path / "reference.onnx")
    paths = {"same": tmp_path / "reference.onnx"}
    found = measure_whole(paths, table, tmp_path / "reference.onnx", "onnxruntime", rounds=8)["same"]
    assert found.latency == pytest.approx(table.reference.latency, rel=0.5)
    assert len(found.raw.samples) == 8
    with pytest.raises(UserError, match="not found"):
        measure_whole({"x": tmp_path / "no.onnx"}, table, tmp_path / "reference.onnx", "onnxruntime")
    (tmp_path / "broken.onnx").write_text("no model")
    with pytest.raises(UserError, match=r"cannot load .*broken\.onnx"):
        measure_whole({"x": tmp_path / "broken.onnx"}, table, tmp_path / "reference.onnx", "onnxruntime")


def test_design_is_for_one_image_at_a_time(space, tmp_path):
    """As the file that it exports; a table for more would count other milliseconds."""
    settings = DesignSettings("embedded", space, "onnxruntime", profile=ProfileSettings(batch=8))
    with pytest.raises(UserError, match="batch must be 1"):
        design(settings, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("changes", [{"threads": 0}, {"rounds": 1}, {"networks": -1}, {"checks": -1}])
def test_unusable_settings_are_refused(space, tmp_path, changes):
    with pytest.raises(UserError, match="must be at least"):
        profiling.profile(space, "onnxruntime", 10, work=tmp_path, **changes)
    assert list(tmp_path.iterdir()) == []


def test_a_table_of_another_device_is_not_timed_against(profiled, tmp_path):
    table = profiled[0]
    assert table.fingerprint["on"] == "cpu"  # the runtime's first, as no device was named
    check_measured_here(table, "t.json", "onnxruntime", ProfileSettings())
    for changes, runtime_name, message in (
        ({"device": "Pixel 8"}, "onnxruntime", r"t\.json was measured on another device \(Pixel 8, this is "),
        ({"runtime": "litert"}, "onnxruntime", r"t\.json was measured with litert, not with onnxruntime"),
        ({"threads": 4}, "onnxruntime", r"t\.json was measured with threads 4; this job has 1"),
        ({"batch": 8}, "onnxruntime", r"t\.json was measured with batch 8; this job has 1"),
    ):
        other = dataclasses.replace(table, fingerprint={**table.fingerprint, **changes})
        with pytest.raises(UserError, match=message):
            check_measured_here(other, "t.json", runtime_name, ProfileSettings())
    phone = dataclasses.replace(table, fingerprint={**table.fingerprint, "device": "Pixel 8"})
    with pytest.raises(UserError, match="another device"):
        measure_whole({"x": tmp_path / "x.onnx"}, phone, tmp_path / "reference.onnx", "onnxruntime")


def test_a_table_of_another_gpu_is_not_timed_against(profiled, monkeypatch):
    here = {**profiled[0].fingerprint, "on": "cuda", "gpu": "NVIDIA H200"}
    monkeypatch.setattr(whole, "host", lambda on: host() | ({"gpu": "NVIDIA H200"} if on == "cuda" else {}))
    settings = ProfileSettings(device="cuda")
    check_measured_here(dataclasses.replace(profiled[0], fingerprint=here), "t.json", "onnxruntime", settings)
    older = {key: value for key, value in here.items() if key != "gpu"}
    check_measured_here(dataclasses.replace(profiled[0], fingerprint=older), "t.json", "onnxruntime", settings)
    other = dataclasses.replace(profiled[0], fingerprint={**here, "gpu": "NVIDIA A100"})
    with pytest.raises(UserError, match=r"measured on another gpu \(NVIDIA A100, this is NVIDIA H200\)"):
        check_measured_here(other, "t.json", "onnxruntime", settings)


def test_two_profiles_of_one_table_do_not_meet(tmp_path):
    out, work = tmp_path / "table.json", tmp_path / ".table.json.work"
    with runs.alone(work):
        (work / profiling.JOURNAL).write_text("hours of work\n")
        with pytest.raises(UserError, match="another process is working in this folder"):
            profile_file("pocket28", "onnxruntime", 10, ProfileSettings(), 0, out)
    assert (work / profiling.JOURNAL).read_text() == "hours of work\n"
    shutil.rmtree(work)
    with pytest.raises(UserError, match="must be at least"):
        profile_file("pocket28", "onnxruntime", 10, ProfileSettings(threads=0), 0, out)
    assert list(tmp_path.iterdir()) == []


def test_the_benchmark_of_tables_refuses_others(profiled, tmp_path, monkeypatch):
    space_file, work = tmp_path / "tiny.yaml", tmp_path / "out.json.work"
    space_file.write_text(json.dumps(TINY))
    work.mkdir()
    profiled[0].save(work / "table.json")
    phone = {**profiled[0].fingerprint, "device": "Pixel 8"}
    dataclasses.replace(profiled[0], fingerprint=phone).save(tmp_path / "phone.json")
    benchmark = runpy.run_path(Path(__file__).parents[1] / "benchmarks" / "latency_table.py", run_name="benchmark")
    job = ["latency_table.py", "--space", space_file, "--classes", "10", "--out", tmp_path / "out.json"]
    job += ["--networks", "4", "--checks", "2"]
    for more, message in (
        (["--rounds", "5"], r"of an earlier call \(rounds was 4, now 5\)"),
        (["--runtime", "openvino", "--rounds", "4"], r"runtime was \"onnxruntime\", now \"openvino\""),
        (["--table", tmp_path / "phone.json"], "measured on another device"),
    ):
        monkeypatch.setattr(sys, "argv", [str(word) for word in [*job, *more]])
        with pytest.raises(UserError, match=message):
            benchmark["main"]()
    assert {path.name for path in work.iterdir()} == {"table.json"}


def test_a_bad_table_is_told_aloud(profiled, capsys):
    table = profiled[0]
    for scale, warned in ((1.0, False), (1.2, True)):
        exact = [dataclasses.replace(n, predicted=scale * n.measured) for n in table.check.networks]
        other = dataclasses.replace(table, check=dataclasses.replace(table.check, networks=exact))
        warn(other, "t.json")
        assert ("mean error on networks it has not seen is 20.0%" in capsys.readouterr().err) is warned
        _print_table(other, Path("t.json"), json=False)
        shown = capsys.readouterr().out
        assert f"mean {scale - 1:.1%}" in shown
        assert "while the device is idle" not in shown  # said once
