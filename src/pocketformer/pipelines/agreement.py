"""How well one score of subnets tells another: Pearson's r², Spearman's rho and Kendall's tau, with their intervals."""

import warnings
from collections.abc import Callable, Sequence

import numpy as np

from pocketformer.errors import UserError

FEWEST = 4  # subnets that any of the intervals needs
MEASURES = ("r2", "spearman", "kendall")
WAYS = ("own", "recalibrated", "alone")  # a subnet in the supernet, with its norms or re-calibrated ones; EagleEye's
_RESAMPLES = 2000
_AT_ONCE = 2**21  # pairs of subnets in memory


def agreement(predicted: Sequence[float], wanted: Sequence[float]) -> dict:
    """{measure: {"value", "interval95"}} of Pearson's r, its square "r2", Spearman's rho and Kendall's tau-b.

    Intervals: bootstrap over subnets, BCa; of normal samples of 8 to 40 pairs, 91 to 98 % held the true value (300 of
    each size). None where all values of one side are equal: they have no order.
    """
    samples = tuple(np.asarray(values, float) for values in (predicted, wanted))
    if len(samples[0]) < FEWEST:
        raise UserError(f"a correlation needs at least {FEWEST} subnets, not {len(samples[0])}")
    if any(np.ptp(values) == 0 for values in samples):
        nothing = {"value": None, "interval95": None}
        return dict.fromkeys(("pearson", *MEASURES), nothing)
    found = {name: _with_interval(samples, COEFFICIENTS[name]) for name in ("pearson", "spearman", "kendall")}
    r, (low, high) = found["pearson"]["value"], found["pearson"]["interval95"]
    ends = sorted((low * low, high * high))
    return found | {"r2": {"value": r * r, "interval95": [0.0 if low < 0 < high else ends[0], ends[1]]}}


def advantage(one: Sequence[float], other: Sequence[float], wanted: Sequence[float]) -> dict:
    """{measure: {"value", "interval95"}}: by how much `one` tells `wanted` better than `other` does, on the same
    subnets. A negative correlation counts as a negative r²: it misleads."""
    samples = tuple(np.asarray(values, float) for values in (one, other, wanted))

    def difference(measure: str) -> Callable:
        coefficient = COEFFICIENTS["pearson" if measure == "r2" else measure]

        def told(x: np.ndarray, y: np.ndarray) -> np.ndarray:
            r = coefficient(x, y)
            return r * np.abs(r) if measure == "r2" else r

        return lambda a, b, y: told(a, y) - told(b, y)

    return {measure: _with_interval(samples, difference(measure)) for measure in MEASURES}


def _correlation(x: np.ndarray, y: np.ndarray, signs: bool = False) -> np.ndarray:
    """Σ a_ij b_ij / √(Σ a_ij² Σ b_ij²) over all pairs of subnets of the last axis (Daniels, 1944), 0 where one of the
    two is constant: with differences a_ij = x_i - x_j it is Pearson's r, with their signs Kendall's tau-b."""
    a, b = (values[..., :, None] - values[..., None, :] for values in (x, y))
    if signs:
        a, b = np.sign(a), np.sign(b)
    product, *squares = ((p * q).sum((-2, -1)) for p, q in ((a, b), (a, a), (b, b)))
    norm = np.sqrt(squares[0] * squares[1])
    return np.divide(product, norm, out=np.zeros_like(norm), where=norm > 0)


def _spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    ranks = _scipy().rankdata
    return _correlation(ranks(x, axis=-1), ranks(y, axis=-1))


COEFFICIENTS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "pearson": _correlation,
    "spearman": _spearman,
    "kendall": lambda x, y: _correlation(x, y, signs=True),
}


def _with_interval(samples: tuple[np.ndarray, ...], statistic: Callable) -> dict:
    """A statistic of paired samples and its bootstrap interval: BCa, or by percentiles where that is not defined (all
    resamples but constant ones agree). A resample that happens to be constant shows no correlation: 0."""
    options = {
        "paired": True,
        "vectorized": True,
        "n_resamples": _RESAMPLES,
        "batch": max(1, _AT_ONCE // len(samples[0]) ** 2),
    }
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is not defined is asked below
            found = _scipy().bootstrap(
                samples,
                lambda *resampled, axis=-1: statistic(*resampled),
                method=method,
                rng=np.random.default_rng(0),
                **options,
            )
        ends = [float(end) for end in found.confidence_interval]
        if np.isfinite(ends).all():
            break
    return {"value": float(statistic(*samples)), "interval95": ends}


def need_scipy() -> None:
    """Raises `UserError` if it is not installed: asked before the work, not after it."""
    _scipy()


def _scipy():
    try:
        from scipy import stats
    except ImportError:
        raise UserError("correlate needs scipy: pip install 'pocketformer[search]'") from None
    return stats


def summarised(subnets: dict[str, dict]) -> dict[str, dict]:
    """{set: its subnets, the range of their parameters, and, of a set that was drawn, how well each way tells the
    accuracy after training}. Names of subnets are those of their sets and a number."""
    sets: dict[str, dict] = {}
    for key, row in subnets.items():
        sets.setdefault(key.split()[0], {"subnets": []})["subnets"].append({"subnet": key, **row})
    for name, found in sets.items():
        rows = found["subnets"]
        sizes = [row["parameters"] for row in rows]
        found["parameters"] = [min(sizes), max(sizes)]
        if name != "found":
            accuracies = {way: [row["accuracy"][way]["accuracy"] for row in rows] for way in (*WAYS, "trained")}
            found["ways"] = {way: agreement(accuracies[way], accuracies["trained"]) for way in WAYS}
            pairs = {way: (accuracies["recalibrated"], accuracies[way]) for way in WAYS if way != "recalibrated"}
            found["recalibrated_above"] = {way: advantage(*pair, accuracies["trained"]) for way, pair in pairs.items()}
    return sets
