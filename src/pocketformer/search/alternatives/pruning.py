"""Depth and width by V1's search, then expansions by magnitude (V2 App. B, Table 9)."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pocketformer.architecture import Selection
from pocketformer.search.alternatives.v1_scale import latency_only
from pocketformer.search.frontier import Action, frontier
from pocketformer.search.joint import Move, State, evaluate_actions
from pocketformer.search.method import Begun
from pocketformer.search.objective import Objective
from pocketformer.search.trajectory import Point

# Mean magnitude of the weights that an expansion action cuts off.
Magnitude = Callable[[Selection, Action], float]


@dataclass(frozen=True)
class Pruning:
    """The paper does not say where one ends and the other begins: ours share the way, V1's search going to the
    geometric mean of the largest subnet's costs and the budgets. Where no expansion is left to prune, it goes on to
    the end."""

    magnitude: Magnitude

    def to_dict(self) -> dict:
        return {"method": "pruning"}

    def moves(self, begun: Begun) -> Iterator[Move]:
        first, objective = begun.costs(begun.points[0].selection), begun.objective
        half = {name: max(budget, math.sqrt(budget * first[name])) for name, budget in objective.budgets.items()}
        selection, step = begun.last.selection, begun.last.step
        if not any(line["type"] == "executed" and line["action"]["kind"] == "expansion" for line in begun.lines):
            for move in latency_only(begun, selection, step, half):
                yield move
                selection, step = move.chosen.selection, move.step
        for move in self._pruned(begun, selection, step):
            yield move
            selection, step = move.chosen.selection, move.step
        return (yield from latency_only(begun, selection, step))

    def _pruned(self, begun: Begun, selection: Selection, step: int) -> Iterator[Move]:
        """One step of one expansion after another, the weakest channels first. Only what is executed is evaluated."""
        known, objective = (begun.costs, begun.evaluator, begun.objective), begun.objective
        state = State.of(selection, begun.costs, objective)
        while not objective.met(state.costs):
            actions = [pair for pair in frontier(state.selection) if pair[0].kind == "expansion"]
            if not actions:
                return
            weakest = min(actions, key=lambda pair: (self.magnitude(state.selection, pair[0]), pair[0]))
            state, (chosen,) = evaluate_actions(state, [weakest], *known)
            step += 1
            yield Move(step, state, (chosen,), chosen)
            state = State(chosen.selection, chosen.costs, objective.mes(chosen.costs))

    def result(self, points: list[Point], objective: Objective) -> Point:
        return points[-1]
