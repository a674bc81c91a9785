"""The searches that the joint one is compared with, on a space whose members can all be scored."""

import itertools
import random
from dataclasses import replace
from statistics import mean
from types import SimpleNamespace

import pytest

from pocketformer.architecture import SearchSpace, Selection
from pocketformer.errors import UserError, WorkError
from pocketformer.files import Lines
from pocketformer.pipelines.methods import SEEDED, Asked
from pocketformer.pipelines.searching import Trajectory
from pocketformer.runs import Ledger
from pocketformer.search import Objective, Score, Walk, joint_search
from pocketformer.search.alternatives import Evolution, Nsga2, Pruning, RandomSearch, Uniform, V1Scale, Window
from pocketformer.search.method import Begun
from pocketformer.search.trajectory import Point, evaluations, whole_moves
from searched import MEMBERS, TOY, MadeUp, budgets_of, noise, plain, run, steps_down, steps_up

PROPOSING = {method.name: method for method in (RandomSearch, Uniform, Evolution, Nsga2)}


def magnitude(selection, action):
    return noise("magnitude", action.stage, action.slot, action.value)


METHODS = {
    "random": RandomSearch(40, 3),
    "uniform": Uniform(12),
    "evolution": Evolution(60, 3, population=10, tournament=3),
    "nsga2": Nsga2(60, 3, population=10),
    "pruning": Pruning(magnitude),
    "v1-scale": V1Scale(),
}


class Counting:
    """Counts the subnets that it scores."""

    def __init__(self, made_up):
        self.made_up, self.scored = made_up, []

    def __call__(self, current, candidates):
        self.scored += [current, *candidates]
        return self.made_up(current, candidates)


def search(folder, method, seed=1, evaluator=None, budgets=None):
    made_up = MadeUp(seed, coarse=False, bumpy=False)
    folder.mkdir(exist_ok=True)
    whole = made_up.costs(TOY.whole)
    objective = Objective(budgets or {"latency": 0.6 * whole["latency"], "size": 0.8 * whole["size"]}, None, whole)
    with Ledger(folder / "work.jsonl") as ledger:
        trajectory = Trajectory(
            folder / "search.jsonl", TOY.whole, made_up.costs, objective, evaluator or made_up, ledger, method=method
        )
        try:
            trajectory.status = trajectory.slim()
            if isinstance(method, Walk):
                trajectory.regrow()
        finally:
            trajectory.close()
    return trajectory


def inside(objective, made_up):
    """Every member whose latency is within 0.9 to 1.0 of its budget and that holds the others."""
    found = []
    for member in MEMBERS.values():
        costs = made_up.costs(member)
        shares = {name: costs[name] / budget for name, budget in objective.budgets.items()}
        if max(shares.values()) <= 1 and shares.get("latency", max(shares.values())) >= 0.9:
            found.append(member)
    return found


@pytest.mark.parametrize("seed", [1, 2, 4])
def test_random_draws_every_member_of_the_window_and_finds_its_best(tmp_path, seed, monkeypatch):
    monkeypatch.setattr("pocketformer.search.alternatives.window._IDLE_DRAWS", 4000)
    made_up = MadeUp(seed, coarse=False, bumpy=False)
    objective = Objective(budgets_of(made_up, seed))
    members = inside(objective, made_up)
    drawn = set(Window(objective).draws(TOY, made_up.costs, random.Random(0)))
    assert drawn == set(members)
    trajectory = search(tmp_path, RandomSearch(10**4, seed), seed, budgets=objective.budgets)
    assert trajectory.status == "no further subnet to propose"
    best = max(members, key=lambda s: (made_up.score(s).accuracy, -made_up.score(s).loss))
    assert trajectory.here().selection == best


