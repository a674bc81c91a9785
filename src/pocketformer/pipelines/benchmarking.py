"""Latency of many networks in one interleaved run, as ratios to MobileNetV2 x1.0: V2's Table 2 on this device."""

import datetime
import statistics
import tempfile
from pathlib import Path
from types import ModuleType

import torch

from pocketformer.architecture.results import DEVICES, UNIT, published_results
from pocketformer.deploy import SUFFIXES, format_by_name, format_for
from pocketformer.devices.bench import Bench
from pocketformer.devices.host import host, packages
from pocketformer.devices.measure import Measurement, paired_ratios, spearman, undisturbed
from pocketformer.devices.opening import open_all
from pocketformer.errors import UserError, WorkError, first_line
from pocketformer.pipelines import lineup
from pocketformer.pipelines.lineup import Entrant
from pocketformer.progress import say, stage
from pocketformer.runtimes import runtime
from pocketformer.search.objective import mes

FORMAT = "pocketformer-benchmark-1"


def benchmark(
    models: list[str],
    runtime_name: str,
    threads: int = 1,
    batch: int = 1,
    rounds: int = 30,
    *,
    peers: bool = False,
    device: str | None = None,
    activation: str = "own",
    seed: int = 0,
) -> dict:
    """Times the named networks, and with `peers` those of V2's Table 2 and newer ones, all in turn.

    Exported files are timed as they are; the others with random weights, as they are deployed, with 1000 classes or
    those of the trained network whose folder is given. Each
    row has median and spread (ms a batch), `ratio` to MobileNetV2 with its 95 % interval (at 224 px for all with
    `peers`, as in the table, else at the row's own input size), MES in that unit (eq. 7), the paper's ratios, and
    the samples. A network that the exporter rejects or that crashes the runtime is in `left_out` with the reason.
    Raises `UserError` for what is no network, `WorkError` if none could be timed.
    """
    entrants = {e.name: e for e in map(lineup.named, dict.fromkeys(models))}
    if activation != "own" and any(e.file for e in entrants.values()):
        raise UserError("exported files are timed as they are: no --activation for them")
    entrants |= {e.name: e for e in lineup.table()} if peers else {}
    with (
        tempfile.TemporaryDirectory(prefix="pocketformer-") as folder,
        Bench(runtime_name, threads, device) as bench,
    ):
        field = _Field(bench, format_for(runtime_name), Path(folder), batch, activation == "relu")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            field.enter(entrants, one_unit=peers)
        field.load(seed)
        with stage("time", rounds) as progress:
            samples = bench.interleave(list(field.files), rounds, None, lambda done, _: progress.update(done), seed)
    how = fingerprint(runtime_name, threads, bench.device, batch, rounds, seed)
    names = [name for name in field.files if name in entrants] + [n for n in field.files if n not in entrants]
    rows = [field.row(name, samples) for name in names]
    return {
        "format": FORMAT,
        "fingerprint": how | {"activation": activation},
        "networks": rows,
        "agreement": agreement(rows),
        "left_out": [{"name": name, "reason": reason} for name, reason in field.failed.items()],
    }


def fingerprint(runtime_name: str, threads: int, device: str, batch: int, rounds: int, seed: int) -> dict:
    """Where, by what and how something was measured."""
    settings = {"threads": threads, "batch": batch, "rounds": rounds, "seed": seed, "precision": "float32"}
    versions = {**host(device), **runtime(runtime_name).fingerprint(device), "on": device, "packages": packages()}
    return {**versions, **settings, "date": datetime.date.today().isoformat()}


