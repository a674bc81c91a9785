"""Timing several things so that whatever slows the device down meanwhile hits all of them alike."""

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

# A sample lasts at least this long, so that it runs in caches of its own, not in what its predecessor left.
_SAMPLE_MS = 2.0
_MIN_CALLS, _MAX_CALLS = 2, 20
_LEAST_ROUNDS = 10  # however slow the candidates are


@dataclass(frozen=True)
class Measurement:
    """Median and interquartile range of `samples`; ms unless they are ratios."""

    median: float
    spread: float
    samples: tuple[float, ...]

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Measurement":
        """Of at least one sample."""
        return cls(statistics.median(samples), interquartile_range(samples), tuple(samples))


def interquartile_range(samples: Sequence[float]) -> float:
    if len(samples) < 2:
        return 0.0
    first, _, third = statistics.quantiles(samples, n=4, method="inclusive")
    return third - first


def interleave(
    runs: Mapping[str, Callable[[], object]],
    rounds: int,
    calls: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    seed: int = 0,
    *,
    fastest: bool = False,
    seconds: float | None = None,
) -> dict[str, list[float]]:
    """Times every candidate once a round, in a new random order each round: name to `rounds` samples in ms.

    A sample is the mean of `calls` consecutive calls, or the `fastest` of them, after one untimed call (which
    warms the caches that the candidate before it took); by default as many calls as fill two milliseconds, 2 to
    20. Samples of equal index belong to the same round, so that ratios may be taken in pairs. With `seconds`,
    there are fewer rounds where they would take longer than that, but at least 10. `progress(done, rounds)` is
    called between rounds. `interleaved_calls` gives every call.

    On a machine kept busy by others, tenth percentiles of the fastest calls of 30 rounds, as ratios to a reference,
    differed by 3 % from one session to the next; tenth percentiles of means by 13 %, their medians by 16 %.
    """
    sample = min if fastest else statistics.fmean
    taken = interleaved_calls(runs, rounds, calls, progress, seed, seconds=seconds)
    return {name: [sample(times) for times in found] for name, found in taken.items()}


def interleaved_calls(
    runs: Mapping[str, Callable[[], object]],
    rounds: int,
    calls: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    seed: int = 0,
    *,
    seconds: float | None = None,
) -> dict[str, list[list[float]]]:
    """As `interleave`: name to the ms of each call of each round."""
    counts = dict.fromkeys(runs, calls)
    if calls is None or seconds is not None:
        duration = {name: _duration(run) for name, run in runs.items()}
        counts = {name: calls or _calls(ms) for name, ms in duration.items()}
        if seconds is not None:
            a_round = sum(ms * (counts[name] + 1) for name, ms in duration.items()) / 1000
            rounds = min(rounds, max(_LEAST_ROUNDS, int(seconds / a_round)))
    samples: dict[str, list[list[float]]] = {name: [] for name in runs}
    order, rng = list(runs), random.Random(seed)
    for done in range(1, rounds + 1):
        rng.shuffle(order)
        with _no_garbage_collection():
            for name in order:
                samples[name].append(_times(runs[name], counts[name]))
        if progress is not None:
            progress(done, rounds)
    return samples


def undisturbed(samples: Sequence[float]) -> float:
    """The 10th percentile: what a call takes when nothing else does.

    Interference only ever adds. On a machine that others use as well, tables from medians of paired ratios
    missed whole networks by 3.7 to 5.6 % where tables from this missed them by 3.1 to 3.4 %.
    """
    ordered = sorted(samples)
    where = 0.1 * (len(ordered) - 1)
    below = int(where)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (where - below) * (ordered[above] - ordered[below])


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Rank correlation; None where all values of one of them are the same."""
    ranks = [_ranks(a), _ranks(b)]
    return statistics.correlation(*ranks) if all(len(set(r)) > 1 for r in ranks) else None


def _ranks(values: Sequence[float]) -> list[float]:
    """The place of each value in ascending order, the mean place where several are equal."""
    ordered = sorted(values)
    return [ordered.index(v) + (ordered.count(v) - 1) / 2 for v in values]


def paired_ratios(samples: Sequence[float], reference: Sequence[float]) -> list[float]:
    """Round by round, sample over the reference's sample."""
    return [sample / base for sample, base in zip(samples, reference, strict=True)]


def _times(run: Callable[[], object], calls: int) -> list[float]:
    """ms of each call, after one that is not timed."""
    run()
    times = []
    for _ in range(calls):
        start = time.perf_counter_ns()
        run()
        times.append((time.perf_counter_ns() - start) / 1e6)
    return times


def _duration(run: Callable[[], object]) -> float:
    """About what a call takes, in ms."""
    return max(min(_times(run, 2)), 1e-4)


def _calls(ms: float) -> int:
    return min(max(math.ceil(_SAMPLE_MS / ms), _MIN_CALLS), _MAX_CALLS)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
