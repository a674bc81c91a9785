"""`last.ckpt` and those before it: resumed to the same bits, kept, damaged, and intact when a training ends badly."""

import copy
import errno
import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from pocketformer.errors import UserError, WorkError
from pocketformer.files import Lines
from pocketformer.pipelines.networks import FinalTraining
from pocketformer.pipelines.trainings import TrainSettings, train_network
from pocketformer.runs import Ledger
from pocketformer.training import checkpoint
from pocketformer.training.batches import TrainBatches
from pocketformer.training.compute import Compute
from pocketformer.training.data import Data
from pocketformer.training.mixing import Mixing
from pocketformer.training.recipe import Recipe
from pocketformer.training.tasks import SingleTask
from trainings import SHORT, SPACE, assert_equal, go, model, noisy_brightness, watch

torch.set_num_threads(1)

# Everything that has a state or draws random numbers: 12 steps, checkpoints after 5, 10 and 12.
FULL = Recipe.small_images(
    epochs=4, batch_size=32, checkpoint_every=5, ema=0.9, clip=0.02, mixup=0.8, cutmix=1.0, layer_decay=0.9, erase=0.2
)
MIX = {"mix": Mixing(FULL, 3, 3)}


class Killed(SingleTask):
    """Ends as by a kill in the middle of a step."""

    def __init__(self, net: nn.Module, step: int, label_smoothing: float = 0.0):
        super().__init__(net, label_smoothing)
        self.deadly = step

    def run(self, images, targets, step, backward):
        if step == self.deadly:
            raise KeyboardInterrupt
        return super().run(images, targets, step, backward)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The folder of a training that nothing disturbed, and its state."""
    folder = tmp_path_factory.mktemp("unbroken")
    return folder, go(folder, SingleTask(model()), FULL, **MIX)


def killed_at(folder: Path, *steps: int, recipe: Recipe = FULL, **more) -> None:
    for step in steps:
        with pytest.raises(KeyboardInterrupt):
            go(folder, Killed(model(), step), recipe, **{**MIX, **more})


def assert_same_end(folder: Path, state, unbroken) -> None:
    other, whole = unbroken
    assert_equal(state.model.state_dict(), whole.model.state_dict())
    assert_equal(state.averaged.state_dict(), whole.averaged.state_dict())
    assert (folder / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()
    mine, theirs = (checkpoint.load_last(f / "last.ckpt") for f in (folder, other))
    for words in ("classes", "pocketformer"):  # the rest are tensors and numbers
        assert mine.pop(words, None) == theirs.pop(words, None)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("moments", [(2,), (6, 8, 11)])
def test_resumed_it_ends_bit_for_bit(tmp_path, unbroken, moments):
    """Optimiser, average, drop path, crops, erasing and mixing; each part runs in a new network."""
    killed_at(tmp_path, *moments)
    torch.manual_seed(99)  # whatever the process did before must not matter
    assert_same_end(tmp_path, go(tmp_path, SingleTask(model()), FULL, **MIX), unbroken)


def test_resumed_in_parts_and_bfloat16_it_ends_bit_for_bit(tmp_path):
    compute = Compute(precision="bfloat16", accumulate=2, checkpointing=True)
    states = []
    for name in ("whole", "killed"):
        if name == "killed":
            killed_at(tmp_path / name, 7, recipe=SHORT, compute=compute, mix=None)
        states.append(go(tmp_path / name, SingleTask(model()), SHORT, compute=compute))
    assert_equal(states[0].model.state_dict(), states[1].model.state_dict())


# --- several checkpoints


@pytest.mark.parametrize("keep", [1, 10])
def test_the_last_are_kept(tmp_path, unbroken, keep):
    go(tmp_path, SingleTask(model()), FULL, keep=keep, **MIX)
    found = {path.name: checkpoint.load_last(path)["step"] for path in tmp_path.glob("*.ckpt")}
    names = ["last.ckpt", "last.1.ckpt", "last.2.ckpt"][:keep]
    assert found == dict(zip(names, (12, 10, 5), strict=False))


@pytest.fixture(scope="module")
def killed_late(tmp_path_factory):
    """The folder of a training that was killed in its last step, with the checkpoints of steps 5 and 10."""
    folder = tmp_path_factory.mktemp("killed")
    killed_at(folder, 11)
    return folder


@pytest.fixture
def run(tmp_path, killed_late):
    return Path(shutil.copytree(killed_late, tmp_path / "run"))


@pytest.mark.parametrize("size", [0, 20_000])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(run, unbroken, size, capsys):
    last = run / "last.ckpt"
    last.write_bytes(last.read_bytes()[:size])
    killed_at(run, 9)  # before the next checkpoint: the good one is still the one to resume from
    assert checkpoint.load_last(run / "last.1.ckpt")["step"] == 5
    state = go(run, SingleTask(model()), FULL, **MIX)
    assert f"note: {last} is damaged: going on from last.1.ckpt, of step 5" in capsys.readouterr().err.splitlines()
    assert_same_end(run, state, unbroken)


def test_only_damaged_checkpoints_are_refused_in_one_line(run):
    for path in run.glob("last*.ckpt"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"^checkpoint \S*last\.ckpt is damaged; [^\n]*$"):
        go(run, SingleTask(model()), FULL, **MIX)


@pytest.mark.parametrize("deadly", [1, 2, 3])
def test_killed_between_the_renames_of_a_checkpoint(run, unbroken, monkeypatch, deadly):
    """Three kept: three renames. A kill leaves at most one name empty."""
    replace, done = os.replace, iter(range(1, 9))

    def deadly_replace(source, target):
        if str(target).endswith(".ckpt") and next(done) == deadly:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", deadly_replace)
        patch.setattr(Path, "replace", deadly_replace)
        with pytest.raises(KeyboardInterrupt):
            go(run, SingleTask(model()), FULL, keep=3, **MIX)
    assert next(done) == deadly + 1
    assert len(list(run.glob("last*.ckpt"))) == 2
    assert_same_end(run, go(run, SingleTask(model()), FULL, keep=3, **MIX), unbroken)


def test_another_length_is_refused(run):
    with pytest.raises(UserError, match=r"last\.ckpt is of a training of 12 steps, not 9"):
        go(run, SingleTask(model()), Recipe(**{**FULL.to_dict(), "epochs": 3}), **MIX)


# --- ends that are told in one line


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_training_and_keeps_the_batch(tmp_path, bad):
    class Bad(SingleTask):
        def run(self, images, targets, step, backward):
            figures = super().run(images, targets, step, backward)
            return {**figures, "loss": figures["loss"] * bad} if step == 7 else figures

    with pytest.raises(WorkError) as told:
        go(tmp_path, Bad(model()), SHORT)
    batch = tmp_path / "step_7.safetensors"
    assert str(told.value) == (f"training t stopped: the loss of step 7 is {bad}; its images and labels are in {batch}")
    found = load_file(batch)
    images, labels = TrainBatches(noisy_brightness(), 32, (16, 16), SHORT.augmentation, 3).batch(7)
    assert torch.equal(found["images"], images)
    assert torch.equal(found["labels"], labels)
    assert checkpoint.load_last(tmp_path / "last.ckpt")["step"] == 5
    assert [line["step"] for line in Lines.read(tmp_path / "metrics.jsonl")] == list(range(7))


def test_weights_that_are_not_finite_are_not_kept(tmp_path, monkeypatch):
    """A gradient may overflow where the loss does not: step 9's checkpoint would not be one to go on from."""

    def overflow(state, rate):
        if state.step == 9:
            state.model.head.weight.grad[0, 0] = float("inf")

    watch(monkeypatch, overflow)
    with pytest.raises(
        WorkError, match=r"the gradient of step 9 is not finite; its images and labels are in \S*step_9"
    ):
        go(tmp_path, SingleTask(model()), SHORT)
    assert checkpoint.load_last(tmp_path / "last.ckpt")["step"] == 5


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_disk_that_takes_no_more_leaves_the_last_checkpoint(tmp_path, unbroken, monkeypatch, number):
    write = checkpoint._Sink.write

    def full(sink, data):
        if (tmp_path / "last.ckpt").exists():
            sink.error = OSError(number, os.strerror(number))
            raise sink.error
        return write(sink, data)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint._Sink, "write", full)
        with pytest.raises(OSError, match=os.strerror(number)) as told:
            go(tmp_path, SingleTask(model()), FULL, **MIX)
    assert told.value.filename == str(tmp_path / "last.ckpt")
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["last.ckpt"]
    assert checkpoint.load_last(tmp_path / "last.ckpt")["step"] == 5
    assert_same_end(tmp_path, go(tmp_path, SingleTask(model()), FULL, **MIX), unbroken)