@pytest.mark.parametrize("name", PROPOSING)
def test_a_budget_that_another_one_overrules(tmp_path, name):
    """Half of the parameters hold the latency far below its budget: what uses most of the parameters is proposed."""
    made_up = MadeUp(1, coarse=False, bumpy=False)
    whole = made_up.costs(TOY.whole)
    budgets = {"latency": 0.99 * whole["latency"], "size": 0.5 * whole["size"]}
    assert not inside(Objective(budgets), made_up)
    method = PROPOSING[name](40)
    trajectory = search(tmp_path, method, budgets=budgets)
    assert trajectory.objective.met(trajectory.here().costs)
    if name == "random":
        proposed = [line for line in trajectory.lines if line["type"] == "evaluated"]
        assert all(0.9 <= line["parameters"] / budgets["size"] <= 1 for line in proposed)


def test_where_the_uniform_law_never_comes_paths_do(monkeypatch):
    """Nine tenths of the largest's multiply-adds: of ten thousand draws by the law not one has as many."""
    space = SearchSpace.named("pocket28")

    def costs(selection):
        return {"macs": selection.architecture.macs(10, False)}

    objective = Objective({"macs": 0.95 * costs(space.whole)["macs"]})
    drawn = list(itertools.islice(Window(objective).draws(space, costs, random.Random(0)), 20))
    assert len(set(drawn)) == 20
    assert all(Window(objective).holds(costs(selection)) for selection in drawn)


def test_over_budget_is_not_scored(tmp_path):
    """The costs are known before: NSGA-II's evaluations go to networks that hold the budgets."""
    counting = Counting(MadeUp(1, coarse=False, bumpy=False))
    trajectory = search(tmp_path, Nsga2(200, 3, population=10), evaluator=counting)
    assert trajectory.status in ("all evaluations made", "no further subnet to propose")
    assert len(counting.scored) > 50
    assert all(trajectory.objective.met(trajectory.costs(s)) for s in counting.scored[1:])


@pytest.mark.parametrize("name", PROPOSING)
def test_evaluations_are_counted_by_the_evaluator(tmp_path, name):
    """As many as the joint search, to the last one, and no subnet twice."""
    joint = Counting(MadeUp(1, coarse=False, bumpy=False))
    lines = search(tmp_path / "joint", Walk(), evaluator=joint).lines
    assert evaluations(lines) == len(joint.scored)
    counting = Counting(MadeUp(1, coarse=False, bumpy=False))
    asked = Asked(name, evaluations=str(tmp_path / "joint"), seed=5 if name in SEEDED else 0)
    method = asked.of(SimpleNamespace(space=TOY), None)
    if hasattr(method, "population"):  # so that it comes to children, and to later generations
        method = replace(method, population=8, **({"tournament": 4} if name == "evolution" else {}))
    trajectory = search(tmp_path / name, method, evaluator=counting)
    assert len(set(counting.scored)) == len(counting.scored) == evaluations(trajectory.lines)
    if name == "uniform":  # it has no more scalings than it has
        assert trajectory.status == "no further subnet to propose"
        assert len(counting.scored) <= len(joint.scored)
    else:
        assert trajectory.status == "all evaluations made"
        assert len(counting.scored) == len(joint.scored)
    found, fitting = trajectory.here(), [s for s in counting.scored if trajectory.objective.met(trajectory.costs(s))]
    assert found.score.accuracy == max(counting.made_up.score(s).accuracy for s in fitting)
    assert trajectory.objective.met(found.costs)


@pytest.mark.parametrize(("method", "seed"), [(Nsga2, 3), (Evolution, 2), (Evolution, 3)])
def test_guided_methods_find_the_best_of_all_members(tmp_path, method, seed):
    """With 600 of 1,536 members scored, the best by brute force, under one budget or two."""
    made_up = MadeUp(seed, coarse=False, bumpy=False)
    objective = Objective(budgets_of(made_up, seed))
    fitting = [member for member in MEMBERS.values() if objective.met(made_up.costs(member))]
    trajectory = search(tmp_path, method(600, seed), seed, budgets=objective.budgets)
    assert trajectory.here().score.accuracy == max(made_up.score(member).accuracy for member in fitting)


