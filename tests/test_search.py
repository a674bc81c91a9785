"""The search against the paper's figures, brute force over a whole space and a literal transcription of its rule."""

import itertools
import math
import os
import random
import subprocess
import sys
from functools import cache, partial
from pathlib import Path

import pytest
import torch

from perturbed import perturb
from pocketformer import SearchSpace, Selection, Supernet, WorkError, mes
from pocketformer.architecture import Design, StageSpace
from pocketformer.errors import UserError
from pocketformer.files import Lines
from pocketformer.search import Objective, Score, frontier, joint_search, regrow, regrowth
from pocketformer.search.evaluation import NaiveEvaluator, PrefixEvaluator, block_executions
from pocketformer.search.reach import smallest_reachable, unreachable
from pocketformer.search.trajectory import end_line, move_lines, points, start_line, whole_moves

torch.set_num_threads(1)


# --- MES


@pytest.mark.parametrize(
    ("parameters", "latency", "printed"),
    [  # Table 2 of the paper: millions, ms on the phone, MES
        (3.5, 0.9, 102.9),  # MobileNetV2 x 1.0 and EfficientFormerV2-S0
        (6.1, 1.2, 58.4),
        (5.6, 1.0, 73.2),
        (2.3, 7.3, 15.6),
        (10.9, 29.6, 1.8),
        (12.3, 1.4, 35.3),
        (30, 7.6, 4.2),
        (29.0, 83.7, 0.4),
    ],
)
def test_mes_is_that_of_table_2(parameters, latency, printed):
    assert round(mes({"size": parameters * 1e6, "latency": latency}), 1) == printed


def test_mes_terms():
    costs = {"size": 12e6, "latency": 3.0, "memory": 8.0}
    assert mes(costs) == pytest.approx(100 / 2 / 3)
    assert mes(costs, exponents={"latency": 2}) == pytest.approx(100 / 9)
    assert mes(costs, units={"size": 12e6}, score=1) == pytest.approx(1 / 3)
    third = mes(costs, units={"memory": 2.0}, exponents={"memory": 0.5, "latency": 1})
    assert third == pytest.approx(100 / 2 / 3)
    for bad in ({"size": 1e6}, {"size": 0, "latency": 1}, {"size": 1, "latency": float("nan")}):
        with pytest.raises(UserError, match="MES needs"):
            mes(bad)
    with pytest.raises(UserError, match="unit"):
        mes(costs, exponents={"memory": 1})


def test_budget_form_stops_rewarding_a_met_budget():
    """Contract 6.8: prod (max(M, B) / U) ** -alpha."""
    objective = Objective({"latency": 2.0, "size": 6e6})
    paper = Objective({"latency": 2.0, "size": 6e6}, form="paper")
    for size, latency in itertools.product((3e6, 6e6, 24e6), (0.5, 2.0, 8.0)):
        costs = {"size": size, "latency": latency}
        expected = 100 * (max(size, 6e6) / 3e6) ** -0.5 * max(latency, 2.0) ** -1
        assert objective.compass(costs) == pytest.approx(expected)
        assert paper.compass(costs) == objective.mes(costs) == paper.mes(costs) == mes(costs)
        assert objective.met(costs) == (size <= 6e6 and latency <= 2.0)
        assert objective.usage(costs) == {"latency": latency / 2, "size": size / 6e6}
    assert not Objective(min_mes=mes({"size": 3e6, "latency": 1.0})).met({"size": 3e6, "latency": 1.1})
    assert Objective(min_mes=99.0).met({"size": 3e6, "latency": 1.0})


# --- a toy space, all of it

TOY = SearchSpace(
    "toy",
    (StageSpace(2, (8, 12)), StageSpace(2, (8, 12, 16), attention=True)),
    (1, 2),
    Design(
        resolution=16, stage_strides=(2,), downsampling=("dual-path",), attention_strides=(1, 2), heads=2,
        key_dim=4, value_dim=4, downsampling_heads=2, downsampling_key_dim=4, downsampling_value_dim=4,
    ),
)  # fmt: skip


