"""The command `supernet`: what it says of the space and of its norms, its options, and their refusals."""

import re

import pytest
import torch

from pocketformer import SearchSpace
from pocketformer.architecture.results import space_costs
from pocketformer.files import Lines
from pocketformer.pipelines.supernets import load_supernet
from pocketformer.runs import read_config
from shop import open_shop

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return open_shop(tmp_path_factory.mktemp("supernet"))


@pytest.fixture
def supernet(shop, cli):
    def run(out, *arguments):
        common = ("--data", shop / "data", "--space", shop / "space.yaml", "--epochs", 2, "--batch-size", 8)
        arguments = [str(a).format(table=shop / "table.json") for a in arguments]
        return cli("supernet", *common, "--out", out, *arguments)

    return run


NEAR = ["--sampling", "latency", "--latency", "{table}", "--max-latency", "60%", "--random", 1, "--checkpointing"]


def test_it_says_what_the_space_holds_and_what_norms_are_worth(supernet, shop, tmp_path):
    out = tmp_path / "run"
    found, space = supernet(out, *NEAR, "--json").json(), SearchSpace.load(shop / "space.yaml")
    assert space.design.activation == ("relu", "relu", "gelu", "gelu")
    for name, member in (("largest", space.largest), ("smallest", space.smallest)):
        macs = member.macs(num_classes=3, distilled=False)
        assert found[name] == {"parameters": member.parameters(3, False), "macs": macs}
        before, after = (found["accuracy"][name][key] for key in ("before", "recalibrated"))
        assert before["split"] == after["split"] == "search"
        assert before["images"] == after["images"] > 0
        assert before["loss"] != after["loss"]
    assert found["accuracy"].keys() == {"largest", "smallest", "random"}
    assert "paper" not in found
    settings = read_config(out)["settings"]
    table = str(shop / "table.json")
    assert settings["sampling"] == {"name": "latency", "random": 1, "latency": table, "max_latency": "60%"}
    assert settings["compute"]["checkpointing"]
    lines = Lines.read(out / "metrics.jsonl")
    assert {"loss", "loss_smallest", "loss_random_1"} < lines[0].keys()
    assert "loss_random_2" not in lines[0]
    assert load_supernet(out)[0].space == space

    steps = len(Lines.read(out / "work.jsonl"))
    text = supernet(out, *NEAR).succeeds().out  # found done: it tells the same
    assert "random subnet: on search" in text
    assert f"largest subnet: {found['largest']['parameters']:,} parameters" in text
    assert re.search(
        r"on search \(\d+ images, 95 % interval\) .*% with the norms' running statistics, .*re-calibrated", text
    )
    assert len(Lines.read(out / "work.jsonl")) == steps
    supernet(out, "--sampling", "uniform", "--plain").fails(
        2, "holds another run (compute checkpointing was true, now false)"
    )


def test_uniform_sampling(supernet, tmp_path):
    supernet(tmp_path / "run", "--sampling", "uniform", "--plain").succeeds()
    names = {f"loss_random_{i}" for i in range(1, 5)}
    assert names < Lines.read(tmp_path / "run" / "metrics.jsonl")[0].keys()


def test_a_teacher(supernet, tmp_path, monkeypatch):
    import timm

    torch.manual_seed(0)
    teacher = timm.create_model("test_resnet", num_classes=3)
    torch.save(teacher.state_dict(), tmp_path / "teacher.pth")
    text = f"test_resnet={tmp_path / 'teacher.pth'}"
    supernet(tmp_path / "run", "--teacher", text, "--distillation", "soft").succeeds()
    settings = read_config(tmp_path / "run")["settings"]
    assert (settings["teacher"], settings["distillation"], settings["plain"]) == (text, "soft", False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sampling", "sideways"], "known: sandwich, uniform, latency"),
        (["--sampling", "uniform"], "--plain"),
        (["--sampling", "uniform", "--plain", "--random", "0"], "at least 1"),
        (["--sampling", "latency"], "--latency"),
        (["--latency", "{table}"], "--sampling latency"),
        (["--max-latency", "1ms"], "--sampling latency"),
        (["--sampling", "latency", "--latency", "{table}", "--max-latency", "9x"], "--max-latency '9x'"),
        (["--sampling", "latency", "--latency", "{table}", "--max-latency", "1us"], "no member of space tiny is near"),
        (["--sampling", "latency", "--latency", "no.json"], "no.json"),
        (["--teacher", "resnet_999"], "resnet_999"),
    ],
)
def test_mistakes_are_told_in_one_line(supernet, arguments, words, tmp_path):
    supernet(tmp_path / "run", *arguments).fails(2, words)
    assert not (tmp_path / "run").exists()


def test_the_papers_space_stands_beside_the_papers_figures(cli):
    space = SearchSpace.named("efficientformerv2")
    found = space_costs(space)
    assert found["paper"] == {"parameters": 37_100_000, "macs": 3_570_000_000}
    assert round(found["largest"]["parameters"] / 1e6, 2) == 36.68
    assert round(found["largest"]["macs"] / 1e9, 3) == 3.435
    assert "paper" in space_costs(SearchSpace.from_dict({**space.to_dict(), "name": "mine"}))
    assert "paper" not in space_costs(SearchSpace.named("pocket64"))
    assert "37.1 M, 3.57 GMACs" in cli("models").succeeds().out
