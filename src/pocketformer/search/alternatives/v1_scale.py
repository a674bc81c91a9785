"""The search of EfficientFormer (V1) on V2's space: depth and width only, by latency only (V2 App. B, Fig. 3)."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from pocketformer.architecture import Selection
from pocketformer.errors import UserError
from pocketformer.search.frontier import Action, frontier
from pocketformer.search.joint import Move, joint_search
from pocketformer.search.method import Begun
from pocketformer.search.metrics import kind_of
from pocketformer.search.objective import Objective
from pocketformer.search.trajectory import Point

Actions = Callable[[Selection], list[tuple[Action, Selection]]]


@dataclass(frozen=True)
class PerMillisecond(Objective):
    """Its compass is the time saved, so that actions go by V1's price: accuracy drop per ms (V1 Sec. 4.2)."""

    def compass(self, costs: Mapping[str, float]) -> float:
        return -sum(value for name, value in costs.items() if kind_of(name) == "latency")

    @classmethod
    def of(cls, objective: Objective) -> "PerMillisecond":
        if not any(kind_of(name) == "latency" for name in objective.budgets):
            raise UserError("a search by latency alone needs a latency budget (--max-latency)")
        return cls(objective.budgets, objective.min_mes, objective.units, objective.exponents, objective.form)


def coarse(selection: Selection) -> list[tuple[Action, Selection]]:
    """The slimming actions that V1 knows of: one block, one stage's width. Expansions stay as they are."""
    return [(action, smaller) for action, smaller in frontier(selection) if action.kind != "expansion"]


class V1Scale:
    """Algorithm 1's loop with V1's actions and price. A budget on anything else is met the same way."""

    def moves(self, begun: Begun) -> Iterator[Move]:
        return latency_only(begun, begun.last.selection, begun.last.step)

    def to_dict(self) -> dict:
        return {"method": "v1-scale"}

    def result(self, points: list[Point], objective: Objective) -> Point:
        return points[-1]


def latency_only(
    begun: Begun, start: Selection, step: int, budgets: Mapping[str, float] | None = None, actions: Actions = coarse
) -> Iterator[Move]:
    """From `start`, which step `step` led to, until the budgets hold: those of the search, or others instead."""
    objective = begun.objective if budgets is None else replace(begun.objective, budgets=budgets, min_mes=None)
    moves = joint_search(start, begun.costs, begun.evaluator, PerMillisecond.of(objective), step, actions)
    while True:
        try:
            yield _in_mes(next(moves), begun.objective)
        except StopIteration as stop:
            return stop.value


def _in_mes(move: Move, objective: Objective) -> Move:
    """The same move, with gains as other trajectories write them."""
    before = objective.compass(move.state.costs)
    told = {id(e): replace(e, delta_mes=objective.compass(e.costs) - before) for e in move.evaluated}
    return replace(move, evaluated=tuple(told.values()), chosen=told[id(move.chosen)])
