"""A run that is killed and started again ends in the result of an unbroken one, and does little work twice.

The counter is `work.jsonl`: each unit of work stands in it as often as it was executed. The job is a few seconds
long. Its latency table is made up of multiply-accumulates, so that the search does not depend on how busy this
machine is; what is timed nonetheless, and told by no file that is compared, is timed briefly. Runs are processes of
their own; all but the first are forked from a server that has imported what is slow to import.
"""

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from pocketformer import files
from pocketformer.architecture import SearchSpace
from pocketformer.devices import Entry, LatencyTable, Reference, space_blocks
from pocketformer.pipelines import profiling
from pocketformer.pipelines.settings import Budget, DesignSettings, ProfileSettings
from pocketformer.runs import repeated_units
from pocketformer.training import checkpoint
from pocketformer.training.recipe import Recipe
from processes import process
from quick_converters import hasten

SEED = int(os.environ.get("RESUME_TEST_SEED", "0"))  # of the moments at which runs are killed
INTERVAL = Recipe.small_images().checkpoint_every
SUPERNET_STEPS, FINAL_STEPS = 27, 22  # of a training in this job: no whole number of intervals
SPACE = """\
name: tiny
design:
  resolution: 16
  stem_strides: [2, 1]
  stage_strides: [2, 1, 2]
  attention_strides: [1, 1, 1, 1]
  heads: 2
  key_dim: 4
  value_dim: 4
  downsampling_heads: 2
  downsampling_key_dim: 4
  downsampling_value_dim: 4
expansions: [1, 2]
stages:
  - {depth: 1, widths: [8]}
  - {depth: 1, widths: [8, 12]}
  - {depth: 1, widths: [12, 16]}
  - {depth: 1, widths: [16, 20, 24], attention: true}
"""
CLASSES = ("disc", "frame", "line")
# Times, and what tells how often a run was started; of `.ckpt` files the tensors are compared, not the pickles.
BY_THE_CLOCK = {"work.jsonl", ".lock", "report.html", "measured.jsonl", "export.json", "results.json"}


def picture(kind: str, rng: np.random.Generator) -> Image.Image:
    image = Image.fromarray(rng.integers(0, 60, (28, 28, 3), dtype=np.uint8))
    left, top, side = (int(n) for n in rng.integers((2, 2, 10), (10, 10, 16)))
    box = [left, top, left + side, top + side]
    colour = tuple(int(c) for c in rng.integers(150, 256, 3))
    draw = ImageDraw.Draw(image)
    if kind == "disc":
        draw.ellipse(box, fill=colour)
    elif kind == "frame":
        draw.rectangle(box, outline=colour, width=2)
    else:
        draw.line(box, fill=colour, width=3)
    return image


def made_up_table(space: SearchSpace) -> LatencyTable:
    blocks = space_blocks(space, len(CLASSES))
    return LatencyTable(
        entries={key: Entry(1e-6 * (block.macs() + 1000), 0.0, ()) for key, block in blocks.items()},
        constant=0.0,
        unit=0.5,
        reference=Reference("largest", 0.1),
        space=space.name,
        num_classes=len(CLASSES),
        resolution=space.resolution,
        fingerprint={"runtime": "onnxruntime", "threads": 1},
        check=None,
    )


class Job:
    """The images, the space and the table, and the command on them."""

    def __init__(self, folder: Path):
        self.folder, self.images = folder, folder / "images"
        self.space, self.table = folder / "tiny.yaml", folder / "table.json"
        for number, kind in enumerate(CLASSES):
            rng = np.random.default_rng(number)
            (self.images / kind).mkdir(parents=True)
            for i in range(60):
                picture(kind, rng).save(self.images / kind / f"{i:02}.png")
        self.space.write_text(SPACE)
        made_up_table(SearchSpace.load(self.space)).save(self.table)

    def arguments(self, out: Path, seed: int = 0) -> list[str]:
        named = {
            "--data": self.images,
            "--space": self.space,
            "--latency": self.table,
            "--max-parameters": "60%",  # alone: timed budgets would make the result depend on the clock
            "--epochs": SUPERNET_STEPS / 5,
            "--final-epochs": FINAL_STEPS / 10,
            "--batch-size": 16,
            "--seed": seed,
            "--out": out,
        }
        return ["design", *(str(part) for pair in named.items() for part in pair)]


