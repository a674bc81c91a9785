"""How a search goes from the largest subnet to its budgets, and how it goes on from what an earlier process wrote."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from pocketformer.architecture import Selection
from pocketformer.errors import UserError
from pocketformer.search.beam import Place, Turn, beam_search
from pocketformer.search.joint import Move, joint_search
from pocketformer.search.method import Begun
from pocketformer.search.objective import Objective
from pocketformer.search.reverse import Slimmed, reversible_search
from pocketformer.search.trajectory import Point, last_turn


@dataclass(frozen=True)
class Walk:
    """Algorithm 1 as it stands, or with reverse moves behind each step (`regrow`), or with `beam` states at once."""

    regrow: bool = False
    beam: int = 1

    def __post_init__(self) -> None:
        if self.beam < 1:
            raise UserError(f"a beam needs a place, not {self.beam}")
        if self.regrow and self.beam > 1:
            raise UserError("--regrow follows one state: leave out --beam")

    def to_dict(self) -> dict:
        """What differs from Algorithm 1."""
        return {name: value for name, value in asdict(self).items() if value != getattr(Walk, name)}

    def moves(self, begun: Begun) -> Iterator[Move | Turn]:
        known, last = (begun.costs, begun.evaluator, begun.objective), begun.last
        if self.beam > 1:
            return self._beam(begun)
        if self.regrow:
            return reversible_search(last.selection, *known, last.step, self._slimmed(begun))
        return joint_search(last.selection, *known, last.step)

    def _beam(self, begun: Begun) -> Iterator[Turn]:
        points, objective = begun.points, begun.objective
        reached = [Place(p.step, p.selection) for p in points]
        turn = set(last_turn(begun.lines))
        places = [p for p in reached if p.step in turn and not objective.met(begun.costs(p.selection))]
        first = points[0].score.accuracy if len(points) > 1 else None
        known = (begun.costs, begun.evaluator, objective)
        return beam_search(points[0].selection, *known, self.beam, places, reached, first)

    @staticmethod
    def _slimmed(begun: Begun) -> Slimmed | None:
        """The step behind which a kill came before its reverse moves were tried."""
        line = begun.lines[-1]
        if line["type"] != "executed" or line["phase"] != "slim":
            return None
        before: Selection = begun.points[-2].selection
        return Slimmed(before, line["delta_accuracy"], line["delta_mes"])

    def result(self, points: list[Point], objective: Objective) -> Point:
        """The state that slimming leaves: of those that hold all budgets the most accurate, else the last one."""
        holding = [p for p in points if objective.met(p.costs)] if self.beam > 1 else []
        return max(holding, key=lambda p: (p.score.accuracy, -p.score.loss, -p.step), default=points[-1])
