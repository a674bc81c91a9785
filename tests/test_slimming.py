"""V1's slimming against its Algorithm 1 written out, and the commands from images to an exported network."""

import itertools

import numpy as np
import pytest
import torch

import metapaths
from asking import ask
from metapaths import ATTENTION, DEPTHS, TINY, all_kinds, member
from pocketformer import Architecture, SearchSpace, Supernet, create_model
from pocketformer.devices import Entry, LatencyTable, Reference, space_blocks
from pocketformer.errors import UserError
from pocketformer.files import Lines
from pocketformer.models import load_checkpoint
from pocketformer.pipelines.methods import Asked
from pocketformer.pipelines.supernets import load_supernet
from pocketformer.runs import read_config
from pocketformer.search import Objective, Score
from pocketformer.search.alternatives.v1_slimming import V1Slimming
from pocketformer.search.method import Begun
from pocketformer.search.trajectory import Point
from searched import noise, run
from shop import write_images

torch.set_num_threads(1)
WIDTHS = ((4, 6), (6, 8), (8, 10, 12), (12, 16))
FIRST = ("4D", "4D", "4D", "3D", "3D", "3D", "3D")
STAGE = (0, 0, 1, 2, 2, 3, 3)  # of each place
MEMBERS = {member(kinds, widths): (kinds, widths) for kinds in all_kinds() for widths in itertools.product(*WIDTHS)}


def costs_of(seed, coarse, bumpy):
    """A latency that adds up; `bumpy`: a narrower stage may be slower."""

    def costs(selection):
        kinds, widths = MEMBERS[selection]
        ms = 1.0
        for kind, j in zip(kinds, STAGE, strict=True):
            if kind != "I":
                each = 0.5 + noise(seed, kind, j, widths[j]) if bumpy else widths[j] * (1 + (kind == "3D")) / 8
                ms += each if coarse or bumpy else each * (1 + 0.1 * noise(seed, kind, j))
        return {"size": 1e6 * ms, "latency": ms}

    return costs


def scores_of(seed, coarse):
    def score(selection):
        kinds, widths = MEMBERS[selection]
        if coarse:
            return Score(round(6 * noise(seed, kinds, widths)) / 6, round(3 * noise(seed, "loss", kinds, widths)) / 3)
        each = {"4D": 1, "3D": 1.5, "I": 0}
        worth = sum(widths) / 50 + sum(each[kind] * (0.2 + noise(seed, i)) for i, kind in enumerate(kinds))
        return Score(worth / 20, -worth)

    return score


def transcription(latency, score, importance, budget):
    """App. A, Alg. 1, from the whole supernet down: [(kinds, widths)] of each executed action. The action is that of
    least accuracy drop per ms; one that costs none beats any that does, the one that saves more first; ties by loss,
    then by stage, slot and kind (contract 6.7)."""
    kinds, widths = FIRST, (6, 8, 12, 16)
    visited = []
    while latency(member(kinds, widths)) > budget:
        now, accuracy = latency(member(kinds, widths)), score(member(kinds, widths)).accuracy
        found = []  # (new kinds, new widths, tie)
        # DR <- argmin I(MP): the least important block becomes identity, never a stage's last one.
        depths = [sum(kinds[i] != "I" and STAGE[i] == j for i in range(7)) for j in range(4)]
        free = [i for i in range(7) if kinds[i] != "I" and depths[STAGE[i]] > 1]
        if free:
            i = min(free, key=lambda i: importance[i])
            place = i - STAGE.index(STAGE[i])
            slot = 2 * place + 1 if ATTENTION[STAGE[i]] else place
            found.append(((*kinds[:i], "I", *kinds[i + 1 :]), widths, (STAGE[i], slot, "depth")))
        # MR <- First-MB3D
        if "3D" in kinds:
            i = kinds.index("3D")
            tie = (STAGE[i], 2 * (i - STAGE.index(STAGE[i])), "depth")
            found.append(((*kinds[:i], "4D", *kinds[i + 1 :]), widths, tie))
        # WR <- argmin over stages of the sum of I: by the least multiple of the step that saves time.
        by_stage = [sum(importance[i] for i in range(7) if kinds[i] != "I" and STAGE[i] == j) for j in range(4)]
        options = {}
        for j in range(4):
            for width in sorted((w for w in WIDTHS[j] if w < widths[j]), reverse=True):
                narrower = (*widths[:j], width, *widths[j + 1 :])
                if latency(member(kinds, narrower)) < now:
                    options[j] = narrower
                    break
        if options:
            j = min(options, key=lambda j: by_stage[j])
            found.append((kinds, options[j], (j, -1, "width")))
        priced = []
        for new, narrow, tie in found:
            saved = now - latency(member(new, narrow))
            drop = accuracy - score(member(new, narrow)).accuracy
            if saved > 0:
                price = (0, -saved) if drop <= 0 else (1, drop / saved)
                priced.append((price, score(member(new, narrow)).loss, tie, (new, narrow)))
        if not priced:
            return visited, False
        kinds, widths = min(priced)[-1]
        visited.append((kinds, widths))
    return visited, True