class Started:
    """A process, its output in files."""

    def __init__(self, folder: Path, function: Callable, *arguments):
        self.folder = folder
        self.out, self.err = folder.with_suffix(".out"), folder.with_suffix(".err")
        self.process = process(_in_child, function, arguments, self.out, self.err)

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def end(self, seconds: float = 120) -> int:
        """Its exit code, -9 if it was killed."""
        self.process.join(seconds)
        assert not self.process.is_alive(), f"{self.folder} took more than {seconds} s"
        return self.process.exitcode

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.signal(signal.SIGKILL)
        assert self.end() == -signal.SIGKILL, self.err.read_text()

    def wait(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        until = time.monotonic() + seconds
        while not condition():
            assert self.process.is_alive(), f"ended before its moment came: {self.err.read_text()}"
            assert time.monotonic() < until
            time.sleep(0.005)

    def wait_for_units(self, stage: str, count: int) -> None:
        self.wait(lambda: units(self.folder, stage) >= count)


def _in_child(function: Callable, arguments: tuple, out: Path, err: Path) -> None:
    for path, descriptor in ((out, 1), (err, 2)):
        with open(path, "w") as f:
            os.dup2(f.fileno(), descriptor)
    function(*arguments)


def command(arguments: list[str]) -> None:
    """The command line; whole networks are timed in two sessions of a few rounds."""
    from pocketformer.cli.main import main

    hasten()
    profiling._SESSIONS, profiling._WHOLE_ROUNDS = 2, 3
    sys.argv = ["pocketformer", *arguments]
    main()


def dying_command(arguments: list[str], deadly: int) -> None:
    """The command, killed in the middle of the file that it would be the `deadly`-th to write."""
    fsync, written = os.fsync, iter(range(1, deadly + 1))

    def deadly_fsync(descriptor: int) -> None:
        if next(written) == deadly:
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    os.fsync = deadly_fsync
    command(arguments)


def units(folder: Path, stage: str) -> int:
    """Units of a stage in the ledger, those done twice counted twice."""
    with contextlib.suppress(FileNotFoundError):
        return (folder / "work.jsonl").read_text().count(f'"stage": "{stage}"')
    return 0


def found_training(folder: Path) -> str:
    """The stage of the found network's training."""
    return f"train found (step {units(folder, 'search')})"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file that must not depend on when the run was stopped."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(path.relative_to(folder))
        if path.name not in BY_THE_CLOCK and path.parent.name != "tensorboard":
            found[name] = b"" if path.suffix == ".ckpt" else path.read_bytes()
    return found


def untimed(results: dict) -> dict:
    """`results.json` without what a clock has measured."""
    timed = ("latency", "latency_measured", "latency_median", "mes")
    shipped = {name: value for name, value in results["shipped"].items() if name not in timed}
    rows = [{name: value for name, value in row.items() if name not in timed} for row in results["comparison"]]
    verdict = {**results["verdict"], "text": re.sub(r"[\d.]+ ms", "TIME", results["verdict"]["text"])}
    return {**results, "shipped": shipped, "comparison": rows, "verdict": verdict}


def assert_same_result(folder: Path, unbroken: Path) -> None:
    a, b = contents(folder), contents(unbroken)
    assert sorted(a.keys() ^ b.keys()) == []  # among others: no temporary file is left
    assert [name for name in a if a[name] != b[name]] == []
    for name in ("model.safetensors", "supernet/model.safetensors"):
        mine, other = load_file(folder / name), load_file(unbroken / name)
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[key], other[key]) for key in mine)
    for path in unbroken.rglob("*.ckpt"):
        mine, other = (checkpoint.load_last(f / path.relative_to(unbroken)) for f in (folder, unbroken))
        for words in ("classes", "pocketformer"):  # the rest are tensors and numbers
            assert mine.pop(words, None) == other.pop(words, None)
        torch.testing.assert_close(mine, other, rtol=0, atol=0)
    mine, other = (untimed(files.read_json(f / "results.json")) for f in (folder, unbroken))
    assert mine == other
    mine, other = (files.Lines.read(f / "work.jsonl") for f in (folder, unbroken))
    assert {(line["stage"], line["unit"]) for line in mine} == {(line["stage"], line["unit"]) for line in other}


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    return Job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def unbroken(job):
    """The folder of a run that nothing disturbed: a fresh interpreter on the command line; what it printed, and its
    seconds."""
    folder = job.folder / "unbroken"
    code = f"import sys; sys.path[:0] = {sys.path}; from test_resume import command; command(sys.argv[1:])"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # sums in one order
    began = time.monotonic()
    ran = subprocess.run(
        [sys.executable, "-c", code, *job.arguments(folder)], env=environment, capture_output=True, text=True
    )
    seconds = time.monotonic() - began
    assert ran.returncode == 0, ran.stderr
    assert repeated_units(folder) == {}
    assert units(folder, "supernet") == SUPERNET_STEPS
    assert [units(folder, stage) for stage in (found_training(folder), "train random")] == [FINAL_STEPS] * 2
    return folder, ran.stdout, seconds