def vanish(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


def end_workers(folder: Path) -> None:
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGKILL)


@pytest.mark.parametrize(("accident", "words"), [(vanish, "are gone"), (end_workers, "prepares images died")])
def test_images_that_stop_coming(tmp_path, monkeypatch, accident, words):
    folder = tmp_path / "images"
    for label in "abc":
        (folder / label).mkdir(parents=True)
        for i in range(40):
            Image.new("RGB", (20, 20), (6 * i, 80 * "abc".index(label), 9)).save(folder / label / f"{i}.png")
    SPACE.smallest.save(tmp_path / "small.json")
    recipe = Recipe.small_images(epochs=12, batch_size=48, checkpoint_every=5, randaugment="rand-m5")

    def look(state, rate):
        if state.step == 7 and folder.exists():
            accident(folder)

    def work() -> dict:
        workers = 1 if accident is end_workers else 0
        settings = TrainSettings(str(tmp_path / "small.json"), str(folder), recipe, workers=workers)
        return train_network(settings, tmp_path / "run")

    with monkeypatch.context() as patch:
        watch(patch, look)
        with pytest.raises(WorkError, match=words) as told:
            work()
    assert "\n" not in str(told.value)
    assert checkpoint.load_last(tmp_path / "run" / "last.ckpt")["step"] == 5
    if not folder.exists():
        folder.with_name("elsewhere").rename(folder)
    assert work()["test"]["images"] == 12


