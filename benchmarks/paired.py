"""Two model files timed in turn, in several sessions, and an interval for the ratio of their times."""

import random
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from pocketformer.devices.bench import Bench
from pocketformer.devices.measure import paired_ratios


def paired_sessions(
    paths: Mapping[str, Path], runtime: str, threads: int, sessions: int, rounds: int, seed: int
) -> list[dict[str, list[float]]]:
    """The samples (ms) of two files in each session. Every session loads both anew, in either order in turn, because
    of equal files the one loaded last is up to 5 % faster; a sample is the fastest of a few calls."""
    rng, found = random.Random(seed), []
    for session in range(sessions):
        with Bench(runtime, threads) as bench:
            for name in list(paths)[:: 1 if session % 2 else -1]:
                bench.load(name, paths[name])
            found.append(bench.interleave(list(paths), rounds, seed=rng.randrange(2**30), fastest=True))
    return found


def ratio(sessions: Sequence[Mapping[str, Sequence[float]]], first: str, second: str) -> tuple[float, float, float]:
    """Median of first over second, round by round, and its 95 % interval: by the bootstrap over sessions, as the
    rounds of one session share its luck."""
    ratios = [paired_ratios(samples[first], samples[second]) for samples in sessions]
    rng = random.Random(0)
    medians = sorted(
        statistics.median(r for session in rng.choices(ratios, k=len(ratios)) for r in session) for _ in range(2000)
    )
    return statistics.median(r for session in ratios for r in session), medians[50], medians[1949]
