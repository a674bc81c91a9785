"""Shipping on a measurement: the candidate that ships holds the budgets as measured (contract 6.9).

The last states of the trajectory are exported and timed whole, whatever the table's error; the best of them a second
time, in a sitting of its own. What a network takes does not depend on its weights: both come before its training.
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

ROUNDS = 6  # of correcting the table by measurements, for each file that is exported
_NEIGHBOURS = 2  # states before the last that are timed with it
# Timings of one file differ by about this much between runs; a candidate keeps the margin, so that the file
# that ships still holds the budget when it is timed again.
MARGIN = 0.015
_AGREES = 0.02  # of a latency; a table that was measured to be off by no more is not corrected

# name -> architecture to name -> {"latency", "raw", "spread", "rounds", "sessions"}, ms
Timer = Callable[[dict[str, Architecture]], dict[str, dict[str, float]]]


class Measured:
    """Whole networks that were timed, kept in `measured.jsonl` so that a resumed run decides on the same numbers."""

    def __init__(self, path: Path, time: Timer, ledger: Ledger):
        self.path, self.time, self.ledger = path, time, ledger
        lines = files.Lines.read(path)
        self._known = {line["architecture"]: line["latency"] for line in lines if "sitting" not in line}
        self._again = {line["architecture"]: line["latency"] for line in lines if "sitting" in line}

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

    def again(self, architecture: Architecture) -> dict[str, float]:
        """The latency record of a second sitting."""
        key = self._key(architecture)
        if key not in self._again:
            found = self.time({key: architecture})[key]
            with files.Lines(self.path) as lines:
                lines.write({"architecture": key, "latency": found, "sitting": 2})
            self.ledger.did("measure", f"again {len(self._again)}")
            self._again[key] = found
        return self._again[key]

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
    """Slims until the table says that all budgets hold, regrows what helps within them, then times the end of the
    trajectory and corrects the table by what it finds, until the last state holds the budgets as measured and the
    table agrees with what was measured.

    Returns the candidates that hold all budgets as measured, the most accurate on the search split first: a budget is a
    ceiling, however much of it is used. Raises `WorkError` if there is none.
    """
    budgets = dict(trajectory.objective.budgets)
    candidates: dict[int, Candidate] = {}
    for _ in range(rounds):
        status = trajectory.slim()
        corrected = trajectory.costs.correction
        trajectory.regrow()
        points = trajectory.points()[-1 - _NEIGHBOURS :]
        no_move_left = points[-1].step in candidates
        for point, found in zip(points, measured([p.selection.architecture for p in points]), strict=True):
            costs = {**trajectory.costs(point.selection), "latency": found["latency"]}
            candidates[point.step] = Candidate(point, found, costs)
        last = candidates[points[-1].step]
        table = trajectory.costs.corrected(1.0)(last.point.selection)["latency"]
        factor = last.costs["latency"] * (1 + MARGIN) / table
        agrees = abs(factor / corrected - 1) <= _AGREES or "latency" not in budgets
        if _holds(last, trajectory) and agrees:
            break
        if no_move_left and factor == corrected:  # the space ends here; a file timed again gives another factor
            break
        trajectory.correct(factor)
    holding = [c for c in candidates.values() if _holds(c, trajectory)]
    if not holding:
        closest = min(candidates.values(), key=lambda c: max(usage(c, budgets).values(), default=0))
        shares = ", ".join(f"{name} {share:.0%}" for name, share in usage(closest, budgets).items())
        raise WorkError(f"no subnet holds all budgets ({status}); the closest uses {shares or 'too much'}")

    def rank(c: Candidate) -> tuple:
        return (-c.point.score.accuracy, c.point.score.loss, c.point.step)

    return sorted(holding, key=rank)


def _holds(candidate: Candidate, trajectory: Trajectory) -> bool:
    costs = {**candidate.costs, "latency": candidate.costs["latency"] * (1 + MARGIN)}
    return trajectory.objective.met(costs)
