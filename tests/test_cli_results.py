"""The command line's results: on stdout, as the files have them; a full disk, Ctrl-C, and the table of the zoo."""

import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from asking import Answer, ask
from pocketformer.architecture import Architecture, SearchSpace
from pocketformer.devices import LatencyTable
from pocketformer.search import Score
from processes import Team, command
from workshop import DESIGN, EXPORT, SEARCH, SEARCH_HALF, SPACE, TRAIN, Workshop, fill, open_workshop

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Workshop:
    return open_workshop(tmp_path_factory.mktemp("cli"))


@pytest.fixture(scope="module")
def designed(shop) -> tuple[list[str], dict]:
    """The whole chain, its table measured here, in a space with few blocks to measure: its command, what was told."""
    space, table = shop.path / "narrow.yaml", shop.path / "measured.json"
    space.write_text(SPACE.replace("[4, 8]", "[4]").replace("[8, 12]", "[8]"))
    few = ["--rounds", "3", "--networks", "2", "--checks", "1"]
    measured = ask("profile", "--space", space, "--classes", "3", *few, "--out", table, "--json").json()
    assert measured["entries"] == len(LatencyTable.load(table).entries)
    assert [p.name for p in shop.path.iterdir() if "measured.json" in p.name] == ["measured.json"]  # no working folder
    run = [*fill(DESIGN[:-2], {**shop.files, "space": space}, shop.path), "--latency", str(table)]
    run += ["--max-parameters", "80%", "--epochs", "1", "--final-epochs", "1", "--batch-size", "16", "--out"]
    return run, ask(*run, shop.path / "run", "--json").json()


# --- Results ---


def test_json_is_one_object_and_agrees_with_the_files(cli, shop, tmp_path):
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
    assert cli("search", "--pick", out, "--max-latency", "1us").fails(1, "ms", alone=True)
    text = cli(*search)
    assert f"step {searched['step']}" in text.out
    assert "ms" in text.out

    trained = cli("train", "--architecture", out, "--init", shop.supernet, *common, "--out", tmp_path / "final").json()
    assert trained["test"]["split"] == "test"
    assert trained["test"]["images"] == 12
    exported = cli("export", "--checkpoint", tmp_path / "final", "--out", tmp_path / "m.onnx", "--json").json()
    assert exported["bytes"] == (tmp_path / "m.onnx").stat().st_size
    timed = cli("benchmark", tmp_path / "m.onnx", shop.small, "--rounds", "5", "--json").json()
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


def test_searches_that_end_badly(cli, shop, tmp_path, monkeypatch):
    """One line and exit code 1, the trajectory kept; the same command then goes on to what it would have been."""
    search = fill(SEARCH_HALF, shop.files, tmp_path / "whole")
    cli(*search, "--json").json()
    whole = (tmp_path / "whole" / "search.jsonl").read_bytes()
    stuck = [*fill(SEARCH, shop.files, tmp_path / "stuck"), "--max-memory", "45%", "--max-latency", "99%", "--alpha"]
    cli(*stuck, "memory=0", "--alpha", "size=0").fails(1, "no action raises MES", "search.jsonl")

    from pocketformer.search.evaluation import PrefixEvaluator

    evaluate, failed = PrefixEvaluator.__call__, fill(SEARCH_HALF, shop.files, tmp_path / "failed")
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
        cli(*failed).fails(1, "the search stopped", words)
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


def test_a_budget_that_the_largest_subnet_holds(cli, shop, tmp_path):
    found = cli(*fill(SEARCH, shop.files, tmp_path / "s"), "--max-parameters", "100M", "--json")
    assert found.json()["step"] == 0
    assert 0 <= found.json()["accuracy"] <= 1
    assert "already" in found.err


def test_profile_and_design(cli, shop, designed):
    run, outcome = designed
    assert outcome["shipped"]["parameters"] <= outcome["budgets"]["size"]
    for file in ("report.html", "exported/model.onnx", "architecture.json", "results.json", "config.yaml"):
        assert (shop.path / "run" / file).is_file()
    text = cli(*run, shop.path / "run")  # resumed: nothing is left to do
    assert "parameters, budget" in text.out
    assert "train" not in text.err


# --- The disk, and Ctrl-C ---


def test_a_full_disk_is_named(cli, shop, tmp_path, monkeypatch):
    calls = itertools.count()

    def full(_):
        if next(calls) > 0:  # the run's configuration is still written
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    answer = cli(*fill(TRAIN, shop.files, tmp_path / "new")).fails(1, "No space left on device")
    assert "Traceback" not in answer.err
    assert not list(tmp_path.rglob("*.tmp*"))
    cli(*fill(EXPORT, shop.files, tmp_path / "m")).fails(1, "No space left on device", "m.onnx")
    assert not list(tmp_path.rglob("m.onnx*"))


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own, to be made smaller; skipped where none can be mounted."""
    folder, mount = tmp_path / "disk", shutil.which("mount") or "mount"
    folder.mkdir()

    def sized(size: int, *more: str) -> Path:
        command = [mount, "-t", "tmpfs", "-o", ",".join((*more, f"size={size}")), "tmpfs", str(folder)]
        if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode != 0:
            pytest.skip("a small disk cannot be mounted here")
        return folder

    yield sized
    if folder.is_mount():
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("place", ["supernet/last.ckpt", "new/", "networks/found_"])
def test_a_disk_that_fills_up(disk, shop, designed, tmp_path, place):
    """It runs full at another place each time; a process of its own, as it leaves open files behind."""
    common = ["--epochs", "1", "--batch-size", "8", "--data", shop.data, "--out"]
    if place.startswith("supernet"):
        folder = disk(64 * 1024)
        run = ["supernet", "--space", shop.space, *common, folder / "supernet"]
    elif place.startswith("new"):
        folder = disk(80 * 1024)
        run = ["train", "--architecture", shop.small, *common, folder / "new"]
    else:  # of a whole chain, whose results were lost
        folder = disk(2**24)
        shutil.copytree(shop.path / "run", folder / "run")
        (folder / "run/results.json").unlink()
        found = os.statvfs(folder)
        disk((found.f_blocks - found.f_bfree + 1) * found.f_bsize, "remount")
        run = [*designed[0], folder / "run"]
    team = Team(tmp_path / "said", 1, command, *run)
    Answer(*team.end(), team.said, team.errors).fails(1, "No space left on device", place)
    assert not list(folder.rglob("*.tmp*"))


def test_interrupted(shop, tmp_path):
    team = Team(tmp_path / "said", 1, command, *fill(TRAIN, shop.files, tmp_path / "new"), "--epochs", "1000")
    team.wait((tmp_path / "new" / "last.ckpt").exists)
    os.kill(team.members[0].pid, signal.SIGINT)
    Answer(*team.end(30), team.said, team.errors).fails(130, "interrupted")


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
