"""`correlate`: its two sets against enumeration, statistics against definitions, inherited slices, the command."""

import itertools
import math
import random
import runpy
import shutil
from collections import Counter
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from asking import ask
from pocketformer import SearchSpace, Selection, Supernet
from pocketformer.devices import Entry, LatencyTable, Reference, space_blocks
from pocketformer.errors import UserError
from pocketformer.files import Lines, read_json, write_json
from pocketformer.pipelines.agreement import MEASURES, WAYS, advantage, agreement
from pocketformer.pipelines.correlating import NEAR, draw_subnets
from pocketformer.report import write_figures, write_report
from pocketformer.runs import repeated_units
from pocketformer.supernet.inheritance import inherit_norms
from pocketformer.supernet.sampling import LargestAlone
from pocketformer.supernet.strata import even_strata, members_of
from pocketformer.training import checkpoint, engine
from shop import write_images
from subnets import perturbed_supernet, space_of, subnets
from test_sampling import DESIGN, POCKET, TOY, chi_square, uniform_law
from trainings import SPACE

torch.set_num_threads(1)

BENCHMARK = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "ledger.py"), run_name="benchmark")


# --- which subnets

# The toy space of the sampling laws with attention so narrow that parameters do not fall into a few groups.
NARROW = replace(TOY, smallest=None, design=replace(DESIGN, heads=1, key_dim=4, value_dim=8))


def law_of_narrow():
    return {Selection(NARROW, m.widths, m.kept, m.expansions): share for m, share in uniform_law().items()}


@cache
def parameters(architecture):
    return architecture.parameters(10, False)


def strata_of(space, count):
    return even_strata(parameters(space.minimum.architecture), parameters(space.largest), count)


def test_strata_are_of_equal_factors():
    strata = even_strata(50, 400, 3)
    assert strata == [(50, pytest.approx(100)), (pytest.approx(100), pytest.approx(200)), (pytest.approx(200), 400)]
    assert [low for low, _ in strata[1:]] == [high for _, high in strata[:-1]]


def test_a_stratum_has_the_uniform_law_on_its_condition():
    law, strata, told = law_of_narrow(), strata_of(NARROW, 3), []
    drawn = [members_of(NARROW, parameters, strata, 1, random.Random(seed)) for seed in range(600)]
    for number, (low, high) in enumerate(strata):
        within = {m: share for m, share in law.items() if low <= parameters(m.architecture) <= high}
        assert len(within) > 20
        whole = sum(within.values())
        counts = Counter(members[number] for members in drawn)
        assert counts.keys() <= within.keys()
        assert abs(chi_square(counts, {m: share / whole for m, share in within.items()})) < 4
        told.append(chi_square(counts, dict.fromkeys(within, 1 / len(within))))
    assert max(told) > 8  # it can tell: members all alike likely are another law


def test_members_of_one_size_are_all_different_and_all_there_are():
    architectures = {member.architecture for member in law_of_narrow()}
    target = math.sqrt(parameters(NARROW.minimum.architecture) * parameters(NARROW.largest))
    band = (target * (1 - NEAR), target * (1 + NEAR))
    there = {a for a in architectures if band[0] <= parameters(a) <= band[1]}
    found = members_of(NARROW, parameters, [band], len(there), random.Random(0))
    assert len(found) == len(there) > 10
    assert {member.architecture for member in found} == there
    with pytest.raises(UserError, match=rf"{len(there)} of {len(there) + 1} members .* fewer --subnets") as refusal:
        members_of(NARROW, parameters, [band], len(there) + 1, random.Random(0))
    assert "\n" not in str(refusal.value)


def test_the_sets_cover_the_space_and_keep_to_one_size():
    low, high = parameters(POCKET.smallest), parameters(POCKET.largest)
    found = draw_subnets(POCKET, 10, 12, 150_000, seed=3)
    assert found == draw_subnets(SearchSpace.named("pocket28"), 10, 12, 150_000, seed=3)
    sizes = [parameters(member.architecture) for member in found.values()]
    assert list(found) == [f"{name} {i}" for name in ("spread", "near") for i in range(1, 13)]
    # One in each twelfth of the logarithms; the law alone reaches the last ones once in thousands of draws.
    places = [12 * math.log(size / low) / math.log(high / low) for size in sizes[:12]]
    assert all(i - 1e-9 <= place <= i + 1 + 1e-9 for i, place in enumerate(places))
    assert all(abs(size / 150_000 - 1) <= NEAR for size in sizes[12:])
    assert len({member.architecture for member in found.values()}) == 24