def test_uniform_scales_everything_alike(tmp_path):
    trajectory = search(tmp_path, Uniform(10**4))
    evaluated = [line for line in trajectory.lines if line["type"] == "evaluated"]
    assert evaluated
    used = [max(line["latency"] / trajectory.objective.budgets["latency"], 0) for line in evaluated]
    assert used == sorted(used, reverse=True)
    assert min(used) >= 0.9
    for line in evaluated:
        for j, (kept, expansions) in enumerate(
            zip(line["selection"]["kept"], line["selection"]["expansions"], strict=True)
        ):
            assert len(set(expansions)) == 1
            slots = TOY.stages[j].slots
            assert not TOY.stages[j].attention or abs(len(kept) / slots - len(expansions) / TOY.stages[j].depth) <= 0.25
        assert len(set(itertools.chain(*line["selection"]["expansions"]))) == 1
    # Of another shape than the largest: what it does not have, no scaling has.
    shape = TOY.select(TOY.largest).without(1, 0).without(1, 2).architecture
    trajectory = search(tmp_path / "shape", Uniform(10**4, shape=shape))
    for line in trajectory.lines[1:]:
        if line["type"] == "evaluated":
            assert not {0, 2} & set(line["selection"]["kept"][1])


def test_evolution_is_regularised(tmp_path, monkeypatch):
    """With mutations of one move and tournaments of all: each child is a neighbour of the best of the ten youngest,
    unless that has none left that is new and holds the budgets."""
    monkeypatch.setattr("pocketformer.search.alternatives.evolution._MOVES", 1)
    children = 0
    for seed in range(3):
        trajectory = search(tmp_path / str(seed), Evolution(60, seed, population=10, tournament=10), seed + 1)
        lines = [line for line in trajectory.lines if line["type"] == "evaluated"]
        members = [plain(Selection.from_dict(TOY, line["selection"])) for line in lines]
        for i in range(10, len(members)):
            parent = max(range(i - 10, i), key=lambda k: (lines[k]["accuracy"], -lines[k]["loss"]))
            around = {there for _, there in steps_down(members[parent]) + steps_up(members[parent])}
            left = around - set(members[:i])
            left = {there for there in left if trajectory.objective.met(trajectory.costs(MEMBERS[there]))}
            assert members[i] in left or not left
            children += members[i] in left
    assert children > 100


class Additive:
    """Every block of a larger space is worth something of its own; latency is multiply-adds."""

    def __init__(self, seed):
        self.space, self.seed = SearchSpace.named("pocket28"), seed

    def costs(self, selection):
        return {"size": selection.architecture.parameters(10, False), "latency": selection.architecture.macs() / 1e6}

    def score(self, selection):
        worth = sum(
            noise(self.seed, step.stage, step.slot) * (step.expansion or 1) ** 0.5 * step.width**0.25
            for step in selection.steps
        )
        return Score(worth / 100, -worth)

    def __call__(self, current, candidates):
        return [self.score(s) for s in (current, *candidates)]


def test_exponents_move_latency_as_table_10_says():
    """V2 Table 10: at one size, half the exponent of latency gives slower networks (1.3 ms for 1.1), half that of size
    faster ones (0.9 ms). Mean of 8 searches in which every action costs accuracy, to half of the parameters."""
    latency, size = {}, {}
    for exponents in ((1, 1), (0.5, 1), (1, 0.5)):
        found = []
        for seed in range(8):
            made_up = Additive(seed)
            whole = made_up.costs(made_up.space.whole)
            weights = dict(zip(("latency", "size"), exponents, strict=True))
            objective = Objective({"size": whole["size"] / 2}, units=whole, exponents=weights, form="paper")
            moves = list(joint_search(made_up.space.whole, made_up.costs, made_up, objective))
            found.append(made_up.costs(moves[-1].chosen.selection))
        latency[exponents] = mean(costs["latency"] for costs in found)
        size[exponents] = mean(costs["size"] for costs in found)
    assert latency[1, 0.5] < 0.96 * latency[1, 1]
    assert latency[0.5, 1] > 1.04 * latency[1, 1]
    assert max(size.values()) < 1.05 * min(size.values())


