"""What `--init` takes of a run: the network that it shipped, its supernet by name; for other classes a new head."""

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from asking import ask
from pocketformer.architecture import Architecture
from pocketformer.dense.segmentation.presets import small
from pocketformer.pipelines.backbones import open_backbone
from pocketformer.pipelines.shrinking import load_searched
from shop import open_shop
from workshop import write_images

torch.set_num_threads(1)

STILL = ["--epochs", 1, "--batch-size", 8, "--workers", 0, "--learning-rate", "1e-30"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder as `design` leaves it: a supernet, its search, and the trained network of the state that it found."""
    shop = open_shop(tmp_path_factory.mktemp("starts"))
    folder, data = shop / "run", ["--data", shop / "data", "--epochs", 1, "--batch-size", 8, "--workers", 0]
    ask("supernet", "--space", shop / "space.yaml", *data, "--out", shop / "supernet").succeeds()
    search = ["search", "--supernet", shop / "supernet", "--latency", shop / "table.json", "--max-latency", "80%"]
    ask(*search, "--out", folder).succeeds()
    shutil.copytree(shop / "supernet", folder / "supernet")
    assert "its supernet's weights" in trained(folder, shop / "early", shop / "data").err
    ask("train", "--architecture", folder, *data, "--out", shop / "network").succeeds()
    for name in ("model.safetensors", "config.json"):
        shutil.copy(shop / "network" / name, folder / name)
    return folder


def trained(init, out, data, *more, architecture=None):
    """What a training ends in that leaves the weights as they were."""
    given = ["train", "--architecture", architecture or init, "--init", init, "--data", data, *STILL]
    return ask(*given, "--out", out, *more).succeeds()


def kept(folder, weights: dict) -> set[str]:
    """The parameters of a folder that are equal to these."""
    found = load_file(folder / "model.safetensors")
    shared = {n: (t, weights[n]) for n, t in found.items() if n in weights and weights[n].shape == t.shape}
    return {name for name, tensors in shared.items() if torch.allclose(*tensors)}


def learned(weights: dict) -> set[str]:
    return {name for name in weights if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))}


def test_a_run_is_the_network_that_it_shipped_and_its_supernet_has_a_name(run, tmp_path):
    data, shipped = run.parent / "data", load_file(run / "model.safetensors")
    searched = load_searched(run, Architecture.load(run / "architecture.json"))
    shared = searched.supernet.extract(searched.found).state_dict()
    for init, expected in ((run, shipped), (run / "model.safetensors", shipped), (run / "supernet", shared)):
        out = tmp_path / f"{init.name}-new"
        trained(init, out, data, architecture=run)
        assert kept(out, expected) >= learned(expected), init
    assert not kept(tmp_path / "run-new", shared) & {"stem.conv1.conv.weight", "head.weight"}


def test_shrinking_begins_with_the_supernet(run, tmp_path):
    trained(run, tmp_path / "new", run.parent / "data", "--shrink", 1)
    assert "stem.conv1.conv.weight" not in kept(tmp_path / "new", load_file(run / "model.safetensors"))


def test_for_other_classes_it_gets_a_new_head(run, tmp_path):
    data = write_images(tmp_path / "data", 6, ("ash", "birch", "cedar", "date"))
    answer = trained(run, tmp_path / "new", data)
    assert "head of 3 classes was dropped" in answer.err
    shipped = load_file(run / "model.safetensors")
    assert kept(tmp_path / "new", shipped) >= {n for n in learned(shipped) if not n.startswith("head")}


def test_another_architecture_is_told_where_the_supernet_is(run, cli, tmp_path):
    other = run.parent / "other.json"
    searched = load_searched(run, Architecture.load(run / "architecture.json"))
    searched.supernet.space.largest.save(other)
    given = ["train", "--architecture", other, "--data", run.parent / "data", *STILL, "--out", tmp_path / "new"]
    cli(*given, "--init", run).fails(2, "another architecture", f"--init {run / 'supernet'}")
    cli(*given, "--init", run / "supernet").succeeds()


def test_backbones_take_the_same(run):
    architecture = Architecture.load(run / "architecture.json")
    shipped = load_file(run / "model.safetensors")
    searched = load_searched(run, architecture)
    shared = searched.supernet.extract(searched.found).state_dict()
    recipe = replace(small(), size=(16, 16))
    for init, expected, frozen in ((run, shipped, True), (run / "supernet", shared, False)):
        backbone = open_backbone(architecture, str(init), recipe)
        state = {n.removeprefix("network."): t for n, t in backbone.state_dict().items()}
        names = {n for n in learned(expected) if n in state and not n.startswith("head")}
        assert "stem.conv1.conv.weight" in names
        assert all(torch.equal(state[name], expected[name]) for name in names), init
        assert backbone.frozen_norms == frozen
