"""Latency tables that are wrong: who is told, what does not begin, and what shares and "the same cost" then mean."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from asking import ask
from pocketformer import SearchSpace, files
from pocketformer.devices import Check, LatencyTable
from pocketformer.devices.plan import Plan
from pocketformer.devices.table import CheckedNetwork
from pocketformer.pipelines.costs import CostModel
from pocketformer.pipelines.results import Compared, verdict
from pocketformer.training.evaluation import Outcome
from shop import open_shop
from workshop import write_table

SHORT = ("--epochs", 1, "--batch-size", 8)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = open_shop(tmp_path_factory.mktemp("tables"))
    known = ("--data", folder / "data", "--space", folder / "space.yaml")
    ask("supernet", *known, *SHORT, "--out", folder / "supernet").succeeds()
    return folder


def with_errors(path: Path, *errors: float, reference: float = 1.0) -> Path:
    """A table whose check found these errors, and whose reference took `reference` times what it says."""
    space = SearchSpace.load(path.parent / "space.yaml")
    table = LatencyTable.load(write_table(path, space, 3))
    ms = reference * table.reference.latency
    networks = [CheckedNetwork(f"check {i}", (1 + e) * ms / 2, ms / 2, (ms / 2, ms / 2)) for i, e in enumerate(errors)]
    check = Check(tuple(networks)) if networks else None
    replace(table, check=check, reference=replace(table.reference, latency=ms)).save(path)
    return path


@pytest.fixture
def shop(place, tmp_path) -> Path:
    (tmp_path / "space.yaml").write_text((place / "space.yaml").read_text())
    return tmp_path


@pytest.fixture
def interrupted(monkeypatch):
    """What trains a supernet is interrupted at once."""

    def stop(*_args: object, **_more: object) -> None:
        raise KeyboardInterrupt

    for command in ("design", "supernets"):
        monkeypatch.setattr(f"pocketformer.pipelines.{command}.train_supernet", stop)


DOUBTS = {
    "busy": ((0.94, 0.94), 1.0, "mean error on networks it has not seen is 94.0% (bias +94.0%), above 5%"),
    "leaning": ((-0.3, -0.26), 1.0, "is 28.0% (bias -28.0%), above 5%"),
    "a little": ((0.06, -0.06), 1.0, "is 6.0% (bias +0.0%), above 5%"),
    "unchecked": ((), 1.0, "nobody has checked it"),
    "of chains": ((), 1.36, "of its own reference network, the largest subnet"),
}


@pytest.mark.parametrize("doubt", DOUBTS)
def test_whoever_uses_a_doubtful_table_is_told(place, shop, cli, interrupted, doubt):
    errors, reference, words = DOUBTS[doubt]
    table = with_errors(shop / "table.json", *errors, reference=reference)
    told = f"warning: latency table {table}: "
    search = ("search", "--supernet", place / "supernet", "--latency", table, "--max-parameters", "90%")
    latency = ("--sampling", "latency", "--latency", table)
    supernet = ("supernet", "--data", place / "data", "--space", shop / "space.yaml", *SHORT, *latency)
    design = ("design", "--data", place / "data", "--space", shop / "space.yaml", "--latency", table)
    for command in (
        (*search, "--calibration", 8, "--out", shop / "found"),
        (*supernet, "--out", shop / "net"),
        (*design, "--max-parameters", 1, "--accept-table-error", "--out", shop / "no"),  # refused for its budget
    ):
        said = cli(*command).err
        if command[0] != "design":
            assert any(told in line and words in line for line in said.splitlines()), said
    shutil.copy(table, shop / "found/latency_table.json")
    said = cli("report", shop / "found").succeeds()
    assert (words if errors else "nobody has checked it") in said.err
    assert ("was not checked" if not errors else "Profile again") in (shop / "found/report.html").read_text()
    if doubt != "busy":
        return
    good = with_errors(shop / "good.json", 0.02, -0.03)
    assert "warning" not in cli(*search[:4], good, *search[5:], "--out", shop / "good").succeeds().err


@pytest.mark.parametrize(
    ("errors", "reference", "words"),
    [
        ((0.94, 0.94), 1.0, "mean error on networks it has not seen is 94%, above 20%"),
        ((-0.3, -0.4), 1.0, "mean error on networks it has not seen is 35%, above 20%"),
        ((0.02, 0.5), 1.0, "mean error on networks it has not seen is 26%, above 20%"),
    ],
)
def test_design_does_not_begin_with_a_wrong_table(place, shop, cli, interrupted, errors, reference, words):
    table = with_errors(shop / "table.json", *errors, reference=reference)
    asked = ("design", "--data", place / "data", "--space", shop / "space.yaml", "--max-parameters", "90%")
    given = (*asked, "--latency", table, "--out", shop / "run")
    cli(*given).fails(1, f"latency table {table}", words, "--accept-table-error")
    assert not (shop / "run").exists()
    accepted = cli(*given, "--accept-table-error")
    assert accepted.code == 130
    assert f"warning: latency table {shop / 'run/latency_table.json'}" in accepted.err


def test_what_design_measured_wrong_it_measures_again(place, shop, cli, interrupted, monkeypatch):
    tables = iter([with_errors(shop / f"{i}.json", error) for i, error in enumerate((0.5, 0.4, 0.01))])

    def measured(space, runtime, classes, settings, seed, work, ledger):
        files.write_text(work / "profile.jsonl", "")
        return LatencyTable.load(next(tables))

    monkeypatch.setattr("pocketformer.pipelines.design.profile_space", measured)
    given = ("design", "--data", place / "data", "--space", shop / "space.yaml", "--max-parameters", "90%")
    for error in (50, 40):
        answer = cli(*given, "--out", shop / "run")
        answer.fails(1, f"is {error}%, above 20%: repeat this command, which measures again")
    assert cli(*given, "--out", shop / "run").code == 130
    assert LatencyTable.load(shop / "run/latency_table.json").check.mean == pytest.approx(0.01)
    assert cli(*given, "--out", shop / "run").code == 130  # with what it has


@pytest.mark.parametrize(("option", "share"), [("--max-latency", 80), ("--max-latency", 95), ("--max-latency", 68)])
def test_a_share_is_of_what_the_search_sums(place, shop, cli, option, share):
    """A table of chains alone took 36 % less of the largest than was measured: 80 % of that held the largest itself."""
    table = with_errors(shop / "table.json", reference=1.36)
    given = ("search", "--supernet", place / "supernet", "--latency", table, "--calibration", 8)
    found = cli(*given, option, f"{share}%", "--out", shop / "found", "--json").json()
    says = LatencyTable.load(table).latency(SearchSpace.load(shop / "space.yaml").largest)
    assert found["latency"] <= share / 100 * says
    assert found["step"] > 0
    picked = cli("search", "--pick", shop / "found", option, "99%", "--json").json()
    assert picked["latency"] <= 0.99 * says


@pytest.fixture
def made_up_times(monkeypatch):
    """Chains that take what their blocks do, and whole networks 30 % more."""

    def measure(groups, parts, open_bench, progress):
        plan = made_up_times.plan
        found = []
        for names in (names for part in parts.values() for names in part):
            ms = {
                name: [sum(1e-4 + b.macs() / 1e7 for b in plan.chains[name].blocks)]
                for name in names
                if name in plan.chains
            }
            for name in (*names, "largest"):
                if name in plan.whole:
                    blocks = plan.whole[name].blocks(None, plan.num_classes, distilled=False)
                    ms[name] = [1.3 * sum(1e-4 + b.macs() / 1e7 for b in blocks)]
            found.append({**{name: [0.5] for name in names}, **ms})
        return found

    drawn = Plan.draw

    def draw(*args, **more):
        made_up_times.plan = drawn(*args, **more)
        return made_up_times.plan

    monkeypatch.setattr("pocketformer.devices.profile.Groups.measure", measure)
    monkeypatch.setattr("pocketformer.devices.profile.Plan.draw", draw)


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ((0, 0), ["error on the largest subnet, its reference: -2", "nobody has checked it"]),
        ((0, 6), ["bias -2", "of the reference's latency", "its reference: -2", "profile again"]),
        ((24, 6), ["bias ", "of the reference's latency", "its reference: "]),
    ],
)
def test_profile_tells_the_error_that_it_knows(shop, cli, made_up_times, counts, words):
    given = ("--space", shop / "space.yaml", "--classes", 3, "--networks", counts[0], "--checks", counts[1])
    said = cli("profile", *given, "--out", shop / "table.json").succeeds()
    for word in words:
        assert word in said.out + said.err
    told = cli("profile", *given, "--out", shop / "table.json", "--json").json()
    assert (abs(told["reference_error"]) > 0.2) == (counts[0] == 0)
    if counts[1]:
        stored = json.loads((shop / "table.json").read_text())["check"]
        errors = [n["predicted"] / n["measured"] - 1 for n in stored["networks"]]
        assert stored["bias"] == told["check_bias"] == pytest.approx(np.mean(errors))
        assert stored["range"] == told["check_range"]


def test_tables_of_before_are_read(shop):
    values = json.loads(with_errors(shop / "table.json", 0.02, 0.04).read_text())
    for name in ("bias", "range"):
        del values["check"][name]
    (shop / "old.json").write_text(json.dumps(values))
    assert LatencyTable.load(shop / "old.json") == LatencyTable.load(shop / "table.json")
    assert LatencyTable.load(shop / "old.json").check.bias == pytest.approx(0.03)


@pytest.mark.parametrize("name", ["pocket28", "pocket32", "pocket64", "efficientformerv2", "metapath32"])
@pytest.mark.parametrize(("networks", "checks"), [(24, 8), (64, 20)])
def test_networks_that_check_lie_all_over_the_range_of_costs(name, networks, checks):
    space = SearchSpace.named(name)
    for seed in range(3):
        plan = Plan.draw(space, 10, networks, checks, seed)
        for members in (plan.checks, plan.networks):
            shares = np.sort([a.macs() / space.largest.macs() for a in members.values()])
            assert shares[0] < 0.4
            assert shares[-1] > 0.75
            assert (shares > 0.5).sum() >= checks / 6
            assert np.diff(shares).max() < 0.45


@pytest.mark.parametrize(
    ("latency", "fewer", "words"),
    [(1.71, 0, "of another cost, 1.71 ms"), (0.73, 3, "of another cost, 0.73 ms"), (0.72, 0, "of the same cost (")],
)
def test_the_same_cost_is_said_of_what_was_measured(latency, fewer, words):
    space = SearchSpace.named("pocket28")
    whole = space.whole
    other = whole.with_width(2, space.stages[2].widths[0]) if fewer else whole
    found = Compared("found", whole, 0.5, 0.7, None, Outcome(torch.zeros(200), torch.arange(200) % 4, 1.0), {}, "")
    networks = [found, replace(found, name="random", selection=other, latency=latency)]
    networks.append(replace(found, name="largest", selection=space.minimum))
    text = verdict(networks, CostModel(SimpleNamespace(latency=lambda _: 1.0), 10))["text"]
    assert words in text
    assert ("0.7 ms" in text) == ("another" in words)
