"""`search` on its own: a trained supernet, a latency table and budgets in; a trajectory and its choice out."""

from dataclasses import replace
from pathlib import Path

from pocketformer import files, ranks
from pocketformer.architecture import SearchSpace
from pocketformer.devices import LatencyTable
from pocketformer.errors import UserError, WorkError
from pocketformer.pipelines.costs import CostModel, objective
from pocketformer.pipelines.images import open_images
from pocketformer.pipelines.refusals import amount, check_table, refuse_unreachable
from pocketformer.pipelines.scoring import evaluator
from pocketformer.pipelines.searching import Trajectory
from pocketformer.pipelines.settings import Budget, stored_size
from pocketformer.pipelines.supernets import load_supernet
from pocketformer.progress import say, stage
from pocketformer.runs import Run, read_config
from pocketformer.search import Objective
from pocketformer.search.trajectory import Point, points


def search(
    supernet_folder: Path,
    table_file: Path,
    limits: dict[str, Budget],
    min_mes: float | None,
    calibration: int,
    out: Path,
) -> dict:
    """Runs or resumes Algorithm 1; returns the state that meets the budgets."""
    supernet, config = load_supernet(supernet_folder)
    table = LatencyTable.load(table_file)
    check_table(table, str(table_file), supernet.space, config["num_classes"])
    costs = CostModel(table, config["num_classes"])
    largest = costs.largest(supernet.space)
    goal = objective({name: b.of(largest[name]) for name, b in limits.items()}, min_mes, table.unit, largest["memory"])
    refuse_unreachable(supernet.space, costs, goal)
    data = open_images(config["data"], stored_size(supernet.space), config["seed"], config["bad_images"], 2)
    settings = {
        "supernet": str(supernet_folder),
        "latency": str(table_file),
        "budgets": dict(goal.budgets),
        "min_mes": min_mes,
        "calibration": calibration,
    }
    with Run(out, "search", settings) as run:
        run.record(data_fingerprint=data.fingerprint, split_fingerprint=data.split_fingerprint)
        run.record(space=supernet.space.to_dict())
        with (
            stage("search") as progress,
            evaluator(supernet, data, config["seed"], calibration, progress) as evaluate,
        ):
            path = run.path / "search.jsonl"
            trajectory = Trajectory(path, supernet.space.whole, costs, goal, evaluate, run.ledger, progress)
            status = trajectory.slim()
            trajectory.regrow()
            trajectory.close()
            states = trajectory.points()
            if len(states) == 1:
                say("note: the largest subnet already holds all budgets: there was nothing to search")
                states = [replace(states[0], score=evaluate(supernet.space.whole, [supernet.space.whole])[0])]
        if ranks.first():
            for point in states:
                point.selection.architecture.save(run.path / "front" / f"step_{point.step:03d}.json")
        if not goal.met(states[-1].costs):
            raise WorkError(f"the search stopped ({status}) before all budgets held; see {path}")
        if ranks.first():
            states[-1].selection.architecture.save(run.path / "architecture.json")
    return {**_found(states[-1], run.path / "architecture.json"), "status": status}


def pick(folder: Path, limits: dict[str, Budget], min_mes: float | None) -> dict:
    """Chooses on a finished trajectory: the state of highest accuracy among those that meet the budgets."""
    read_config(folder)
    lines = files.Lines.read(folder / "search.jsonl")
    if not lines:
        raise UserError(f"{folder} holds no trajectory (search.jsonl)")
    config = read_config(folder)
    described = config["facts"].get("space") or config["settings"].get("space")
    space = SearchSpace.from_dict(described, str(folder))
    states = [p for p in points(space, lines) if p.score.accuracy == p.score.accuracy]
    if not states:
        raise WorkError(f"the search in {folder} made no step: its largest subnet already held the budgets")
    start = lines[0]
    largest = states[0].costs
    budgets = {name: b.of(largest[name]) for name, b in limits.items()}
    goal = Objective(budgets, min_mes, start["units"], start["exponents"])
    fitting = [p for p in states if goal.met(p.costs)]
    if not fitting:
        smallest = {name: min(p.costs[name] for p in states) for name in budgets}
        reached = ", ".join(amount(name, value) for name, value in smallest.items())
        raise WorkError(f"no state of this trajectory meets the budgets; it goes down to {reached or 'a lower MES'}")
    best = max(fitting, key=lambda p: (p.score.accuracy, -p.score.loss, -p.step))
    return _found(best, folder / "front" / f"step_{best.step:03d}.json")


def _found(point: Point, file: Path) -> dict:
    return {
        "step": point.step,
        "parameters": point.costs["size"],
        "latency": point.costs["latency"],
        "peak_memory": point.costs.get("memory"),
        "mes": point.mes,
        "accuracy": point.score.accuracy,
        "split": "search",
        "file": str(file),
        "architecture": point.selection.architecture.to_dict(),
    }
