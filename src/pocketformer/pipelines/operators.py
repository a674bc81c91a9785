"""V1's latency analysis (V1 Sec. 3) on this device: which of its observations hold here."""

import math
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from pocketformer.deploy import SUFFIXES, format_for
from pocketformer.devices.bench import Bench
from pocketformer.devices.measure import interquartile_range
from pocketformer.devices.opening import open_all
from pocketformer.devices.operators import Comparison, Operator, comparisons
from pocketformer.errors import UserError, WorkError, first_line
from pocketformer.pipelines.benchmarking import fingerprint
from pocketformer.progress import say, stage

FORMAT = "pocketformer-operators-1"
HOLDS, FAILS, UNDECIDED = "holds here", "does not hold here", "undecided"
HARDLY = 1.05  # "hardly slower": by at most this
_SHORT, _LONG = 1, 7  # repeats; their difference has no session in it
_RESAMPLES = 2000

Interval = tuple[float | None, float | None]


def measure_operators(
    runtime_name: str,
    threads: int = 1,
    batch: int = 1,
    rounds: int = 50,
    *,
    device: str | None = None,
    seed: int = 0,
    chosen: Sequence[Comparison] | None = None,
) -> dict:
    """Times all operators in turn, as differences of a long and a short chain; one row a comparison (`judge`).

    An operator that the exporter rejects or the runtime cannot run takes its comparisons with it (`left_out`).
    Raises `WorkError` if none is left.
    """
    chosen = comparisons() if chosen is None else chosen
    operators = {o.name: o for c in chosen for o in (*c.slower, *c.faster)}
    with tempfile.TemporaryDirectory(prefix="pocketformer-") as folder, Bench(runtime_name, threads, device) as bench:
        failed: dict[str, str] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            files = _write(runtime_name, operators, batch, Path(folder), failed)
        _open(bench, files, seed, failed)
        for name, why in failed.items():
            say(f"left out: {name} ({why})")
        names = [_session(name, n) for name in operators if name not in failed for n in (_SHORT, _LONG)]
        with stage("time", rounds) as progress:
            samples = bench.interleave(names, rounds, None, lambda done, _: progress.update(done), seed)
    costs = {name: differences(samples, name) for name in operators if name not in failed}
    rows = [judge(c, costs) for c in chosen if not failed.keys() & {o.name for o in (*c.slower, *c.faster)}]
    if not rows:
        raise WorkError(f"no operators could be compared; the first: {next(iter(failed.values()), 'none given')}")
    return {
        "format": FORMAT,
        "fingerprint": fingerprint(runtime_name, threads, bench.device, batch, rounds, seed),
        "comparisons": rows,
        "observations": observations(rows),
        "operators": {name: [round(ms, 6) for ms in cost] for name, cost in costs.items()},
        "left_out": [{"name": name, "reason": reason} for name, reason in failed.items()],
    }


def differences(samples: Mapping[str, Sequence[float]], name: str) -> list[float]:
    """ms of one operator in each round: what the long chain takes more than the short one, for each repeat more."""
    pairs = zip(samples[_session(name, _LONG)], samples[_session(name, _SHORT)], strict=True)
    return [(long - short) / (_LONG - _SHORT) for long, short in pairs]


def judge(comparison: Comparison, costs: Mapping[str, Sequence[float]]) -> dict:
    """The row of a comparison: ms of both sides, their ratio with its 95 % interval, the verdict.

    The ratio is that of the medians over the rounds; its interval is a bootstrap over the rounds. None: of a faster
    side that may cost nothing, there is no ratio.
    """
    slower = [sum(parts) for parts in zip(*(costs[o.name] for o in comparison.slower), strict=True)]
    faster = [sum(parts) for parts in zip(*(costs[o.name] for o in comparison.faster), strict=True)]
    interval = ratio_interval(slower, faster)
    return {
        "observation": comparison.observation,
        "comparison": comparison.title,
        "source": comparison.source,
        "slower": [o.name for o in comparison.slower],
        "faster": [o.name for o in comparison.faster],
        "slower_ms": statistics.median(slower),
        "slower_spread_ms": interquartile_range(slower),
        "faster_ms": statistics.median(faster),
        "faster_spread_ms": interquartile_range(faster),
        "ratio": _ratio(statistics.median(slower), statistics.median(faster)),
        "ratio95": list(interval),
        "hardly": comparison.hardly,
        "verdict": verdict(interval, comparison.hardly),
    }


def verdict(interval: Interval, hardly: bool = False) -> str:
    """Whether the slower side is slower, by its ratio's interval; with `hardly`, whether it is by 5 % at most."""
    low, high = interval
    if low is None or high is None:  # noise, divided by what may be zero, proves nothing
        return UNDECIDED
    if hardly:
        return HOLDS if high <= HARDLY else FAILS if low > HARDLY else UNDECIDED
    return HOLDS if low > 1 else FAILS if high < 1 else UNDECIDED


def observations(rows: Sequence[dict]) -> dict[str, dict[str, int]]:
    """How often each observation holds, by number."""
    found: dict[str, dict[str, int]] = {}
    for row in rows:
        counts = found.setdefault(str(row["observation"]), {HOLDS: 0, FAILS: 0, UNDECIDED: 0})
        counts[row["verdict"]] += 1
    return found


def ratio_interval(slower: Sequence[float], faster: Sequence[float], seed: int = 0) -> Interval:
    """95 % interval of the ratio of medians: bootstrap over rounds, both sides of a round together.

    A bound is None where the faster side's own interval reaches zero.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(slower), (_RESAMPLES, len(slower)), generator=generator)
    above, below = (torch.tensor(side, dtype=torch.float64)[chosen].quantile(0.5, dim=1) for side in (slower, faster))
    found = map(_ratio, above.tolist(), below.tolist())
    ratios = sorted(found, key=lambda ratio: math.inf if ratio is None else ratio)
    return ratios[int(0.025 * _RESAMPLES)], ratios[int(0.975 * _RESAMPLES) - 1]


def _ratio(above: float, below: float) -> float | None:
    """What noise makes of an operator that costs next to nothing may be below zero."""
    return max(above, 0.0) / below if below > 0 else None


def _write(
    runtime_name: str, operators: Mapping[str, Operator], batch: int, folder: Path, failed: dict[str, str]
) -> dict[str, Path]:
    """Both chains of all operators as files, by session."""
    format, files = format_for(runtime_name), {}
    with stage("export", len(operators)) as progress:
        for name, operator in operators.items():
            try:
                for repeats in (_SHORT, _LONG):
                    path = folder / f"{len(files)}{SUFFIXES[format.NAME]}"
                    operator.write(format, repeats, path, batch)
                    files[_session(name, repeats)] = path
            except UserError:  # what the format needs is not here
                raise
            except Exception as error:  # converters raise many types
                failed[name] = first_line(error)
            progress.advance(note=name)
    return files


def _open(bench: Bench, files: Mapping[str, Path], seed: int, failed: dict[str, str]) -> None:
    with stage("load", len(files)) as progress:
        for session, error in open_all(bench, files, seed, progress.update).items():
            failed[session.rpartition(" x ")[0]] = first_line(error)


def _session(name: str, repeats: int) -> str:
    return f"{name} x {repeats}"