# --- what the figures are


def by_definition(x, y):
    """Pearson's r, Spearman's rho and Kendall's tau-b, written out."""

    def pearson(a, b):
        ma, mb = sum(a) / len(a), sum(b) / len(b)
        cross = sum((p - ma) * (q - mb) for p, q in zip(a, b, strict=True))
        return cross / math.sqrt(sum((p - ma) ** 2 for p in a) * sum((q - mb) ** 2 for q in b))

    def ranks(a):
        return [sum(q < p for q in a) + (sum(q == p for q in a) + 1) / 2 for p in a]

    pairs = list(itertools.combinations(zip(x, y, strict=True), 2))
    same = sum((a - c) * (b - d) > 0 for (a, b), (c, d) in pairs)
    other = sum((a - c) * (b - d) < 0 for (a, b), (c, d) in pairs)
    in_x, in_y = sum(a == c for (a, _), (c, _) in pairs), sum(b == d for (_, b), (_, d) in pairs)
    tau = (same - other) / math.sqrt((len(pairs) - in_x) * (len(pairs) - in_y))
    return {"pearson": pearson(x, y), "spearman": pearson(ranks(x), ranks(y)), "kendall": tau}


def scores(n, seed, ties=False):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    y = 0.8 * x + rng.normal(size=n)
    return [values.round(0 if ties else 6).tolist() for values in (x, y)]


@pytest.mark.parametrize(("n", "ties"), [(4, False), (11, False), (25, True)])
def test_coefficients_are_those_of_their_definitions(n, ties):
    from scipy import stats

    x, y = scores(n, n, ties)
    found, wanted = agreement(x, y), by_definition(x, y)
    library = {"pearson": stats.pearsonr, "spearman": stats.spearmanr, "kendall": stats.kendalltau}
    for name, value in wanted.items():
        assert found[name]["value"] == pytest.approx(value)
        assert found[name]["value"] == pytest.approx(library[name](x, y).statistic)
    assert found["r2"]["value"] == pytest.approx(wanted["pearson"] ** 2)
    for measure in found.values():
        low, high = measure["interval95"]
        assert low <= measure["value"] <= high


def test_intervals_hold_what_they_say():
    """Of samples of 16 with a true correlation of 0.8 / √1.64, nine tenths of the intervals and more hold it."""
    true, held, widths = 0.8 / math.sqrt(1.64), 0, {8: [], 64: []}
    for seed in range(100, 160):
        low, high = agreement(*scores(16, seed))["pearson"]["interval95"]
        held += low <= true <= high
    assert held >= 51
    for n in widths:
        ends = [agreement(*scores(n, seed))["r2"]["interval95"] for seed in range(5)]
        widths[n] = np.mean([high - low for low, high in ends])
        assert all(0 <= low <= high <= 1 for low, high in ends)
    assert widths[64] < 0.6 * widths[8]


def test_scores_without_an_order_have_none():
    flat, rising = [0.1] * 5, [0.1, 0.2, 0.3, 0.4, 0.5]
    assert all(value == {"value": None, "interval95": None} for value in agreement(flat, rising).values())
    same = agreement(rising, rising)
    assert all(same[name]["value"] == pytest.approx(1) for name in MEASURES)
    assert all(math.isfinite(end) for name in MEASURES for end in same[name]["interval95"])
    with pytest.raises(UserError, match="at least 4 subnets, not 3"):
        agreement(rising[:3], rising[:3])


