"""Several processes do what one does: gradients, accuracies, searches and refusals; killed, they go on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pocketformer import ranks
from pocketformer.architecture import SearchSpace
from pocketformer.devices import Entry, LatencyTable, Reference, space_blocks
from pocketformer.files import Lines
from pocketformer.supernet import Supernet
from pocketformer.supernet.sampling import Sandwich
from pocketformer.training import checkpoint
from pocketformer.training.batches import Share, TrainBatches
from pocketformer.training.recipe import Recipe
from pocketformer.training.state import TrainingState
from pocketformer.training.targets import InPlace, Labels
from pocketformer.training.tasks import SandwichTask, SingleTask
from processes import Team, command
from shop import write_images
from trainings import SPACE, Steps, assert_equal, go, gradients, model, noisy_brightness

torch.set_num_threads(1)

DESIGN = """\
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


# --- gradients

RECIPE = Recipe.small_images(epochs=1, batch_size=32, erase=0.2)  # three steps


def task(kind: str) -> SingleTask | SandwichTask:
    if kind == "single":
        return SingleTask(model(), 0.1)
    torch.manual_seed(0)
    net = Supernet(SPACE, 3, distilled=False, layer_scale=0.5)
    return SandwichTask(net, Sandwich(SPACE, seed=4), InPlace(Labels(0.1)))


def train_and_tell(folder: Path, kind: str, calibrated: bool) -> None:
    """Leaves the gradients of each step and the weights at the end. Norms are in eval mode if `calibrated`."""
    with ranks.joined(), pytest.MonkeyPatch.context() as patch:
        found = gradients(patch)
        if calibrated:
            patch.setattr(TrainingState, "train_mode", lambda state: state.model.eval())
        share = Share(ranks.rank(), ranks.count())
        batches = TrainBatches(noisy_brightness(), 32, (16, 16), RECIPE.augmentation, 3, share=share)
        state = go(folder / "run", task(kind), RECIPE, batches)
        told = {"gradients": found, "state": state.model.state_dict()}
        torch.save(told, folder / f"{ranks.count()}_{ranks.rank()}.pt")


@pytest.mark.parametrize("kind", ["single", "sandwich"])
def test_two_processes_have_the_gradients_of_one(tmp_path, kind):
    before = task(kind).model.state_dict()
    for count in (1, 2):
        team = Team(tmp_path / f"output_{count}", count, train_and_tell, tmp_path / str(count), kind, True)
        (tmp_path / str(count)).mkdir(exist_ok=True)
        assert team.end() == [0] * count, team.errors
    one, first, second = (
        torch.load(tmp_path / name, weights_only=True) for name in ("1/1_0.pt", "2/2_0.pt", "2/2_1.pt")
    )
    for step in range(3):
        a, b, c = (told["gradients"][step] for told in (one, first, second))
        unused = {name for name in a if a[name] is None}
        assert all({n for n in other if other[n] is None} == unused for other in (b, c))
        assert bool(unused) == (kind == "sandwich")
        for name in a.keys() - unused:
            assert torch.equal(b[name], c[name]), name
            if step == 0:  # later ones are of weights that differ by rounding
                torch.testing.assert_close(b[name], a[name], msg=name)
    never = set.intersection(*({n for n, g in told.items() if g is None} for told in first["gradients"]))
    assert bool(never) == (kind == "sandwich")
    for told in (first, second):
        assert all(torch.equal(told["state"][name], before[name]) for name in never)
    assert_equal(first["state"], second["state"])


def test_the_norms_of_processes_are_averaged(tmp_path):
    team = Team(tmp_path / "output", 2, train_and_tell, tmp_path, "single", False)
    assert team.end() == [0, 0], team.errors
    first, second = (torch.load(tmp_path / name, weights_only=True) for name in ("2_0.pt", "2_1.pt"))
    assert_equal(first["state"], second["state"])
    assert_equal(first["state"], checkpoint.load_last(tmp_path / "run" / "last.ckpt")["model"])
    lines = Lines.read(tmp_path / "run" / "work.jsonl")
    assert [line["unit"] for line in lines] == [0, 1, 2]  # one of them tells


