"""Random members of given ranges of parameters: what accuracies are correlated over (V2 App. B, Fig. 5)."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from random import Random

from pocketformer.architecture import Architecture, SearchSpace, Selection
from pocketformer.architecture.paths import near
from pocketformer.errors import UserError

Stratum = tuple[float, float]  # fewest and most parameters
_TRIES = 200  # draws for each member that is wanted: by the uniform law, and then along paths


def even_strata(low: float, high: float, count: int) -> list[Stratum]:
    """`count` strata from `low` to `high`, each as many times as wide as the one before: accuracy goes about with the
    logarithm of size, so that equal widths would put most members where accuracies hardly differ."""
    edges = [low * (high / low) ** (i / count) for i in range(count)] + [high]
    return list(pairwise(edges))


def members_of(
    space: SearchSpace, parameters: Callable[[Architecture], float], strata: Sequence[Stratum], each: int, rng: Random
) -> list[Selection]:
    """`each` random members of every stratum, no two of them the same architecture, in the order of the strata.

    The law of a stratum is the uniform one (contract 6.6) on the condition that the parameters are within: members are
    drawn by it, and a stratum keeps the first that fall into it. A stratum that the law hardly ever reaches is filled
    along random paths to members of a size drawn uniformly from it (`sampling.LatencyAware`). Raises `UserError` if
    there are too few.
    """
    found: list[dict[Architecture, Selection]] = [{} for _ in strata]

    def take(member: Selection) -> None:
        value = parameters(member.architecture)
        for place, (low, high) in zip(found, strata, strict=True):
            if low <= value <= high:  # an edge that two share is the first one's
                if len(place) < each:
                    place.setdefault(member.architecture, member)
                return

    for _ in range(_TRIES * each * len(strata)):
        if all(len(place) == each for place in found):
            break
        take(space.sample_selection(rng))
    for place, (low, high) in zip(found, strata, strict=True):
        for _ in range(_TRIES * each):
            if len(place) == each:
                break
            take(near(space, lambda s: parameters(s.architecture), rng.uniform(low, high), rng)[1])
        if len(place) < each:
            raise UserError(
                f"space {space.name}: {len(place)} of {each} members were found from {math.ceil(low):,} to "
                f"{math.floor(high):,} parameters; ask for fewer --subnets or other --parameters"
            )
    return [member for place in found for member in place.values()]
