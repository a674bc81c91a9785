"""The search on disk: `search.jsonl`, one line per evaluated action and per executed action (contract 5).

Steps count the executed actions of the whole file. An action was executed in the state of the step before it, unless
its line says the `parent` step: with a beam, and where the search goes on from another state than the last one.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pocketformer.architecture import SearchSpace, Selection
from pocketformer.errors import UserError
from pocketformer.search.beam import Turn
from pocketformer.search.joint import Costs, Evaluated, Move, Score, State
from pocketformer.search.metrics import from_key, kind_of, to_key

if TYPE_CHECKING:
    from pocketformer.search.alternatives import Round

_OTHER_NUMBERS = ("step", "mes", "min_mes")  # of a start line; all its further numbers are costs


@dataclass(frozen=True)
class Point:
    """One state of a trajectory, reached by step `step` from that of step `parent`."""

    step: int
    selection: Selection
    score: Score
    costs: Costs
    mes: float
    phase: str
    parent: int = -1


def _costs(costs: Costs, prefix: str = "") -> dict:
    return {prefix + to_key(name): value for name, value in costs.items()}


def _images(score: Score) -> dict:
    """How many images a race gave a subnet, if not all: its accuracy is at most what the line says."""
    return {"images": score.images} if hasattr(score, "images") else {}


def _parent(step: int, parent: int | None) -> dict:
    return {} if parent in (None, step - 1) else {"parent": parent}


def _line(kind: str, step: int, phase: str, e: Evaluated, mes: float, chosen: bool, parent: int | None) -> dict:
    return {
        "type": kind,
        "step": step,
        **_parent(step, parent),
        "phase": phase,
        "action": e.action.to_dict(),
        "text": str(e.action),
        "selection": e.selection.to_dict(),
        "accuracy": e.score.accuracy,
        "loss": e.score.loss,
        **_images(e.score),
        **_costs(e.costs),
        "mes": mes,
        "delta_accuracy": e.delta_accuracy,
        **_costs(e.delta_costs, "delta_"),
        "delta_mes": e.delta_mes,
        "chosen": chosen,
    }


def _before(state: State) -> dict:
    return {"before": {"accuracy": state.score.accuracy, "loss": state.score.loss, "mes": state.mes}}


def start_line(selection: Selection, costs: Costs, mes: float, settings: dict) -> dict:
    """First line of a trajectory: where it starts and under which objective."""
    return {"type": "start", "step": 0, "selection": selection.to_dict(), **_costs(costs), "mes": mes, **settings}


def move_lines(move: Move, mes_of: Callable[[Costs], float], parent: int | None = None) -> list[dict]:
    """A move's lines: every evaluated action, then the executed one with the state it was executed in, or, of
    reverse moves, that none was taken."""

    def line(kind: str, e: Evaluated) -> dict:
        return _line(kind, move.step, move.phase, e, mes_of(e.costs), e is move.chosen, parent)

    lines = [line("evaluated", e) for e in move.evaluated]
    if move.chosen is None:
        return [*lines, {"type": "declined", "step": move.step - 1}]
    return [*lines, {**line("executed", move.chosen), **_before(move.state)}]


def turn_lines(turn: Turn, mes_of: Callable[[Costs], float]) -> list[dict]:
    """A beam's turn: the frontier of every place, then the executed actions, numbered if there are several."""
    lines, executed = [], {id(k.chosen) for k in turn.kept}
    first = turn.kept[0].step
    for x in turn.expanded:
        for e in x.evaluated:
            chosen = id(e) in executed
            lines.append(_line("evaluated", first, "slim", e, mes_of(e.costs), chosen, x.place.step))
    for i, k in enumerate(turn.kept, 1):
        line = _line("executed", k.step, "slim", k.chosen, mes_of(k.chosen.costs), True, k.parent.place.step)
        of = {"place": i, "places": len(turn.kept)} if len(turn.kept) > 1 else {}
        lines.append({**line, **_before(k.parent.state), **of})
    return lines


