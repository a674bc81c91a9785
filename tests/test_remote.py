"""Devices that cannot run Python: models emitted, timed by a stand-in that knows only their folder, and imported."""

import datetime
import json
import math
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pocketformer.architecture import SearchSpace
from pocketformer.devices import LatencyTable, emit
from pocketformer.devices.logs import read_log
from pocketformer.devices.manifest import Manifest, file_digest
from pocketformer.devices.profile import profile
from pocketformer.devices.recipes import scripts
from pocketformer.errors import UserError
from pocketformer.pipelines.profiling import emit_models, import_file
from pocketformer.pipelines.settings import ProfileSettings
from tiny import TINY

FEW = ProfileSettings(networks=6, checks=3)


@pytest.fixture(scope="module")
def space_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("space") / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


@pytest.fixture(scope="module")
def emitted(space_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("emitted")
    emit_models(str(space_file), "onnx", 10, FEW, 0, folder)
    return folder


@pytest.fixture(scope="module")
def device(emitted, tmp_path_factory):
    """The folder as it lies on the other device, with times measured there: by the emitted script, in a process that
    has ONNX Runtime and numpy."""
    there = tmp_path_factory.mktemp("device") / "carried"
    timed_there(emitted, there)
    assert "pocketformer" not in (there / "onnxruntime-anywhere.py").read_text().split('"""')[2]
    return there


def timed_there(emitted, there):
    shutil.copytree(emitted, there, ignore=shutil.ignore_patterns(".*"))
    script = [sys.executable, "-I", "onnxruntime-anywhere.py", "--rounds", "8"]
    subprocess.run(script, cwd=there, check=True, capture_output=True)


def test_what_is_emitted(emitted):
    manifest = Manifest.load(emitted / "manifest.json")
    roles = [model.role for model in manifest.models]
    assert roles.count("reference") == roles.count("unit") == 1
    assert (roles.count("network"), roles.count("check")) == (7, 3)
    assert roles.count("chain") == len(manifest.plan.chains)
    for model in manifest.models:
        path = emitted / "models" / model.file
        assert file_digest(path, None) == (model.sha256, model.bytes)
        session = __import__("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])
        assert tuple(session.get_inputs()[0].shape) == tuple(model.shape)
    readme = (emitted / "README.txt").read_text()
    assert manifest.id in readme
    assert f"{len(manifest.models)} onnx files" in readme
    assert manifest.id in (emitted / "jetson-trtexec.sh").read_text()


needs_sh = pytest.mark.skipif(shutil.which("sh") is None, reason="no sh")


@needs_sh
@pytest.mark.parametrize("format", ["onnx", "litert", "executorch"])
def test_scripts_have_no_syntax_errors(format, tmp_path):
    for name, text in scripts(format, "0" * 64).items():
        if name.endswith(".sh"):
            (tmp_path / name).write_text(text)
            subprocess.run(["sh", "-n", tmp_path / name], check=True)
    assert "each-model.sh" in {path.name for path in tmp_path.iterdir()}


def test_a_folder_of_other_things_is_left_alone(space_file, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no emission"):
        emit_models(str(space_file), "onnx", 10, FEW, 0, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_damaged_copy_is_not_timed(device, tmp_path):
    there = tmp_path / "copy"
    shutil.copytree(device, there)
    (there / "models" / "chain_001.onnx").write_bytes(b"cut short")
    script = subprocess.run(
        [sys.executable, "-I", "onnxruntime-anywhere.py"], cwd=there, capture_output=True, text=True
    )
    assert script.returncode == 1
    assert script.stderr == "models/chain_001.onnx is not the file of manifest.json: copy the folder again\n"


def test_round_trip_through_a_stand_in_device(emitted, device, space_file, tmp_path):
    """The imported table agrees with a profile of this machine, as far as so few samples can."""
    out = tmp_path / "table.json"
    table = import_file(device / "results.json", None, out)
    assert LatencyTable.load(out) == table
    space = SearchSpace.load(space_file)
    assert table.missing(space) == []
    assert table.fingerprint["measured"] == "elsewhere"
    assert table.fingerprint["date"] == datetime.date.today().isoformat()  # the script's
    assert table.fingerprint["runtime"] == "onnxruntime"
    assert len(table.check.networks) == 3
    assert table.check.repeatability is not None
    import_file(device / "results.json", device / "manifest.json", tmp_path / "again.json")
    assert out.read_bytes() == (tmp_path / "again.json").read_bytes()

    # Where other work slowed one of the two sittings, both are repeated: an import that is wrong is wrong each time.
    for attempt in ("first", "second", "third"):
        local = profile(space, "onnxruntime", 10, rounds=8, networks=6, checks=0, work=tmp_path / f"{attempt} work")
        agreement = agreement_of(local, table, space)
        if agreement[0] > 0.9 and 0.7 < agreement[1] < 1.4:
            break
        timed_there(emitted, tmp_path / attempt)
        table = import_file(tmp_path / attempt / "results.json", None, out)
    else:
        pytest.fail(f"three times no agreement: {agreement}")


def agreement_of(local, imported, space):
    """The correlation of members' latencies, and the median ratio of entries, both in units of the reference."""
    assert local.entries.keys() == imported.entries.keys()
    units = [t.reference.latency for t in (local, imported)]
    members = [space.sample(seed) for seed in range(20)]
    mine, theirs = ([t.latency(a) / t.reference.latency for a in members] for t in (local, imported))
    entries = [
        (imported.entries[key].latency / units[1]) / (local.entries[key].latency / units[0]) for key in local.entries
    ]
    return statistics.correlation(mine, theirs), statistics.median(entries)


# A device whose times follow from the files' sizes alone, behind the command line of trtexec.
_TRTEXEC = """#!/bin/sh
echo "$@" >> "$(dirname "$0")/calls"
for argument; do
    case $argument in
        --onnx=*) onnx=${argument#--onnx=} ;;
        --saveEngine=*) cp "$onnx" "${argument#--saveEngine=}" ;;
        --loadEngine=*)
            ms=$(wc -c < "${argument#--loadEngine=}" | awk '{ printf "%.6f", 0.05 + $1 / 100000 }')
            echo "[I] === Performance summary ==="
            echo "[I] Latency: min = 9 ms, max = 9 ms, mean = 9 ms, median = 9 ms, percentile(99%) = 9 ms"
            echo "[I] GPU Compute Time: min = 0 ms, max = 9 ms, mean = 7 ms, median = $ms ms, percentile(99%) = 9 ms"
            echo "[I] Total GPU Compute Time: 3 s" ;;
    esac
done
"""


@needs_sh
def test_round_trip_through_a_stand_in_trtexec(emitted, tmp_path, monkeypatch):
    there = tmp_path / "jetson"
    shutil.copytree(emitted, there)
    (tmp_path / "trtexec").write_text(_TRTEXEC)
    (tmp_path / "trtexec").chmod(0o755)
    run = ["sh", "jetson-trtexec.sh"]
    where = {"cwd": there, "env": {"PATH": "/usr/bin:/bin", "TRTEXEC": str(tmp_path / "trtexec")}}
    subprocess.run(run, check=True, **where)
    logs = sorted((there / "logs").rglob("*.txt"))
    models = len(list((there / "models").iterdir()))
    about = (there / "logs" / "about.json").read_text()
    today = datetime.date.today().isoformat()
    (there / "logs" / "about.json").write_text(about.replace(today, "2020-02-20"))  # begun on another day
    assert sum(log.name != "reference.txt" for log in logs) == 2 * (models - 1)
    before = {log: log.stat().st_mtime_ns for log in logs}
    logs[3].unlink()
    subprocess.run(run, check=True, **where)  # goes on with what is missing
    again = {log for log in logs if log.stat().st_mtime_ns != before[log]}
    assert again == {log for log in logs if log.parent == logs[3].parent}  # one sitting, the reference among it

    assert '"date": "2020-02-20"' in (there / "logs" / "about.json").read_text()
    (there / "logs" / "about.json").write_text(about)
    built = [line for line in (tmp_path / "calls").read_text().splitlines() if "--onnx" in line]
    assert len(built) == models
    assert all("--noTF32" in line for line in built)  # float32, as the table will say

    engines = set((there / "engines").iterdir())
    where["env"]["ARGS"] = "--fp16"
    refused = subprocess.run(run, capture_output=True, text=True, **where)
    assert refused.returncode == 1
    assert len(refused.stderr.splitlines()) == 1
    assert '"args": "--fp16"' in refused.stderr
    assert set((there / "engines").iterdir()) == engines
    table = import_file(there / "logs", None, tmp_path / "table.json")
    assert (table.fingerprint["runtime"], table.fingerprint["precision"]) == ("tensorrt", "float32")
    assert table.fingerprint["date"] == datetime.date.today().isoformat()
    size = (there / "models" / "reference.onnx").stat().st_size
    assert table.reference.latency == pytest.approx(0.05 + size / 1e5, abs=1e-5)
    assert table.check.repeatability == pytest.approx(0)
    assert table.check.mean < 0.05

    shutil.rmtree(there / "logs")
    subprocess.run(run, check=True, **where)
    assert len(set((there / "engines").iterdir())) == 2  # engines of other arguments are others
    assert import_file(there / "logs", None, tmp_path / "half.json").fingerprint["precision"] == "float16"
    half = [line for line in (tmp_path / "calls").read_text().splitlines() if "--onnx" in line and "--fp16" in line]
    assert len(half) == models
    assert not any("--noTF32" in line for line in half)
    monkeypatch.chdir(there / "logs")
    assert import_file(Path(), None, tmp_path / "here.json").fingerprint["precision"] == "float16"


# A phone that is a folder of this machine.
_ADB = """#!/bin/sh
command=$1
shift
case $command in
    shell) cd "$PHONE" && sh -c "$(printf %s "$*" | sed "s#/data/local/tmp#$PHONE#g")" ;;
    push) shift; mkdir -p "$PHONE/pocketformer" && cp -r "$1" "$PHONE/pocketformer/" ;;
    logcat) [ "$1" = -c ] || echo "I ExecuTorch: Model executed successfully 30 time(s) in 60.000000 ms." ;;
esac
"""
_TOOL = """#!/bin/sh
echo "$*" >> "$PHONE/calls"
[ ! -e "$PHONE/broken" ] || { echo "cannot load"; exit 1; }
echo "INFO: Inference timings in us: Init: 8, First inference: 9, Warmup (avg): 9, Inference (avg): 2000"
"""
PHONES = [("litert", "tflite", "BENCHMARK", "benchmark_model"), ("executorch", "pte", "RUNNER", "executor_runner")]


@needs_sh
@pytest.mark.parametrize(("format", "suffix", "variable", "tool"), PHONES)
def test_android_scripts_with_a_stand_in_phone(tmp_path, format, suffix, variable, tool):
    phone, bin, folder = (tmp_path / name for name in ("phone", "bin", "emitted"))
    for path in (phone, bin, folder / "models"):
        path.mkdir(parents=True)
    for path, text in (
        (bin / "adb", _ADB),
        (bin / "getprop", "#!/bin/sh\necho 'a \"new\" phone'"),
        (bin / tool, _TOOL),
    ):
        path.write_text(text)
        path.chmod(0o755)
    names = ["reference", "unit", *(f"chain_{i:03d}" for i in range(10)), "network_000"]
    for name in names:
        (folder / "models" / f"{name}.{suffix}").write_text(name)
    for name, text in scripts(format, "0" * 64).items():
        (folder / name).write_text(text)
    env = {"PATH": f"{bin}:/usr/bin:/bin", "PHONE": str(phone), variable: str(bin / tool), "THREADS": "2"}

    def measure(**more):
        run = ["sh", f"android-{format}.sh"]
        return subprocess.run(run, cwd=folder, env={**env, **more}, capture_output=True, text=True)

    done = measure()
    assert (done.returncode, done.stderr) == (0, "")
    told = [line for line in done.stdout.splitlines() if line.startswith("pass ")]
    assert len(told) == 2 * (9 + 5)  # one of each model and sitting
    assert told[0] == "pass 1 of 2, 0 of 12: reference"
    assert told[-1].startswith("pass 2 of 2, 12 of 12: ")
    assert done.stdout.splitlines()[-1].endswith("pocketformer profile --import logs --out table.json")
    logs = {path.relative_to(folder / "logs"): path for path in (folder / "logs").rglob("*.txt")}
    groups = [{path.stem for path in logs.values() if path.parent.name == g} for g in ("pass1_000", "pass2_001")]
    assert [len(group) for group in groups] == [9, 5]
    assert sorted(path.stem for path in logs if path.parent.name.startswith("pass2")) == sorted([*names, "reference"])
    assert all(read_log(path) == [2.0] for path in logs.values())
    about = json.loads((folder / "logs" / "about.json").read_text())
    assert about == {"manifest": "0" * 64, "threads": 2, "passes": 2, "runtime": format} | {
        "device": 'a "new" phone',
        "os": 'Android a "new" phone',
        "date": datetime.date.today().isoformat(),
    }
    calls = (phone / "calls").read_text().splitlines()
    assert measure().returncode == 0
    assert (phone / "calls").read_text().splitlines() == calls  # nothing was left to do

    (folder / "logs" / "pass1_001" / "unit.txt").unlink(missing_ok=True)
    (folder / "logs" / "pass1_000" / "reference.txt").unlink()
    (phone / "broken").touch()
    failed = measure()
    assert failed.returncode == 1
    assert failed.stderr.startswith("reference failed: ")
    assert len(failed.stderr.splitlines()) == 1
    (phone / "broken").unlink()
    assert measure().returncode == 0
    before = {path: path.read_text() for path in (folder / "logs").rglob("*") if path.is_file()}
    for more in ({"THREADS": "4"}, {"ARGS": "--use_gpu=true"}, {"PASSES": "3"}):
        refused = measure(**more)
        assert refused.returncode == 1
        assert refused.stderr.startswith("logs/ was measured otherwise (")
        assert len(refused.stderr.splitlines()) == 1
    assert {path: path.read_text() for path in (folder / "logs").rglob("*") if path.is_file()} == before

    shutil.rmtree(folder / "logs")
    assert measure(ARGS="--use_gpu=true").returncode == 0
    about = json.loads((folder / "logs" / "about.json").read_text())
    assert about["args"] == "--use_gpu=true"
    assert about.get("precision") == ("float16" if format == "litert" else None)
    assert "--use_gpu=true" in (phone / "calls").read_text().splitlines()[-1]


def test_times_noted_by_hand(emitted, tmp_path):
    """As read from Xcode's performance reports: one line a model, one column a pass."""
    manifest = Manifest.load(emitted / "manifest.json")
    lines = ["# model,ms,ms", *(f"{m.file},{m.bytes / 1e5},{m.bytes / 1e5 * 1.02}" for m in manifest.models)]
    (tmp_path / "times.csv").write_text("\n".join(lines))
    about = {"manifest": manifest.id, "device": "iPhone 15", "os": "iOS 18", "runtime": "coreml"}
    (tmp_path / "about.json").write_text(json.dumps(about))
    table = import_file(tmp_path / "times.csv", emitted / "manifest.json", tmp_path / "table.json")
    assert table.fingerprint["device"] == "iPhone 15"
    assert "date" not in table.fingerprint  # nobody said when
    assert table.check.repeatability == pytest.approx(0, abs=1e-9)  # the reference drifted alike


def _everywhere(change):
    """A change of one model's times, in all passes."""

    def changed(values):
        for group in values["passes"]:
            if "chain_003" in group:
                change(group)

    return changed


def _set(key, value):
    return lambda values: values.__setitem__(key, value)


REFUSED = {
    "missing": (_everywhere(lambda g: g.pop("chain_003")), r"no times of chain_003 \(4 x "),
    "negative": (_everywhere(_set("chain_003", [1.0, -0.5])), r"chain_003 has a time of -0\.5 ms"),
    "zero": (_everywhere(_set("chain_003", [0])), r"chain_003 has a time of 0 ms"),
    "nan": (_everywhere(_set("chain_003", {"samples_ms": [math.nan]})), r"chain_003 has a time of nan ms"),
    "text": (_everywhere(_set("chain_003", ["1 ms"])), r"chain_003 has no times"),
    "null": (_everywhere(_set("chain_003", None)), r"chain_003 has no times"),
    "empty": (_everywhere(_set("chain_003", [])), r"chain_003 has no times"),
    "unknown": (_everywhere(_set("chain_999", [1.0])), r"'chain_999' is none of the manifest's \d+ models"),
    "twice": (_everywhere(_set("chain_003.onnx", [1.0])), r"chain_003 is there twice"),
    "no reference": (lambda v: v["passes"][1].pop("reference"), r"pass 2 has no times of the reference"),
    "other models": (_set("manifest", "0" * 64), r"times of other models than this manifest's \(tiny\)"),
    "no device": (_set("device", ""), r"does not say its 'device'"),
    "no passes": (_set("passes", []), r"needs 'models', or 'passes'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_results_that_cannot_be_used(device, tmp_path, name):
    change, message = REFUSED[name]
    values = json.loads((device / "results.json").read_text())
    change(values)
    (tmp_path / "results.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=message) as caught:
        import_file(tmp_path / "results.json", device / "manifest.json", tmp_path / "table.json")
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_times_as_a_single_pass_of_means(device, tmp_path):
    passes = json.loads((device / "results.json").read_text())["passes"]
    means = {name: {"mean_ms": statistics.fmean(ms)} for group in passes for name, ms in group.items()}
    values = json.loads((device / "results.json").read_text())
    del values["passes"]
    (tmp_path / "results.json").write_text(json.dumps({**values, "models": means}))
    table = import_file(tmp_path / "results.json", device / "manifest.json", tmp_path / "table.json")
    assert table.check.repeatability is None
    assert table.reference.latency == pytest.approx(means["reference"]["mean_ms"])


def test_a_changed_manifest_is_refused(device, tmp_path):
    values = json.loads((device / "manifest.json").read_text())
    values["models"][2]["sha256"] = "0" * 64
    (tmp_path / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"manifest\.json has been changed"):
        import_file(device / "results.json", tmp_path / "manifest.json", tmp_path / "table.json")
    with pytest.raises(UserError, match="not a manifest"):
        import_file(device / "results.json", device / "results.json", tmp_path / "table.json")
    with pytest.raises(UserError, match="results not found"):
        import_file(tmp_path / "nowhere" / "results.json", None, tmp_path / "table.json")


def test_an_interrupted_emission_goes_on(space_file, emitted, tmp_path, monkeypatch):
    written = []
    made = {model.name: emitted / "models" / model.file for model in Manifest.load(emitted / "manifest.json").models}

    def until(most, write):
        def writing(format, plan, name, path, *rest):
            if len(written) == most:
                raise KeyboardInterrupt
            written.append(name)
            write(format, plan, name, path, *rest)

        return writing

    def again(format, plan, name, path, *_):
        shutil.copyfile(made[name], path)

    job = (str(space_file), "onnx", 10, FEW, 0, tmp_path / "models")
    monkeypatch.setattr(emit, "write_candidate", until(5, emit.write_candidate))
    with pytest.raises(KeyboardInterrupt):
        emit_models(*job)
    assert not (tmp_path / "models" / "manifest.json").exists()
    monkeypatch.setattr(emit, "write_candidate", until(math.inf, again))
    manifest = emit_models(*job)
    assert sorted(written) == sorted(model.name for model in manifest.models)
    assert manifest.id == Manifest.load(emitted / "manifest.json").id  # files are a function of the settings
    emit_models(*job)
    assert len(written) == len(manifest.models)
    with pytest.raises(UserError, match="holds models of other settings"):
        emit_models(*job[:2], 11, *job[3:])


@pytest.mark.parametrize(
    ("format", "message"), [("tensorrt", "only on the machine they were made on; emit onnx"), ("abacus", "no export")]
)
def test_formats_that_cannot_be_carried(space_file, tmp_path, format, message):
    with pytest.raises(UserError, match=message):
        emit_models(str(space_file), format, 10, FEW, 0, tmp_path / "models")
    assert list(tmp_path.iterdir()) == []