def plain(selection):
    """A selection as plain data: (width of each stage, {(stage, slot): "attention" or expansion} as a set)."""
    found = set()
    for j, kept in enumerate(selection.kept):
        ratios = iter(selection.expansions[j])
        for slot in kept:
            found.add((j, slot, "attention" if j == 1 and slot in (0, 2) else next(ratios)))
    return selection.widths, frozenset(found)


def all_members():
    """{plain data: selection}: every member of the toy space, spelled out."""
    stages = []
    for widths, ffns, attentions in (((8, 12), (0, 1), ()), ((8, 12, 16), (1, 3), (0, 2))):
        options = []
        for width in widths:
            for kept in itertools.chain(*(itertools.combinations(ffns, n) for n in range(1, 3))):
                for more in itertools.chain(*(itertools.combinations(attentions, n) for n in range(3))):
                    for ratios in itertools.product((1, 2), repeat=len(kept)):
                        options.append((width, tuple(sorted(kept + more)), ratios))
        stages.append(options)
    selections = [Selection(TOY, *zip(*choice, strict=True)) for choice in itertools.product(*stages)]
    return {plain(s): s for s in selections}


MEMBERS = all_members()
WIDTHS = ((8, 12), (8, 12, 16))


def test_the_toy_space_is_complete():
    assert len(MEMBERS) == 2 * (2 * 2 + 4) * 3 * (2 * 2 + 4) * 4
    assert all(plain(TOY.sample_selection(seed)) in MEMBERS for seed in range(500))


def slimming(larger, smaller):
    """(stage, slot, kind) if `smaller` is one slimming action away from `larger`, else None."""
    (widths, blocks), (new_widths, new_blocks) = larger, smaller
    if blocks == new_blocks:
        changed = [j for j in (0, 1) if widths[j] != new_widths[j]]
        if len(changed) == 1:
            (j,) = changed
            if WIDTHS[j].index(widths[j]) - WIDTHS[j].index(new_widths[j]) == 1:
                return (j, -1, "width")
    elif widths == new_widths:
        gone, new = blocks - new_blocks, new_blocks - blocks
        if len(gone) == 1:
            (stage, slot, what) = next(iter(gone))
            if not new:
                return (stage, slot, "depth")
            if len(new) == 1 and next(iter(new)) == (stage, slot, 1) and what == 2:
                return (stage, slot, "expansion")
    return None


@cache
def steps_down(key):
    """[(action, member)] in the fixed order: by stage, slot (a width first), kind."""
    found = [(slimming(key, other), other) for other in MEMBERS]
    return sorted((pair for pair in found if pair[0]), key=lambda pair: pair[0])


@cache
def steps_up(key):
    """The reverse; an FFN comes back at the smallest expansion only."""
    found = [(slimming(other, key), other) for other in MEMBERS]
    found = [(action, other) for action, other in found if action]
    back = {other: other[1] - key[1] for _, other in found}
    found = [
        (action, other)
        for action, other in found
        if action[2] != "depth" or next(iter(back[other]))[2] in ("attention", 1)
    ]
    return sorted(found, key=lambda pair: pair[0])


def test_frontier_and_regrowth_are_all_neighbours():
    for key, selection in MEMBERS.items():
        for moves, expected in ((frontier, steps_down), (regrowth, steps_up)):
            found = [((a.stage, a.slot, a.kind), plain(s)) for a, s in moves(selection)]
            assert found == expected(key)


def noise(*key):
    """A number in [0, 1) that is a function of its arguments in every process."""
    return random.Random(repr(key)).random()


