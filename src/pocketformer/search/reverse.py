"""Reverse moves: one step back after a slimming step, and giving back what the search left of its budgets."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pocketformer.architecture import Selection
from pocketformer.search.frontier import regrowth
from pocketformer.search.joint import (
    CostFunction,
    Evaluated,
    Evaluator,
    Move,
    Rank,
    Score,
    State,
    evaluate_actions,
    joint_search,
    order,
)
from pocketformer.search.objective import Objective


@dataclass(frozen=True)
class Slimmed:
    """A slimming step whose reverse moves have not been tried yet: where it began, and what it changed."""

    before: Selection
    delta_accuracy: float
    delta_mes: float


def reversible_search(
    start: Selection,
    costs: CostFunction,
    evaluator: Evaluator,
    objective: Objective,
    step: int = 0,
    slimmed: Slimmed | None = None,
) -> Iterator[Move]:
    """Algorithm 1, with at most one reverse move behind each of its steps (phase "back").

    A reverse move is taken if it raises accuracy, no budget that holds is lost, and the step and it together are a
    better action than the step alone, by Algorithm 1's own order: MES still rises over the two, at a lower price in
    accuracy. So each turn ends in a state of higher MES than all before it: none comes twice, and the search ends.

    `slimmed` continues a trajectory that ends between the two.
    """
    here = start
    while True:
        if slimmed is not None and (back := _step_back(here, costs, evaluator, objective, step, slimmed)) is not None:
            yield back
            if back.chosen is not None:
                step, here = back.step, back.chosen.selection
        try:
            move = next(joint_search(here, costs, evaluator, objective, step))
        except StopIteration as stop:
            return stop.value
        yield move
        step, here = move.step, move.chosen.selection
        slimmed = Slimmed(move.state.selection, move.chosen.delta_accuracy, move.chosen.delta_mes)


def _step_back(
    here: Selection,
    costs: CostFunction,
    evaluator: Evaluator,
    objective: Objective,
    step: int,
    slimmed: Slimmed,
) -> Move | None:
    """The reverse moves that may be taken as evaluated, with the best of them if one is; None if there are none."""
    state = State.of(here, costs, objective)
    floor, held = objective.compass(costs(slimmed.before)), objective.held(state.costs)

    def allowed(selection: Selection) -> bool:
        new = costs(selection)
        return objective.compass(new) > floor and held <= objective.held(new)

    moves = [(action, selection) for action, selection in regrowth(here) if allowed(selection)]
    if not moves:
        return None
    alone = order(slimmed.delta_accuracy, slimmed.delta_mes)
    gains = [objective.compass(costs(selection)) - floor for _, selection in moves]

    def rank(i: int, current: Score, score: Score) -> tuple | None:
        change = score.accuracy - current.accuracy
        both = order(slimmed.delta_accuracy + change, gains[i])
        return (both, score.loss, i) if change > 0 and both < alone else None

    state, evaluated = evaluate_actions(state, moves, costs, evaluator, objective, lambda _: rank)
    return Move(step + 1, state, evaluated, _first(evaluated, state, rank), "back")


def _first(evaluated: Sequence[Evaluated], state: State, rank: Rank) -> Evaluated | None:
    ranks = {i: found for i, e in enumerate(evaluated) if (found := rank(i, state.score, e.score)) is not None}
    return evaluated[min(ranks, key=ranks.get)] if ranks else None


def _by_accuracy(gains: Sequence[float]) -> Rank:
    """The most accurate, of equals the one of least loss; nothing that is no better than where it starts."""

    def rank(i: int, current: Score, score: Score) -> tuple | None:
        own, found = (current.loss, score.loss)
        return (-score.accuracy, found, i) if (-score.accuracy, found) < (-current.accuracy, own) else None

    return rank


def regrow(
    start: Selection,
    costs: CostFunction,
    evaluator: Evaluator,
    objective: Objective,
    step: int = 0,
) -> Iterator[Move]:
    """Gives back what slimming left of the budgets (contract 6.9), as far as it helps: the reverse move that gains most
    accuracy among those that keep all budgets, until none gains any (of equal accuracy: lowers the loss)."""
    state = State.of(start, costs, objective)
    while objective.budgets:
        moves = [(a, s) for a, s in regrowth(state.selection) if objective.met(costs(s))]
        if not moves:
            return "no larger neighbour fits"
        state, evaluated = evaluate_actions(state, moves, costs, evaluator, objective, _by_accuracy)
        chosen = _first(evaluated, state, _by_accuracy(()))
        if chosen is None:
            return "no larger neighbour that fits does better"
        step += 1
        yield Move(step, state, evaluated, chosen, "regrow")
        state = State(chosen.selection, chosen.costs, objective.mes(chosen.costs))
    return "there is no budget to fill"