def test_what_tells_better_stands_above():
    x, y = scores(60, 1)
    noise = scores(60, 2)[0]
    found, wanted = advantage(x, noise, y), (by_definition(x, y), by_definition(noise, y))
    signed = [r * abs(r) for r in (wanted[0]["pearson"], wanted[1]["pearson"])]
    assert found["r2"]["value"] == pytest.approx(signed[0] - signed[1])
    against = advantage(x, [-value for value in x], y)  # what is misleading tells less than nothing
    assert against["r2"]["value"] == pytest.approx(2 * signed[0])
    for name in ("spearman", "kendall"):
        assert found[name]["value"] == pytest.approx(wanted[0][name] - wanted[1][name])
    assert all(found[name]["interval95"][0] > 0 for name in MEASURES)
    assert all(value["value"] == 0 for value in advantage(x, x, y).values())


# --- slices of a network trained alone


@pytest.mark.parametrize("name", ["32px", "96x64px", "5 stages"])
def test_inherited_subnets_are_slices_of_the_largest_network(name):
    net, space = perturbed_supernet(name), space_of(name)
    largest = {n: t.clone() for n, t in net.extract(space.whole).state_dict().items()}
    inherit_norms(net)
    after = net.extract(space.whole).state_dict()
    assert all(torch.equal(after[n], tensor) for n, tensor in largest.items())
    for subnet in subnets(space, 6):
        selection = net.select(subnet)
        for own, tensor in net.extract(selection).state_dict().items():
            source = own
            if ".blocks." in own:
                stage, block = (int(own.split(".")[i]) for i in (1, 3))
                source = own.replace(f".blocks.{block}.", f".blocks.{selection.kept[stage][block]}.", 1)
            whole = largest[source]
            assert torch.equal(tensor, whole[tuple(slice(size) for size in tensor.shape)]), own


def test_the_largest_alone():
    rule = LargestAlone(SPACE)
    assert rule.roles == ("largest",)
    assert rule.subnets(0) == rule.subnets(7) == (SPACE.whole,)


