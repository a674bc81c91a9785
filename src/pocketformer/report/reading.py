"""What a run's folder holds, read without failing over what it does not hold (contract 5)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pocketformer import files
from pocketformer.architecture import Architecture, SearchSpace, Selection
from pocketformer.errors import UserError
from pocketformer.report.wording import is_number
from pocketformer.runs import read_config
from pocketformer.search.metrics import kind_of
from pocketformer.search.trajectory import checked

_FILES = ("config.yaml", "results.json", "search.jsonl", "metrics.jsonl", "latency_table.json")


def part(value: Any, *names: str, default: Any = None) -> Any:
    """The nested entry of JSON objects, or `default` where one is missing or null.

    Where the default is an object or a list, anything else counts as missing.
    """
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    if value is None or (isinstance(default, dict | list) and type(value) is not type(default)):
        return default
    return value


def objects(value: Any, *names: str) -> list[dict]:
    """The objects of a nested list."""
    return [row for row in part(value, *names, default=[]) if isinstance(row, dict)]


@dataclass
class Record:
    """One run as read. Every piece may be empty; `problems` says which files could not be read."""

    path: Path
    config: dict = field(default_factory=dict)
    config_text: str = ""
    results: dict = field(default_factory=dict)
    search: list[dict] = field(default_factory=list)
    table: dict = field(default_factory=dict)
    correlation: dict = field(default_factory=dict)
    subnets: dict = field(default_factory=dict)  # of a supernet: what its largest, its smallest and a random one reach
    network: dict = field(default_factory=dict)  # config.json: of a trained network, or of the supernet searched
    trainings: dict[str, list[dict]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    title: str = ""  # the folder's name, or more of its path where names repeat

    @property
    def command(self) -> str:
        return str(self.results.get("command") or self.config.get("command") or "run")

    @property
    def budgets(self) -> dict[str, float]:
        start = next((line for line in self.search if line.get("type") == "start"), {})
        budgets = part(self.results, "budgets", default={}) or part(start, "budgets", default={})
        return {name: budget for name, budget in budgets.items() if is_number(budget)}

    @property
    def min_mes(self) -> float | None:
        start = next((line for line in self.search if line.get("type") == "start"), {})
        return part(self.results, "min_mes") or start.get("min_mes")

    @property
    def num_classes(self) -> int | None:
        named = part(self.results, "data", "classes", default=[]) or part(self.network, "classes", default=[])
        return len(named) or part(self.table, "num_classes") or part(self.network, "num_classes")

    def is_supernet(self, name: str) -> bool:
        return any({"loss_smallest", "loss_random_1"} & set(line) for line in self.trainings[name][:1])


def read_run(path: str | Path) -> Record:
    """Raises `UserError` if the folder is no run at all: it holds none of the files that runs write."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"no such run: {path}")
    if not path.is_dir():
        raise UserError(f"{path} is a file, not a run's folder")
    present = [name for name in _FILES if (path / name).is_file()]
    if not present:
        raise UserError(f"{path} is not a run: it has none of {', '.join(_FILES)}")
    record = Record(path, title=path.resolve().name)
    if "config.yaml" in present:
        try:
            record.config = read_config(path)
            record.config_text = (path / "config.yaml").read_text(encoding="utf-8")
        except UserError as error:
            if present == ["config.yaml"]:
                raise  # somebody else's config.yaml: no run
            record.problems.append(str(error))
    record.results = _object(record, "results.json", "results")
    record.table = _object(record, "latency_table.json", "latency table")
    record.correlation = _object(record, "correlation.json", "correlation")
    searched = part(record.config, "settings", "supernet")  # of a search the folder, of a design the recipe
    others = [Path(searched), Path(searched) / "supernet"] if isinstance(searched, str) else []
    for folder in (path, path / "supernet", *others):
        if (folder / "config.json").is_file() and not record.network:
            record.network = _object(record, folder.absolute() / "config.json", "configuration")
    record.subnets = _object(record, "recalibration.json", "accuracies of subnets")
    record.search = _lines(record, "search.jsonl", checked)
    for name, file in _metrics(record).items():
        if lines := [line for line in _lines(record, file) if "step" in line]:
            record.trainings[name] = lines
    return record


def _object(record: Record, name: str | Path, what: str) -> dict:
    if not (record.path / name).is_file():
        return {}
    try:
        value = files.read_json(record.path / name, what)
    except UserError as error:
        record.problems.append(str(error))
        return {}
    if isinstance(value, dict):
        return value
    record.problems.append(f"{what} is not a JSON object: {record.path / name}")
    return {}


def _lines(record: Record, name: str, check: Callable[[list, Path], list] = lambda lines, _: lines) -> list[dict]:
    path = record.path / name
    try:
        return [line for line in check(files.Lines.read(path), path) if isinstance(line, dict)]
    except (UserError, OSError, UnicodeDecodeError) as error:
        record.problems.append(str(error))
        return []


