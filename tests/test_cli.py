"""The command line: results on stdout, mistakes told in one line, nothing half-written (contract 3)."""

import errno
import itertools
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models.efficientformer_v2 import EfficientFormerV2

from perturbed import perturb
from pocketformer.architecture import Architecture, SearchSpace
from pocketformer.cli.main import main
from pocketformer.devices import Entry, LatencyTable, Reference, space_blocks
from pocketformer.models import create_model, load_checkpoint
from pocketformer.search import Score
from pocketformer.training.checkpoint import load_model, save_model, save_tensors
from pocketformer.training.data import open_data

torch.set_num_threads(1)

CLASSES = ("dark", "grey", "light")
SPACE = """\
name: tiny
design: {resolution: 16, stem_strides: [2, 1], stage_strides: [2, 1, 1], attention_strides: [1, 1, 1, 1],
  heads: 2, key_dim: 4, value_dim: 4, downsampling_heads: 2, downsampling_key_dim: 4, downsampling_value_dim: 4}
expansions: [1, 2]
stages:
  - {depth: 1, widths: [4, 8]}
  - {depth: 1, widths: [8]}
  - {depth: 1, widths: [8, 12], attention: true}
  - {depth: 1, widths: [12, 16], attention: true}
"""


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.err.splitlines()

    def fails(self, code: int, *words: str, alone: bool = True) -> "Answer":
        """Failed with this code and one line of error that holds the words; `alone`: nothing else was said."""
        assert self.code == code, self
        errors = [line for line in self.lines if line.startswith("pocketformer: ")]
        assert errors == self.lines[-1:], self.err
        assert len(self.lines) == 1 or not alone, self.err
        assert self.out == ""
        for word in words:
            assert word in errors[0], errors[0]
        return self

    def json(self) -> dict:
        """The one JSON object that stdout holds."""
        assert self.code == 0, self.err
        value = json.loads(self.out)
        assert isinstance(value, dict)
        assert self.out.count("\n") == 1
        return value


@pytest.fixture
def cli(capfd):
    def call(*arguments: object) -> Answer:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(a) for a in arguments])
        said = capfd.readouterr()
        return Answer(stop.value.code, said.out, said.err)

    return call


