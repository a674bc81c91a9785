"""`search` on its own: a trained supernet, tables and budgets in; a trajectory and its choice out."""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from pocketformer import files, ranks
from pocketformer.architecture import SearchSpace
from pocketformer.devices import LatencyTable
from pocketformer.devices.energy import EnergyTable, Power
from pocketformer.errors import UserError, WorkError
from pocketformer.pipelines.costs import CostModel
from pocketformer.pipelines.images import record_images
from pocketformer.pipelines.methods import Asked
from pocketformer.pipelines.refusals import check_table, refuse_unreachable
from pocketformer.pipelines.scoring import evaluator
from pocketformer.pipelines.searching import Trajectory
from pocketformer.pipelines.settings import Budget, stored_size
from pocketformer.pipelines.supernets import images_of, load_supernet, recalibration, weights_of
from pocketformer.pipelines.tables import warn
from pocketformer.progress import say, stage
from pocketformer.runs import Inputs, Run, check_folder, held, read_config
from pocketformer.search import Objective, Walk
from pocketformer.search.metrics import amount, spread, unit_of
from pocketformer.search.trajectory import Point, at_last_correction, checked, evaluations, points
from pocketformer.training.compute import Compute


@dataclass(frozen=True)
class Watts:
    """The power that a device draws; of several devices, which one's latency it goes with."""

    watts: float
    device: str | None = None


@dataclass(frozen=True)
class Goal:
    """What to search for: `tables` by device, or under "" if there is one that has no name; limits and exponents by
    metric (`search.metrics`)."""

    tables: Mapping[str, Path]
    limits: Mapping[str, Budget]
    min_mes: float | None = None
    alphas: Mapping[str, float] = field(default_factory=dict)
    form: str = "budget"
    energy: Path | Watts | None = None

    def inputs(self) -> Inputs:
        """What the files hold that it names."""
        tables = {f"latency {name}".strip(): file for name, file in self.tables.items()}
        return held(**tables, energy=self.energy if isinstance(self.energy, Path) else None)

    def to_dict(self) -> dict:
        """What was asked, of what is not usual only if it was."""
        tables = {name: str(file) for name, file in self.tables.items()}
        found = {"latency": tables.get("", tables), "min_mes": self.min_mes}
        if isinstance(self.energy, Watts):
            found["energy"] = [self.energy.watts, self.energy.device]
        elif self.energy is not None:
            found["energy"] = str(self.energy)
        if self.alphas:
            found["alphas"] = dict(self.alphas)
        return found if self.form == "budget" else {**found, "form": self.form}


def cost_model(goal: Goal, space: SearchSpace, num_classes: int) -> CostModel:
    """Raises `UserError` for a table that does not answer for every member of the space."""
    tables = {name: LatencyTable.load(file) for name, file in goal.tables.items()}
    for name, table in tables.items():
        check_table(table, str(goal.tables[name]), space, num_classes)
    energy = goal.energy
    if isinstance(energy, Watts):
        name = energy.device if energy.device is not None else next(iter(tables))
        if "" in tables and name:
            raise UserError(
                f"--energy {name}={energy.watts:g}W: --latency names no device; give --energy {energy.watts:g}W"
            )
        if name not in tables or (energy.device is None and len(tables) > 1):
            raise UserError(f"--energy {energy.watts:g}W needs its device: {', '.join(f'{n}=…' for n in tables if n)}")
        energy = Power(energy.watts, tables[name])
    elif energy is not None:
        energy = EnergyTable.load(energy, space, num_classes)
    return CostModel(tables.get("", tables), num_classes, energy=energy)