def overflowing(folder: Path) -> None:
    with ranks.joined():
        images = torch.full((2, 3, 16, 16), float("nan") if ranks.rank() else 1.0)
        go(folder, SingleTask(model()), RECIPE, Steps((images, torch.tensor([0, ranks.rank()]))))


def test_the_batch_of_a_loss_that_is_not_finite_is_that_of_all(tmp_path):
    team = Team(tmp_path, 2, overflowing, tmp_path / "run")
    assert team.end() == [1, 1]
    found = load_file(tmp_path / "run" / "step_0.safetensors")
    assert found["labels"].tolist() == [0, 0, 0, 1]
    assert found["images"].isnan().flatten(1).any(1).tolist() == [False, False, True, True]
    assert team.errors.count(f"the loss of step 0 is nan; its images and labels are in {tmp_path}/run/step_0") == 2


# --- commands


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    """Images, a space, a table, and a supernet trained by torchrun."""
    folder = tmp_path_factory.mktemp("distributed")
    write_images(folder / "data" / "train", 96)
    write_images(folder / "data" / "val", 47, dark=64)  # no two processes have as many
    (folder / "tiny.yaml").write_text(DESIGN)
    space = SearchSpace.load(folder / "tiny.yaml")
    blocks = space_blocks(space, 3)
    entries = {key: Entry(1e-4 + block.macs() / 1e7) for key, block in blocks.items()}
    LatencyTable(entries, 1e-3, 0.2, Reference("largest", 1.0), space.name, 3, space.resolution).save(
        folder / "table.json"
    )
    space.smallest.save(folder / "small.json")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = ["--data", folder / "data", "--space", folder / "tiny.yaml", "--epochs", "1", "--batch-size", "12"]
    trained = [*launcher, "-m", "pocketformer", "supernet", *arguments, "--out", folder / "supernet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(list(map(str, trained)), env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("shared weights") == 1
    assert ran.stderr.count("train the supernet: done") == 1
    return folder


def run(folder: Path, count: int, *arguments: object, code: int = 0) -> Team:
    team = Team(folder, count, command, *arguments)
    assert team.end() == [code] * count, team.errors
    return team


def test_a_supernet_of_two_processes_is_whole(shop):
    assert {p.name for p in (shop / "supernet").iterdir()} >= {"model.safetensors", "config.json", "last.ckpt"}
    assert [line["unit"] for line in Lines.read(shop / "supernet" / "work.jsonl")] == list(range(4))


@pytest.mark.parametrize("walk", [[], ["--beam", "2", "--race"]], ids=["joint", "beam"])
def test_two_processes_search_what_one_does_byte_for_byte(shop, tmp_path, walk):
    common = ["search", "--supernet", shop / "supernet", "--latency", shop / "table.json", "--max-parameters", "60%"]
    common += walk
    told = [run(tmp_path / f"o{n}", n, *common, "--out", tmp_path / str(n)) for n in (1, 2)]
    folders = tmp_path / "1", tmp_path / "2"
    files = [{p.relative_to(f): p.read_bytes() for p in f.rglob("*.json*") if p.stem != "work"} for f in folders]
    assert files[0] == files[1]
    units = [[(line["stage"], line["unit"]) for line in Lines.read(f / "work.jsonl")] for f in folders]
    assert units[0] == units[1]
    assert len(Lines.read(tmp_path / "2" / "search.jsonl")) > 3
    assert told[0].said.replace(f"{tmp_path}/1/", f"{tmp_path}/2/") == told[1].said
    cut = (tmp_path / "2" / "search.jsonl").read_bytes()
    (tmp_path / "2" / "search.jsonl").write_bytes(cut[: len(cut) // 2])
    run(tmp_path / "again", 2, *common, "--out", tmp_path / "2")
    assert (tmp_path / "2" / "search.jsonl").read_bytes() == cut


SHORT = ["--epochs", "1", "--batch-size", "4", "--set", "checkpoint_every=5", "--set", "ema=0.5"]


def train(shop: Path, out: Path) -> list:
    return ["train", "--architecture", shop / "small.json", "--data", shop / "data", *SHORT, "--validate", "--out", out]


def test_train_and_evaluate(shop, tmp_path):
    """Also killed and resumed, bit for bit; and by another number of processes."""
    trained = run(tmp_path / "whole_o", 2, *train(shop, tmp_path / "whole"), "--json")
    result = json.loads(trained.said)
    killed = Team(tmp_path / "killed_o", 2, command, *train(shop, tmp_path / "killed"))
    ledger = tmp_path / "killed" / "work.jsonl"
    killed.wait(lambda: ledger.exists() and ledger.read_text().count("\n") > 5)
    killed.kill()
    assert killed.end() == [-9, -9]
    run(tmp_path / "killed_o", 2, *train(shop, tmp_path / "killed"))
    for name in ("model.safetensors", "best.safetensors", "metrics.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name

    evaluation = ["evaluate", "--checkpoint", tmp_path / "whole", "--data", shop / "data", "--json"]
    found = [json.loads(run(tmp_path / f"e{n}", n, *evaluation).said) for n in (1, 2)]
    assert found[0] == found[1]
    assert found[0]["images"] == 47
    assert found[0]["correct"] == result["test"]["correct"]


def test_another_number_of_processes_goes_on(shop, tmp_path):
    team = Team(tmp_path / "o", 2, command, *train(shop, tmp_path / "run"))
    ledger = tmp_path / "run" / "work.jsonl"
    team.wait(lambda: ledger.exists() and ledger.read_text().count("\n") > 5)
    team.kill(1)  # the other says so, and ends
    assert team.end() == [1, -9]
    assert team.errors.splitlines()[-1].startswith("pocketformer: another process of this job is gone (")
    assert checkpoint.load_last(tmp_path / "run" / "last.ckpt")["step"] in (5, 10)
    run(tmp_path / "o", 1, *train(shop, tmp_path / "run"))
    assert [line["step"] for line in Lines.read(tmp_path / "run" / "metrics.jsonl") if "loss" in line] == list(
        range(12)
    )


def test_mistakes_are_told_once(shop, tmp_path):
    for arguments, words in (
        (["design", "--data", "embedded", "--runtime", "onnxruntime", "--out", tmp_path / "x"], "design runs in one"),
        (["supernet", "--data", "embedded", "--batch-size", "127", "--out", tmp_path / "x"], "multiple of the 2"),
        (["train", "--architecture", "no-such", "--data", "embedded", "--out", tmp_path / "x"], "no-such"),
        (["train", "--no-such-option"], "no-such-option"),
    ):
        team = run(tmp_path / "o", 2, *arguments, code=2)
        told = [line for line in team.errors.splitlines() if line.startswith("pocketformer: ")]
        assert len(told) == 1, team.errors
        assert words in told[0]
        assert "Traceback" not in team.errors
        assert team.said == ""


def alone_wrong(folder: Path) -> None:
    """A mistake that one process alone meets, while the other waits for it."""
    from pocketformer.cli import main
    from pocketformer.errors import UserError
    from pocketformer.pipelines import evaluations

    def evaluate(*arguments: object, **options: object) -> None:
        if ranks.rank() == 1:
            raise UserError("this one cannot read the images")
        ranks.wait()

    evaluations.evaluate_checkpoint = evaluate
    main.main(["evaluate", "--checkpoint", str(folder), "--data", "embedded"])


def test_what_one_process_alone_knows_is_told_by_it(tmp_path):
    team = Team(tmp_path, 2, alone_wrong, tmp_path)
    assert team.end() == [1, 2]
    assert team.errors.splitlines() == ["pocketformer: this one cannot read the images"]


def test_processes_that_nobody_started_are_refused(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    refused = cli("evaluate", "--checkpoint", tmp_path, "--data", "embedded")
    refused.fails(2, "WORLD_SIZE is 2, but this is not torchrun: ", alone=True)