def test_guided_methods_beat_random_draws():
    """In a space too large to draw from, by 160 evaluations each, in every one of three seeds."""
    for seed in range(3):
        made_up = Additive(seed)
        whole = made_up.space.whole
        start = Point(0, whole, Score(0, 0), made_up.costs(whole), 0.0, "slim")
        objective = Objective({"latency": 0.5 * start.costs["latency"]})
        best = {}
        for name in ("random", "evolution", "nsga2"):
            rounds, status = run(
                PROPOSING[name](160, seed).moves(Begun([], [start], made_up.costs, made_up, objective))
            )
            assert status == "all evaluations made"
            best[name] = max(r.chosen.score.accuracy for r in rounds if r.chosen)
        assert best["evolution"] > best["random"], best
        assert best["nsga2"] > best["random"], best


def test_v1_scale_is_the_price_per_millisecond_of_depth_and_width(tmp_path):
    """Against the rule spelled out on plain data."""
    for seed in range(6):
        for coarse in (False, True):
            made_up = MadeUp(seed, coarse=coarse, bumpy=True)
            objective = Objective({"latency": 0.7 * made_up.costs(TOY.whole)["latency"]})
            moves, status = run(
                V1Scale().moves(Begun([{}], [start_of(made_up, objective)], made_up.costs, made_up, objective))
            )
            here = plain(TOY.whole)
            for move in moves:
                here = v1_step(here, made_up)
                assert plain(move.chosen.selection) == here
            held = made_up.costs(MEMBERS[here])["latency"] <= objective.budgets["latency"]
            assert status == ("all budgets hold" if held else "no action raises MES")
            assert held or v1_step(here, made_up) is None
    with pytest.raises(UserError, match="needs a latency budget"):
        search(tmp_path, V1Scale(), budgets={"size": 1e5})


def start_of(made_up, objective):
    return Point(0, TOY.whole, Score(0, 0), made_up.costs(TOY.whole), 0.0, "slim")


def v1_step(here, made_up):
    """Where V1's rule goes from a member: an action that costs no accuracy first, the most ms; else the least
    accuracy per ms; ties by loss, then in the fixed order."""
    own, ms = made_up.score(MEMBERS[here]), made_up.costs(MEMBERS[here])["latency"]
    best = None
    for (stage, slot, kind), there in steps_down(here):
        if kind == "expansion":
            continue
        score, saved = made_up.score(MEMBERS[there]), ms - made_up.costs(MEMBERS[there])["latency"]
        if saved <= 0:
            continue
        drop = own.accuracy - score.accuracy
        key = (0, -saved) if drop <= 0 else (1, drop / saved)
        key = (*key, score.loss, stage, slot)
        if best is None or key < best[0]:
            best = (key, there)
    return None if best is None else best[1]


def test_pruning_goes_half_of_the_way_by_v1_and_the_rest_by_magnitude(tmp_path):
    sequences = set()
    for seed, share in itertools.product(range(1, 5), (0.6, 0.45, 0.3)):
        made_up = MadeUp(seed, coarse=False, bumpy=False)
        whole = made_up.costs(TOY.whole)["latency"]
        budget, here = share * whole, plain(TOY.whole)
        trajectory = search(tmp_path / f"{seed} {share}", Pruning(magnitude), seed, budgets={"latency": budget})
        kinds = []
        for point in trajectory.points()[1:]:
            latency = made_up.costs(MEMBERS[here])["latency"]
            expanded = [(j, slot) for j, slot, what in here[1] if what == 2]
            pruning = latency <= (whole * budget) ** 0.5 or "expansion" in kinds
            if pruning and expanded:
                weakest = min(expanded, key=lambda where: (noise("magnitude", *where, 1), where))
                here = here[0], here[1] - {(*weakest, 2)} | {(*weakest, 1)}
                kinds.append("expansion")
            else:
                here = v1_step(here, made_up)
                kinds.append("coarse")
            assert plain(point.selection) == here
        sequences.add(tuple(kind for kind, _ in itertools.groupby(kinds)))
        assert trajectory.status == "all budgets hold"
    # Also where no expansion is left to prune.
    assert {("coarse", "expansion"), ("coarse", "expansion", "coarse")} <= sequences


