"""What a space can reach at all, so that an impossible budget is refused before anything is trained."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace

from pocketformer.architecture import SearchSpace, Selection
from pocketformer.search.metrics import is_tabulated


def cheapest(space: SearchSpace, cost: Callable[[Selection], float]) -> Selection:
    """The member of least latency or energy, exactly. A table need not be monotone (a narrower block can be
    slower), so every combination of widths is tried; blocks add up, so each stage's best expansion is found alone.
    """
    minimum = space.minimum

    def best_expansion(j: int, width: int) -> float:
        alone = minimum.with_width(j, width)
        return min(space.expansions, key=lambda e: cost(alone.with_expansion(j, alone.kept[j][0], e)))

    best = [{w: best_expansion(j, w) for w in offer.widths} for j, offer in enumerate(space.stages)]
    members = (
        replace(minimum, widths=widths, expansions=tuple((best[j][w],) for j, w in enumerate(widths)))
        for widths in itertools.product(*(offer.widths for offer in space.stages))
    )
    return min(members, key=cost)


def smallest_reachable(space: SearchSpace, costs: Callable[[Selection], Mapping[str, float]]) -> dict[str, float]:
    """The smallest value of each cost over the space: what a table says is searched, all else is at the minimum."""
    values = dict(costs(space.minimum))
    for name in filter(is_tabulated, list(values)):
        values[name] = costs(cheapest(space, lambda s, name=name: costs(s)[name]))[name]
    return values