class MadeUp:
    """Additive costs and an evaluator over the toy space. `coarse` rounds accuracy and loss, so that some actions
    cost nothing and many tie, their costs included; without it every action costs accuracy. `bumpy` costs need
    not fall with a slimming action: a narrower block can be slower."""

    def __init__(self, seed, coarse, bumpy):
        self.seed, self.coarse, self.bumpy = seed, coarse, bumpy

    def costs(self, selection):
        widths, blocks = plain(selection)
        size, latency = 3e5, 0.25
        for j, slot, what in sorted(blocks, key=repr):
            work = widths[j] * (2 if what == "attention" else what)
            size += 1e4 * work
            jitter = noise(self.seed, "ms", j, what, widths[j])
            if self.bumpy:
                latency += 0.05 + 0.3 * jitter
            else:  # sums of eighths are exact: equal work ties
                latency += work / 8 if self.coarse else work * (0.1 + 0.01 * (slot + jitter / 2))
        if self.bumpy:
            latency += noise(self.seed, "down", widths)
        else:
            size += sum(1e4 * w for w in widths)
            latency += sum(widths) / 8
        return {"size": size, "latency": latency}

    def score(self, selection):
        widths, blocks = plain(selection)
        if self.coarse:
            number = noise(self.seed, "acc", widths, sorted(blocks, key=repr))
            return Score(round(number * 6) / 6, round(noise(number) * 3) / 3)
        worth = sum(widths[j] * noise(self.seed, j) for j in (0, 1))
        for j, slot, what in sorted(blocks, key=repr):
            worth += (2 if what == "attention" else what) * (0.1 + noise(self.seed, j, slot, what == "attention"))
        return Score(worth / 100, -worth)

    def __call__(self, current, candidates):
        return [self.score(s) for s in (current, *candidates)]


def budgets_of(made_up, seed):
    start = made_up.costs(TOY.whole)
    shares = {"latency": 0.3 + 0.6 * noise(seed, "a"), "size": 0.3 + 0.6 * noise(seed, "b")}
    names = (("latency",), ("size",), ("latency", "size"))[seed % 3]
    return {name: start[name] * shares[name] for name in names}


def run(generator):
    """The moves and why it stopped."""
    moves = []
    while True:
        try:
            moves.append(next(generator))
        except StopIteration as stop:
            return moves, stop.value


def transcription(made_up, budgets, form):
    """Contract 6.7, word for word: the chosen members in order, and the reason for stopping.

    "An action must raise MES. Among those: one that costs no accuracy on the search split beats any that does,
    larger MES gain first; else least accuracy drop per MES gained; ties by mean loss, then by a fixed order. When
    no action raises MES or all budgets hold, it stops and says which."
    """

    def score_of(member):
        costs = made_up.costs(MEMBERS[member])
        if form == "budget":
            costs = {name: max(value, budgets.get(name, 0)) for name, value in costs.items()}
        return 100 * (costs["size"] / 3e6) ** -0.5 * (costs["latency"] / 1.0) ** -1

    here, visited = plain(TOY.whole), []
    while True:
        costs = made_up.costs(MEMBERS[here])
        if all(costs[name] <= budget for name, budget in budgets.items()):
            return visited, "all budgets hold"
        accuracy = made_up.score(MEMBERS[here]).accuracy
        free, costly = [], []
        for place, (_, member) in enumerate(steps_down(here)):
            gain = score_of(member) - score_of(here)
            if gain <= 0:
                continue
            score = made_up.score(MEMBERS[member])
            drop = accuracy - score.accuracy
            if drop <= 0:
                free.append((-gain, score.loss, place, member))
            else:
                costly.append((drop / gain, score.loss, place, member))
        if not free and not costly:
            return visited, "no action raises MES"
        here = min(free or costly)[-1]
        visited.append(here)


@pytest.mark.parametrize("form", ["budget", "paper"])
def test_algorithm_1_is_the_contracts_order(form):
    reasons, moved = set(), 0
    for seed in range(45):
        made_up = MadeUp(seed, coarse=seed % 5 > 0, bumpy=seed % 2 > 0)
        budgets = budgets_of(made_up, seed)
        moves, reason = run(joint_search(TOY.whole, made_up.costs, made_up, Objective(budgets, form=form)))
        assert ([plain(m.chosen.selection) for m in moves], reason) == transcription(made_up, budgets, form)
        for i, move in enumerate(moves):
            assert move.step == i + 1
            assert move.state.selection == (moves[i - 1].chosen.selection if i else TOY.whole)
            assert [plain(e.selection) for e in move.evaluated] == [
                m for _, m in steps_down(plain(move.state.selection))
            ]
        reasons.add(reason)
        moved += len(moves)
    assert reasons == {"all budgets hold", "no action raises MES"}
    assert moved > 150