@pytest.mark.parametrize("name", METHODS)
def test_a_search_that_is_cut_anywhere_goes_on_byte_for_byte(tmp_path, name):
    search(tmp_path / "whole", METHODS[name])
    whole = (tmp_path / "whole" / "search.jsonl").read_bytes()
    rng = random.Random(name)
    for cut in rng.sample(range(len(whole)), 6):
        (tmp_path / "cut").mkdir(exist_ok=True)
        (tmp_path / "cut" / "search.jsonl").write_bytes(whole[:cut])
        search(tmp_path / "cut", METHODS[name])
        assert (tmp_path / "cut" / "search.jsonl").read_bytes() == whole, cut
    lines = Lines.read(tmp_path / "whole" / "search.jsonl")
    for cut in range(len(lines)):
        kept = whole_moves(lines[:cut])
        assert not kept or kept[-1]["type"] in ("start", "executed", "round")
        assert not kept or kept[-1].get("phase") != "propose"
    # With other proposals it is another search.
    if name in PROPOSING and name != "uniform":
        with pytest.raises(UserError, match="another search"):
            search(tmp_path / "whole", PROPOSING[name](METHODS[name].evaluations, 99))


def test_lines_tell_what_a_proposal_changes_of_the_largest(tmp_path):
    trajectory = search(tmp_path, METHODS["evolution"])
    made_up, states = MadeUp(1, coarse=False, bumpy=False), trajectory.points()
    largest = made_up.score(TOY.whole)
    assert states[0].score == largest
    assert [p.step for p in states] == list(range(len(states)))
    assert all(p.parent == 0 for p in states[1:])
    accuracies = [p.score.accuracy for p in states[1:]]
    assert accuracies == sorted(accuracies)
    for line in trajectory.lines:
        if line["type"] in ("evaluated", "executed"):
            assert line["delta_accuracy"] == line["accuracy"] - largest.accuracy
            assert line["delta_latency"] == line["latency"] - trajectory.lines[0]["latency"]
    assert sum(line.get("chosen", False) for line in trajectory.lines if line["type"] == "evaluated") == len(states) - 1


def test_nothing_that_holds_the_budgets(tmp_path):
    made_up = MadeUp(1, coarse=False, bumpy=False)
    whole = made_up.costs(TOY.whole)
    for name in ("random", "evolution", "nsga2"):
        with pytest.raises(WorkError, match="no subnet that holds all budgets"):
            search(tmp_path / name, PROPOSING[name](50), budgets={"latency": 0.9 * whole["latency"], "size": 1.0})
    trajectory = search(tmp_path / "held", RandomSearch(50), budgets={"latency": 2 * whole["latency"]})
    assert (trajectory.status, len(trajectory.points())) == ("all budgets hold", 1)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"name": "annealing"}, "method 'annealing' is unknown; known: joint, random"),
        ({"name": "random"}, "--method random needs --evaluations: a number"),
        ({"name": "v1-scale", "evaluations": "40"}, "--evaluations is for --method random"),
        ({"name": "random", "evaluations": "40", "race": True}, "--race are for --method joint"),
        ({"name": "evolution", "evaluations": "40", "walk": Walk(beam=2)}, "--beam and --race are for"),
    ],
)
def test_what_cannot_be_asked(asked, said):
    with pytest.raises(UserError, match=said):
        Asked(**asked)


def test_evaluations_that_are_none(tmp_path):
    for given in ("many", str(tmp_path), "-3"):
        with pytest.raises(UserError, match="neither a number nor the folder of a finished search"):
            Asked("random", evaluations=given).of(None, None)
    with pytest.raises(UserError, match="at least 2 evaluations, not 1"):
        Asked("random", evaluations="1").of(None, None)
