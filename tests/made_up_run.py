"""A run of `design` that holds everything, with made-up figures. Shared by the tests of the report."""

import json
import math
import random
from pathlib import Path

import yaml

from pocketformer.architecture import Architecture, SearchSpace, Selection
from pocketformer.search import Objective, Score, joint_search, regrow
from pocketformer.search.trajectory import end_line, move_lines, start_line

HOSTILE = '<script>alert("x")</script>'
CLASSES = ["T-shirt", "a<b & 'c'", HOSTILE, *(f"class {i}" for i in range(7))]
CORRECTION = 1.07


def _latency(architecture: Architecture) -> float:
    return sum(0.004 + b.macs() / 2.5e7 for b in architecture.blocks(None, 10, False))


def costs_of(selection: Selection, factor: float = 1.0) -> dict[str, float]:
    network = selection.architecture
    return {
        "size": network.parameters(10, False),
        "latency": factor * _latency(network),
        "memory": network.peak_memory(num_classes=10),
    }


def _accuracy(selection: Selection) -> float:
    """Made up: more multiply-adds are better with diminishing returns, plus noise of the selection."""
    noise = random.Random(str(selection.to_dict())).gauss(0, 0.004)
    return 0.9 - 0.25 * math.exp(-selection.architecture.macs(None, 10, False) / 1.5e6) + noise


def _evaluate(current: Selection, candidates) -> list[Score]:
    return [Score(_accuracy(s), 1.2 - _accuracy(s)) for s in (current, *candidates)]


def _search(space: SearchSpace, objective: Objective) -> tuple[list[dict], Selection, int]:
    lines, selection, step = [], space.whole, 0
    settings = {"budgets": dict(objective.budgets), "min_mes": None, "form": objective.form}
    settings |= {"units": dict(objective.units), "exponents": dict(objective.exponents)}
    costs = costs_of(selection)
    lines.append(start_line(selection, costs, objective.mes(costs), settings))
    phases = [(joint_search, 1.0), (joint_search, CORRECTION), (regrow, CORRECTION)]
    for i, (phase, factor) in enumerate(phases):
        if i == 1:
            lines.append({"type": "correction", "step": step, "factor": factor})
        moves = phase(selection, lambda s, f=factor: costs_of(s, f), _evaluate, objective, step=step)
        while True:
            try:
                move = next(moves)
            except StopIteration as stop:
                lines.append(end_line(step, stop.value))
                break
            lines += move_lines(move, objective.mes)
            selection, step = move.chosen.selection, move.step
    return lines, selection, step


def _row(name: str, title: str, selection: Selection, objective: Objective, correct: int) -> dict:
    costs, share = costs_of(selection, CORRECTION), correct / 2000
    half = 1.96 * math.sqrt(share * (1 - share) / 2000)
    interval = [share - half, share + half]
    return {
        "name": name,
        "title": title,
        "parameters": costs["size"],
        "macs": selection.architecture.macs(None, 10, False),
        "latency_predicted": costs["latency"],
        "latency_measured": None if name == "smallest" else costs["latency"] * 0.985,
        "mes": objective.mes(costs),
        "accuracy_search": _accuracy(selection),
        "test": {
            "accuracy": share,
            "interval95": interval,
            "correct": correct,
            "images": 2000,
            "split": "test",
        },
    }


def write_metrics(path: Path, steps: int, supernet: bool, seed: int) -> None:
    rng = random.Random(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for step in range(steps):
        loss = 0.35 + 2 * math.exp(-4 * step / steps)
        line = {"step": step, "lr": 1e-3 * (1 + math.cos(math.pi * step / steps)) / 2}
        line |= {"loss": loss * rng.uniform(0.85, 1.15), "accuracy": 1 - loss / 3}
        if supernet:
            line["loss_smallest"] = 1.4 * loss * rng.uniform(0.85, 1.15)
            line |= {f"loss_random_{i}": 1.2 * loss * rng.uniform(0.8, 1.2) for i in (1, 2)}
        lines.append(json.dumps(line) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


def write_config(run: Path, command: str, **settings) -> None:
    run.mkdir(parents=True, exist_ok=True)
    config = {"command": command, "settings": settings, "versions": {"python": "3.12.1", "torch": "2.15.0"}}
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "facts": {}}), encoding="utf-8")