def test_killed_three_times(job, unbroken):
    folder, rng = job.folder / "killed", random.Random(f"moments {SEED}")
    moves = units(unbroken[0], "search")
    stages = {"supernet": SUPERNET_STEPS, "search": moves, found_training(unbroken[0]): FINAL_STEPS}
    moments = {stage: rng.randint(1, count - 1) for stage, count in stages.items()}
    print(f"seed {SEED}: killed after {moments}")
    for stage, count in moments.items():
        started = Started(folder, command, job.arguments(folder))
        started.wait_for_units(stage, count)
        started.kill()
        assert not (folder / "results.json").exists()
    last = Started(folder, command, job.arguments(folder))
    assert last.end() == 0, last.err.read_text()

    assert_same_result(folder, unbroken[0])
    repeated = repeated_units(folder)
    print(f"done twice: {repeated}")
    assert all(n <= (1 if stage == "search" else INTERVAL) for stage, n in repeated.items()), repeated
    assert repeated.keys() <= moments.keys()
    for metrics in folder.rglob("metrics.jsonl"):
        steps = SUPERNET_STEPS if metrics.parent.name == "supernet" else FINAL_STEPS
        assert [line["step"] for line in files.Lines.read(metrics)] == list(range(steps))


def test_killed_often_and_while_files_are_written(job, unbroken):
    folder, rng = job.folder / "often", random.Random(f"often {SEED}")
    _, _, seconds = unbroken
    kills = 0
    for i in range(6):
        if i % 2:
            started = Started(folder, command, job.arguments(folder))
            time.sleep(rng.uniform(0.05, 0.1 * seconds))
            with contextlib.suppress(ProcessLookupError):
                started.signal(signal.SIGKILL)
        else:
            started = Started(folder, dying_command, job.arguments(folder), rng.randint(1, 7))
        code = started.end()
        assert code in (0, -signal.SIGKILL), started.err.read_text()
        kills += code != 0
    last = Started(folder, command, job.arguments(folder))
    assert last.end() == 0, last.err.read_text()
    repeated = repeated_units(folder)
    print(f"seed {SEED}: {kills} kills, done twice: {repeated}")
    assert kills >= 5
    assert_same_result(folder, unbroken[0])
    trained = sum(n for stage, n in repeated.items() if stage == "supernet" or stage.startswith("train"))
    assert trained <= kills * INTERVAL
    assert sum(repeated.values()) - trained <= kills


def test_a_finished_run_does_nothing_again(job, unbroken):
    folder, printed, _ = unbroken
    before = {**contents(folder), "work": (folder / "work.jsonl").read_bytes()}
    again = Started(folder, command, job.arguments(folder))
    assert again.end() == 0, again.err.read_text()
    assert again.out.read_text() == printed
    assert {**contents(folder), "work": (folder / "work.jsonl").read_bytes()} == before


