"""Correcting block costs by whole networks: least squares with the chains' values as the prior."""

from collections import Counter
from collections.abc import Mapping, Sequence

from pocketformer.architecture.blocks import BlockValue

# Prior standard deviations, as shares. Chains are off alike for all blocks of a kind at a grid (their weights are
# warmer in the caches than a network's, say), and a little for each block on its own.
_ALIKE = 0.15
_EACH = 0.05
_NOISE = 0.015  # of a whole network's time
_CONSTANT = 0.05  # of the median network's time


def fit_entries(
    costs: Mapping[str, float],
    constant: float,
    blocks: Mapping[str, BlockValue],
    networks: Sequence[tuple[Counter, float]],
) -> tuple[dict[str, float], float]:
    """The corrected cost of each block (key to ms) and constant (ms).

    `costs` and `constant` are the chains' values; `networks` are how often each key occurs in a network, and its
    time in ms. The answer minimises squared relative errors of the networks plus squared corrections relative to
    their prior deviations. Blocks that no network holds are corrected like their kind. Costs stay positive.
    """
    import numpy as np

    keys = list(costs)
    prior = np.array([costs[key] for key in keys] + [constant])
    counts = np.array([[count[key] for key in keys] + [1] for count, _ in networks], dtype=float)
    times = np.array([time for _, time in networks])
    kinds = [(type(blocks[key]), blocks[key].grid) for key in keys]
    alike = np.array([[a == b for b in kinds] for a in kinds], dtype=float)
    covariance = np.zeros((len(prior), len(prior)))
    covariance[:-1, :-1] = (_ALIKE**2 * alike + _EACH**2 * np.eye(len(keys))) * np.outer(
        prior[:-1], prior[:-1]
    )
    covariance[-1, -1] = (_CONSTANT * np.median(times)) ** 2
    noise = np.diag((_NOISE * times) ** 2)
    gain = covariance @ counts.T @ np.linalg.inv(counts @ covariance @ counts.T + noise)
    fitted = prior + gain @ (times - counts @ prior)
    fitted[:-1] = np.maximum(fitted[:-1], 0.1 * prior[:-1])
    return dict(zip(keys, map(float, fitted[:-1]), strict=True)), float(fitted[-1])
