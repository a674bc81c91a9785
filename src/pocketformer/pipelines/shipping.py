"""Shipping on a measurement: the candidate that ships holds the budgets as measured (contract 6.9).

The last states of the trajectory are exported and timed whole, whatever the table's error.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pocketformer import files
from pocketformer.architecture import Architecture
from pocketformer.errors import WorkError
from pocketformer.pipelines.searching import Trajectory
from pocketformer.runs import Ledger
from pocketformer.search.trajectory import Point

SHARE = 0.9  # of the binding budget that the shipped network uses, unless the space ends
ROUNDS = 6  # of correcting the table by measurements, for each file that is exported
_NEIGHBOURS = 2  # states before the last that are timed with it
# Timings of one file differ by about this much between runs; a candidate keeps the margin, so that the file
# that ships still holds the budget when it is timed again.
MARGIN = 0.015

# name -> architecture to name -> {"latency", "raw", "spread", "rounds", "sessions"}, ms
Timer = Callable[[dict[str, Architecture]], dict[str, dict[str, float]]]


class Measured:
    """Whole networks that were timed, kept in `measured.jsonl` so that a resumed run decides on the same numbers."""

    def __init__(self, path: Path, time: Timer, ledger: Ledger):
        self.path, self.time, self.ledger = path, time, ledger
        self._known = {line["architecture"]: line["latency"] for line in files.Lines.read(path)}

    @staticmethod
    def _key(architecture: Architecture) -> str:
        return json.dumps(architecture.to_dict(), sort_keys=True)

    def __call__(self, architectures: list[Architecture]) -> list[dict[str, float]]:
        """Latency records of architectures, timing together those not timed before."""
        new = {key: a for a in architectures if (key := self._key(a)) not in self._known}
        if new:
            found = self.time(new)
            with files.Lines(self.path) as lines:
                lines.write(*({"architecture": key, "latency": found[key]} for key in new))
            self.ledger.did("measure", len(self._known))
            self._known.update(found)
        return [self._known[self._key(a)] for a in architectures]

    def replace(self, architecture: Architecture, latency: dict[str, float]) -> None:
        """A later, better measurement counts from here on."""
        key = self._key(architecture)
        if self._known.get(key) != latency:
            with files.Lines(self.path) as lines:
                lines.write({"architecture": key, "latency": latency})
            self._known[key] = latency


@dataclass(frozen=True)
class Candidate:
    point: Point
    measured: dict[str, float]
    costs: dict[str, float]  # with the measured latency

    @property
    def architecture(self) -> Architecture:
        return self.point.selection.architecture


def usage(candidate: Candidate, budgets: dict[str, float]) -> dict[str, float]:
    return {name: candidate.costs[name] / budget for name, budget in budgets.items()}


def search_and_measure(trajectory: Trajectory, measured: Measured, rounds: int = ROUNDS) -> list[Candidate]:
    """Slims until the table says that all budgets hold, regrows what a last large step left over, then times the
    end of the trajectory and corrects the table by what it finds, until the last state holds the budgets as
    measured and uses them.

    Returns the candidates that hold all budgets as measured, best first: those that use `SHARE` of a budget before
    those that do not, then by accuracy on the search split. Raises `WorkError` if there is none.
    """
    budgets = dict(trajectory.objective.budgets)
    candidates: dict[int, Candidate] = {}
    for _ in range(rounds):
        status = trajectory.slim()
        corrected = trajectory.costs.correction
        # What is used is judged as measured, and a corrected table has the margin in it.
        trajectory.regrow(SHARE if corrected == 1 else SHARE * (1 + MARGIN))
        points = trajectory.points()[-1 - _NEIGHBOURS :]
        no_move_left = points[-1].step in candidates
        for point, found in zip(points, measured([p.selection.architecture for p in points]), strict=True):
            costs = {**trajectory.costs(point.selection), "latency": found["latency"]}
            candidates[point.step] = Candidate(point, found, costs)
        last = candidates[points[-1].step]
        used = max(usage(last, budgets).values(), default=1.0)
        if _holds(last, trajectory) and used >= SHARE:
            break
        table = trajectory.costs.corrected(1.0)(last.point.selection)["latency"]
        factor = last.costs["latency"] * (1 + MARGIN) / table
        if no_move_left and factor == corrected:  # the space ends here; a file timed again gives another factor
            break
        trajectory.correct(factor)
    holding = [c for c in candidates.values() if _holds(c, trajectory)]
    if not holding:
        closest = min(candidates.values(), key=lambda c: max(usage(c, budgets).values(), default=0))
        shares = ", ".join(f"{name} {share:.0%}" for name, share in usage(closest, budgets).items())
        raise WorkError(f"no subnet holds all budgets ({status}); the closest uses {shares or 'too much'}")

    def rank(c: Candidate) -> tuple:
        used = max(usage(c, budgets).values(), default=1.0)
        return (used < SHARE, -c.point.score.accuracy, c.point.score.loss, c.point.step)

    return sorted(holding, key=rank)


def _holds(candidate: Candidate, trajectory: Trajectory) -> bool:
    costs = {**candidate.costs, "latency": candidate.costs["latency"] * (1 + MARGIN)}
    return trajectory.objective.met(costs)
