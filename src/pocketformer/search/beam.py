"""Algorithm 1 with a beam: the K best states of each step are followed instead of one. Ours, not the paper's."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from pocketformer.architecture import Selection
from pocketformer.search.frontier import frontier
from pocketformer.search.joint import (
    BUDGETS_HOLD,
    NOTHING_RAISES_MES,
    CostFunction,
    Evaluated,
    Evaluator,
    Rank,
    State,
    by_price,
    evaluate_actions,
    order,
    ranked,
)
from pocketformer.search.objective import Objective


@dataclass(frozen=True)
class Place:
    """A state of the beam, by the step that led to it."""

    step: int
    selection: Selection


@dataclass(frozen=True)
class Expanded:
    """A place with its frontier as evaluated."""

    place: Place
    state: State
    evaluated: tuple[Evaluated, ...]


@dataclass(frozen=True)
class Kept:
    """An action that was executed, and the place it was executed in."""

    step: int
    parent: Expanded
    chosen: Evaluated


@dataclass(frozen=True)
class Turn:
    expanded: tuple[Expanded, ...]
    kept: tuple[Kept, ...]


def beam_search(
    start: Selection,
    costs: CostFunction,
    evaluator: Evaluator,
    objective: Objective,
    width: int,
    places: Sequence[Place] | None = None,
    reached: Collection[Place] = (),
    accuracy: float | None = None,
) -> Iterator[Turn]:
    """Each state proposes its `width` best actions by Algorithm 1's order. Of all proposals, a selection that was
    reached before counting no more, those stay that cost least accuracy per MES gained since the start, by the
    same order. A state in which all budgets hold keeps its place to the end. With a width of 1 it is Algorithm 1.

    To go on with a trajectory: `places` are the states of its last turn that do not hold all budgets, `reached`
    all its states, `accuracy` that of its start. Why the search stopped is the generator's return value.
    """
    first = costs(start)
    if objective.met(first):
        return BUDGETS_HOLD
    floor, places = objective.compass(first), [Place(0, start)] if places is None else list(places)
    seen = {start, *(place.selection for place in reached)}
    step = max((place.step for place in reached), default=0)
    holding = sum(objective.met(costs(place.selection)) for place in reached)
    while places:
        free = width - holding
        expanded = tuple(_expanded(place, costs, evaluator, objective, free, seen) for place in places)
        accuracy = expanded[0].state.score.accuracy if accuracy is None else accuracy
        best = _best(expanded, free, seen, accuracy, lambda e: objective.compass(e.costs) - floor)
        if not best:
            break
        kept = tuple(Kept(step + i, parent, chosen) for i, (parent, chosen) in enumerate(best, 1))
        yield Turn(expanded, kept)
        step += len(kept)
        seen.update(k.chosen.selection for k in kept)
        holding += sum(objective.met(k.chosen.costs) for k in kept)
        places = [Place(k.step, k.chosen.selection) for k in kept if not objective.met(k.chosen.costs)]
    return BUDGETS_HOLD if holding else NOTHING_RAISES_MES


def _expanded(
    place: Place,
    costs: CostFunction,
    evaluator: Evaluator,
    objective: Objective,
    count: int,
    seen: Collection[Selection],
) -> Expanded:
    actions = frontier(place.selection)

    def rank(gains: Sequence[float]) -> Rank:  # a race need not go on for what was reached before
        return by_price([0.0 if s in seen else gain for gain, (_, s) in zip(gains, actions, strict=True)])

    state = State.of(place.selection, costs, objective)
    return Expanded(place, *evaluate_actions(state, actions, costs, evaluator, objective, rank, count))


def _best(
    expanded: tuple[Expanded, ...],
    count: int,
    seen: Collection[Selection],
    accuracy: float,
    gain: Callable[[Evaluated], float],
) -> list[tuple[Expanded, Evaluated]]:
    """The proposals that stay, best first; `accuracy` is that of the start, `gain` the MES gained since."""
    proposals: dict[Selection, tuple] = {}
    for i, parent in enumerate(expanded):
        fresh = [e for e in ranked(parent.evaluated) if e.selection not in seen]
        for j, e in enumerate(fresh[:count]):
            rank = (order(e.score.accuracy - accuracy, gain(e)), e.score.loss, i, j)
            proposals.setdefault(e.selection, (rank, parent, e))  # of two ways to one selection, the better place's
    return [(parent, e) for _, parent, e in sorted(proposals.values(), key=lambda p: p[0])[:count]]
