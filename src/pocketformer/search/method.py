"""What every search method has in common: how it goes on from a trajectory, and which state it leaves."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pocketformer.search.beam import Turn
from pocketformer.search.joint import CostFunction, Evaluator, Move
from pocketformer.search.objective import Objective
from pocketformer.search.trajectory import Point

if TYPE_CHECKING:
    from pocketformer.search.alternatives import Round


@dataclass(frozen=True)
class Begun:
    """A search as it stands: the lines of its trajectory and the states that they lead to, the start first; and what it
    goes by."""

    lines: list[dict]
    points: list[Point]
    costs: CostFunction
    evaluator: Evaluator
    objective: Objective

    @property
    def last(self) -> Point:
        return self.points[-1]


class Method(Protocol):
    """`search.Walk`, or one of `search.alternatives`."""

    def to_dict(self) -> dict:
        """Its settings, as far as they differ from Algorithm 1."""
        ...

    def moves(self, begun: Begun) -> Iterator["Move | Turn | Round"]:
        """What follows. Why it ended is the generator's return value."""
        ...

    def result(self, points: list[Point], objective: Objective) -> Point: ...
