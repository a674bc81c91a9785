"""The search against brute force over a whole space and a literal transcription of its rule."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketformer import WorkError, mes
from pocketformer.errors import UserError
from pocketformer.search import (
    Objective,
    Score,
    Walk,
    beam_search,
    frontier,
    joint_search,
    regrow,
    regrowth,
    reversible_search,
)
from pocketformer.search.beam import Place
from searched import MEMBERS, TOY, MadeUp, budgets_of, compass, many_costs, noise, plain, run, steps_down, steps_up


def test_the_toy_space_is_complete():
    assert len(MEMBERS) == 2 * (2 * 2 + 4) * 3 * (2 * 2 + 4) * 4
    assert all(plain(TOY.sample_selection(seed)) in MEMBERS for seed in range(500))


def test_frontier_and_regrowth_are_all_neighbours():
    for key, selection in MEMBERS.items():
        for moves, expected in ((frontier, steps_down), (regrowth, steps_up)):
            found = [((a.stage, a.slot, a.kind), plain(s)) for a, s in moves(selection)]
            assert found == expected(key)


def transcription(costs_of, score, objective):
    """Contract 6.7, word for word: the chosen members in order, and the reason for stopping.

    "An action must raise MES. Among those: one that costs no accuracy on the search split beats any that does,
    larger MES gain first; else least accuracy drop per MES gained; ties by mean loss, then by a fixed order. When
    no action raises MES or all budgets hold, it stops and says which."
    """
    budgets, form = objective.budgets, "paper" if objective.min_mes else objective.form

    def score_of(member, form=form):
        return compass(costs_of(MEMBERS[member]), budgets, objective.exponents, objective.units, form)

    here, visited = plain(TOY.whole), []
    while True:
        costs = costs_of(MEMBERS[here])
        if all(costs[name] <= budget for name, budget in budgets.items()) and (
            objective.min_mes is None or score_of(here, "paper") >= objective.min_mes
        ):
            return visited, "all budgets hold"
        accuracy = score(MEMBERS[here]).accuracy
        free, costly = [], []
        for place, (_, member) in enumerate(steps_down(here)):
            gain = score_of(member) - score_of(here)
            if gain <= 0:
                continue
            drop = accuracy - score(MEMBERS[member]).accuracy
            loss = score(MEMBERS[member]).loss
            if drop <= 0:
                free.append((-gain, loss, place, member))
            else:
                costly.append((drop / gain, loss, place, member))
        if not free and not costly:
            return visited, "no action raises MES"
        here = min(free or costly)[-1]
        visited.append(here)


METRICS = ("size", "latency", "latency:phone", "macs", "memory", "energy")
shares = st.sampled_from((0.15, 0.3, 0.5, 0.7, 0.9))


@st.composite
def objectives(draw, largest, names=METRICS):
    exponents = draw(st.dictionaries(st.sampled_from(names), st.sampled_from((0.25, 0.5, 1.0, 2.0)), min_size=1))
    budgets = draw(st.dictionaries(st.sampled_from(names), shares, max_size=3))
    form = draw(st.sampled_from(("budget", "paper")))
    units = {name: draw(st.sampled_from((0.5, 1.0, 3.0))) * value for name, value in largest.items()}
    wanted = draw(st.sampled_from((None, None, 1.5, 4.0)) if budgets else st.sampled_from((1.5, 4.0)))
    objective = Objective(
        {name: share * largest[name] for name, share in budgets.items()}, None, units, exponents, form
    )
    return replace(objective, min_mes=wanted and wanted * objective.mes(largest))


@given(st.data(), st.integers(0, 10**6), st.booleans(), st.booleans())
@settings(max_examples=80, deadline=None, derandomize=True)
def test_algorithm_1_is_the_contracts_order_for_any_objective(data, seed, coarse, bumpy):
    made_up = MadeUp(seed, coarse, bumpy)
    costs = many_costs(made_up)
    objective = data.draw(objectives(costs(TOY.whole)))
    moves, reason = run(joint_search(TOY.whole, costs, made_up, objective))
    assert ([plain(m.chosen.selection) for m in moves], reason) == transcription(costs, made_up.score, objective)
    here = TOY.whole
    for i, move in enumerate(moves):
        assert move.step == i + 1
        assert move.state.selection == here
        assert [plain(e.selection) for e in move.evaluated] == [m for _, m in steps_down(plain(here))]
        assert all(e.costs == costs(e.selection) for e in move.evaluated)
        assert not objective.met(costs(here))
        here = move.chosen.selection
        assert objective.compass(costs(here)) > objective.compass(move.state.costs)
    assert objective.met(costs(here)) == (reason == "all budgets hold")


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


def failing(made_up, answer):
    """Its scores as `answer` changes them."""
    return lambda current, candidates: answer(made_up(current, candidates))


def spoiled(place, score):
    return lambda scores: [*scores[: place % len(scores)], score, *scores[place % len(scores) + 1 :]]


def broken(scores):
    raise ZeroDivisionError("division by zero\nin a kernel")


SEARCHES = {
    "joint": lambda *known: joint_search(TOY.whole, *known, Objective({"latency": 1e-3})),
    "reversible": lambda *known: reversible_search(TOY.whole, *known, Objective({"latency": 1e-3})),
    "beam": lambda *known: beam_search(TOY.whole, *known, Objective({"latency": 1e-3}), 2),
    "regrow": lambda *known: regrow(TOY.minimum, *known, Objective({"latency": 1e3})),
}


@pytest.mark.parametrize("search", SEARCHES)
def test_scores_that_are_none_stop_the_search(search):
    made_up = MadeUp(0, coarse=True, bumpy=False)
    bad = [Score(float("nan"), 1.0), Score(0.5, float("nan")), Score(0.5, float("inf"))]
    for place in (0, 3, -1):
        for score in bad:
            with pytest.raises(WorkError, match="not a finite number"):
                run(SEARCHES[search](made_up.costs, failing(made_up, spoiled(place, score))))
    with pytest.raises(WorkError, match=r"^the search stopped: .* scored \(ZeroDivisionError: division by zero\)$"):
        run(SEARCHES[search](made_up.costs, failing(made_up, broken)))
    with pytest.raises(WorkError, match=r"stopped: \d+ scores for \d+ subnets"):
        run(SEARCHES[search](made_up.costs, failing(made_up, lambda scores: scores[1:])))


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
            assert move.phase == "regrow"
            assert move.state.selection == here
            fitting = [MEMBERS[m] for _, m in steps_up(plain(here)) if usage(MEMBERS[m]) <= 1]
            assert [e.selection for e in move.evaluated] == fitting
            rank = [(-made_up.score(s).accuracy, made_up.score(s).loss, i) for i, s in enumerate(fitting)]
            assert min(rank)[:2] < (-made_up.score(here).accuracy, made_up.score(here).loss)  # only while it helps
            here = fitting[min(rank)[-1]]
            assert move.chosen.selection == here
        fitting = [MEMBERS[m] for _, m in steps_up(plain(here)) if usage(MEMBERS[m]) <= 1]
        if reason == "no larger neighbour fits":
            assert not fitting
        else:
            assert reason == "no larger neighbour that fits does better"
            own = made_up.score(here)
            assert fitting
            assert all((-s.accuracy, s.loss) >= (-own.accuracy, own.loss) for s in map(made_up.score, fitting))
        reasons.add(reason)
    assert len(reasons) == 2


# --- one step back


class Rough(MadeUp):
    """Accuracies that are no sum over blocks: what a move is worth depends on where it is made."""

    def score(self, selection):
        smooth = super().score(selection)
        return Score(smooth.accuracy + 0.05 * noise(self.seed, "rough", selection.to_dict()), smooth.loss)


@pytest.mark.parametrize("form", ["budget", "paper"])
def test_a_step_back_makes_the_step_better(form):
    """Its rule word for word: accuracy rises, no budget that holds is lost, and by Algorithm 1's own order the two
    moves are a better action than the first alone. So MES rises from turn to turn, and no state comes twice."""
    taken, declined, reasons = 0, 0, set()
    for seed in range(40):
        made_up = (MadeUp if seed % 5 == 0 else Rough)(seed, coarse=seed % 5 == 0, bumpy=seed % 2 > 0)
        costs, budgets = many_costs(made_up), {k: 0.6 * v for k, v in budgets_of(made_up, seed).items()}
        objective = Objective(budgets, form=form)

        def mes_of(selection, costs=costs, objective=objective):
            return compass(costs(selection), objective.budgets, objective.exponents, objective.units, objective.form)

        def held(selection, costs=costs, budgets=budgets):
            return {name for name, budget in budgets.items() if costs(selection)[name] <= budget}

        def price(before, after, made_up=made_up, mes_of=mes_of):
            gain = mes_of(after) - mes_of(before)
            drop = made_up.score(before).accuracy - made_up.score(after).accuracy
            return (0, -gain) if drop <= 1e-15 else (1, drop / gain)

        moves, reason = run(reversible_search(TOY.whole, costs, made_up, objective))
        here, before, ends = TOY.whole, None, [TOY.whole]
        for move in moves:
            assert move.state.selection == here
            if move.phase == "slim":
                # The step alone is Algorithm 1's.
                assert move == next(joint_search(here, costs, made_up, objective, move.step - 1))
                before, here = here, move.chosen.selection
                ends.append(here)
                continue
            near = [MEMBERS[m] for _, m in steps_up(plain(here))]
            near = [s for s in near if mes_of(s) > mes_of(before) and held(here) <= held(s)]
            assert [e.selection for e in move.evaluated] == near
            accuracy = made_up.score(here).accuracy
            good = [s for s in near if made_up.score(s).accuracy > accuracy and price(before, s) < price(before, here)]
            if move.chosen is None:
                assert not [s for s in good if price(before, s)[1] < price(before, here)[1] - 1e-9]
                declined += 1
            else:
                here = ends[-1] = move.chosen.selection
                assert here in good
                assert price(before, here)[1] <= min(price(before, s) for s in good)[1] + 1e-9
                taken += 1
        rising = [mes_of(s) for s in ends]
        assert all(a < b for a, b in itertools.pairwise(rising))
        assert objective.met(costs(here)) == (reason == "all budgets hold")
        reasons.add(reason)
    assert taken > 15
    assert declined > 50
    assert len(reasons) == 2


# --- a beam


def test_a_beam_of_one_is_algorithm_1():
    for seed in range(30):
        made_up = MadeUp(seed, coarse=seed % 5 > 0, bumpy=seed % 2 > 0)
        objective = Objective(budgets_of(made_up, seed))
        moves, reason = run(joint_search(TOY.whole, made_up.costs, made_up, objective))
        turns, same = run(beam_search(TOY.whole, made_up.costs, made_up, objective, 1))
        assert reason == same
        assert [(t.kept[0].step, t.expanded[0].state, t.expanded[0].evaluated, t.kept[0].chosen) for t in turns] == [
            (m.step, m.state, m.evaluated, m.chosen) for m in moves
        ]
        assert all(len(t.expanded) == len(t.kept) == 1 for t in turns)


def test_a_beam_wide_enough_is_brute_force():
    """Every member that actions which raise MES lead to, going on from those that do not hold all budgets."""
    better = 0
    for seed in range(6):
        made_up = MadeUp(seed, coarse=seed % 2 > 0, bumpy=seed % 3 == 0)
        costs = made_up.costs
        objective = Objective({"latency": (0.8, 0.65)[seed % 2] * costs(TOY.whole)["latency"]})
        reached, new = {plain(TOY.whole)}, [plain(TOY.whole)]
        while new:
            here = new.pop()
            if objective.met(costs(MEMBERS[here])):
                continue
            for _, member in steps_down(here):
                gain = objective.compass(costs(MEMBERS[member])) - objective.compass(costs(MEMBERS[here]))
                if gain > 0 and member not in reached:
                    reached.add(member)
                    new.append(member)
        turns, reason = run(beam_search(TOY.whole, costs, made_up, objective, 10**6))
        kept = [k for turn in turns for k in turn.kept]
        assert [k.step for k in kept] == list(range(1, len(kept) + 1))
        assert {plain(k.chosen.selection) for k in kept} == reached - {plain(TOY.whole)}
        assert len(kept) == len(reached) - 1  # none twice
        holding = [m for m in reached if objective.met(costs(MEMBERS[m]))]
        assert (reason == "all budgets hold") == bool(holding)
        if holding:
            best = max(made_up.score(MEMBERS[m]).accuracy for m in holding)
            assert best == max(k.chosen.score.accuracy for k in kept if objective.met(k.chosen.costs))
            one = run(joint_search(TOY.whole, costs, made_up, objective))[0]
            better += best > one[-1].chosen.score.accuracy
    assert better > 1  # Algorithm 1 is greedy


@pytest.mark.parametrize("width", [2, 3, 5])
def test_a_beam_keeps_its_width_and_goes_on_from_any_turn(width):
    for seed in range(12):
        made_up = MadeUp(seed, coarse=seed % 3 > 0, bumpy=seed % 2 > 0)
        objective = Objective(budgets_of(made_up, seed))
        known = (TOY.whole, made_up.costs, made_up, objective, width)
        turns, reason = run(beam_search(*known))
        holding, reached = 0, [Place(0, TOY.whole)]
        for i, turn in enumerate(turns):
            assert len(turn.kept) <= width - holding
            for x in turn.expanded:
                assert not objective.met(x.state.costs)
            for k in turn.kept:
                assert k.parent in turn.expanded
                assert k.chosen in k.parent.evaluated
                assert k.chosen.delta_mes > 0
            reached += [Place(k.step, k.chosen.selection) for k in turn.kept]
            holding += sum(objective.met(k.chosen.costs) for k in turn.kept)
            places = [p for p in reached[-len(turn.kept) :] if not objective.met(made_up.costs(p.selection))]
            again = run(beam_search(*known, places, reached, turns[0].expanded[0].state.score.accuracy))
            assert again == (turns[i + 1 :], reason)
        assert (reason == "all budgets hold") == (holding > 0)


def test_a_walk_is_one_or_the_other():
    assert Walk().to_dict() == {}
    assert Walk(beam=3).to_dict() == {"beam": 3}
    assert Walk(regrow=True).to_dict() == {"regrow": True}
    for wrong in ({"beam": 0}, {"beam": 2, "regrow": True}):
        with pytest.raises(UserError, match="beam"):
            Walk(**wrong)


# --- Table 10 of the paper


def test_exponents_move_size_and_latency_as_in_table_10():
    """To one number of parameters: the more size weighs beside latency, the slower the network; to one latency, the
    smaller. Early blocks are slow, late ones large."""

    def costs(selection):
        widths, blocks = plain(selection)
        work = [
            sum(widths[j] * (2 if what == "attention" else what) for j, _, what in blocks if j == i) for i in (0, 1)
        ]
        return {"size": 1e4 * (work[0] + 4 * work[1] + sum(widths)), "latency": 0.1 * (4 * work[0] + work[1])}

    whole, settings = costs(TOY.whole), ((1.0, 0.5), (1.0, 1.0), (0.5, 1.0))  # latency, size
    for fixed, other in (("size", "latency"), ("latency", "size")):
        found = []
        for latency, size in settings:
            exponents, total = {"latency": latency, "size": size}, 0.0
            for seed in range(20):
                objective = Objective({fixed: 0.5 * whole[fixed]}, exponents=exponents, form="paper")
                moves, reason = run(joint_search(TOY.whole, costs, MadeUp(seed, False, False), objective))
                assert reason == "all budgets hold"
                total += moves[-1].chosen.costs[other] / whole[other] / 20
            found.append(total)
        assert found == sorted(found, reverse=fixed == "latency")
        assert abs(found[2] - found[0]) > 0.02