def test_killed_between_a_training_and_what_is_made_of_it(job, unbroken):
    folder = job.folder / "between"
    shutil.copytree(unbroken[0], folder)
    (folder / "results.json").unlink()
    for record in folder.rglob("export.json"):
        record.unlink()
    resumed = Started(folder, command, job.arguments(folder))
    assert resumed.end() == 0, resumed.err.read_text()
    assert_same_result(folder, unbroken[0])  # the figures of the export among them, to the last bit
    assert repeated_units(folder) == {}


def test_interrupted_refused_and_damaged(job, unbroken):
    folder = job.folder / "interrupted"
    started = Started(folder, command, job.arguments(folder))
    started.wait_for_units("supernet", INTERVAL + 2)

    started.signal(signal.SIGSTOP)  # so that it is still at work, however slow the second one is
    second = Started(job.folder / "second", command, job.arguments(folder))
    assert refusal(second, 2) == f"{folder}: another process is working in this folder"
    started.signal(signal.SIGCONT)
    started.signal(signal.SIGINT)
    assert refusal(started, 130, seconds=15) == "interrupted"

    other = Started(job.folder / "other", command, job.arguments(folder, seed=7))
    assert "seed was 0, now 7" in refusal(other, 2)

    last = folder / "supernet" / "last.ckpt"
    whole = last.read_bytes()
    last.write_bytes(whole[: len(whole) // 2])
    damaged = Started(job.folder / "damaged", command, job.arguments(folder))
    assert str(last) in refusal(damaged, 2)
    last.write_bytes(whole)

    resumed = Started(folder, command, job.arguments(folder))
    resumed.wait((folder / "supernet" / "model.safetensors").exists)  # from there on it is like any other
    resumed.kill()
    for name in ("supernet/model.safetensors", "supernet/metrics.jsonl"):
        assert (folder / name).read_bytes() == (unbroken[0] / name).read_bytes()
    assert 0 < repeated_units(folder)["supernet"] <= INTERVAL


def refusal(started: Started, code: int, seconds: float = 120) -> str:
    """The one line in which a process said why it stopped; the lines before tell of the stages it went through."""
    assert started.end(seconds) == code, started.err.read_text()
    *before, last = started.err.read_text().splitlines()
    assert not any("Traceback" in line or line.startswith(("pocketformer:", " ")) for line in before), before
    assert started.out.read_text() == ""
    assert last.startswith("pocketformer: ")
    return last.removeprefix("pocketformer: ")


def profiling_job(images: Path, out: Path) -> None:
    """A job that measures this device itself, with fewer samples than the command line gives it."""
    from pocketformer.pipelines.design import design

    space = SPACE
    for widths in ("[8, 12]", "[12, 16]", "[16, 20, 24]"):
        space = space.replace(widths, widths[:3].rstrip(",") + "]")
    settings = DesignSettings(
        data=str(images),
        space=SearchSpace.from_yaml(space, "tiny"),
        runtime="onnxruntime",
        budgets={"size": Budget(0.8, relative=True)},
        profile=ProfileSettings(rounds=2, networks=1, checks=0),
    )
    design(settings, out)


def test_killed_while_the_device_is_measured(job):
    folder = job.folder / "measuring"
    started = Started(folder, profiling_job, job.images, folder)
    started.wait_for_units("profile", 1)
    started.kill()
    journal = folder / "profile" / "profile.jsonl"
    finished = files.Lines.read(journal)
    assert not (folder / "latency_table.json").exists()

    resumed = Started(folder, profiling_job, job.images, folder)
    resumed.wait_for_units("supernet", 1)
    resumed.kill()
    assert files.Lines.read(journal)[: len(finished)] == finished
    assert repeated_units(folder) == {}
    groups = len(files.Lines.read(journal)) - 1
    assert groups - 1 <= units(folder, "profile") <= groups  # a kill may come between the group and its unit
