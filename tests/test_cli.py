"""The command line: help, and mistakes told in one line, with nothing half-written (contract 3)."""

import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pocketformer.architecture import SearchSpace
from shop import CLASSES
from workshop import (
    DESIGN,
    EXPORT,
    SEARCH,
    SEARCH_HALF,
    SEARCH_ON,
    SPACE,
    TRAIN,
    Payload,
    Workshop,
    executed,
    fill,
    open_workshop,
    write_images,
    write_table,
)

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Workshop:
    return open_workshop(tmp_path_factory.mktemp("cli"))


# --- Help, version, usage ---

COMMANDS = ("quickstart", "design", "models", "profile", "supernet", "search", "train", "evaluate", "predict", "export")
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


BUDGET = [*DESIGN, "--max-parameters", "50%"]
EVALUATE = ["evaluate", "--checkpoint", "{network}", "--data", "{data}"]

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
    "energy of nothing": ([*SEARCH, "--max-energy", "2mJ"], "--max-energy 2mJ", "give --energy"),
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


@pytest.fixture(scope="module")
def faults(shop) -> dict[str, Path]:
    """Everything that the table of mistakes names."""
    root = shop.path / "faults"
    root.mkdir()
    space = SearchSpace.load(shop.space)
    found = {**shop.files, "large": root / "large.json"}
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


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_in_one_line(cli, shop, faults, tmp_path, monkeypatch, name):
    arguments, *words = MISTAKES[name]
    monkeypatch.chdir(tmp_path)
    before = sorted(map(str, shop.path.rglob("*")))
    cli(*fill(arguments, faults, tmp_path / "new")).fails(2, *words)
    assert list(tmp_path.iterdir()) == []  # no folder for the run, nothing half-written
    assert sorted(map(str, shop.path.rglob("*"))) == before
    assert not executed().exists()


def test_an_impossible_budget_is_refused_before_training(cli, shop, faults, tmp_path):
    """Parameters and memory before anything is done; latency as soon as the device is known."""
    new = tmp_path / "new"
    space = SearchSpace.load(shop.space)
    smallest = space.minimum.architecture.parameters(3, False)
    design = fill(DESIGN, faults, new)
    cli(*design, "--max-parameters", smallest - 1).fails(1, "tiny", f"{smallest:,} parameters")
    cli(*design, "--max-memory", "1kB").fails(1, "tiny", "MB")
    assert not new.exists()
    slow = cli(*design, "--latency", shop.table, "--max-latency", "1us").fails(1, "0.001 ms", "device")
    assert "train" not in slow.err
    cli(*fill(SEARCH, faults, tmp_path / "search"), "--max-latency", "1us").fails(1, "0.001 ms", alone=True)
    cli(*fill(SEARCH, faults, tmp_path / "search"), "--min-mes", "1e9").fails(1, "MES", alone=True)
    assert not (tmp_path / "search").exists()


def test_unreadable_images_are_refused_or_skipped(cli, shop, faults, tmp_path):
    data = shutil.copytree(shop.data, tmp_path / "photos")
    whole = (data / "train" / "dark" / "00.png").read_bytes()
    (data / "train" / "dark" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (data / "val" / "light" / "notes.jpg").write_text("no image")
    evaluate = ["evaluate", "--checkpoint", str(shop.network), "--data", str(data)]
    refused = cli(*evaluate).fails(2, "1 of 13", "notes.jpg", "--bad-images skip")  # only what is judged is read
    assert "Traceback" not in refused.err
    skipped = cli(*evaluate, "--bad-images", "skip")
    assert "1 image skipped" in skipped.err
    assert "of 12 images" in skipped.out
    train = [*fill(TRAIN, faults, tmp_path / "new"), "--data", data]
    cli(*train).fails(2, "2 of 74", "cut.png", "notes.jpg", "--bad-images skip")
    assert not (tmp_path / "new").exists()


def test_a_run_that_another_process_works_in(cli, shop, faults, tmp_path):
    import fcntl

    run = shutil.copytree(shop.network, tmp_path / "run")
    train = ["train", "--architecture", faults["small"], "--data", shop.data, "--out", run]
    with open(run / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        cli(*train, "--epochs", "1", "--batch-size", "8").fails(2, "another process")


def test_a_folder_that_cannot_be_written(cli, faults, tmp_path, monkeypatch):
    def refuse(path, *_):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "mkdir", refuse)  # root, whom tests often run as, may write everywhere
    cli(*fill(TRAIN, faults, tmp_path / "new")).fails(2, "new", "Permission denied")