def write_images(folder: Path, count: int, classes=CLASSES, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = (rng.normal(60 + 70 * label, 30, (16, 16, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i:02d}.png")
    return folder


def write_table(path: Path, space: SearchSpace, classes: int, **changes) -> Path:
    """A table made up from the blocks' multiply-accumulates."""
    entries = {key: Entry(1e-4 + block.macs() / 1e7) for key, block in space_blocks(space, classes).items()}
    largest = sum(entries[b.key()].latency for b in space.largest.blocks(None, classes, distilled=False))
    table = LatencyTable(
        entries, 1e-3, 0.2, Reference("largest", largest + 1e-3), space.name, classes, space.resolution
    )
    values = table.to_dict()
    path.write_text(json.dumps({**values, **changes}))
    return path


@dataclass(frozen=True)
class Workshop:
    """Images, a space, a table, a trained supernet and a trained network that tests read and do not change."""

    path: Path

    def __getattr__(self, name: str) -> Path:
        return self.path / {"space": "tiny.yaml", "table": "table.json"}.get(name, name)


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Workshop:
    found = Workshop(tmp_path_factory.mktemp("cli"))
    found.space.write_text(SPACE)
    write_images(found.data / "train", 20)
    write_images(found.data / "val", 4, seed=1)
    space = SearchSpace.load(found.space)
    write_table(found.table, space, 3)
    space.smallest.save(found.path / "small.json")
    exported = str(found.network / "exported" / "model.onnx")
    common = ["--data", str(found.data), "--epochs", "1", "--batch-size", "8"]
    for command in (
        ["supernet", "--space", str(found.space), *common, "--out", str(found.supernet)],
        ["train", "--architecture", str(found.path / "small.json"), *common, "--out", str(found.network)],
        ["export", "--checkpoint", str(found.network), "--data", str(found.data), "--out", exported],
    ):
        with pytest.raises(SystemExit) as stop:
            main(command)
        assert stop.value.code == 0
    return found


# --- Help, version, usage ---

COMMANDS = ("quickstart", "design", "models", "profile", "supernet", "search", "train", "evaluate", "export")
COMMANDS += ("correlate", "benchmark", "report")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_and_fits_a_terminal(cli, command):
    answer = cli(command, "--help")
    assert (answer.code, answer.err) == (0, "")
    assert "Example" in answer.out or command == "models"
    assert f"pocketformer {command}" in answer.out
    assert "Writes" in answer.out or "write" in answer.out.lower() or "FOLDER" in answer.out
    assert all(len(line) <= 100 and "╭" not in line for line in answer.out.splitlines())


def test_overview_and_version(cli):
    overview = cli()
    assert overview == cli("--help")
    assert all(command in overview.out for command in COMMANDS)
    assert "..." not in overview.out.split("Commands:")[1]  # no summary is cut
    assert cli("--version").out.startswith("pocketformer ")


def test_overview_imports_nothing_heavy():
    code = "import sys; from pocketformer.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "sys.exit('torch' in sys.modules or 'timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


DESIGN = ["design", "--data", "{data}", "--space", "{space}", "--out", "{new}"]
BUDGET = [*DESIGN, "--max-parameters", "50%"]
SEARCH_ON = ["search", "--supernet", "{supernet}", "--out", "{new}", "--latency"]
SEARCH = [*SEARCH_ON, "{table}"]
SEARCH_HALF = [*SEARCH, "--max-latency", "50%"]
TRAIN = ["train", "--architecture", "{small}", "--data", "{data}", "--epochs", "1", "--out", "{new}"]
EVALUATE = ["evaluate", "--checkpoint", "{network}", "--data", "{data}"]
EXPORT = ["export", "--checkpoint", "{network}", "--data", "{data}", "--out", "{new}.onnx"]

MISTAKES = {
    # usage
    "unknown command": (["desing"], "desing", "design", "--help"),
    "unknown option": ([*BUDGET, "--max-latancy", "1ms"], "--max-latancy", "--max-latency", "design --help"),
    "missing option": (["design", "--data", "{data}"], "--out", "design --help"),
    "missing argument": (["report"], "RUN", "report --help"),
    "value missing": ([*DESIGN, "--max-latency"], "--max-latency"),
    "no number": ([*BUDGET, "--threads", "two"], "--threads"),
    "no epochs": ([*BUDGET, "--epochs", "0"], "--epochs", "above zero"),
    "endless epochs": ([*BUDGET, "--final-epochs", "inf"], "--final-epochs", "above zero"),
    "epochs nan": ([*TRAIN, "--epochs", "nan"], "--epochs", "above zero"),
    "negative batch": ([*BUDGET, "--batch-size", "-3"], "--batch-size"),
    "no batch": ([*TRAIN, "--batch-size", "0"], "--batch-size"),
    "negative seed": ([*BUDGET, "--seed", "-1"], "--seed"),
    "bad-images": ([*BUDGET, "--bad-images", "eat"], "--bad-images", "refuse, skip"),
    "negative rate": ([*TRAIN, "--learning-rate", "-1"], "--learning-rate"),
    "unknown method": ([*SEARCH, "--max-latency", "50%", "--method", "luck"], "luck", "joint"),
    "unknown format": ([*EXPORT, "--format", "pdf"], "pdf", "onnx"),
    "format and name": ([*EXPORT, "--format", "torch"], "of format torch ends in .pt2"),
    "pick and search": ([*SEARCH, "--pick", "{network}", "--max-latency", "1"], "--pick"),
    "search of nothing": (["search", "--max-latency", "1ms"], "--supernet"),
    # budgets
    "no budget": (DESIGN, "--max-latency", "--max-parameters"),
    "no search budget": (SEARCH, "--max-latency"),
    "zero": ([*DESIGN, "--max-latency", "0ms"], "--max-latency", "above zero"),
    "negative": ([*DESIGN, "--max-parameters", "-3M"], "--max-parameters", "above zero"),
    "not a number": ([*DESIGN, "--max-latency", "fast"], "--max-latency", "fast", "0.9ms"),
    "apples": ([*DESIGN, "--max-parameters", "3 apples"], "3 apples", "3.5M"),
    "wrong unit": ([*DESIGN, "--max-memory", "3ms"], "--max-memory", "4MB"),
    "nan": ([*DESIGN, "--max-latency", "nan"], "--max-latency"),
    "inf": ([*DESIGN, "--max-memory", "inf"], "--max-memory"),
    "too large": ([*DESIGN, "--max-latency", "1e999"], "--max-latency"),
    "empty": ([*DESIGN, "--max-latency", ""], "--max-latency"),
    "mes": ([*DESIGN, "--min-mes", "-1"], "--min-mes", "above zero"),
    "mes nan": ([*DESIGN, "--min-mes", "nan"], "--min-mes"),
    # names
    "unknown runtime": ([*BUDGET, "--runtime", "abacus"], "abacus", "onnxruntime"),
    "evaluate: runtime": ([*EVALUATE, "--runtime", "abacus"], "abacus", "onnxruntime"),
    "unknown space": ([*BUDGET, "--space", "pocket23"], "pocket23", "pocket28"),
    "space missing": ([*BUDGET, "--space", "none.yaml"], "none.yaml"),
    "unknown model": ([*TRAIN, "--architecture", "efficientformerv2_s9"], "v2_s9'", "efficientformerv2_s2"),
    "architecture missing": ([*TRAIN, "--architecture", "none.json"], "none.json", "not found"),
    "benchmark: unknown model": (["benchmark", "efficientformerv2_x"], "efficientformerv2_x", "efficientformerv2_"),
    "benchmark: no file": (["benchmark", "none.onnx"], "none.onnx"),
    "benchmark: no model": (["benchmark", "{bad_onnx}"], "bad.onnx"),
    "unknown teacher": ([*TRAIN, "--teacher", "regnety_16"], "regnety_16", "regnety_160"),
    "teacher's file": ([*TRAIN, "--teacher", "resnet18=none.pth"], "none.pth", "not found"),
    "teacher of other classes": ([*TRAIN, "--teacher", "resnet18"], "1000", "3"),
    # data
    "no folder": ([*BUDGET, "--data", "nowhere"], "nowhere", "no such folder"),
    "no data set": ([*BUDGET, "--data", "torch/cifar11"], "torch/cifar11"),
    "one class": ([*BUDGET, "--data", "{one_class}"], "only one class"),
    "empty class": ([*BUDGET, "--data", "{empty_class}"], "without images", "light"),
    "a file": ([*BUDGET, "--data", "{table}"], "is a file"),
    "flat folder": ([*BUDGET, "--data", "{data}/train/dark"], "no class folders"),
    # output
    "out is a file": ([*TRAIN, "--out", "{table}"], "is a file"),
    "out under a file": ([*TRAIN, "--out", "{table}/run"], "table.json"),
    "out is not empty": ([*TRAIN, "--out", "{data}"], "not empty", "--out"),
    "out is another command's": ([*TRAIN, "--out", "{supernet}"], "'supernet'", "'train'"),
    "out is another run": ([*TRAIN, "--out", "{network}", "--epochs", "7"], "another run", "recipe"),
    "export to a folder": ([*EXPORT, "--out", "{data}"], "is a folder"),
    "profile to a folder": (["profile", "--space", "{space}", "--out", "{data}"], "is a folder"),
    # latency tables
    "table missing": ([*BUDGET, "--latency", "none.json"], "none.json", "not found"),
    "table of other classes": ([*BUDGET, "--latency", "{ten_classes}"], "10", "3"),
    "table of another space": ([*SEARCH_ON, "{other_space}", "--max-latency", "50%"], "pocket28", "tiny"),
    "negative time": ([*BUDGET, "--latency", "{negative}"], "negative"),
    "missing time": ([*BUDGET, "--latency", "{no_time}"], "latency"),
    "missing entries": ([*BUDGET, "--latency", "{no_entries}"], "entries"),
    "table is no JSON": ([*SEARCH_ON, "{space}", "--max-latency", "50%"], "not valid JSON"),
    "table is other JSON": ([*BUDGET, "--latency", "{small}"], "not a latency table"),
    # metrics
    "two nameless tables": ([*SEARCH_HALF, "--latency", "{table}"], "--latency phone=FILE"),
    "a nameless table": ([*SEARCH_HALF, "--latency", "phone={table}"], "--latency phone=FILE"),
    "two tables of a name": ([*SEARCH_ON, "a={table}", "--latency", "a={table}", "--max-latency", "9"], "two", "a"),
    "named table of another space": ([*SEARCH_ON, "a={other_space}", "--max-latency", "9"], "pocket28", "tiny"),
    "named table missing": ([*SEARCH_ON, "phone=none.json", "--max-latency", "9"], "none.json", "not found"),
    "budget of no device": ([*SEARCH_ON, "a={table}", "--max-latency", "b=9"], "latency:b", "latency:a"),
    "two budgets of a device": ([*SEARCH, "--max-latency", "9", "--max-latency", "8"], "--max-latency", "twice"),
    "alpha of nothing": ([*SEARCH_HALF, "--alpha", "weight=1"], "weight", "energy"),
    "alpha of no device": ([*SEARCH_HALF, "--alpha", "latency:phone=1"], "latency:phone", "known: size, latency"),
    "alpha without value": ([*SEARCH_HALF, "--alpha", "latency"], "--alpha latency", "METRIC=X"),
    "alpha in words": ([*SEARCH_HALF, "--alpha", "latency=much"], "--alpha latency=much", "METRIC=X"),
    "negative alpha": ([*SEARCH_HALF, "--alpha", "size=-0.5"], "--alpha size=-0.5", "zero or above"),
    "alpha nan": ([*SEARCH_HALF, "--alpha", "size=nan"], "zero or above"),
    "alpha twice": ([*SEARCH_HALF, "--alpha", "size=1", "--alpha", "size=2"], "size twice"),
    "all alphas zero": ([*SEARCH_HALF, "--alpha", "size=0", "--alpha", "latency=0"], "exponent is zero"),
    "alpha of energy in design": ([*BUDGET, "--alpha", "energy=1"], "energy", "memory"),
    "unknown form": ([*SEARCH_HALF, "--form", "log"], "log", "budget, paper"),
    "macs": ([*SEARCH, "--max-macs", "3MB"], "--max-macs", "0.4G"),
    "energy of nothing": ([*SEARCH, "--max-energy", "2mJ"], "'energy'", "macs"),
    "energy in ms": ([*SEARCH_HALF, "--energy", "2W", "--max-energy", "2ms"], "--max-energy", "500uJ"),
    "no power": ([*SEARCH_HALF, "--energy", "0W"], "--energy 0W", "above zero"),
    "power of no device": ([*SEARCH_HALF, "--energy", "phone=2W"], "--energy 2W"),
    "power of which device": (
        [*SEARCH_ON, "a={table}", "--latency", "b={table}", "--max-latency", "9", "--energy", "2W"], "a=…, b=…"),
    "energy table with a device": ([*SEARCH_HALF, "--energy", "phone=x.json"], "phone=2.5W"),
    "energy table missing": ([*SEARCH_HALF, "--energy", "none.json"], "none.json", "not found"),
    "latency as energy": ([*SEARCH_HALF, "--energy", "{table}"], "not an energy table"),
    "energy table lacks blocks": ([*SEARCH_HALF, "--energy", "{little_energy}"], "lacks", "tiny", "stem"),
    "energy is no number": ([*SEARCH_HALF, "--energy", "{bad_energy}"], "'stem'", "mJ"),
    "no beam": ([*SEARCH_HALF, "--beam", "0"], "--beam"),
    "regrow with a beam": ([*SEARCH_HALF, "--beam", "2", "--regrow"], "--regrow", "--beam"),
    # checkpoints
    "checkpoint missing": (["evaluate", "--checkpoint", "nowhere", "--data", "{data}"], "nowhere"),
    "no trained run": (["evaluate", "--checkpoint", "{data}", "--data", "{data}"], "config.json"),
    "a supernet": (["evaluate", "--checkpoint", "{supernet}", "--data", "{data}"], "supernet"),
    "damaged weights": (["evaluate", "--checkpoint", "{damaged}", "--data", "{data}"], "model.safetensors"),
    "empty weights": (["evaluate", "--checkpoint", "{emptied}", "--data", "{data}"], "model.safetensors"),
    "a pickle": (["evaluate", "--checkpoint", "{pickled}", "--data", "{data}"], "model.safetensors"),
    "damaged config": ([*EXPORT, "--checkpoint", "{misconfigured}"], "config.json"),
    "another architecture": ([*EVALUATE, "--architecture", "{large}"], "do not fit", "differ"),
    "search without supernet": ([*SEARCH, "--supernet", "{network}", "--max-latency", "50%"], "not a supernet"),
    "supernet missing": ([*SEARCH, "--supernet", "nowhere", "--max-latency", "50%"], "nowhere"),
    "damaged supernet": ([*SEARCH, "--supernet", "{damaged_net}", "--max-latency", "50%"], "model.safetensors"),
    "init missing": ([*TRAIN, "--init", "nowhere"], "--init", "nowhere"),
    "init of another": ([*TRAIN, "--architecture", "{large}", "--init", "{network}"], "another architecture"),
    "init not a member": ([*TRAIN, "--architecture", "{alien}", "--init", "{supernet}"], "tiny"),
    "no exported file": ([*EVALUATE, "--checkpoint", "{network}/exported/none.onnx"], "none.onnx"),
    "other classes": ([*EVALUATE, "--data", "{other_names}"], "dark", "black"),
    "pick without run": (["search", "--pick", "nowhere", "--max-latency", "50%"], "nowhere"),
    "report of nothing": (["report", "{data}"], "not a run"),
    "report of nowhere": (["report", "nowhere"], "nowhere"),
    # spaces
    "broken YAML": ([*BUDGET, "--space", "{broken}"], "not valid YAML"),
    "unknown key": ([*BUDGET, "--space", "{unknown_key}"], "depths"),
    "unknown switch": ([*BUDGET, "--space", "{unknown_switch}"], "resolutoin"),
    "attention too small": ([*BUDGET, "--space", "{small_grid}"], "too small"),
    "smallest no member": ([*BUDGET, "--space", "{stranger}"], "stage 1"),
    "no stages": ([*BUDGET, "--space", "{no_stages}"], "stages"),
    "space is a folder": ([*BUDGET, "--space", "{folder}"], "folder.yaml"),
}  # fmt: skip


class Payload:
    def __reduce__(self):
        return os.mkdir, (str(Path(tempfile.gettempdir()) / f"executed-{os.getpid()}"),)


@pytest.fixture(scope="module")
def faults(shop) -> dict[str, Path]:
    """Everything that the table of mistakes names."""
    root = shop.path / "faults"
    root.mkdir()
    space = SearchSpace.load(shop.space)
    found = {name: getattr(shop, name) for name in ("data", "space", "table", "supernet", "network")}
    found["small"], found["large"] = shop.path / "small.json", root / "large.json"
    space.largest.save(found["large"])
    found["alien"] = root / "alien.json"
    SearchSpace.named("pocket28").smallest.save(found["alien"])
    found["bad_onnx"] = root / "bad.onnx"
    found["bad_onnx"].write_bytes(b"no model")
    found["one_class"] = write_images(root / "one", 3, CLASSES[:1])
    found["empty_class"] = write_images(root / "empty", 3, CLASSES[:2])
    (root / "empty" / "light").mkdir()
    found["other_names"] = write_images(root / "names", 12, ("black", "white"))

    found["ten_classes"] = write_table(root / "ten.json", space, 10)
    found["other_space"] = write_table(root / "other.json", SearchSpace.named("pocket28"), 3)
    entries = json.loads(shop.table.read_text())["entries"]
    first = next(iter(entries))
    found["negative"] = write_table(root / "neg.json", space, 3, entries={**entries, first: {"latency": -1.0}})
    found["no_time"] = write_table(root / "time.json", space, 3, entries={**entries, first: {"spread": 1.0}})
    found["no_entries"] = write_table(root / "none.json", space, 3, entries={})

    for name, energies in (("little_energy", {"head": 0.5}), ("bad_energy", {"stem": -1})):
        found[name] = root / f"{name}.json"
        found[name].write_text(json.dumps({"format": "pocketformer.energy-table/1", "entries": energies}))

    for name, source, file, content in (
        ("damaged", "network", "model.safetensors", bytes(range(256)) * 20),
        ("emptied", "network", "model.safetensors", b""),
        ("pickled", "network", "model.safetensors", pickle.dumps(Payload())),
        ("misconfigured", "network", "config.json", b'{"num_classes": 3}'),
        ("damaged_net", "supernet", "model.safetensors", bytes(range(256)) * 20),
    ):
        found[name] = shutil.copytree(found[source], root / name)
        (found[name] / file).write_bytes(content)

    stranger = "smallest: [{width: 5, blocks: [ffn1]}, {width: 8, blocks: [ffn1]}, "
    stranger += "{width: 8, blocks: [ffn1]}, {width: 12, blocks: [ffn1]}]\n"
    for name, text in {
        "broken": "stages: [",
        "unknown_key": SPACE.replace("depth: 1", "depths: 1"),
        "unknown_switch": SPACE.replace("resolution", "resolutoin"),
        "small_grid": SPACE.replace("resolution: 16", "resolution: 4"),
        "stranger": SPACE + stranger,
        "no_stages": "name: tiny\n",
    }.items():
        found[name] = root / f"{name}.yaml"
        found[name].write_text(text)
    found["folder"] = root / "folder.yaml"
    found["folder"].mkdir()
    return found


def fill(arguments: list[str], faults: dict[str, Path], new: Path) -> list[str]:
    return [argument.format(new=new, **faults) for argument in arguments]


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_in_one_line(cli, shop, faults, tmp_path, monkeypatch, name):
    arguments, *words = MISTAKES[name]
    monkeypatch.chdir(tmp_path)
    before = sorted(map(str, shop.path.rglob("*")))
    cli(*fill(arguments, faults, tmp_path / "new")).fails(2, *words, alone=False)
    assert list(tmp_path.iterdir()) == []  # no folder for the run, nothing half-written
    assert sorted(map(str, shop.path.rglob("*"))) == before
    assert not (Path(tempfile.gettempdir()) / f"executed-{os.getpid()}").exists()


def test_an_impossible_budget_is_refused_before_training(cli, shop, faults, tmp_path):
    """Parameters and memory before anything is done; latency as soon as the device is known."""
    new = tmp_path / "new"
    space = SearchSpace.load(shop.space)
    smallest = space.minimum.architecture.parameters(3, False)
    design = fill(DESIGN, faults, new)
    cli(*design, "--max-parameters", smallest - 1).fails(1, "tiny", f"{smallest:,} parameters", alone=False)
    cli(*design, "--max-memory", "1kB").fails(1, "tiny", "MB", alone=False)
    assert not new.exists()
    slow = cli(*design, "--latency", shop.table, "--max-latency", "1us").fails(1, "0.001 ms", "device", alone=False)
    assert "train" not in slow.err
    cli(*fill(SEARCH, faults, tmp_path / "search"), "--max-latency", "1us").fails(1, "0.001 ms")
    cli(*fill(SEARCH, faults, tmp_path / "search"), "--min-mes", "1e9").fails(1, "MES")
    assert not (tmp_path / "search").exists()


def test_unreadable_images_are_refused_or_skipped(cli, shop, faults, tmp_path):
    data = shutil.copytree(shop.data, tmp_path / "photos")
    whole = (data / "train" / "dark" / "00.png").read_bytes()
    (data / "train" / "dark" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (data / "val" / "light" / "notes.jpg").write_text("no image")
    evaluate = ["evaluate", "--checkpoint", str(shop.network), "--data", str(data)]
    refused = cli(*evaluate).fails(2, "2 of 74", "cut.png", "notes.jpg", "--bad-images skip", alone=False)
    assert "Traceback" not in refused.err
    skipped = cli(*evaluate, "--bad-images", "skip")
    assert "2 images skipped" in skipped.err
    assert "of 12 images" in skipped.out
    train = [*fill(TRAIN, faults, tmp_path / "new"), "--data", data]
    cli(*train).fails(2, "cut.png", alone=False)
    assert not (tmp_path / "new").exists()


def test_a_run_that_another_process_works_in(cli, shop, faults, tmp_path):
    import fcntl

    run = shutil.copytree(shop.network, tmp_path / "run")
    train = ["train", "--architecture", faults["small"], "--data", shop.data, "--out", run]
    with open(run / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        cli(*train, "--epochs", "1", "--batch-size", "8").fails(2, "another process", alone=False)


def test_a_folder_that_cannot_be_written(cli, faults, tmp_path, monkeypatch):
    def refuse(path, *_):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "mkdir", refuse)  # root, whom tests often run as, may write everywhere
    cli(*fill(TRAIN, faults, tmp_path / "new")).fails(2, "new", "Permission denied", alone=False)


# --- Results ---


def test_json_is_one_object_and_agrees_with_the_files(cli, shop, faults, tmp_path):
    found = cli("models", "--json")
    assert found.err == ""
    assert {m["name"] for m in found.json()["models"]} >= {"efficientformerv2_s0"}

    common = ["--data", shop.data, "--epochs", "1", "--batch-size", "8", "--json"]
    again = cli("supernet", "--space", shop.space, *common, "--out", shop.supernet).json()
    assert again["space"] == "tiny"

    out = tmp_path / "search"
    search = ["search", "--supernet", shop.supernet, "--latency", shop.table, "--max-latency", "60%", "--out", out]
    searched = cli(*search, "--json").json()
    assert searched["architecture"] == json.loads((out / "architecture.json").read_text())
    picked = cli("search", "--pick", out, "--max-latency", "60%", "--json").json()
    assert picked["latency"] <= 0.6 * LatencyTable.load(shop.table).latency(SearchSpace.load(shop.space).largest)
    assert cli("search", "--pick", out, "--max-latency", "1us").fails(1, "ms")
    text = cli(*search)
    assert f"step {searched['step']}" in text.out
    assert "ms" in text.out

    trained = cli("train", "--architecture", out, "--init", shop.supernet, *common, "--out", tmp_path / "final").json()
    assert trained["test"]["split"] == "test"
    assert trained["test"]["images"] == 12
    exported = cli("export", "--checkpoint", tmp_path / "final", "--out", tmp_path / "m.onnx", "--json").json()
    assert exported["bytes"] == (tmp_path / "m.onnx").stat().st_size
    timed = cli("benchmark", tmp_path / "m.onnx", faults["small"], "--rounds", "5", "--json").json()
    assert timed["networks"][0]["median_ms"] > 0
    page = cli("report", tmp_path / "final", "--out", tmp_path / "page.html", "--json").json()
    assert Path(page["page"]).is_file()


def test_a_search_by_many_metrics(cli, shop, tmp_path):
    """Two devices, energy and multiply-adds, with a beam, raced; each metric is told with its unit, and picked by."""
    out = tmp_path / "search"
    search = ["search", "--supernet", shop.supernet, "--out", out, "--beam", "2", "--race", "--form", "paper"]
    search += ["--latency", f"phone={shop.table}", "--latency", f"laptop={shop.table}", "--energy", "laptop=2.5W"]
    search += ["--max-latency", "80%", "--max-latency", "phone=70%", "--max-macs", "75%", "--max-energy", "78%"]
    search += ["--alpha", "size=0.25", "--alpha", "latency:phone=1", "--alpha", "memory=0.1"]
    found = cli(*search, "--json").json()
    units = {"size": "parameters", "latency:phone": "ms", "latency:laptop": "ms", "macs": "MACs", "memory": "bytes"}
    assert {name: cost["unit"] for name, cost in found["costs"].items()} == {**units, "energy": "mJ"}
    values = {name: cost["value"] for name, cost in found["costs"].items()}
    start = json.loads((out / "search.jsonl").read_text().splitlines()[0])
    assert all(values[name] <= budget for name, budget in start["budgets"].items())
    assert start["budgets"]["latency:phone"] == pytest.approx(0.7 / 0.8 * start["budgets"]["latency:laptop"])
    assert start["exponents"] == {
        "size": 0.25, "latency:phone": 1, "latency:laptop": 0.5, "macs": 0.5, "memory": 0.1, "energy": 0.5,
    }  # fmt: skip
    assert (start["form"], start["walk"]) == ("paper", {"beam": 2})
    assert values["energy"] == pytest.approx(2.5 * values["latency:laptop"])
    assert values["macs"] == Architecture.load(out / "architecture.json").macs(num_classes=3, distilled=False)
    told = cli(*search).out
    assert all(word in told for word in (" parameters", " ms on phone", " ms on laptop", " M MACs", " MB", " mJ"))
    for metric, budget in (("energy", "78%"), ("macs", "75%"), ("latency", "phone=70%"), ("latency", "80%")):
        picked = cli("search", "--pick", out, f"--max-{metric}", budget, "--json").json()
        assert Path(picked["file"]).exists()
    assert "Energy" in Path(cli("report", out, "--json").json()["page"]).read_text()


def test_searches_that_end_badly(cli, shop, faults, tmp_path, monkeypatch):
    """One line and exit code 1, the trajectory kept; the same command then goes on to what it would have been."""
    search = fill(SEARCH_HALF, faults, tmp_path / "whole")
    cli(*search, "--json").json()
    whole = (tmp_path / "whole" / "search.jsonl").read_bytes()
    stuck = [*fill(SEARCH, faults, tmp_path / "stuck"), "--max-memory", "45%", "--max-latency", "99%", "--alpha"]
    cli(*stuck, "memory=0", "--alpha", "size=0").fails(1, "no action raises MES", "search.jsonl", alone=False)

    from pocketformer.search.evaluation import PrefixEvaluator

    evaluate, failed = PrefixEvaluator.__call__, fill(SEARCH_HALF, faults, tmp_path / "failed")
    for calls, (spoil, words) in enumerate(
        (
            (lambda scores: 1 / 0, "ZeroDivisionError"),
            (lambda scores: [Score(float("nan"), 0.0)] * len(scores), "finite"),
        )
    ):
        left = iter(range(calls + 1))

        def spoiled(self, current, candidates, left=left, spoil=spoil):
            scores = evaluate(self, current, candidates)
            return scores if next(left, None) is not None else spoil(scores)

        monkeypatch.setattr(PrefixEvaluator, "__call__", spoiled)
        cli(*failed).fails(1, "the search stopped", words, alone=False)
        kept = (tmp_path / "failed" / "search.jsonl").read_bytes()
        assert whole.startswith(kept)
        assert kept.count(b'"executed"') == 1 + 2 * calls
    monkeypatch.undo()
    cli(*failed, "--json").json()
    assert (tmp_path / "failed" / "search.jsonl").read_bytes() == whole


def test_evaluation_of_the_exported_file_agrees(cli, shop):
    evaluate = ["evaluate", "--data", shop.data, "--json", "--checkpoint"]
    trained = cli(*evaluate, shop.network).json()
    exported = cli(*evaluate, shop.network, "--runtime", "onnxruntime").json()
    named = cli(*evaluate, shop.network / "exported" / "model.onnx").json()
    assert trained["accuracy"] == exported["accuracy"] == named["accuracy"]
    assert (trained["runtime"], exported["runtime"]) == ("torch", "onnxruntime")
    assert exported["loss"] == pytest.approx(trained["loss"], rel=1e-4)


def test_a_budget_that_the_largest_subnet_holds(cli, shop, faults, tmp_path):
    found = cli(*fill(SEARCH, faults, tmp_path / "s"), "--max-parameters", "100M", "--json")
    assert found.json()["step"] == 0
    assert 0 <= found.json()["accuracy"] <= 1
    assert "already" in found.err


def test_profile_and_design(cli, shop, tmp_path):
    """The whole chain through the command line; its table is measured here and read back."""
    table = tmp_path / "table.json"
    few = ["--rounds", "3", "--networks", "2", "--checks", "1"]
    measured = cli("profile", "--space", shop.space, "--classes", "3", *few, "--out", table, "--json").json()
    assert measured["entries"] == len(LatencyTable.load(table).entries)
    assert [p.name for p in tmp_path.iterdir()] == ["table.json"]  # the working folder is gone

    run = ["design", "--data", shop.data, "--space", shop.space, "--latency", table, "--max-parameters", "80%"]
    run += ["--epochs", "1", "--final-epochs", "1", "--batch-size", "16", "--out", tmp_path / "run"]
    outcome = cli(*run, "--json").json()
    assert outcome["shipped"]["parameters"] <= outcome["budgets"]["size"]
    for file in ("report.html", "exported/model.onnx", "architecture.json", "results.json", "config.yaml"):
        assert (tmp_path / "run" / file).is_file()
    text = cli(*run)  # resumed: nothing is left to do
    assert "parameters, budget" in text.out
    assert "train" not in text.err


# --- The disk, and Ctrl-C ---


def test_a_full_disk_is_named(cli, faults, tmp_path, monkeypatch):
    calls = itertools.count()

    def full(_):
        if next(calls) > 0:  # the run's configuration is still written
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    answer = cli(*fill(TRAIN, faults, tmp_path / "new")).fails(1, "No space left on device", alone=False)
    assert "Traceback" not in answer.err
    assert not list(tmp_path.rglob("*.tmp*"))
    cli(*fill(EXPORT, faults, tmp_path / "m")).fails(1, "No space left on device", "m.onnx", alone=False)
    assert not list(tmp_path.rglob("m.onnx*"))


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own; skipped where none can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = []

    def make(size: str) -> Path:
        mount = shutil.which("mount")
        command = [mount or "mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if mount is None or subprocess.run(command, capture_output=True).returncode != 0:
            pytest.skip("a small disk cannot be mounted here")
        made.append(folder)
        return folder

    yield make
    for folder in made:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("size", ["64k", "1m"])
def test_a_disk_that_fills_up(disk, shop, faults, size):
    """It runs full at another place each time; a process of its own, as it leaves open files behind."""
    folder = disk(size)
    design = [*fill(DESIGN, faults, folder / "run"), "--latency", str(shop.table), "--max-parameters", "60%"]
    design += ["--epochs", "1", "--final-epochs", "1", "--batch-size", "8"]
    code = "import sys, torch; from pocketformer.cli.main import main; torch.set_num_threads(1); main(sys.argv[1:])"
    done = subprocess.run([sys.executable, "-c", code, *design], capture_output=True, text=True)
    Answer(done.returncode, done.stdout, done.stderr).fails(1, "No space left on device", alone=False)
    assert "Traceback" not in done.stderr
    assert not list(folder.rglob("*.tmp*"))


def test_interrupted(shop, faults, tmp_path):
    design = [*fill(TRAIN, faults, tmp_path / "new"), "--epochs", "1000"]
    code = "import sys; from pocketformer.cli.main import main; main(sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *design],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "new" / "last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    Answer(process.returncode, out, err).fails(130, "interrupted", alone=False)
    assert "Traceback" not in err


# --- The zoo ---


def test_the_zoo_stands_beside_the_papers_figures(cli):
    found = cli("models", "--json").json()
    networks = {m["name"]: m for m in found["models"]}
    s0 = networks["efficientformerv2_s0"]
    assert (s0["parameters"], s0["macs"]) == (3_600_256, 395_892_544)
    assert (s0["paper_parameters"], s0["paper_macs"]) == (3_534_553, 396_088_544)
    assert s0["published"]["top1"] == [75.7, 76.2]
    assert networks["efficientformer_l7"]["published"]["pixel6"] == 392.9
    assert next(p for p in found["peers"] if p["name"] == "Hydra Attention")["pixel6"] is None

    plain, all_ = cli("models"), cli("models", "--peers")
    for answer in (plain, all_):
        assert all(len(line) <= 120 for line in answer.out.splitlines())
        row = next(line for line in answer.out.splitlines() if "efficientformerv2_s0" in line)
        assert row.split()[1:] == ["3.60", "3.53", "3.5", "0.396", "0.396", "0.4", "75.7/76.2", "0.9", "20.8", "6.6"]
    assert "MobileNetV2x1.4" in all_.out
    assert "MobileNetV2x1.4" not in plain.out
    hydra = next(line for line in all_.out.splitlines() if "Hydra Attention" in line)
    assert hydra.split()[2:] == ["-", "-", "3.5", "-", "-", "0.38", "75.6", "4.1", "-", "9.7"]


# --- Files of weights alone: official, timm's, ours ---


@pytest.fixture(scope="module")
def files_of_weights(shop) -> dict[str, Path]:
    """A small network under the published design, in files of three and of ten classes."""
    root = shop.path / "weights"
    root.mkdir()
    stages = [{"width": width, "blocks": ["ffn1", "attention", "ffn1"][-depth:]} for width, depth in
              ((8, 1), (8, 1), (8, 3), (16, 3))]  # fmt: skip
    architecture = Architecture.from_dict({"stages": stages, "design": {"resolution": [64, 64]}})
    architecture.save(root / "shape.json")
    torch.manual_seed(0)
    found = {"data": shop.data, "network": shop.network, "shape": root / "shape.json"}
    for classes in (3, 10):
        model = perturb(create_model(architecture, classes))
        for layout in ("official", "timm"):
            found[f"{layout}{classes}"] = root / f"{layout}{classes}.pth"
            torch.save({"model": model.export_checkpoint(layout)}, found[f"{layout}{classes}"])
    found["ours"] = root / "ours.safetensors"
    save_tensors(found["ours"], perturb(create_model(architecture, 3)))
    for classes, size, safe in ((3, (64, 64), True), (10, (96, 64), False)):
        other = perturb(EfficientFormerV2(depths=(1, 1, 2, 2), embed_dims=(8, 8, 8, 16), num_vit=1, img_size=size,
            mlp_ratios=((1,), (1,), (1, 1), (1, 1)), num_classes=classes))  # fmt: skip
        other.pretrained_cfg = {**timm.get_pretrained_cfg("efficientformerv2_s0").to_dict(), "input_size": (3, *size)}
        found[f"folder{classes}"] = root / f"folder{classes}"
        timm.models.save_for_hf(other, found[f"folder{classes}"], safe_serialization=safe)
    found["cut"], found["code"] = root / "cut.pth", root / "code.pth"
    found["cut"].write_bytes(found["official3"].read_bytes()[:9999])
    torch.save({"model": Payload()}, found["code"])
    return found


@pytest.mark.parametrize("file", ["official3", "timm3", "ours", "folder3"])
def test_weights_alone_are_evaluated_and_exported(cli, files_of_weights, tmp_path, file):
    """Official and timm's weights see ImageNet's mean and std, ours our own: in PyTorch and in the exported file."""
    import onnxruntime

    shape = files_of_weights["shape"]
    common = ("--checkpoint", files_of_weights[file], "--architecture", shape, "--data", files_of_weights["data"])
    answer = cli("evaluate", *common, "--json")
    assert "the data's are taken in sorted order" in answer.err
    model = create_model(Architecture.load(shape), 3).eval()
    load_checkpoint(model, files_of_weights[file])
    data = open_data(files_of_weights["data"], size=(64, 64))
    pixels = data.test.images[data.test.indices].float() / 255
    mean, std = ((0.5,) * 3, (0.5,) * 3)
    if file != "ours":
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    images = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    labels = data.test.labels[data.test.indices]
    with torch.no_grad():
        logits = model(images)
    loss = torch.nn.functional.cross_entropy(logits, labels).item()
    found = answer.json()
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["correct"] == int((logits.argmax(1) == labels).sum())

    exported = cli("export", *common, "--out", tmp_path / "model.onnx")
    assert exported.code == 0, exported.err
    assert f"mean {mean[0]:g}, " in exported.err
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (first,) = session.run(None, {"image": images[:1].numpy()})
    assert torch.allclose(torch.from_numpy(first), logits[:1], atol=1e-4)


def test_training_begins_with_weights_alone(cli, files_of_weights, tmp_path):
    """A rate of next to nothing: what was loaded is still there; the head of ten classes is not."""
    train = ["train", "--architecture", files_of_weights["shape"], "--data", files_of_weights["data"]]
    train += ["--epochs", "1", "--learning-rate", "1e-30"]
    for file, kept in (("official3", True), ("timm10", False), ("folder10", False)):
        out = tmp_path / file
        answer = cli(*train, "--init", files_of_weights[file], "--out", out)
        assert answer.code == 0, answer.err
        assert ("of 10 classes were dropped" in answer.err) is not kept
        model = create_model(Architecture.load(files_of_weights["shape"]), 3)
        load_checkpoint(model, files_of_weights[file])
        trained = create_model(model.architecture, 3, distilled=False)
        load_checkpoint(trained, out)
        pairs = {name: (p, dict(model.named_parameters())[name]) for name, p in trained.named_parameters()}
        for name, (found, expected) in pairs.items():
            assert torch.allclose(found, expected) == (kept or not name.startswith("head.weight")), name
        # It goes on seeing images as ImageNet's are normalised: the norms were re-calibrated on them.
        assert json.loads((out / "config.json").read_text())["mean"] == [0.485, 0.456, 0.406]
        data = open_data(files_of_weights["data"], size=(64, 64))
        pixels = data.final.images[data.final.indices].float() / 255
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        with torch.no_grad():
            first = trained.stem.conv1.conv((pixels - mean) / std).mean((0, 2, 3))
        assert torch.allclose(trained.stem.conv1.norm.running_mean, first, atol=2e-2)
        again = cli(*train, "--init", files_of_weights[file], "--out", out, "--json")  # resumed: done
        assert again.json()["parameters"] == sum(p.numel() for p in trained.parameters())


def test_training_begins_with_a_folder_of_ours(cli, files_of_weights, tmp_path):
    """Another size, other classes, two heads: as of weights alone, and images as that training saw them."""
    shape = Architecture.load(files_of_weights["shape"])
    train = ["train", "--architecture", files_of_weights["shape"], "--data", files_of_weights["data"]]
    train += ["--epochs", "1", "--learning-rate", "1e-30"]
    for classes, words in ((3, "head_dist was dropped"), (4, "head and head_dist of 4 classes were dropped")):
        source = perturb(create_model(shape, classes, (96, 64)))
        source.pretrained_cfg |= {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
        folder, out = tmp_path / f"source{classes}", tmp_path / f"out{classes}"
        save_model(folder, source, tuple("abcd"[:classes]), {})
        answer = cli(*train, "--init", folder, "--out", out)
        assert answer.code == 0, answer.err
        assert words in answer.err
        assert "re-sampled" in answer.err
        trained, config = load_model(out)
        assert (config["mean"], config["resolution"]) == ([0.1, 0.2, 0.3], [64, 64])
        source.set_input_size(64)
        expected = dict(source.named_parameters())
        for name, found in trained.named_parameters():
            same = found.shape == expected[name].shape and torch.allclose(found, expected[name])
            assert same == (classes == 3 or not name.startswith("head.weight")) or name == "head.bias", name


WEIGHTS_MISTAKES = {
    "no architecture": (["evaluate", "--checkpoint", "{official3}"], "--architecture"),
    "folder, no architecture": (["evaluate", "--checkpoint", "{folder3}"], "weights alone", "--architecture"),
    "folder, runtime": (["evaluate", "--checkpoint", "{folder3}", "--runtime", "onnxruntime"], "weights alone"),
    "export, no architecture": (["export", "--out", "{new}.onnx", "--checkpoint", "{ours}"], "--architecture"),
    "another": (["evaluate", "--checkpoint", "{official3}", "--architecture", "efficientformerv2_s0"], "do not fit"),
    "unknown": (["evaluate", "--checkpoint", "{official3}", "--architecture", "efficientformerv2_s9"], "v2_s2"),
    "classes": (["evaluate", "--checkpoint", "{timm10}", "--architecture", "{shape}"], "knows 10", "has 3"),
    "runtime": (
        ["evaluate", "--checkpoint", "{timm3}", "--architecture", "{shape}", "--runtime", "onnxruntime"],
        "weights alone",
    ),
    "cut": (["evaluate", "--checkpoint", "{cut}", "--architecture", "{shape}"], "cut.pth", "cannot be read"),
    "code": (
        ["export", "--checkpoint", "{code}", "--architecture", "{shape}", "--out", "{new}.onnx"],
        "mkdir",
        "not loaded",
    ),
    "init cut": (["train", "--architecture", "{shape}", "--out", "{new}", "--init", "{cut}"], "cannot be read"),
    "init code": (["train", "--architecture", "{shape}", "--out", "{new}", "--init", "{code}"], "not loaded"),
    "init of another": (
        ["train", "--architecture", "efficientformerv2_s0", "--out", "{new}", "--init", "{timm3}"],
        "timm layout",
        "do not fit",
    ),
}


@pytest.mark.parametrize("name", WEIGHTS_MISTAKES)
def test_mistakes_with_weights_alone(cli, files_of_weights, tmp_path, name):
    arguments, *words = WEIGHTS_MISTAKES[name]
    arguments = [*fill(arguments, files_of_weights, tmp_path / "new"), "--data", files_of_weights["data"]]
    cli(*arguments).fails(2, *words, alone=False)
    assert list(tmp_path.iterdir()) == []
    assert not (Path(tempfile.gettempdir()) / f"executed-{os.getpid()}").exists()
