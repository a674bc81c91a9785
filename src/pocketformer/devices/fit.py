"""Correcting block costs by whole networks: least squares with the chains' values as the prior."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence

from pocketformer.architecture.blocks import BlockValue

# Prior standard deviations, as shares. Chains are off alike for all blocks of a kind at a grid (their weights
# are warmer in the caches than a network's, say), more so the wider the block (per factor e of cost), and each
# block on its own. How much depends on device and space: the combination is chosen that predicts each network
# best from all others.
_ALIKE = (0.03, 0.1, 0.25)
_WIDER = (0.0, 0.1, 0.3)
_EACH = (0.03, 0.1)
_CONSTANT = (0.05, 0.2)  # of the median network's time
_NOISE = (0.01, 0.03)  # of a whole network's time: measurement, and what no sum over blocks explains
# Networks that others predict much worse than usual were disturbed while they were timed: from so many standard
# deviations on they count less (Huber's weights, on residuals left out), and in choosing at most as this error.
_USUAL, _AT_MOST = 2.5, 0.15


def fit_entries(
    costs: Mapping[str, float],
    constant: float,
    blocks: Mapping[str, BlockValue],
    networks: Sequence[tuple[Counter, float]],
) -> tuple[dict[str, float], float]:
    """The corrected cost of each block (key to ms) and constant (ms).

    `costs` and `constant` are the chains' values; `networks` are how often each key occurs in a network, and
    its time in ms, at least two. The answer minimises squared relative errors of the networks plus squared
    corrections relative to their prior deviations (ridge regression, the prior being Gaussian). Blocks that no
    network holds are corrected like their kind. Costs stay positive.
    """
    import numpy as np

    keys = list(costs)
    prior = np.array([costs[key] for key in keys] + [constant])
    counts = np.array([[count[key] for key in keys] + [1] for count, _ in networks], dtype=float)
    times = np.array([time for _, time in networks])
    kinds = [(type(blocks[key]), blocks[key].grid) for key in keys]
    same_kind = np.array([[a == b for b in kinds] for a in kinds], dtype=float)
    size = np.log(prior[:-1])
    size -= same_kind @ size / same_kind.sum(axis=1)  # above the mean of the kind
    wider = same_kind * np.outer(size, size)
    scale = np.outer(prior[:-1], prior[:-1])
    errors = times - counts @ prior

    def solve(covariance, noise):
        """The corrected values, and the relative error of each network when predicted from the others."""
        gain = covariance @ counts.T
        inverse = np.linalg.inv(counts @ gain + np.diag((noise * times) ** 2))
        return prior + gain @ inverse @ errors, np.abs(inverse @ errors / np.diag(inverse)) / times

    best = None
    for alike, slope, each, offset, noise in itertools.product(_ALIKE, _WIDER, _EACH, _CONSTANT, _NOISE):
        covariance = np.zeros((len(prior), len(prior)))
        covariance[:-1, :-1] = (alike**2 * same_kind + slope**2 * wider + each**2 * np.eye(len(keys))) * scale
        covariance[-1, -1] = (offset * np.median(times)) ** 2
        fitted, left_out = solve(covariance, noise)
        score = float(np.mean(np.minimum(left_out, _AT_MOST) ** 2))
        if best is None or score < best[0]:
            best = score, fitted, left_out, covariance, noise
    _, fitted, left_out, covariance, noise = best
    for _ in range(2):
        usual = _USUAL * max(1.4826 * np.median(left_out), noise)
        fitted, left_out = solve(covariance, noise * np.maximum(1, left_out / usual) ** 2)
    fitted[:-1] = np.maximum(fitted[:-1], 0.1 * prior[:-1])
    return dict(zip(keys, map(float, fitted[:-1]), strict=True)), float(fitted[-1])