def start(costs):
    return Point(0, TINY.whole, Score(float("nan"), float("nan")), costs(TINY.whole), 1.0, "slim")


def test_it_is_algorithm_1():
    ends, taken = set(), set()
    for seed in range(60):
        coarse, bumpy = seed % 3 == 0, seed % 4 == 1
        costs, score = costs_of(seed, coarse, bumpy), scores_of(seed, coarse)
        flat = [0.1 + noise(seed, "importance", i) for i in range(7)]
        importances = tuple(tuple(flat[i] for i in range(7) if STAGE[i] == j) for j in range(4))
        assert [len(stage) for stage in importances] == list(DEPTHS)
        budget = costs(TINY.whole)["latency"] * (0.25 + 0.6 * noise(seed, "budget"))
        method, objective = V1Slimming(importances), Objective({"latency": budget})

        def evaluator(current, candidates, score=score):
            return [score(s) for s in (current, *candidates)]

        moves, reason = run(method.moves(Begun([], [start(costs)], costs, evaluator, objective)))
        wanted, held = transcription(lambda s, costs=costs: costs(s)["latency"], score, flat, budget)
        assert [MEMBERS[m.chosen.selection] for m in moves] == wanted
        assert (reason == "all budgets hold") == held
        assert all(len(m.evaluated) <= 3 for m in moves)
        ends.add(held)
        executed = [m.chosen.action for m in moves]
        taken |= {"width" if a.slot < 0 else TINY.stages[a.stage].is_attention(a.slot) for a in executed}
        # It goes on from any state as it did.
        for i, move in enumerate(moves[1:], 1):
            here = Point(i, move.state.selection, Score(0, 0), move.state.costs, 1.0, "slim")
            assert run(method.moves(Begun([], [here], costs, evaluator, objective))) == (moves[i:], reason)
    assert True in ends
    assert taken == {"width", False, True}  # all three actions


def test_it_needs_a_latency_budget():
    method = V1Slimming(tuple((1.0,) * n for n in DEPTHS))
    costs = costs_of(0, False, False)
    with pytest.raises(UserError, match="--max-latency"):
        run(method.moves(Begun([], [start(costs)], costs, None, Objective({"size": 1.0}))))


# --- the commands


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Images, a space, a latency table made up from multiply-adds, and V2's table of another space."""
    folder = tmp_path_factory.mktemp("slimming")
    write_images(folder / "data", 60)
    (folder / "space.yaml").write_text(metapaths.YAML)
    entries = {key: Entry(1e-5 * block.macs()) for key, block in space_blocks(TINY, 3).items()}
    LatencyTable(entries, 0.01, 1.0, Reference("r", 1.0), TINY.name, 3, TINY.resolution).save(folder / "table.json")
    known = ("--data", folder / "data", "--space", folder / "space.yaml", "--epochs", 3, "--batch-size", 8)
    ask("supernet", *known, "--out", folder / "supernet").succeeds()
    return folder


