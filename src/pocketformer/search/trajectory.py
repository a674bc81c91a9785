"""The search on disk: `search.jsonl`, one line per evaluated action and per executed action (contract 5)."""

from collections.abc import Callable
from dataclasses import dataclass

from pocketformer.architecture import SearchSpace, Selection
from pocketformer.search.joint import Costs, Evaluated, Move, Score


@dataclass(frozen=True)
class Point:
    """One state of a finished trajectory."""

    step: int
    selection: Selection
    score: Score
    costs: Costs
    mes: float
    phase: str


def _costs(costs: Costs, prefix: str = "") -> dict:
    names = {"size": "parameters"}
    return {prefix + names.get(name, name): value for name, value in costs.items()}


def _line(move: Move, e: Evaluated, kind: str, mes: float) -> dict:
    return {
        "type": kind,
        "step": move.step,
        "phase": move.phase,
        "action": e.action.to_dict(),
        "text": str(e.action),
        "selection": e.selection.to_dict(),
        "accuracy": e.score.accuracy,
        "loss": e.score.loss,
        **_costs(e.costs),
        "mes": mes,
        "delta_accuracy": e.delta_accuracy,
        **_costs(e.delta_costs, "delta_"),
        "delta_mes": e.delta_mes,
        "chosen": e is move.chosen,
    }


def start_line(selection: Selection, costs: Costs, mes: float, settings: dict) -> dict:
    """First line of a trajectory: where it starts and under which objective."""
    return {"type": "start", "step": 0, "selection": selection.to_dict(), **_costs(costs), "mes": mes, **settings}


def move_lines(move: Move, mes_of: Callable[[Costs], float]) -> list[dict]:
    """A move's lines: every evaluated action, then the executed one with the state it was executed in."""
    lines = [_line(move, e, "evaluated", mes_of(e.costs)) for e in move.evaluated]
    executed = _line(move, move.chosen, "executed", mes_of(move.chosen.costs))
    before = {"accuracy": move.state.score.accuracy, "loss": move.state.score.loss, "mes": move.state.mes}
    return [*lines, {**executed, "before": before}]


def end_line(step: int, status: str) -> dict:
    return {"type": "end", "step": step, "status": status}


def whole_moves(lines: list[dict]) -> list[dict]:
    """The lines without those of a move that a kill cut short."""
    last = max((i for i, line in enumerate(lines) if line["type"] != "evaluated"), default=-1)
    return lines[: last + 1]


def points(space: SearchSpace, lines: list[dict]) -> list[Point]:
    """The states of a trajectory in order, the start first."""
    found = []
    executed = [line for line in lines if line["type"] == "executed"]
    for line in lines:
        if line["type"] == "start":
            score = executed[0]["before"] if executed else {"accuracy": float("nan"), "loss": float("nan")}
            found.append(_point(space, line, score, "slim"))
        elif line["type"] == "executed":
            found.append(_point(space, line, line, line["phase"]))
    return found


def _point(space: SearchSpace, line: dict, score: dict, phase: str) -> Point:
    costs = {"size": line["parameters"], "latency": line["latency"]}
    if "memory" in line:
        costs["memory"] = line["memory"]
    return Point(
        line["step"],
        Selection.from_dict(space, line["selection"]),
        Score(score["accuracy"], score["loss"]),
        costs,
        line["mes"],
        phase,
    )