# --- the best weights


@pytest.fixture
def data() -> Data:
    fit, search = noisy_brightness(), noisy_brightness("search", 30)
    return Data("made up", ("a", "b", "c"), fit, search, fit, search, "1", "2", (), 16)


@pytest.mark.parametrize(
    ("ema", "accuracies", "step"),
    [
        (0.0, (0.4, 0.9, 0.7, 0.9), 5),  # the first of equals
        (0.5, (0.4, 0.9, 0.7, 0.9), 5),
        (0.0, (0.0, 0.0, 0.0, 0.0), 11),  # but of zeros the last: an AP begins with many
    ],
)
def test_the_best_weights_of_an_epoch_are_shipped(tmp_path, data, monkeypatch, ema, accuracies, step):
    """Scores are those of the average, where there is one; what ships has norms re-calibrated."""
    recipe, scores, trail = Recipe(**{**SHORT.to_dict(), "ema": ema}), [], []
    wanted = dict(enumerate(accuracies, 1))

    def score(self, net):
        scores.append(net)
        return wanted[-(-len(scores) // 2)] if ema else wanted[len(scores)]

    monkeypatch.setattr(FinalTraining, "_accuracy", score)
    look = lambda state, rate: trail.append(copy.deepcopy(state.averaged.state_dict()))  # noqa: E731
    watch(monkeypatch, look, after=True)
    with Ledger(tmp_path / "work.jsonl") as ledger:
        final = FinalTraining(data, recipe, 3, ledger, validate=True)
        shipped = final.run(tmp_path / "network", "network", model())
    best = load_file(tmp_path / "network" / "best.safetensors")
    assert_equal(best, trail[step])
    parameters = dict(shipped.named_parameters())
    assert all(torch.equal(parameters[name], best[name]) for name in parameters)
    lines = [json.loads(line) for line in (tmp_path / "network" / "metrics.jsonl").read_text().splitlines()]
    told = [(line["step"], line["accuracy_search"]) for line in lines if "accuracy_search" in line]
    assert told == list(zip((2, 5, 8, 11), accuracies, strict=True))
    assert all(("accuracy_search_ema" in line) == bool(ema) for line in lines if "accuracy_search" in line)


def test_validated_and_killed_it_ships_the_same(tmp_path, data):
    recipe = Recipe(**{**SHORT.to_dict(), "ema": 0.5, "checkpoint_every": 50})  # only after each epoch
    for name, moments in (("whole", ()), ("killed", (4, 10))):
        with Ledger(tmp_path / f"{name}.jsonl") as ledger:
            final = FinalTraining(data, recipe, 3, ledger, validate=True)
            for moment in moments:
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(FinalTraining, "_task", lambda self, net, *_, at=moment: Killed(net, at, 0.1))
                    with pytest.raises(KeyboardInterrupt):
                        final.run(tmp_path / name, "network", model())
            final.run(tmp_path / name, "network", model())
    for file in ("model.safetensors", "best.safetensors", "metrics.jsonl", "config.json"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "killed" / file).read_bytes(), file


def test_the_average_is_what_ships(tmp_path, data):
    recipe = Recipe(**{**SHORT.to_dict(), "ema": 0.5})
    with Ledger(tmp_path / "work.jsonl") as ledger:
        shipped = FinalTraining(data, recipe, 3, ledger).run(tmp_path / "network", "network", model())
    state = checkpoint.load_last(tmp_path / "network" / "last.ckpt")
    for name, parameter in shipped.named_parameters():
        assert torch.equal(parameter, state["ema"][name])
        assert not torch.equal(parameter, state["model"][name])


def test_frozen_norms_are_not_calibrated_anew(tmp_path, data):
    start = model()
    with Ledger(tmp_path / "work.jsonl") as ledger:
        final = FinalTraining(data, Recipe(**{**SHORT.to_dict(), "freeze": 2}), 3, ledger)
        shipped = final.run(tmp_path / "network", "network", start).state_dict()
    before = model().state_dict()
    for name, tensor in shipped.items():
        if name.startswith(("stem.", "stages.0.", "stages.1.")):
            assert torch.equal(tensor, before[name]), name
