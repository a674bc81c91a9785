"""Whole exported files, timed beside the reference network of a latency table (contract 6.9)."""

import itertools
import os
import random
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pocketformer.devices.bench import Bench
from pocketformer.devices.host import host
from pocketformer.devices.measure import Measurement, paired_ratios, undisturbed
from pocketformer.devices.table import LatencyTable
from pocketformer.errors import UserError

_REFERENCE = "\0reference"  # what no caller calls a network


@dataclass(frozen=True)
class WholeMeasurement:
    """A file's raw times in ms (the fastest call of each round), and its latency in ms with the device's drift
    since the table taken out: what a call takes when nothing else does, and the `median` of all calls."""

    raw: Measurement
    latency: float
    spread: float
    median: float


def measure_whole(
    paths: Mapping[str, str | os.PathLike],
    table: LatencyTable,
    reference: str | os.PathLike,
    runtime_name: str,
    *,
    rounds: int = 50,
    calls: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    seed: int = 0,
    check: Callable[[Bench], None] | None = None,
) -> dict[str, WholeMeasurement]:
    """Times exported files, by name, interleaved with the table's reference network.

    `reference` is its file (`profile.write_reference`). Threads are those of the table. `latency` is the
    undisturbed time over the reference's in the same rounds, times the reference's latency in the table: the
    profile's own measure, hence comparable with `table.latency`. `check` is called with the loaded files, by name,
    before they are timed. Raises `UserError` for a file that the
    runtime cannot load, and for a table of another runtime or device (`check_measured_here`).
    """
    check_measured_here(table, runtime_name)
    # Of equal files the one loaded last is 2 to 5 % faster: a random place for each, the reference among them.
    order = [*paths, _REFERENCE]
    random.Random(seed).shuffle(order)
    with Bench(runtime_name, table.fingerprint.get("threads", 1), table.fingerprint.get("on", "cpu")) as bench:
        for name in order:
            bench.load(name, paths.get(name, reference))
        if check is not None:
            check(bench)
        taken = bench.calls(order, rounds, calls, progress, seed)
    samples = {name: [min(times) for times in found] for name, found in taken.items()}
    result = {}
    for name in paths:
        ratios = Measurement.of(paired_ratios(samples[name], samples[_REFERENCE]))
        ms = table.reference.latency
        latency = undisturbed(samples[name]) / undisturbed(samples[_REFERENCE]) * ms
        median = statistics.median(itertools.chain(*taken[name])) / undisturbed(samples[_REFERENCE]) * ms
        result[name] = WholeMeasurement(Measurement.of(samples[name]), latency, ratios.spread * ms, median)
    return result


def check_measured_here(table: LatencyTable, runtime_name: str, where: str = "the latency table") -> None:
    """Raises `UserError` unless the table was measured by that runtime on this machine's processor, and on its GPU if
    it was measured on one.

    To search on another device's table is what it is for; to time networks here against its milliseconds is not.
    Fields that a table does not have are not compared.
    """
    measured_with = table.fingerprint.get("runtime", runtime_name)
    if measured_with != runtime_name:
        raise UserError(f"{where} was measured with {measured_with}, not with {runtime_name}")
    here = {"gpu": "none", **host(table.fingerprint.get("on", "cpu"))}
    for field in ("device", "gpu"):
        if (there := table.fingerprint.get(field, here[field])) != here[field]:
            raise UserError(
                f"{where} was measured on another {field} ({there}, this is {here[field]}): networks cannot be timed "
                f"against it here; `search` takes it, and `profile` measures this {field}"
            )