def test_algorithm_1_is_the_papers_argmin_when_every_action_costs_accuracy():
    for seed in range(30):
        made_up = MadeUp(seed, coarse=False, bumpy=False)
        budgets = budgets_of(made_up, seed)
        here, visited = TOY.whole, []
        while any(made_up.costs(here)[name] > budget for name, budget in budgets.items()):
            ratios = {}
            for _, member in steps_down(plain(here)):
                candidate = MEMBERS[member]
                lost = made_up.score(here).accuracy - made_up.score(candidate).accuracy
                gained = mes(made_up.costs(candidate)) - mes(made_up.costs(here))
                assert lost > 0  # the premise
                assert gained > 0
                ratios[member] = lost / gained
            here = MEMBERS[min(ratios, key=ratios.get)]
            visited.append(here)
        moves, reason = run(joint_search(TOY.whole, made_up.costs, made_up, Objective(budgets, form="paper")))
        assert reason == "all budgets hold"
        assert [m.chosen.selection for m in moves] == visited


def test_a_search_continues_from_any_of_its_states():
    made_up = MadeUp(3, coarse=True, bumpy=False)
    objective = Objective({"latency": made_up.costs(TOY.whole)["latency"] * 0.2})
    moves, reason = run(joint_search(TOY.whole, made_up.costs, made_up, objective))
    assert len(moves) > 4
    for i, move in enumerate(moves):
        again = run(joint_search(move.state.selection, made_up.costs, made_up, objective, step=i))
        assert again == (moves[i:], reason)


@pytest.mark.parametrize("bad", [Score(float("nan"), 1.0), Score(0.5, float("nan")), Score(0.5, float("inf"))])
@pytest.mark.parametrize("place", [0, 3, -1])
@pytest.mark.parametrize("search", [joint_search, regrow])
def test_a_score_that_is_no_number_stops_the_search(bad, place, search):
    made_up = MadeUp(0, coarse=True, bumpy=False)

    def evaluator(current, candidates):
        scores = made_up(current, candidates)
        scores[place] = bad
        return scores

    start, budget = (TOY.whole, 1e-3) if search is joint_search else (TOY.minimum, 1e3)
    with pytest.raises(WorkError, match="not a finite number"):
        run(search(start, made_up.costs, evaluator, Objective({"latency": budget})))


def test_regrow_fills_the_budgets():
    """Contract 6.9: the reverse move that gains most among those that keep all budgets, until one is used to 90 %
    or nothing fits."""
    reasons = set()
    for seed in range(40):
        made_up = MadeUp(seed, coarse=seed % 2 > 0, bumpy=seed % 3 == 0)
        budgets = budgets_of(made_up, seed)
        start = MEMBERS[sorted(MEMBERS, key=repr)[int(noise(seed) * len(MEMBERS))]]

        if seed % 4 == 0:  # hardly any room
            start = TOY.minimum
            budgets = {name: made_up.costs(start)[name] * 1.12 for name in budgets}

        def usage(selection, made_up=made_up, budgets=budgets):
            return max(made_up.costs(selection)[name] / budget for name, budget in budgets.items())

        if usage(start) > 1:
            start = TOY.minimum
        moves, reason = run(regrow(start, made_up.costs, made_up, Objective(budgets)))
        here = start
        for move in moves:
            assert usage(here) < 0.9
            assert move.phase == "regrow"
            assert move.state.selection == here
            fitting = [MEMBERS[m] for _, m in steps_up(plain(here)) if usage(MEMBERS[m]) <= 1]
            assert [e.selection for e in move.evaluated] == fitting
            rank = [(-made_up.score(s).accuracy, made_up.score(s).loss, i) for i, s in enumerate(fitting)]
            here = fitting[min(rank)[-1]]
            assert move.chosen.selection == here
        if reason == "the binding budget is used":
            assert usage(here) >= 0.9
        else:
            assert reason == "no larger neighbour fits"
            assert not [m for _, m in steps_up(plain(here)) if usage(MEMBERS[m]) <= 1]
        reasons.add(reason)
    assert len(reasons) == 2


