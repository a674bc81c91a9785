"""Correcting block costs by whole networks: least squares with the chains' values as the prior."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence

from pocketformer.architecture.blocks import BlockValue

# Prior standard deviations, as shares. Chains are off alike for all blocks of a kind at a grid (their weights
# are warmer in the caches than a network's, say), and each block on its own; how much depends on device and
# space, so that the pair is chosen which predicts each network best from all others.
_ALIKE = (0.03, 0.1, 0.25)
_EACH = (0.03, 0.1)
_NOISE = 0.03  # of a whole network's time: measurement, and what no sum over blocks explains
_CONSTANT = 0.05  # of the median network's time


def fit_entries(
    costs: Mapping[str, float],
    constant: float,
    blocks: Mapping[str, BlockValue],
    networks: Sequence[tuple[Counter, float]],
) -> tuple[dict[str, float], float]:
    """The corrected cost of each block (key to ms) and constant (ms).

    `costs` and `constant` are the chains' values; `networks` are how often each key occurs in a network, and
    its time in ms. The answer minimises squared relative errors of the networks plus squared corrections
    relative to their prior deviations (ridge regression, the prior being Gaussian). Blocks that no network
    holds are corrected like their kind. Costs stay positive.
    """
    import numpy as np

    keys = list(costs)
    prior = np.array([costs[key] for key in keys] + [constant])
    counts = np.array([[count[key] for key in keys] + [1] for count, _ in networks], dtype=float)
    times = np.array([time for _, time in networks])
    kinds = [(type(blocks[key]), blocks[key].grid) for key in keys]
    same_kind = np.array([[a == b for b in kinds] for a in kinds], dtype=float)
    noise = np.diag((_NOISE * times) ** 2)
    errors = times - counts @ prior

    best = None
    for alike, each in itertools.product(_ALIKE, _EACH):
        covariance = np.zeros((len(prior), len(prior)))
        relative = alike**2 * same_kind + each**2 * np.eye(len(keys))
        covariance[:-1, :-1] = relative * np.outer(prior[:-1], prior[:-1])
        covariance[-1, -1] = (_CONSTANT * np.median(times)) ** 2
        inverse = np.linalg.inv(counts @ covariance @ counts.T + noise)
        left_out = inverse @ errors / np.diag(inverse)  # each network's error when predicted from the others
        score = float(np.mean((left_out / times) ** 2))
        if best is None or score < best[0]:
            best = score, prior + covariance @ counts.T @ inverse @ errors
    fitted = best[1]
    fitted[:-1] = np.maximum(fitted[:-1], 0.1 * prior[:-1])
    return dict(zip(keys, map(float, fitted[:-1]), strict=True)), float(fitted[-1])
