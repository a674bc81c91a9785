"""The fine-grained joint search on size and speed (paper Sec. 4.2.3, Algorithm 1; contract 6.7).

An algorithm over values: it knows neither the supernet nor the device, only a cost function and an evaluator.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from pocketformer.architecture import Selection
from pocketformer.errors import UserError, WorkError, first_line
from pocketformer.search.frontier import Action, frontier
from pocketformer.search.objective import Objective

Costs = Mapping[str, float]
CostFunction = Callable[[Selection], Costs]


@dataclass(frozen=True)
class Score:
    """Accuracy (0 to 1) and mean loss on the search split."""

    accuracy: float
    loss: float


# Candidate's number, current selection's score, candidate's score -> what to take the least of; None: never.
Rank = Callable[[int, Score, Score], tuple | None]


class Evaluator(Protocol):
    """One that also has `race(current, candidates, rank, places)` may leave behind whatever can no longer be among
    the first `places` by `rank`, with a score that is a bound: its `images` says how many it was given."""

    def __call__(self, current: Selection, candidates: Sequence[Selection]) -> list[Score]:
        """Scores of the current selection and then of each candidate."""
        ...


@dataclass(frozen=True)
class Evaluated:
    """A frontier action with what it would change; deltas are candidate minus current, accuracy included."""

    action: Action
    selection: Selection
    score: Score
    costs: Costs
    delta_accuracy: float
    delta_costs: Costs
    delta_mes: float


@dataclass(frozen=True)
class State:
    selection: Selection
    costs: Costs
    mes: float
    score: Score | None = None  # known once its frontier has been evaluated

    @classmethod
    def of(cls, selection: Selection, costs: CostFunction, objective: Objective) -> "State":
        found = costs(selection)
        return cls(selection, found, objective.mes(found))


@dataclass(frozen=True)
class Move:
    """One turn of Algorithm 1's loop: the frontier as evaluated at `state`, and the action executed.

    `chosen` is None where reverse moves were tried and none was taken.
    """

    step: int
    state: State
    evaluated: tuple[Evaluated, ...]
    chosen: Evaluated | None
    phase: str = "slim"  # or "back", "regrow": `search.reverse`


BUDGETS_HOLD = "all budgets hold"
NOTHING_RAISES_MES = "no action raises MES"


def order(delta_accuracy: float, delta_mes: float) -> tuple[int, float]:
    """The smaller, the better an action that raises MES.

    Algorithm 1 takes argmin dAcc / dMES. The ratio means nothing once an action costs no accuracy, so contract
    6.7 puts those first, the larger MES gain first; among actions that cost accuracy it is the paper's argmin.
    """
    return (0, -delta_mes) if delta_accuracy >= 0 else (1, -delta_accuracy / delta_mes)


def ranked(evaluated: Sequence[Evaluated]) -> list[Evaluated]:
    """The actions that raise MES, best first. Ties go to the smaller loss, then to the fixed order of actions."""
    raising = [e for e in evaluated if e.delta_mes > 0]
    return sorted(raising, key=lambda e: (order(e.delta_accuracy, e.delta_mes), e.score.loss, e.action))


def choose(evaluated: Sequence[Evaluated]) -> Evaluated | None:
    """The action to execute, or None if none raises MES."""
    return next(iter(ranked(evaluated)), None)


def by_price(gains: Sequence[float]) -> Rank:
    """The same order for an evaluator that races: of candidates by number, given what each gains of MES."""

    def rank(i: int, current: Score, score: Score) -> tuple | None:
        return (order(score.accuracy - current.accuracy, gains[i]), score.loss, i) if gains[i] > 0 else None

    return rank


def evaluate_actions(
    state: State,
    actions: Sequence[tuple[Action, Selection]],
    costs: CostFunction,
    evaluator: Evaluator,
    objective: Objective,
    rank: Callable[[Sequence[float]], Rank] = by_price,
    places: int = 1,
) -> tuple[State, tuple[Evaluated, ...]]:
    """Scores the current state and every action; raises `WorkError` on a score that is not a number, and if the
    evaluator fails: what the search has written until then is whole, and it can go on from there."""
    selections = [selection for _, selection in actions]
    found = [costs(selection) for selection in selections]
    before = objective.compass(state.costs)
    gains = [objective.compass(new) - before for new in found]
    current, *scores = _scores(evaluator, state.selection, selections, rank(gains), places)
    result = []
    for (action, selection), score, new, gain in zip(actions, scores, found, gains, strict=True):
        change = score.accuracy - current.accuracy
        deltas = {name: new[name] - state.costs[name] for name in new}
        result.append(Evaluated(action, selection, score, new, change, deltas, gain))
    return replace(state, score=current), tuple(result)


def _scores(
    evaluator: Evaluator, current: Selection, candidates: list[Selection], rank: Rank, places: int
) -> list[Score]:
    race = getattr(evaluator, "race", None)
    if race:
        return checked_scores(lambda: race(current, candidates, rank, places), 1 + len(candidates))
    return checked_scores(lambda: evaluator(current, candidates), 1 + len(candidates))


def checked_scores(evaluate: Callable[[], list[Score]], count: int) -> list[Score]:
    """Raises `WorkError` unless there are that many scores, all of them numbers."""
    try:
        scores = evaluate()
    except (UserError, WorkError, OSError):  # they say themselves what they are
        raise
    except Exception as error:
        text = f"{type(error).__name__}: {first_line(error)}"
        raise WorkError(f"the search stopped: its subnets could not be scored ({text})") from error
    if len(scores) != count:
        raise WorkError(f"the search stopped: {len(scores)} scores for {count} subnets")
    if not all(math.isfinite(x) for s in scores for x in (s.accuracy, s.loss)):
        raise WorkError("the search stopped: a subnet's accuracy or loss is not a finite number")
    return scores


def joint_search(
    start: Selection,
    costs: CostFunction,
    evaluator: Evaluator,
    objective: Objective,
    step: int = 0,
    actions: Callable[[Selection], Sequence[tuple[Action, Selection]]] = frontier,
) -> Iterator[Move]:
    """Executes one action after another until all budgets hold or none raises MES; yields each move.

    `start` with `step` > 0 continues an earlier trajectory: the moves depend on the state alone. Why the search
    stopped is the generator's return value.
    """
    state = State.of(start, costs, objective)
    while not objective.met(state.costs):
        state, evaluated = evaluate_actions(state, actions(state.selection), costs, evaluator, objective)
        chosen = choose(evaluated)
        if chosen is None:
            return NOTHING_RAISES_MES
        step += 1
        yield Move(step, state, evaluated, chosen)
        state = State(chosen.selection, chosen.costs, objective.mes(chosen.costs))
    return BUDGETS_HOLD