def test_from_images_to_an_exported_network(shop, tmp_path, cli):
    out = tmp_path / "search"
    table = ("--latency", shop / "table.json", "--max-latency", "55%")
    method = ("--method", "v1-slimming")
    cli("search", "--supernet", shop / "supernet", *table, *method, "--out", out, "--calibration", 16).succeeds()
    lines, net = Lines.read(out / "search.jsonl"), load_supernet(shop / "supernet")[0]
    assert lines[0]["walk"]["method"] == "v1-slimming"
    assert lines[0]["walk"]["importances"] == [list(stage) for stage in net.importances()]
    assert lines[-1]["status"] == "all budgets hold"
    executed = [line for line in lines if line["type"] == "executed"]
    assert all(sum(x["step"] == e["step"] and x["type"] == "evaluated" for x in lines) <= 3 for e in executed)
    assert len(list((out / "front").iterdir())) == 1 + len(executed)
    found = Architecture.load(out / "architecture.json")
    assert TINY.contains(found)
    latency = LatencyTable.load(shop / "table.json")
    assert latency.latency(found) <= 0.55 * latency.latency(TINY.largest)

    # Cut anywhere, it goes on to the same lines.
    text = (out / "search.jsonl").read_text()
    (out / "search.jsonl").write_text(text[: len(text) // 2])
    (out / "architecture.json").unlink()
    cli("search", "--supernet", shop / "supernet", *table, *method, "--out", out, "--calibration", 16).succeeds()
    assert (out / "search.jsonl").read_text() == text
    assert Architecture.load(out / "architecture.json") == found

    trained = tmp_path / "trained"
    common = ("--architecture", out, "--init", out, "--data", shop / "data", "--epochs", 1, "--batch-size", 8)
    cli("train", *common, "--out", trained).succeeds()
    cli("train", *common, "--shrink", 1, "--out", tmp_path / "shrunk").succeeds()
    cli("export", "--checkpoint", trained, "--format", "onnx", "--out", tmp_path / "model.onnx").succeeds()
    assert (tmp_path / "model.onnx").stat().st_size > 0
    model = create_model(found, 3, distilled=False)
    load_checkpoint(model, trained / "model.safetensors")


def test_the_supernets_run(shop):
    lines = Lines.read(shop / "supernet" / "metrics.jsonl")
    assert all({"loss", "entropy", "temperature"} <= line.keys() for line in lines)
    assert lines[0]["temperature"] == 5
    assert lines[-1]["temperature"] == pytest.approx(0.5)
    assert lines[0]["entropy"] == pytest.approx((3 * np.log(2) + 4 * np.log(3)) / 7)
    settings = read_config(shop / "supernet")["settings"]
    assert settings["choice"] == {"noise": "gumbel", "alpha_rate": 10}
    assert settings["space"]["metapath"] is True
    net = load_supernet(shop / "supernet")[0]
    # Channels are kept in the order of their norms.
    rows = [net.stages[0][1].local.fc1]
    folded = [r.conv.weight.flatten(1) * (r.norm.weight / (r.norm.running_var + 1e-5).sqrt())[:, None] for r in rows]
    norms = folded[0].norm(dim=1)
    assert torch.equal(norms, norms.sort(descending=True).values)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sampling", "uniform", "--plain"], "draws no subnets"),
        (["--noise", "white"], "known: gumbel, paper"),
        (["--space", "pocket28", "--noise", "paper"], "are for spaces of EfficientFormers"),
        (["--space", "pocket28", "--alpha-rate", "1"], "are for spaces of EfficientFormers"),
        (["--alpha-rate", "0"], "must be above zero"),
    ],
)
def test_bad_options_of_a_supernet(shop, tmp_path, cli, arguments, words):
    space = [] if "--space" in arguments else ["--space", shop / "space.yaml"]
    answer = cli("supernet", "--data", shop / "data", *space, *arguments, "--out", tmp_path / "run")
    answer.fails(2, words, alone=True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max-parameters", "50%"], "needs a latency budget"),
        (["--max-latency", "50%", "--beam", 2], "are for --method joint"),
        (
            ["--max-latency", "50%", "--method", "nsga2", "--evaluations", 9],
            "is of EfficientFormers (V1); methods for it",
        ),
    ],
)
def test_bad_options_of_a_search(shop, tmp_path, cli, arguments, words):
    known = ("--supernet", shop / "supernet", "--latency", shop / "table.json", "--out", tmp_path / "run")
    answer = cli("search", *known, "--method", "v1-slimming", *arguments)  # of an option given twice the last counts
    answer.fails(2, words)


def test_it_needs_a_supernet_of_v1():
    net = Supernet(SearchSpace.named("pocket28"), 3)
    with pytest.raises(UserError, match="needs a supernet of EfficientFormers"):
        Asked("v1-slimming").of(net, Objective({"latency": 1.0}))


@pytest.mark.parametrize(
    "method", [["joint"], ["v1-scale"], ["random", "--evaluations", 20], ["evolution", "--evaluations", 40]]
)
def test_other_searches_of_v1s_space(shop, tmp_path, cli, method):
    """Their moves are V1's blocks and widths."""
    known = ("--supernet", shop / "supernet", "--latency", shop / "table.json", "--out", tmp_path / "run")
    answer = cli("search", *known, "--max-latency", "60%", "--json", "--calibration", 16, "--method", *method)
    found = answer.json()
    assert TINY.contains(Architecture.from_dict(found["architecture"]))
