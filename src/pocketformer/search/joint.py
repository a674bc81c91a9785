"""The fine-grained joint search on size and speed (paper Sec. 4.2.3, Algorithm 1; contract 6.7).

An algorithm over values: it knows neither the supernet nor the device, only a cost function and an evaluator.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from pocketformer.architecture import Selection
from pocketformer.errors import WorkError
from pocketformer.search.frontier import Action, frontier, regrowth
from pocketformer.search.objective import Objective

Costs = Mapping[str, float]


@dataclass(frozen=True)
class Score:
    """Accuracy (0 to 1) and mean loss on the search split."""

    accuracy: float
    loss: float


class Evaluator(Protocol):
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


@dataclass(frozen=True)
class Move:
    """One turn of Algorithm 1's loop: the frontier as evaluated at `state`, and the action executed."""

    step: int
    state: State
    evaluated: tuple[Evaluated, ...]
    chosen: Evaluated
    phase: str = "slim"  # or "regrow"


BUDGETS_HOLD = "all budgets hold"
NOTHING_RAISES_MES = "no action raises MES"


def choose(evaluated: Sequence[Evaluated]) -> Evaluated | None:
    """The action to execute, or None if none raises MES.

    Algorithm 1 takes argmin dAcc / dMES. The ratio means nothing once an action costs no accuracy, so contract
    6.7 puts those first, the larger MES gain first; among actions that cost accuracy it is the paper's argmin.
    Ties go to the smaller loss, then to the fixed order of actions.
    """
    raising = [e for e in evaluated if e.delta_mes > 0]

    def rank(e: Evaluated) -> tuple:
        drop = -e.delta_accuracy
        if drop <= 0:
            return (0, -e.delta_mes, e.score.loss, e.action)
        return (1, drop / e.delta_mes, e.score.loss, e.action)

    return min(raising, key=rank, default=None)


def evaluate_actions(
    state: State,
    actions: Sequence[tuple[Action, Selection]],
    costs: Callable[[Selection], Costs],
    evaluator: Evaluator,
    objective: Objective,
) -> tuple[State, tuple[Evaluated, ...]]:
    """Scores the current state and every action; raises `WorkError` on a score that is not a number."""
    current, *scores = evaluator(state.selection, [selection for _, selection in actions])
    if not all(math.isfinite(x) for s in (current, *scores) for x in (s.accuracy, s.loss)):
        raise WorkError("the search stopped: a subnet's accuracy or loss is not a finite number")
    state = State(state.selection, state.costs, state.mes, current)
    before = objective.compass(state.costs)
    result = []
    for (action, selection), score in zip(actions, scores, strict=True):
        new = costs(selection)
        result.append(
            Evaluated(
                action,
                selection,
                score,
                new,
                score.accuracy - current.accuracy,
                {name: new[name] - state.costs[name] for name in new},
                objective.compass(new) - before,
            )
        )
    return state, tuple(result)


def joint_search(
    start: Selection,
    costs: Callable[[Selection], Costs],
    evaluator: Evaluator,
    objective: Objective,
    step: int = 0,
) -> Iterator[Move]:
    """Executes one action after another until all budgets hold or none raises MES; yields each move.

    `start` with `step` > 0 continues an earlier trajectory: the moves depend on the state alone. Why the search
    stopped is the generator's return value.
    """
    state = State(start, costs(start), objective.mes(costs(start)))
    while not objective.met(state.costs):
        state, evaluated = evaluate_actions(state, frontier(state.selection), costs, evaluator, objective)
        chosen = choose(evaluated)
        if chosen is None:
            return NOTHING_RAISES_MES
        step += 1
        yield Move(step, state, evaluated, chosen)
        state = State(chosen.selection, chosen.costs, objective.mes(chosen.costs))
    return BUDGETS_HOLD


def regrow(
    start: Selection,
    costs: Callable[[Selection], Costs],
    evaluator: Evaluator,
    objective: Objective,
    share: float = 0.9,
    step: int = 0,
) -> Iterator[Move]:
    """Fills what the last slimming step left of the budgets (contract 6.9): while no budget is used to `share`,
    the reverse move that gains most accuracy among those that keep all budgets."""
    state = State(start, costs(start), objective.mes(costs(start)))
    while objective.budgets and max(objective.usage(state.costs).values()) < share:
        moves = [(a, s) for a, s in regrowth(state.selection) if objective.met(costs(s))]
        if not moves:
            return "no larger neighbour fits"
        state, evaluated = evaluate_actions(state, moves, costs, evaluator, objective)
        chosen = min(evaluated, key=lambda e: (-e.score.accuracy, e.score.loss, e.action))
        step += 1
        yield Move(step, state, evaluated, chosen, "regrow")
        state = State(chosen.selection, chosen.costs, objective.mes(chosen.costs))
    return "the binding budget is used"