def search(
    supernet_folder: Path,
    goal: Goal,
    asked: Asked,
    calibration: int,
    out: Path,
    compute: Compute | None = None,
    workers: int = 2,
    source: str | None = None,
) -> dict:
    """Runs or resumes Algorithm 1, or another method; returns the state that meets the budgets. `source`: where the
    supernet's images are now."""
    compute = compute or Compute()
    supernet, config = load_supernet(supernet_folder)
    supernet.to(compute.where)
    space = supernet.space
    costs = cost_model(goal, space, config["num_classes"])
    target = costs.objective(space, goal.limits, goal.min_mes, goal.alphas, goal.form)
    refuse_unreachable(space, costs, target)
    method = asked.of(supernet, target)
    for name, file in goal.tables.items():  # once nothing of what was asked is refused
        warn(costs.latencies[f"latency:{name}" if name else "latency"], str(file), space)
    settings = {
        "supernet": str(supernet_folder),
        **goal.to_dict(),
        "budgets": dict(target.budgets),
        "calibration": calibration,
        **method.to_dict(),
        **({"race": True} if asked.race else {}),
        **({"device": compute.device} if compute.device != "cpu" else {}),
    }
    inputs = {**goal.inputs(), **held(supernet=weights_of(supernet_folder))}
    check_folder(out, "search", settings, inputs)
    data = images_of(supernet_folder, config, stored_size(space), workers, source)
    if calibration > len(data.fit):
        say(f"note: fit has but {len(data.fit)} images for norms to take their statistics from (--calibration)")
    with Run(out, "search", settings, inputs) as run:
        record_images(run, data)
        run.record(space=space.to_dict(), supernet=files.digest(weights_of(supernet_folder)))
        run.record(largest=costs.largest(space))  # which budgets in percent refer to
        path = run.path / "search.jsonl"
        with (
            stage("search") as progress,
            evaluator(supernet, data, config["seed"], calibration, progress, asked.race) as evaluate,
            closing(Trajectory(path, space.whole, costs, target, evaluate, run.ledger, progress, method)) as trajectory,
        ):
            status = trajectory.slim()
            if isinstance(method, Walk):
                trajectory.regrow()
            scored = evaluations(trajectory.lines)
            found, states = trajectory.here(), trajectory.points()
            if len(states) == 1:
                if target.met(found.costs):
                    say("note: the largest subnet already holds all budgets: there was nothing to search")
                found = replace(found, score=evaluate(space.whole, [space.whole])[0])
        if ranks.first():
            for point in states:
                point.selection.architecture.save(run.path / "front" / f"step_{point.step:03d}.json")
        if not target.met(found.costs):
            raise WorkError(f"the search stopped ({status}) before all budgets held; see {path}")
        if ranks.first():
            found.selection.architecture.save(run.path / "architecture.json")
    effect = recalibration(supernet, found.selection, data, config["seed"])
    result = _found(found, run.path / "architecture.json")
    return {**result, "method": asked.name, "evaluations": scored, "status": status, "recalibration": effect}


def pick(folder: Path, limits: Mapping[str, Budget], min_mes: float | None) -> dict:
    """Chooses on a finished trajectory: the state of highest accuracy among those that meet the budgets."""
    read_config(folder)
    lines = checked(files.Lines.read(folder / "search.jsonl"), folder / "search.jsonl")
    if not lines:
        raise UserError(f"{folder} holds no trajectory (search.jsonl)")
    if not any(line["type"] == "end" for line in lines):
        raise UserError(f"the search in {folder} is not finished: repeat its command first")
    config = read_config(folder)
    described = config["facts"].get("space") or config["settings"].get("space")
    space = SearchSpace.from_dict(described, str(folder))
    states = at_last_correction(points(space, lines), lines)
    states = [p for p in states if p.score.accuracy == p.score.accuracy]
    if not states:
        raise WorkError(f"the search in {folder} made no step: its largest subnet already held the budgets")
    start = lines[0]
    largest = config["facts"].get("largest", states[0].costs)
    budgets = {name: b.of(largest[name]) for name, b in spread(limits, largest, "a budget on").items()}
    goal = Objective(budgets, min_mes, start["units"], start["exponents"])
    fitting = [p for p in states if goal.met(p.costs)]
    if not fitting:
        smallest = {name: min(p.costs[name] for p in states) for name in budgets}
        reached = ", ".join(amount(name, value) for name, value in smallest.items())
        raise WorkError(f"no state of this trajectory meets the budgets; it goes down to {reached or 'a lower MES'}")
    best = max(fitting, key=lambda p: (p.score.accuracy, -p.score.loss, -p.step))
    file = folder / "front" / f"step_{best.step:03d}.json"
    if not file.exists():  # killed just before it was written
        best.selection.architecture.save(file)
    return _found(replace(best, mes=goal.mes(best.costs)), file)


def _found(point: Point, file: Path) -> dict:
    return {
        "step": point.step,
        "parameters": point.costs["size"],
        "latency": point.costs.get("latency"),
        "peak_memory": point.costs.get("memory"),
        "costs": {name: {"value": value, "unit": unit_of(name)} for name, value in point.costs.items()},
        "mes": point.mes,
        "accuracy": point.score.accuracy,
        "split": "search",
        "file": str(file),
        "architecture": point.selection.architecture.to_dict(),
    }