def round_lines(found: "Round", mes_of: Callable[[Costs], float]) -> list[dict]:
    """Proposals as evaluated, the one that is executed because it is better than all before, and what was scored in
    all; each is a step away from the largest subnet."""
    lines = [
        _line("evaluated", found.step, "propose", e, mes_of(e.costs), e is found.chosen, 0) for e in found.evaluated
    ]
    if found.chosen is not None:
        line = _line("executed", found.step, "propose", found.chosen, mes_of(found.chosen.costs), True, 0)
        lines.append({**line, **_before(found.start)})
    return [*lines, {"type": "round", "step": found.step, "evaluations": found.evaluations, **_before(found.start)}]


def end_line(step: int, status: str) -> dict:
    """Why a phase ended, and the step of the state that it leaves."""
    return {"type": "end", "step": step, "status": status}


def checked(lines: list, where: str | os.PathLike) -> list[dict]:
    """Lines as a file of a search holds them. Raises `UserError` for others, which names the file, `where`."""
    for number, line in enumerate(lines, 1):
        kind = line.get("type") if isinstance(line, dict) else None
        if not isinstance(kind, str) or (number == 1) != (kind == "start"):
            raise UserError(f"{where} is damaged, or no search's: line {number} is not one of its lines")
    return lines


def whole_moves(lines: list[dict]) -> list[dict]:
    """The lines without those of a move, or of a beam's turn, that a kill cut short."""

    def completes(line: dict) -> bool:
        of_a_round = line.get("phase") == "propose"
        return line["type"] != "evaluated" and not of_a_round and line.get("place") == line.get("places")

    last = max((i for i, line in enumerate(lines) if completes(line)), default=-1)
    return lines[: last + 1]


def evaluations(lines: list[dict]) -> int:
    """How many subnets a trajectory scored: every action, and each state that actions were evaluated in."""
    evaluated = [line for line in lines if line["type"] == "evaluated"]
    if any(line["phase"] == "propose" for line in evaluated):
        return len(evaluated) + 1  # the largest subnet, once
    return len(evaluated) + len({(line["step"], line.get("parent"), line["phase"]) for line in evaluated})


def last_turn(lines: list[dict]) -> list[int]:
    """Steps of the states that the last turn of a beam led to; that of the start if there was none."""
    steps: list[int] = []
    for line in reversed(lines):
        if line["type"] == "executed":
            steps.insert(0, line["step"])
        elif steps:
            break
    return steps or [0]


def points(space: SearchSpace, lines: list[dict]) -> list[Point]:
    """The states of a trajectory in the order of their steps, the start first. Raises `UserError` for lines of another
    space, and where something is missing."""
    try:
        return _points(space, lines)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"search.jsonl is damaged, or of another space ({type(error).__name__}: {error})") from None


def _points(space: SearchSpace, lines: list[dict]) -> list[Point]:
    found: list[Point] = []
    names: list[str] = []
    executed = [line for line in lines if line["type"] == "executed"]
    for line in lines:
        if line["type"] == "start":
            names = [k for k, v in line.items() if isinstance(v, int | float) and k not in _OTHER_NUMBERS]
            score = executed[0]["before"] if executed else {"accuracy": float("nan"), "loss": float("nan")}
            found.append(_point(space, line, names, score, "slim"))
        elif line["type"] == "executed":
            found.append(_point(space, line, names, line, line["phase"]))
    return found


def at_last_correction(states: list[Point], lines: list[dict]) -> list[Point]:
    """The states with latencies as the last correction of the table has them: a design's were written with the one that
    was in force."""
    factor, factors = 1.0, {0: 1.0}
    for line in lines:
        if line["type"] == "correction":
            factor = line["factor"]
        elif line["type"] == "executed":
            factors[line["step"]] = factor

    def corrected(point: Point) -> Point:
        change = factor / factors[point.step]
        costs = {n: v * change if kind_of(n) == "latency" else v for n, v in point.costs.items()}
        return replace(point, costs=costs)

    return [corrected(point) for point in states]


def _point(space: SearchSpace, line: dict, names: list[str], score: dict, phase: str) -> Point:
    return Point(
        line["step"],
        Selection.from_dict(space, line["selection"]),
        Score(score["accuracy"], score["loss"]),
        {from_key(name): line[name] for name in names},
        line["mes"],
        phase,
        line.get("parent", line["step"] - 1),
    )


def path_to(points: list[Point], step: int) -> list[Point]:
    """The states from the start to the one that `step` led to."""
    by_step, path = {p.step: p for p in points}, []
    while step in by_step:
        path.insert(0, by_step[step])
        step = by_step[step].parent
    return path
