"""Latency of several networks in one interleaved run, as ratios to MobileNetV2 x1.0 at the same input size."""

import statistics
import tempfile
from pathlib import Path

from pocketformer.architecture import NAMES
from pocketformer.deploy import SUFFIXES, format_by_name, format_for
from pocketformer.devices.bench import Bench
from pocketformer.devices.candidates import write_network, write_unit
from pocketformer.devices.measure import Measurement, paired_ratios
from pocketformer.pipelines.trained import load_architecture
from pocketformer.progress import stage

_CLASSES = 1000


def benchmark(models: list[str], runtime_name: str, threads: int, batch: int, rounds: int) -> list[dict]:
    """One row a model: median and spread (ms), ratio to MobileNetV2 with its 95 % interval.

    Exported files are timed as they are; architectures with 1000 classes at their own resolution, fused.
    """
    with Bench(runtime_name, threads) as bench:
        shapes, units = _load(bench, models, runtime_name, batch)
        names = [*shapes, *units.values()]
        with stage("time", rounds) as progress:
            samples = bench.interleave(names, rounds, progress=lambda done, total: progress.update(done))
    rows = []
    for name in names:
        own, base = samples[name], samples[units[shapes[name][2:]] if name in shapes else name]
        ratios, ms = paired_ratios(own, base), Measurement.of(own)
        rows.append(
            {
                "name": name,
                "median_ms": ms.median,
                "spread_ms": ms.spread,
                "ratio": statistics.median(ratios),
                "ratio95": list(median_interval(ratios)),
                "published": name in NAMES,
            }
        )
    return rows


def _load(
    bench: Bench, models: list[str], runtime_name: str, batch: int
) -> tuple[dict[str, tuple[int, ...]], dict[tuple[int, ...], str]]:
    """Input shapes by name, and the name of MobileNetV2 by input size."""
    format = format_for(runtime_name)
    shapes, units = {}, {}
    with tempfile.TemporaryDirectory(prefix="pocketformer-") as folder, stage("export", len(models)) as progress:
        for i, name in enumerate(models):
            path = Path(name)
            if format_by_name(path) != format.NAME:
                described = load_architecture(name)
                path = Path(folder) / f"{i}{SUFFIXES[format.NAME]}"
                write_network(format, described, _CLASSES, described.design.resolution, path, batch)
            shapes[name] = bench.load(name, path)
            size = shapes[name][2:]
            if size not in units:
                unit = Path(folder) / f"unit{i}{SUFFIXES[format.NAME]}"
                write_unit(format, _CLASSES, size, unit, batch)
                units[size] = f"mobilenetv2_100 at {size[0]}x{size[1]} px"
                bench.load(units[size], unit)
            progress.advance()
    return shapes, units


def median_interval(samples: list[float]) -> tuple[float, float]:
    """Distribution-free 95 % interval of the median: the order statistics at n / 2 -+ 0.98 sqrt(n)."""
    ordered, n = sorted(samples), len(samples)
    half = 0.98 * n**0.5
    low, high = max(int(n / 2 - half), 0), min(int(n / 2 + half) + 1, n) - 1
    return ordered[low], ordered[high]
