"""`search --method`: every method on a trained supernet, by the command."""

import json

import pytest
import torch

from pocketformer import Architecture, SearchSpace, files
from pocketformer.cli.main import main
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
    arguments = ["supernet", "--data", folder / "data", "--space", folder / "space.yaml", "--epochs", 1]
    with pytest.raises(SystemExit) as stop:
        main([*map(str, arguments), "--batch-size", "8", "--out", str(folder / "supernet")])
    assert stop.value.code == 0
    return folder


@pytest.fixture
def search(shop, capfd):
    """Runs the command; returns its exit code and what it printed on stdout and stderr."""

    def run(*arguments):
        common = ["search", "--supernet", shop / "supernet", "--latency", shop / "table.json", *arguments]
        with pytest.raises(SystemExit) as stop:
            main(list(map(str, common)))
        return stop.value.code, *capfd.readouterr()

    return run


def test_every_method_finds_a_member_that_holds_the_budgets(shop, search, tmp_path):
    space, scored = SearchSpace.load(shop / "space.yaml"), {}
    budgets = ["--max-latency", "80%", "--max-parameters", "90%"]
    for name in (*COARSE, *PROPOSING):
        out, count = tmp_path / name, ["--evaluations", tmp_path / "joint"] if name in PROPOSING else []
        code, told, errors = search(*budgets, "--method", name, *count, "--out", out, "--json")
        assert code == 0, errors
        found = json.loads(told)
        assert found["method"] == name
        architecture = Architecture.load(out / "architecture.json")
        assert space.contains(architecture)
        start = files.Lines.read(out / "search.jsonl")[0]
        assert all(found["costs"][metric]["value"] <= v for metric, v in start["budgets"].items())
        assert found["parameters"] == architecture.parameters(3, False)
        scored[name] = found["evaluations"]
        # The same command again does nothing, and says the same; another method is another search.
        before = (out / "search.jsonl").read_bytes()
        assert json.loads(search(*budgets, "--method", name, *count, "--out", out, "--json")[1]) == found
        assert (out / "search.jsonl").read_bytes() == before
        code, _, errors = search(*budgets, "--method", "joint" if name != "joint" else "v1-scale", "--out", out)
        assert (code, "Traceback" in errors) == (2, False)
        assert "another run" in errors.strip().splitlines()[-1]
    assert scored["random"] == scored["evolution"] == scored["nsga2"] == scored["joint"] >= scored["uniform"]
    with pytest.raises(SystemExit) as stop:
        main(["report", *(str(tmp_path / name) for name in (*COARSE, *PROPOSING)), "--out", str(tmp_path / "r.html")])
    assert stop.value.code == 0


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
    code, out, errors = search("--max-latency", "60%", *arguments, "--out", tmp_path / "new")
    assert (code, out, errors.count("\n")) == (2, "", 1)
    assert words in errors
    assert not (tmp_path / "new").exists()


def test_v1_scale_without_a_latency_budget(search, tmp_path):
    code, _, errors = search("--max-parameters", "60%", "--method", "v1-scale", "--out", tmp_path / "new")
    assert code == 2
    assert "needs a latency budget" in errors
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