# --- the file

SETTINGS = {"form": "budget"}


def written(path, seed):
    """A whole search's file: slimming, then regrowth."""
    made_up = MadeUp(seed, coarse=seed % 2 > 0, bumpy=False)
    objective = Objective(budgets_of(made_up, seed))
    with Lines(path) as lines:
        start = made_up.costs(TOY.whole)
        lines.write(start_line(TOY.whole, start, objective.mes(start), SETTINGS))
        moves, reason = run(joint_search(TOY.whole, made_up.costs, made_up, objective))
        last = moves[-1].chosen.selection
        grown, _ = run(regrow(last, made_up.costs, made_up, objective, share=0.999, step=len(moves)))
        for move in (*moves, *grown):
            lines.write(*move_lines(move, objective.mes))
        lines.write(end_line(len(moves) + len(grown), reason))
    return [*moves, *grown]


def test_equal_inputs_write_equal_bytes(tmp_path):
    """Also in another process with another hash seed; and the search needs no torch there (it is an algorithm
    over values)."""
    for seed in range(4):
        written(tmp_path / f"a{seed}", seed)
        written(tmp_path / f"b{seed}", seed)
        assert (tmp_path / f"a{seed}").read_bytes() == (tmp_path / f"b{seed}").read_bytes()
    script = (
        "import sys, pocketformer.search, pocketformer.search.trajectory, pocketformer.search.reach\n"
        "assert 'torch' not in sys.modules\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_search import written\n"
        "[written(sys.argv[1] + str(seed), seed) for seed in range(4)]\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "4242"}
    command = [sys.executable, "-c", script, str(tmp_path / "c")]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    for seed in range(4):
        assert (tmp_path / f"a{seed}").read_bytes() == (tmp_path / f"c{seed}").read_bytes()


def test_the_file_tells_the_whole_trajectory(tmp_path):
    moves = written(tmp_path / "search.jsonl", 2)
    lines = Lines.read(tmp_path / "search.jsonl")
    found = points(TOY, lines)
    assert [p.selection for p in found] == [TOY.whole, *(m.chosen.selection for m in moves)]
    assert [p.costs for p in found[1:]] == [m.chosen.costs for m in moves]
    assert [p.score for p in found[:-1]] == [m.state.score for m in moves]
    assert [p.phase for p in found[1:]] == [m.phase for m in moves]
    evaluated = [line for line in lines if line["type"] == "evaluated"]
    assert len(evaluated) == sum(len(m.evaluated) for m in moves)
    assert sum(line["chosen"] for line in evaluated) == len(moves)
    by_step = {m.step: m for m in moves}
    for line in evaluated:
        before = by_step[line["step"]].state
        assert line["delta_accuracy"] == line["accuracy"] - before.score.accuracy
        assert line["delta_latency"] == line["latency"] - before.costs["latency"]
        assert line["delta_parameters"] == line["parameters"] - before.costs["size"]
    # A kill at any line leaves whole moves.
    for cut in range(1, len(lines)):
        kept = whole_moves(lines[:cut])
        assert kept == lines[: len(kept)]
        assert kept[-1]["type"] in ("start", "executed")
        assert not any(line["type"] != "evaluated" for line in lines[len(kept) : cut])


# --- what can be reached at all


def test_smallest_reachable_is_that_of_the_whole_space():
    """Latency table without any order among its entries; real parameters and activation memory."""
    networks = {key: selection.architecture for key, selection in MEMBERS.items()}
    fixed = {key: {"size": n.parameters(10), "memory": n.peak_memory()} for key, n in networks.items()}
    other = 0
    for seed in range(25):
        entries = cache(partial(noise, seed))

        def costs(selection, entry=entries):
            steps = selection.steps
            latency = sum(entry(s.kind, s.stage, s.in_width, s.width, s.expansion) for s in steps)
            return {"latency": latency, **fixed[plain(selection)]}

        table = [costs(selection) for selection in MEMBERS.values()]
        found = smallest_reachable(TOY, costs)
        assert found == {name: min(row[name] for row in table) for name in ("latency", "size", "memory")}
        other += found["latency"] < costs(TOY.minimum)["latency"]
        for factor, refused in ((0.999, found), (1.0, {}), (1.001, {})):
            budgets = {name: value * factor for name, value in found.items()}
            assert unreachable(TOY, costs, Objective(budgets)) == refused
        one = Objective({"latency": found["latency"] * 0.5, "size": found["size"] * 2})
        assert unreachable(TOY, costs, one) == {"latency": found["latency"]}
    assert other > 10  # the fastest member is often not the smallest


# --- prefix sharing


@pytest.fixture(scope="module")
def supernet():
    return perturb(Supernet(SearchSpace.named("pocket28"), 10)).eval()


def batches():
    generator = torch.Generator().manual_seed(0)
    for n in (6, 9):
        x = torch.randn(n, 3, 28, 28, generator=generator)
        yield x, torch.randint(10, (n - 2,), generator=generator)  # two without label


def trie(current, candidates):
    """Distinct activations that have to be computed: distinct beginnings of all step sequences."""
    return len({s.steps[: i + 1] for s in (current, *candidates) for i in range(len(s.steps))})


@pytest.mark.parametrize("state", ["whole", "sampled", "small"])
@pytest.mark.parametrize("calibrated", [0, 2])
def test_prefix_evaluation_is_naive_evaluation(supernet, state, calibrated):
    space = supernet.space
    states = {"whole": space.whole, "sampled": space.sample_selection(3), "small": space.select(space.smallest)}
    current = states[state]
    candidates = [selection for _, selection in frontier(current)] + [current]
    ran = []

    def step(step, x):
        ran.append(step)
        return supernet.run(step, x)

    prefix = PrefixEvaluator(step, batches, unscored=2)
    naive = NaiveEvaluator(supernet.run, batches, unscored=2)
    with supernet.calibrated(calibrated):
        scores = prefix(current, candidates)
        assert scores == naive(current, candidates)  # bit for bit
    assert prefix.executed == len(ran) == 2 * block_executions(current, candidates) == 2 * trie(current, candidates)
    assert naive.executed == 2 * sum(len(s.steps) for s in (current, *candidates))
    assert len({score.loss for score in scores[:-1]}) == len(candidates)  # the candidates differ
    # The scores themselves, from extracted networks.
    if not calibrated:
        model = supernet.extract(current)
        logits, labels = zip(*((model(x)[2:], y) for x, y in batches()), strict=True)
        logits, labels = torch.cat(logits), torch.cat(labels)
        assert scores[0].accuracy == (logits.argmax(1) == labels).sum().item() / 11
        assert scores[0].loss == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)


def test_prefix_and_naive_search_decide_alike(supernet):
    def costs(selection):
        blocks = selection.architecture.blocks(num_classes=10)
        return {
            "size": selection.architecture.parameters(10),
            "latency": sum(0.01 + block.macs() / 1e8 for block in blocks),
        }

    start = supernet.space.select(supernet.space.smallest)
    objective = Objective({"latency": costs(supernet.space.minimum)["latency"] * 1.03})
    trajectories = []
    for kind in (PrefixEvaluator, NaiveEvaluator):
        evaluator = kind(partial(Supernet.run, supernet), batches, unscored=2)
        trajectories.append(run(joint_search(start, costs, evaluator, objective)))
    assert trajectories[0] == trajectories[1]
    assert len(trajectories[0][0]) > 1
    assert all(math.isfinite(m.state.score.loss) for m in trajectories[0][0])
