"""Latency of several networks in one interleaved run, as ratios to MobileNetV2 x1.0 at the same input size."""

import statistics
import tempfile
from pathlib import Path

from pocketformer.architecture import NAMES
from pocketformer.devices.candidates import write_network, write_unit
from pocketformer.devices.measure import Measurement, interleave, paired_ratios
from pocketformer.devices.profile import runner
from pocketformer.devices.runtimes import runtime
from pocketformer.pipelines.trained import load_architecture
from pocketformer.progress import stage

_CLASSES = 1000


def benchmark(models: list[str], runtime_name: str, threads: int, batch: int, rounds: int) -> list[dict]:
    """One row a model: median and spread (ms), ratio to MobileNetV2 with its 95 % interval.

    Exported files are timed as they are; architectures with 1000 classes at their own resolution, fused.
    """
    module = runtime(runtime_name)
    with tempfile.TemporaryDirectory(prefix="pocketformer-") as folder, stage("export", len(models)) as progress:
        sessions, units = {}, {}
        for i, name in enumerate(models):
            path = Path(name)
            if path.suffix != module.SUFFIX:
                described = load_architecture(name)
                path = Path(folder) / f"{i}{module.SUFFIX}"
                write_network(module, described, _CLASSES, described.design.resolution, path, batch)
            sessions[name] = module.load(path, threads)
            size = tuple(sessions[name].shape[2:])
            if size not in units:
                unit = Path(folder) / f"unit{i}{module.SUFFIX}"
                write_unit(module, _CLASSES, size, unit, batch)
                units[size] = f"mobilenetv2_100 at {size[0]}x{size[1]} px"
                sessions[units[size]] = module.load(unit, threads)
            progress.advance()
    runs = {name: runner(session) for name, session in sessions.items()}
    with stage("time", rounds) as progress:
        samples = interleave(runs, rounds, progress=lambda done, total: progress.update(done))
    rows = []
    for name, session in sessions.items():
        own, base = samples[name], samples[units[tuple(session.shape[2:])]]
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


def median_interval(samples: list[float]) -> tuple[float, float]:
    """Distribution-free 95 % interval of the median: the order statistics at n / 2 -+ 0.98 sqrt(n)."""
    ordered, n = sorted(samples), len(samples)
    half = 0.98 * n**0.5
    low, high = max(int(n / 2 - half), 0), min(int(n / 2 + half) + 1, n) - 1
    return ordered[low], ordered[high]