class _Field:
    """The networks as files and then as sessions; those that fail drop out by name."""

    def __init__(self, bench: Bench, format: ModuleType, folder: Path, batch: int, relu: bool):
        self.bench, self.format, self.folder, self.batch, self.relu = bench, format, folder, batch, relu
        self.entrants: dict[str, Entrant] = {}
        self.files: dict[str, Path] = {}
        self.costs: dict[str, dict] = {}
        self.failed: dict[str, str] = {}
        self.units: dict[str, str] = {}  # each network's MobileNetV2, by name
        self.printed = next(result for result in published_results() if result.name == UNIT)

    def enter(self, entrants: dict[str, Entrant], one_unit: bool) -> None:
        """Writes them, and a MobileNetV2 for each input size (for the table's alone with `one_unit`)."""
        with stage("export", len(entrants)) as progress:
            for name, entrant in entrants.items():
                size = self._write(entrant)
                if size:
                    base = lineup.unit(lineup.UNIT_SIZE if one_unit else size)
                    if base.name not in {*self.files, *entrants, *self.failed}:
                        self._write(base)
                    self.units[name] = self.units[base.name] = base.name
                progress.advance(note=name)

    def _write(self, entrant: Entrant) -> tuple[int, int] | None:
        """Its input size in px, None if that failed."""
        name, size = entrant.name, entrant.resolution
        path = entrant.file or self.folder / f"{len(self.entrants)}{SUFFIXES[self.format.NAME]}"
        self.entrants[name] = entrant
        try:
            if entrant.file:
                if format_by_name(path) != self.format.NAME:
                    raise UserError(
                        f"{path}: {self.bench.runtime} runs {self.format.NAME} files ({SUFFIXES[self.format.NAME]}), "
                        "not this one"
                    )
                size = self._size_of_file(name, path)
            else:
                self.costs[name] = entrant.write(self.format, path, self.batch, self.relu)
        except UserError:  # named by a person
            raise
        except Exception as error:  # converters and networks raise many types
            return self._fail(name, error)
        self.files[name] = path
        return size

    def _size_of_file(self, name: str, path: Path) -> tuple[int, int]:
        shape, raw = self.bench.load(name, path), self.bench.dtype(name) == "uint8"
        self.bench.drop([name])
        if raw and len(shape) == 4:  # (N, height, width, 3)
            shape = (shape[0], shape[3], *shape[1:3])
        if len(shape) != 4 or shape[1] != 3:
            raise UserError(f"{path} takes inputs of shape {shape}, not images (N, 3, height, width)")
        if shape[0] != self.batch:  # its milliseconds would be compared with those of another number of images
            raise UserError(
                f"{path} is timed with {shape[0]} image(s) a call, but --batch is {self.batch}: give --batch {shape[0]}"
            )
        return shape[2:]

    def _fail(self, name: str, error: Exception) -> None:
        self.failed[name] = first_line(error)
        self.files.pop(name, None)
        say(f"left out: {name} ({self.failed[name]})")

    def load(self, seed: int) -> None:
        """Opens and runs all that can be."""
        with stage("load", len(self.files)) as progress:
            for name, error in open_all(self.bench, self.files, seed, progress.update).items():
                if isinstance(error, UserError) and self.entrants[name].file:
                    raise error
                self._fail(name, error)
        missing = sorted({self.units[name] for name in self.files} - self.files.keys())
        if missing:
            raise WorkError(f"without {missing[0]} there is no unit: {self.failed[missing[0]]}")
        if not self.files:
            raise WorkError(f"no network could be timed; the first: {next(iter(self.failed.values()), 'none given')}")

    def row(self, name: str, samples: dict[str, list[float]]) -> dict:
        entrant, costs, base = self.entrants[name], self.costs.get(name, {}), samples[self.units[name]]
        ms, ratios, result = Measurement.of(samples[name]), paired_ratios(samples[name], base), entrant.result
        ratio, score = statistics.median(ratios), None
        if costs:  # in the ratio, the device's drift cancels
            score = mes({"size": costs["parameters"], "latency": ratio}, {"latency": 1.0})
        return {
            "name": name,
            "timm": entrant.timm,
            "kind": entrant.kind,
            "resolution": list(entrant.resolution) if entrant.resolution else None,
            "classes": None if entrant.file else entrant.classes,
            "parameters": costs.get("parameters"),
            "macs": costs.get("macs"),
            "activations": costs.get("activations"),
            "median_ms": ms.median,
            "tenth_percentile_ms": undisturbed(samples[name]),
            "spread_ms": ms.spread,
            "unit": self.units[name],
            "ratio": ratio,
            "ratio95": list(median_interval(ratios)),
            "mes": score,
            "top1": list(entrant.top1),
            "paper": result.to_dict() if result else None,
            # Theirs are to MobileNetV2 at 224 px, whatever the network's own size.
            "paper_ratios": {
                where: result.ratio(where, self.printed) if result and self.units[name] == UNIT else None
                for where in DEVICES
            },
            "samples": [round(sample, 6) for sample in samples[name]],
        }


def median_interval(samples: list[float]) -> tuple[float, float]:
    """Distribution-free 95 % interval of the median: the order statistics at n / 2 -+ 0.98 sqrt(n)."""
    ordered, n = sorted(samples), len(samples)
    half = 0.98 * n**0.5
    low, high = max(int(n / 2 - half), 0), min(int(n / 2 + half) + 1, n) - 1
    return ordered[low], ordered[high]


def agreement(networks: list[dict]) -> dict[str, dict]:
    """Spearman's rank correlation of the ratios here with those of each of the paper's devices, and over how many."""
    found = {}
    for where in DEVICES:
        pairs = [(row["ratio"], row["paper_ratios"][where]) for row in networks if row["paper_ratios"][where]]
        if len(pairs) > 2:
            correlation = spearman(*zip(*pairs, strict=True))
            if correlation is not None:
                found[where] = {"networks": len(pairs), "correlation": correlation}
    return found
