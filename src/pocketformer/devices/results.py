"""`--import`: times measured elsewhere, checked against the manifest of the models that were timed. No torch."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketformer import files
from pocketformer.architecture import SearchSpace
from pocketformer.devices.logs import read_csv, read_log
from pocketformer.devices.manifest import NAME, Manifest
from pocketformer.devices.plan import REFERENCE
from pocketformer.devices.table import LatencyTable
from pocketformer.devices.tabulate import tabulate
from pocketformer.errors import UserError

ABOUT = "about.json"
_SAMPLES = ("samples_ms", "mean_ms", "median_ms")
_LOGS = (".txt", ".log", ".json")
_NEEDED = ("manifest", "device", "runtime")


@dataclass(frozen=True)
class Results:
    """Times of one device: what was said about it, and groups of models timed together, name to ms."""

    about: dict[str, Any]
    groups: tuple[dict[str, list[float]], ...]


def import_table(source: Path, manifest_path: Path | None = None) -> tuple[LatencyTable, SearchSpace]:
    """The table of times that were measured elsewhere, and its space.

    `source` is a results file (.json), a .csv, or a folder of tools' logs (docs/devices.md has the formats); the
    manifest is looked for beside it and one folder up. Raises `UserError`, naming the model, for times that are
    missing, not above zero or of unknown models, and for results of other models than the manifest's.
    """
    if not source.exists():
        raise UserError(f"results not found: {source}")
    source = source.absolute()  # so that folders above are found
    manifest = Manifest.load(manifest_path or _find_manifest(source))
    results = read_results(source)
    for key in _NEEDED:
        if not results.about.get(key) or not isinstance(results.about[key], str):
            raise UserError(f"{source}: does not say its {key!r}")
    if results.about["manifest"] != manifest.id:
        raise UserError(f"{source}: times of other models than this manifest's ({manifest.plan.space.name})")
    groups = [_checked(group, i, manifest, source) for i, group in enumerate(results.groups, 1)]
    timed = {name for group in groups for name in group}
    for model in manifest.models:
        if model.name not in timed:
            raise UserError(f"{source}: no times of {model.short} ({model.name})")
    fingerprint = {**manifest.settings, **results.about, "measured": "elsewhere"}
    return tabulate(manifest.plan, groups, fingerprint), manifest.plan.space


def read_results(source: Path) -> Results:
    if source.is_dir():
        return _logs(source)
    if source.suffix == ".csv":
        about = _about(files.read_json(source.with_name(ABOUT), "description of the device"), source)
        return Results(about, tuple(read_csv(source)))
    values = files.read_json(source, "results file")
    about = {k: v for k, v in _about(values, source).items() if k not in ("models", "passes")}
    passes = values.get("passes", [values["models"]] if "models" in values else None)
    if not isinstance(passes, list) or not passes or not all(isinstance(p, dict) for p in passes):
        raise UserError(f"{source}: needs 'models', or 'passes', a list of them")
    return Results(about, tuple({name: _samples(v, name, source) for name, v in p.items()} for p in passes))


def _find_manifest(source: Path) -> Path:
    for folder in [source, source.parent, source.parent.parent]:
        if (folder / NAME).is_file():
            return folder / NAME
    raise UserError(f"no {NAME} beside {source}; --manifest says where it is")


def _about(values: Any, source: Path) -> dict:
    if not isinstance(values, dict):
        raise UserError(f"{source}: not results, but {type(values).__name__}")
    return values


def _logs(folder: Path) -> Results:
    """A folder of logs, or of folders of logs, each a pass or a part of one that holds the reference's."""
    about = _about(files.read_json(folder / ABOUT, "description of the device"), folder)
    folders = sorted(p for p in folder.iterdir() if p.is_dir()) or [folder]
    groups = []
    for part in folders:
        logs = sorted(p for p in part.iterdir() if p.is_file() and p.suffix in _LOGS and p.name != ABOUT)
        groups.append({log.name.partition(".")[0]: read_log(log) for log in logs})
    return Results(about, tuple(groups))


def _samples(value: Any, name: str, source: Path) -> list[float]:
    if isinstance(value, dict):
        given = [value[key] for key in _SAMPLES if key in value]
        value = given[0] if given else None
    samples = value if isinstance(value, list) else [value]
    if not samples or not all(isinstance(ms, int | float) and not isinstance(ms, bool) for ms in samples):
        raise UserError(f"{source}: {name} has no times; give [ms, ...], or {' or '.join(map(repr, _SAMPLES))}")
    return samples


def _checked(group: dict[str, list[float]], number: int, manifest: Manifest, source: Path) -> dict[str, list[float]]:
    """The group by candidates' names."""
    found: dict[str, list[float]] = {}
    for text, samples in group.items():
        try:
            model = manifest.named(text)
        except UserError as error:
            raise UserError(f"{source}: {error}") from None
        for ms in samples:
            if not (math.isfinite(ms) and ms > 0):
                raise UserError(f"{source}: {model.short} has a time of {ms:g} ms; times must be above zero")
        if not samples or model.name in found:
            raise UserError(f"{source}: {model.short} is there {'twice' if samples else 'without times'}")
        found[model.name] = [float(ms) for ms in samples]
    if REFERENCE not in found:
        raise UserError(f"{source}: pass {number} has no times of the reference, to which all are compared")
    return found
