"""`search --method`: every method on a trained supernet, by the command."""

from functools import partial

import pytest
import torch

from asking import ask
from pocketformer import Architecture, SearchSpace, files
from pocketformer.pipelines.methods import PROPOSING
from pocketformer.pipelines.supernets import load_supernet
from pocketformer.search.frontier import frontier
from pocketformer.supernet.magnitude import cut_magnitude
from shop import open_shop

torch.set_num_threads(1)

COARSE = ("joint", "pruning", "v1-scale")


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = open_shop(tmp_path_factory.mktemp("methods"))
    known = ("--data", folder / "data", "--space", folder / "space.yaml", "--epochs", 1, "--batch-size", 8)
    ask("supernet", *known, "--out", folder / "supernet").succeeds()
    return folder


@pytest.fixture
def search(shop, cli):
    return partial(cli, "search", "--supernet", shop / "supernet", "--latency", shop / "table.json")


def test_every_method_finds_a_member_that_holds_the_budgets(shop, search, cli, tmp_path):
    space, scored = SearchSpace.load(shop / "space.yaml"), {}
    budgets = ["--max-latency", "80%", "--max-parameters", "90%"]
    for name in (*COARSE, *PROPOSING):
        out, count = tmp_path / name, ["--evaluations", tmp_path / "joint"] if name in PROPOSING else []
        found = search(*budgets, "--method", name, *count, "--out", out, "--json").json()
        assert found["method"] == name
        architecture = Architecture.load(out / "architecture.json")
        assert space.contains(architecture)
        start = files.Lines.read(out / "search.jsonl")[0]
        assert all(found["costs"][metric]["value"] <= v for metric, v in start["budgets"].items())
        assert found["parameters"] == architecture.parameters(3, False)
        scored[name] = found["evaluations"]
        # The same command again does nothing, and says the same; another method is another search.
        before = (out / "search.jsonl").read_bytes()
        assert search(*budgets, "--method", name, *count, "--out", out, "--json").json() == found
        assert (out / "search.jsonl").read_bytes() == before
        other = "joint" if name != "joint" else "v1-scale"
        search(*budgets, "--method", other, "--out", out).fails(2, "another run")
    assert scored["random"] == scored["evolution"] == scored["nsga2"] == scored["joint"] >= scored["uniform"]
    cli("report", *(tmp_path / name for name in (*COARSE, *PROPOSING)), "--out", tmp_path / "r.html").succeeds()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "annealing"], "'annealing'"),
        (["--method", "random"], "needs --evaluations"),
        (["--method", "random", "--evaluations", "many"], "neither a number nor the folder"),
        (["--method", "evolution", "--evaluations", "9", "--race"], "--race are for --method joint"),
        (["--evaluations", "9"], "--evaluations is for"),
    ],
)
def test_mistakes_are_told_in_one_line(search, tmp_path, arguments, words):
    search("--max-latency", "60%", *arguments, "--out", tmp_path / "new").fails(2, words, alone=True)
    assert not (tmp_path / "new").exists()


def test_v1_scale_without_a_latency_budget(search, tmp_path):
    answer = search("--max-parameters", "60%", "--method", "v1-scale", "--out", tmp_path / "new")
    answer.fails(2, "needs a latency budget")
    assert not (tmp_path / "new").exists()


def test_the_magnitude_of_what_is_cut(shop):
    """What two extracted networks differ by: the weights of the larger that the smaller has not."""
    net, _ = load_supernet(shop / "supernet")
    checked = 0
    for action, smaller in frontier(net.space.whole):
        if action.kind != "expansion":
            continue
        large, small = net.extract(net.space.whole).state_dict(), net.extract(smaller).state_dict()
        gone, count = 0.0, 0
        for name, tensor in large.items():
            if name.endswith("conv.weight") and tensor.shape != small[name].shape:
                gone += float(tensor.abs().sum() - small[name].abs().sum())
                count += tensor.numel() - small[name].numel()
        expected = pytest.approx(gone / count, rel=1e-4)
        assert cut_magnitude(net, net.space.whole, action.stage, action.slot, action.value) == expected
        checked += 1
    assert checked == 4
