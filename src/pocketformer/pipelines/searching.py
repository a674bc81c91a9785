"""The search stage: Algorithm 1 on a trained supernet, written as it goes, resumed where it was cut."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pocketformer import files, ranks
from pocketformer.architecture import Selection
from pocketformer.errors import UserError
from pocketformer.pipelines.costs import CostModel
from pocketformer.progress import Stage
from pocketformer.runs import Ledger
from pocketformer.search import Evaluated, Evaluator, Move, Objective, regrow
from pocketformer.search.alternatives import Round
from pocketformer.search.beam import Turn
from pocketformer.search.method import Begun, Method
from pocketformer.search.trajectory import (
    Point,
    checked,
    end_line,
    move_lines,
    points,
    round_lines,
    start_line,
    turn_lines,
    whole_moves,
)
from pocketformer.search.walk import Walk


@dataclass
class Trajectory:
    """A search and its file. `slim` and `regrow` continue from the last state; both may be called again with
    another correction of the latencies."""

    path: Path
    start: Selection
    costs: CostModel
    objective: Objective
    evaluator: Evaluator
    ledger: Ledger
    progress: Stage | None = None
    method: Method = field(default_factory=Walk)

    def __post_init__(self) -> None:
        lines = ranks.from_first(
            whole_moves(checked(files.Lines.read(self.path), self.path)) if ranks.first() else None
        )
        settings = {
            "budgets": dict(self.objective.budgets),
            "min_mes": self.objective.min_mes,
            "units": dict(self.objective.units),
            "exponents": dict(self.objective.exponents),
            "form": self.objective.form,
        }
        if method := self.method.to_dict():
            settings["walk"] = method
        plain = self.costs(self.start)
        first = start_line(self.start, plain, self.objective.mes(plain), settings)
        if lines and lines[0] != files.as_json(first):
            raise UserError(f"{self.path} is of another search: its start or objective differs")
        count = len(lines)
        self._file = files.Lines(self.path, keep=_first(count)) if ranks.first() else None
        self.lines = lines
        self._replayed = 1
        if not lines:
            self._write(first)

    def _write(self, *lines: dict) -> None:
        if self._file is not None:
            self._file.write(*lines)
        self.lines.extend(files.as_json(line) for line in lines)
        self._replayed = len(self.lines)

    def points(self) -> list[Point]:
        return points(self.start.space, self.lines[: self._replayed])

    def here(self) -> Point:
        """The state that the search goes on from: the last one, or what a beam has left."""
        step = self.lines[self._replayed - 1]["step"]
        return next(point for point in self.points() if point.step == step)

    def correct(self, factor: float) -> float:
        """Scales the table's latencies from here on. A resumed search takes the factor that stands written: it
        comes from a measurement, which would not repeat to the last bit."""
        if self._replayed < len(self.lines):
            line = self.lines[self._replayed]
            if line["type"] != "correction":
                raise UserError(f"{self.path} is of another search: it goes on with {line['type']!r}")
            self._replayed += 1
            factor = line["factor"]
        else:
            self._write({"type": "correction", "step": self.here().step, "factor": factor})
        self.costs = self.costs.corrected(factor)
        return factor

    def slim(self) -> str:
        def moves() -> Iterator[Move | Turn | Round]:
            return self.method.moves(Begun(self.lines, self.points(), self.costs, self.evaluator, self.objective))

        return self._go_on(moves, lambda: self.method.result(self.points(), self.objective))

    def regrow(self) -> str:
        def moves() -> Iterator[Move]:
            last = self.points()[-1].step
            return regrow(self.here().selection, self.costs, self.evaluator, self.objective, last)

        return self._go_on(moves, self.here)

    def _go_on(self, phase: Callable[[], Iterator[Move | Turn | Round]], result: Callable[[], Point]) -> str:
        """Runs a phase to its end; replays what an earlier process has already written of it."""
        while self._replayed < len(self.lines):
            line = self.lines[self._replayed]
            if line["type"] == "correction":
                break
            self._replayed += 1
            if line["type"] == "end":
                return line["status"]
        moves = phase()
        while True:
            try:
                move = next(moves)
            except StopIteration as stop:
                self._write(end_line(result().step, stop.value))
                return stop.value
            if isinstance(move, Round):
                self._write(*round_lines(move, self.objective.mes))
                self.ledger.did("search", f"evaluation {move.evaluations}")
                if self.progress:
                    self.progress.update(move.evaluations, self._best(), move.given)
                continue
            if isinstance(move, Turn):
                step, chosen = move.kept[-1].step, move.kept[0].chosen
                self._write(*turn_lines(move, self.objective.mes))
            else:
                step, chosen = move.step, move.chosen
                self._write(*move_lines(move, self.objective.mes, self.here().step))
            self.ledger.did("search", step if chosen else f"reverse moves of {step - 1}")
            if self.progress and chosen:
                self.progress.update(step, self._note(chosen), self._expected_steps(step, chosen))

    def _best(self) -> str:
        found = self.points()[1:]
        return f"best: {found[-1].score.accuracy:.1%} on search" if found else "none holds the budgets yet"

    def _expected_steps(self, step: int, chosen: Evaluated) -> int | None:
        """Steps until the budgets hold, if each went on to cut costs by the same share."""
        if not self.objective.budgets:
            return None
        first = max(self.objective.usage(self.costs(self.start)).values())
        now = max(self.objective.usage(chosen.costs).values())
        if not 1 < now < first:
            return step
        return round(step * math.log(first) / math.log(first / now))

    def _note(self, chosen: Evaluated) -> str:
        usage = self.objective.usage(chosen.costs)
        shares = [f"{name} {share:.0%} of budget" for name, share in usage.items()]
        told = ", ".join(shares) or f"MES {self.objective.mes(chosen.costs):.1f}"
        return f"{chosen.action}; accuracy {chosen.score.accuracy:.1%} on search; {told}"

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _first(count: int) -> Callable[[dict], bool]:
    seen = iter(range(count))
    return lambda line: next(seen, None) is not None