# --- the command


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Images of three classes, and a supernet trained on them for two epochs."""
    folder = tmp_path_factory.mktemp("correlate")
    write_images(folder / "data", 90, dark=90, step=20)
    (folder / "space.yaml").write_text(yaml.safe_dump(SPACE.to_dict()))
    known = ("--data", folder / "data", "--space", folder / "space.yaml", "--epochs", 2, "--batch-size", 16)
    ask("supernet", *known, "--out", folder / "supernet").succeeds()
    return folder


@pytest.fixture
def correlate(shop, cli):
    return partial(cli, "correlate", "--supernet", shop / "supernet", "--epochs", 1, "--batch-size", 16, "--out")


def without_times(folder: Path) -> dict:
    found = read_json(folder / "correlation.json")
    assert found.pop("seconds")
    for sets in found["sets"].values():
        assert all(row.pop("seconds") > 0 for row in sets["subnets"])
    return found


def contents(folder: Path) -> dict[str, bytes]:
    names = [
        *folder.glob("*/*/model.safetensors"),
        *folder.glob("*/model.safetensors"),
        *folder.glob("*/*/metrics.jsonl"),
    ]
    names += [folder / "score.jsonl", folder / "evaluate.jsonl"]
    return {str(name.relative_to(folder)): name.read_bytes() for name in names}


def test_the_command(correlate, shop, tmp_path, monkeypatch):
    out = tmp_path / "whole"
    found = correlate(out, "--subnets", 4, "--json").json()
    assert found == read_json(out / "correlation.json")
    assert found["sets"].keys() == {"spread", "near"}
    images = found["images"]
    for sets in found["sets"].values():
        assert len(sets["subnets"]) == 4
        assert sets["ways"].keys() == set(WAYS)
        for row in sets["subnets"]:
            assert row["accuracy"].keys() == {*WAYS, "trained"}
            assert all(x["split"] == "search" and x["images"] == images for x in row["accuracy"].values())
            assert row["seconds"] > 0
        for way in WAYS:
            before, after = ([r["accuracy"][w]["accuracy"] for r in sets["subnets"]] for w in (way, "trained"))
            value = sets["ways"][way]["pearson"]["value"]
            constant = len(set(before)) == 1 or len(set(after)) == 1
            assert value is None if constant else value == pytest.approx(np.corrcoef(before, after)[0, 1])
    # The network trained alone has learnt in its own norms only.
    steps = Lines.read(out / "alone" / "metrics.jsonl")
    assert len(steps) == len(Lines.read(shop / "supernet" / "metrics.jsonl"))
    assert not any(name.startswith("loss_") for name in steps[0])

    # Killed in the largest network's training, and in the third and the last of the subnets'.
    killed, step, passed = tmp_path / "killed", engine._step, iter(range(1000))
    deaths = {2, 11, 22}

    def dies(*given):
        if next(passed) in deaths:
            raise KeyboardInterrupt
        return step(*given)

    monkeypatch.setattr(engine, "_step", dies)
    codes = [correlate(killed, "--subnets", 4).code for _ in range(4)]
    assert codes == [130, 130, 130, 0]
    monkeypatch.setattr(engine, "_step", step)
    assert without_times(killed) == without_times(out)
    assert contents(killed) == contents(out)
    assert sum(repeated_units(killed).values()) < 40

    # What is done is not done again, and told once more.
    work = (killed / "work.jsonl").read_bytes()
    monkeypatch.setattr(engine, "_step", None)
    text = correlate(killed, "--subnets", 4).succeeds().out
    assert (killed / "work.jsonl").read_bytes() == work
    for words in ("4 subnets spread over the space", "4 subnets of about one size", "EagleEye", "r²", "Kendall"):
        assert words in text

    page = write_report([out]).read_text()
    assert "What the supernet says of training" in page
    assert "Not in this folder" not in page
    assert (out / "correlation.html").is_file()
    names = {path.name for path in write_figures([out], tmp_path / "figures")}
    assert {"correlation_spread.svg", "correlation_near.html"} <= names
    assert "r² " in (tmp_path / "figures" / "correlation_spread.svg").read_text()

    # The network trained alone serves another run.
    monkeypatch.setattr(engine, "_step", step)
    correlate(tmp_path / "again", "--subnets", 4, "--alone", out).succeeds()
    again, first = (without_times(folder)["sets"] for folder in (tmp_path / "again", out))
    assert again == first
    assert not (tmp_path / "again" / "alone").exists()


def test_what_a_search_found_is_trained_too(correlate, cli, shop, tmp_path):
    """And the ledger reads the three runs."""
    entries = {key: Entry(1e-6 * block.macs()) for key, block in space_blocks(SPACE, 3).items()}
    table = LatencyTable(entries, 0.01, 1.0, Reference("r", 1.0), "tiny", 3, SPACE.resolution)
    table.save(tmp_path / "table.json")
    asked = {"supernet": shop / "supernet", "latency": tmp_path / "table.json", "max-parameters": "50%"}
    cli("search", "--out", tmp_path / "search", *(f"--{name}={value}" for name, value in asked.items())).succeeds()
    text = correlate(tmp_path / "run", "--subnets", 4, "--found", tmp_path / "search").succeeds().out
    (found,) = read_json(tmp_path / "run" / "correlation.json")["sets"]["found"]["subnets"]
    last = [line for line in Lines.read(tmp_path / "search" / "search.jsonl") if line["type"] == "executed"][-1]
    assert found["selection"] == last["selection"]
    assert f"found 1: {found['parameters']:,} parameters" in text
    assert "Networks that searches found" in (tmp_path / "run" / "correlation.html").read_text()

    folders = {"supernet": shop / "supernet", "search": tmp_path / "search", "correlation": tmp_path / "run"}
    result = BENCHMARK["ledger"](SimpleNamespace(**folders, alone=None, candidates=4))
    assert all(value > 0 for value in (*result["seconds"].values(), *result["ratios"].values()))
    assert result["outcome"]["found"]["parameters"] == found["parameters"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--subnets", "3"], "--subnets 3: a correlation needs at least 4"),
        (["--parameters", "9x"], "--parameters '9x' is not understood"),
        (["--subnets", "4", "--parameters", "3"], "0 of 4 members were found from 3 to 3 parameters"),
        (["--supernet", "{shop}/data"], "holds no trained supernet"),
        (["--subnets", "4", "--alone", "{shop}/supernet"], "did not train the largest network alone"),
        (["--subnets", "4", "--found", "{shop}/supernet"], "architecture"),
        (["--subnets", "4", "--found", "{network}"], "holds no search (search.jsonl)"),
        (["--subnets", "4", "--found", "{elsewhere}"], "searched space other, not this tiny"),
        (["--subnets", "4", "--alone", "{alone}"], "from other images than the supernet, or from another split"),
        (["--recipe", "sideways"], "no recipe 'sideways'"),
    ],
)
def test_mistakes_are_told_in_one_line(correlate, shop, arguments, words, tmp_path):
    SPACE.largest.save(tmp_path / "network" / "architecture.json")
    described = {**SPACE.to_dict(), "name": "other"} | {"design": {**SPACE.to_dict()["design"], "heads": 1}}
    described.pop("smallest", None)
    elsewhere, other = tmp_path / "elsewhere", SearchSpace.from_dict(described)
    other.largest.save(elsewhere / "architecture.json")
    checkpoint.save_tensors(elsewhere / "supernet/model.safetensors", Supernet(other, 3, distilled=False))
    write_json(elsewhere / "supernet/config.json", {"space": other.to_dict(), "num_classes": 3})
    with Lines(elsewhere / "search.jsonl") as lines:
        lines.write({"type": "start", "step": 0, "selection": other.whole.to_dict(), "mes": 1.0})
    alone = tmp_path / "alone"
    shutil.copytree(shop / "supernet", alone)
    config = read_json(alone / "config.json")
    identity = {**config["identity"], "listed": {"split_fingerprint": "another"}}
    write_json(alone / "config.json", {**config, "identity": identity, "trained": "alone"})
    places = {"shop": shop, "network": tmp_path / "network", "elsewhere": elsewhere, "alone": alone}
    correlate(tmp_path / "run", *(a.format(**places) for a in arguments)).fails(2, words)
    assert not (tmp_path / "run").exists()


# --- the ledger


def test_the_ledger_adds_up(tmp_path):
    values = [0.5, 0.7, 0.6, 0.7, 0.9, 0.4]
    for k in range(1, 7):
        every = [max(chosen) for chosen in itertools.combinations(values, k)]
        assert BENCHMARK["best_of"](values, k) == pytest.approx(sum(every) / len(every))

    stages = {"supernet": {"supernet": 370, "score": 1}, "search": {"search": 30}, "correlation": {"supernet": 80}}
    for name, spent in stages.items():
        with Lines(tmp_path / name / "work.jsonl") as lines:
            for stage, seconds in spent.items():
                lines.write({"stage": stage, "unit": 0, "seconds": 9}, {"stage": stage, "unit": 0, "seconds": seconds})
    rows = [{"parameters": 9, "seconds": 50, "accuracy": {"trained": {"accuracy": value}}} for value in values]
    near, found = {"subnets": rows, "parameters": [9, 9]}, {"subnets": [{**rows[0], **FOUND}]}
    run = {"sets": {"near": near, "found": found}, "split": "search", "images": 10}
    write_json(tmp_path / "correlation" / "correlation.json", run)
    args = {name: tmp_path / name for name in stages}
    result = BENCHMARK["ledger"](SimpleNamespace(**args, alone=None, candidates=4))
    assert result["seconds"]["random search, 4 candidates"] == 200
    assert result["seconds"]["supernet"] == 370  # a unit that was done twice counts once
    ratios = result["ratios"]
    assert ratios["supernet / training of the largest"] == pytest.approx(4.625)
    assert ratios["4 candidates / (supernet + search + training of the found)"] == pytest.approx(200 / 460, abs=1e-3)
    assert ratios["the same for 4 networks"] == pytest.approx(800 / (370 + 4 * 90), abs=1e-3)
    enough = [k for k in range(1, 7) if BENCHMARK["best_of"](values, k) >= 0.75]
    assert result["outcome"]["candidates whose mean best is as good as the found"] == enough[0]


FOUND = {"seconds": 60, "accuracy": {"trained": {"accuracy": 0.75}}}
