"""What the alternatives that propose subnets have in common: the evaluations that they are given, and their lines.

A proposal does not depend on the one before by an action, so each stands as a step away from the largest subnet.
"""

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

from pocketformer.architecture import SearchSpace, Selection
from pocketformer.errors import UserError, WorkError
from pocketformer.search.joint import BUDGETS_HOLD, CostFunction, Evaluated, Evaluator, Score, State, checked_scores
from pocketformer.search.method import Begun
from pocketformer.search.objective import Objective
from pocketformer.search.trajectory import Point

# Proposes subnets, and is sent their scores.
Proposals = Generator[Sequence[Selection], Sequence[Score], None]

ALL_EVALUATED = "all evaluations made"
NONE_LEFT = "no further subnet to propose"
TOGETHER = 8  # subnets that share a pass over the images where a method does not need their scores one by one


@dataclass(frozen=True)
class Problem:
    """`costs` keeps what it has said once."""

    space: SearchSpace
    costs: CostFunction
    objective: Objective

    def fits(self, selection: Selection) -> bool:
        return self.objective.met(self.costs(selection))


@dataclass(frozen=True)
class Proposal:
    """Where an evaluated line has an action. `how` is the method's word for it."""

    number: int
    how: str

    def __str__(self) -> str:
        return f"{self.how} {self.number}"

    def to_dict(self) -> dict:
        return {"kind": self.how, "number": self.number}


@dataclass(frozen=True)
class Round:
    """Proposals as evaluated; deltas are from the largest subnet. `chosen` holds all budgets and is better than all
    that do before it; `step` is that of the best subnet so far, `evaluations` counts what has been scored, of those
    `given`."""

    step: int
    start: State
    evaluated: tuple[Evaluated, ...]
    chosen: Evaluated | None
    evaluations: int
    given: int


def better(score: Score) -> tuple[float, float]:
    """The larger, the better."""
    return score.accuracy, -score.loss


@dataclass(frozen=True)
class Proposing(ABC):
    """A method that scores `evaluations` subnets, the largest among them, and keeps the most accurate that holds all
    budgets. What it proposes is a function of the seed and of the scores: it goes on with a trajectory by proposing
    the same again."""

    evaluations: int
    seed: int = 0

    name = ""
    how = "proposal"

    def __post_init__(self) -> None:
        if self.evaluations < 2:
            raise UserError(f"--method {self.name} needs at least 2 evaluations, not {self.evaluations}")

    @abstractmethod
    def propose(self, problem: Problem) -> Proposals: ...

    def to_dict(self) -> dict:
        return {"method": self.name, "evaluations": self.evaluations, "seed": self.seed}

    def moves(self, begun: Begun) -> Iterator[Round]:
        """The rounds that follow on a trajectory's lines."""
        points, objective = begun.points, begun.objective
        if objective.met(points[0].costs):
            return BUDGETS_HOLD
        problem = Problem(points[0].selection.space, cache(begun.costs), objective)
        start, known = _start(begun.lines, points[0].selection, problem), _Known(begun.lines)
        step, made, best = points[-1].step, 1, None
        proposals = self.propose(problem)
        batch = next(proposals, None)
        while batch:
            batch = batch[: self.evaluations - made]
            scores = known.scores(batch)
            if new := scores is None:
                own, scores = _scored(begun.evaluator, start, batch)
                start = replace(start, score=own)
            evaluated = tuple(
                _evaluated(Proposal(made + i, self.how), selection, score, start, problem)
                for i, (selection, score) in enumerate(zip(batch, scores, strict=True))
            )
            made += len(batch)
            fitting = [e for e in evaluated if objective.met(e.costs)]
            chosen = max(fitting, key=lambda e: better(e.score), default=None)
            if chosen is not None and (best is None or better(chosen.score) > better(best.score)):
                best = chosen
            else:
                chosen = None
            if new:
                step += chosen is not None
                yield Round(step, start, evaluated, chosen, made, self.evaluations)
            batch = _next(proposals, scores) if made < self.evaluations else None
        if best is None:
            raise WorkError(f"--method {self.name} found no subnet that holds all budgets in {made} evaluations")
        return ALL_EVALUATED if made >= self.evaluations else NONE_LEFT

    def result(self, points: list[Point], objective: Objective) -> Point:
        return points[-1]


def _next(proposals: Proposals, scores: Sequence[Score]) -> Sequence[Selection] | None:
    try:
        return proposals.send(scores)
    except StopIteration:
        return None


class _Known:
    """The scores that stand written, in their order."""

    def __init__(self, lines: list[dict]):
        self._lines = [line for line in lines if line["type"] == "evaluated"]
        self._given = 0

    def scores(self, batch: Sequence[Selection]) -> list[Score] | None:
        lines = self._lines[self._given : self._given + len(batch)]
        if not lines:
            return None
        if [line["selection"] for line in lines] != [selection.to_dict() for selection in batch]:
            raise UserError("the trajectory is of another search: its proposals differ")
        self._given += len(batch)
        return [Score(line["accuracy"], line["loss"]) for line in lines]


def _start(lines: list[dict], selection: Selection, problem: Problem) -> State:
    state = State.of(selection, problem.costs, problem.objective)
    written = next((line["before"] for line in lines if line["type"] == "round"), None)
    return state if written is None else replace(state, score=Score(written["accuracy"], written["loss"]))


def _scored(evaluator: Evaluator, start: State, batch: Sequence[Selection]) -> tuple[Score, list[Score]]:
    """The largest subnet's score, which is found once, and those of the batch."""
    subnets = list(batch) if start.score is not None else [start.selection, *batch]
    scores = checked_scores(lambda: evaluator(subnets[0], subnets[1:]), len(subnets))
    return (start.score, scores) if start.score is not None else (scores[0], scores[1:])


def _evaluated(action: Proposal, selection: Selection, score: Score, start: State, problem: Problem) -> Evaluated:
    costs = problem.costs(selection)
    deltas = {name: costs[name] - start.costs[name] for name in costs}
    gain = problem.objective.compass(costs) - problem.objective.compass(start.costs)
    return Evaluated(action, selection, score, costs, score.accuracy - start.score.accuracy, deltas, gain)