def write_json(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def make_design_run(run: Path) -> Path:
    """A whole `design` run with made-up figures; the search is Algorithm 1 on a made-up evaluator."""
    space = SearchSpace.named("pocket28")
    whole = costs_of(space.whole)
    budgets = {"latency": 0.62 * whole["latency"], "size": round(0.55 * whole["size"])}
    objective = Objective(budgets, units={"size": 3e6, "latency": 0.9, "memory": whole["memory"]})
    lines, found, step = _search(space, objective)
    write_config(run, "design", data="embedded", seed=3, max_latency=budgets["latency"], note=HOSTILE)
    (run / "search.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines), encoding="utf-8")
    rng, random_rows = random.Random(1), []
    while len(random_rows) < 30:
        selection = space.sample_selection(rng)
        costs = costs_of(selection, CORRECTION)
        if 0.4 * budgets["latency"] <= costs["latency"] <= budgets["latency"]:
            figures = {"parameters": costs["size"], "latency": costs["latency"], "mes": objective.mes(costs)}
            random_rows.append({"accuracy": _accuracy(selection), **figures, "selection": selection})
    best = max(random_rows, key=lambda r: r["accuracy"])
    comparison = [
        _row("found", "found by the search", found, objective, 1787),
        _row("largest", "largest subnet", space.whole, objective, 1803),
        _row("smallest", "smallest subnet", space.minimum, objective, 1622),
        _row("random", "best of 30 random subnets", best["selection"], objective, 1764),
    ]
    random_rows = [{k: v for k, v in r.items() if k != "selection"} | {"chosen": r is best} for r in random_rows]
    (run / "exported").mkdir()
    (run / "exported/model.onnx").write_bytes(b"x" * 654_321)
    costs = costs_of(found, CORRECTION)
    measured = costs["latency"] * 0.985
    results = {
        "command": "design",
        "seed": 3,
        "data": {
            "source": f"/images/{HOSTILE}",
            "classes": CLASSES,
            "images": {"fit": 5400, "search": 600, "test": 2000},
            "fingerprint": "sha256:0123abcd",
            "split_fingerprint": "sha256:4567ef01",
            "notes": ["3 images skipped: not readable", f"a folder named {HOSTILE}"],
        },
        "space": {"name": "pocket28", "resolution": [28, 28], "description": space.to_dict()},
        "runtime": {"name": "onnxruntime", "threads": 1, "batch": 1},
        "budgets": budgets,
        "min_mes": None,
        "binding": "latency",
        "shipped": {
            "name": "found",
            "step": step,
            "architecture": found.architecture.to_dict(),
            "selection": found.to_dict(),
            "parameters": costs["size"],
            "macs": found.architecture.macs(None, 10, False),
            "peak_memory": costs["memory"],
            "file": "exported/model.onnx",
            "file_bytes": 654_321,
            "latency": {
                "predicted": costs["latency"],
                "measured": measured,
                "raw": measured,
                "spread": 0.0123,
                "rounds": 40,
            },
            "usage": {"latency": measured / budgets["latency"], "size": costs["size"] / budgets["size"]},
            "mes": objective.mes(costs),
            "export": {"max_difference": 3.1e-6, "logits_std": 2.17, "details": "ONNX opset 17", "images": 256},
            "training": {"epochs": 14, "steps": 322, "init": "supernet", "teacher": None},
        },
        "comparison": comparison,
        "random": random_rows,
        "verdict": {
            "difference": 0.0115,
            "half_width": 0.0109,
            "text": "The found network is better than the best random one on the test split.",
        },
        "search": {
            "status": "no larger neighbour that fits does better",
            "steps": step,
            "evaluations": 1234,
            "block_executions": 24_680,
            "naive_block_executions": 98_765,
        },
        "versions": {"python": "3.12.1", "torch": "2.15.0", "onnxruntime": "1.30.0"},
        "trainings": {"supernet": "supernet/metrics.jsonl", "found": "networks/found/metrics.jsonl"}
        | {name: f"networks/{name}/metrics.jsonl" for name in ("largest", "smallest", "random")},
    }
    write_json(run / "results.json", results)
    write_metrics(run / "supernet/metrics.jsonl", 600, True, 0)
    for i, name in enumerate(("found", "largest", "smallest", "random")):
        write_metrics(run / f"networks/{name}/metrics.jsonl", 322, False, i + 1)
    networks = []
    for i in range(6):
        predicted = _latency(space.sample(i))
        networks.append({"name": f"check {i}", "predicted": predicted, "measured": predicted * (0.94 + 0.03 * i)})
    fingerprint = {"device": "Cortex-X99", "os": "Linux 6", "runtime": "onnxruntime 1.30.0", "threads": 1}
    table = {
        "format": "pocketformer.latency-table/1",
        "space": "pocket28",
        "num_classes": 10,
        "resolution": [28, 28],
        "constant": 0.01,
        "unit": 0.9,
        "reference": {"name": "largest", "latency": whole["latency"]},
        "fingerprint": {**fingerprint, "date": "2025-01-02", "packages": {"torch": "2.15.0"}},
        "check": {"mean": 0.0312, "worst": 0.0871, "networks": networks},
        "entries": {},
    }
    write_json(run / "latency_table.json", table)
    return run