def _metrics(record: Record) -> dict[str, str]:
    """Name of each training and its file: as the results say, else where the commands put them."""
    listed = part(record.results, "trainings", default={})
    found = {str(k): str(v) for k, v in listed.items() if (record.path / str(v)).is_file()}
    for file in ("metrics.jsonl", "supernet/metrics.jsonl", "alone/metrics.jsonl"):
        if (record.path / file).is_file() and file not in found.values():
            found[file.split("/")[0] if "/" in file else record.command] = file
    for file in sorted(record.path.glob("networks/*/metrics.jsonl")):
        name = str(file.relative_to(record.path))
        if name not in found.values():
            found[file.parent.name] = name
    return found


def states(record: Record) -> list[dict]:
    """The trajectory's states in order, the start first: step, text, accuracy and costs of each. Of a beam, those on
    the way to the state that it left. All latencies, and MES with them, are as the last correction of the table has
    them, like those of the results: each was written with the correction that was in force."""
    executed = [line for line in record.search if line.get("type") == "executed"]
    start = next((line for line in record.search if line.get("type") == "start"), {})
    exponents = part(start, "exponents", default={})
    found, change = [], correction(record)
    for line in record.search:
        if line.get("type") == "correction" and is_number(line.get("factor")) and line["factor"] > 0:
            change = correction(record) / line["factor"]
        elif line.get("type") == "start":
            before = part(executed[0], "before", default={}) if executed else {}
            start = {**line, "text": "start", "accuracy": before.get("accuracy"), "phase": "start"}
            found.append(_corrected(start, change, exponents))
        elif line.get("type") == "executed":
            found.append(_corrected(line, change, exponents))
    return _way(found, record.search) if any("parent" in line for line in executed) else found


def correction(record: Record) -> float:
    """What the search scaled the table's latencies by in the end, having measured whole networks; 1 if it did not."""
    factors = [line.get("factor") for line in record.search if line.get("type") == "correction"]
    return next((factor for factor in reversed(factors) if is_number(factor) and factor > 0), 1.0)


def _corrected(line: dict, change: float, exponents: dict) -> dict:
    names = [name for name in line if kind_of(name) == "latency" and is_number(line[name])]
    found = {**line, **{name: line[name] * change for name in names}}
    if is_number(line.get("mes")):
        weights = [exponents[name] for name in names if is_number(exponents.get(name))]
        found["mes"] = line["mes"] * change ** -sum(weights)
    return found


def _way(states: list[dict], lines: list[dict]) -> list[dict]:
    by_step, way = {state.get("step"): state for state in states}, []
    ends = [line.get("step") for line in lines if line.get("type") == "end"]
    step = ends[-1] if ends and lines[-1].get("type") == "end" else states[-1].get("step")
    while step in by_step:
        state = by_step.pop(step)
        way.insert(0, state)
        step = state.get("parent", state["step"] - 1 if is_number(state.get("step")) else None)
    return way


def found_state(record: Record) -> dict | None:
    """The state of the trajectory that was shipped, else its last one."""
    trajectory = states(record)
    step = part(record.results, "shipped", "step")
    shipped = [state for state in trajectory if step is not None and state.get("step") == step]
    return (shipped or trajectory or [None])[-1]


def space_of(record: Record) -> SearchSpace | None:
    """The space that was searched: from the results, the supernet's configuration, or the settings' name."""
    settings = part(record.config, "settings", default={})
    folders = [record.path, record.path / "supernet"]
    if isinstance(settings.get("supernet"), str):
        folders += [Path(settings["supernet"]), Path(settings["supernet"]) / "supernet"]
    descriptions = [part(record.results, "space", "description")]
    for folder in folders:
        if (folder / "config.json").is_file():
            descriptions.append(part(_object(Record(folder), "config.json", "configuration"), "space"))
    for description in [*descriptions, part(record.results, "space", "name"), settings.get("space")]:
        try:
            if isinstance(description, dict):
                return SearchSpace.from_dict(description)
            if isinstance(description, str):
                return SearchSpace.named(description)
        except UserError:
            continue
    return None


def chosen_network(record: Record) -> tuple[Architecture | None, Selection | None]:
    """The network that the run is about, and which supernet slots it borrows where that is known."""
    space = space_of(record)
    values = part(record.results, "shipped", "selection") or part(found_state(record), "selection")
    selection = None
    if space is not None and values:
        try:
            selection = Selection.from_dict(space, values)
        except (ValueError, KeyError, TypeError, AttributeError):
            record.problems.append("the chosen selection does not fit the space; it is drawn without its slots")
    described = part(record.results, "shipped", "architecture", default={})
    if not described and (record.path / "architecture.json").is_file():
        described = _object(record, "architecture.json", "architecture")
    if described:
        try:
            return Architecture.from_dict(described), selection
        except UserError as error:
            record.problems.append(str(error))
    return (selection.architecture if selection else None), selection
