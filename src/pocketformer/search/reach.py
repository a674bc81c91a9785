"""What a space can reach at all, so that an impossible budget is refused before anything is trained."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace

from pocketformer.architecture import SearchSpace, Selection
from pocketformer.search.objective import Objective


def smallest_latency(space: SearchSpace, latency: Callable[[Selection], float]) -> Selection:
    """The fastest member, exactly. A latency table need not be monotone (a narrower block can be slower), so
    every combination of widths is tried; blocks add up, so each stage's best expansion is found alone.
    """
    minimum = space.minimum

    def fastest_expansion(j: int, width: int) -> float:
        alone = minimum.with_width(j, width)
        return min(space.expansions, key=lambda e: latency(alone.with_expansion(j, alone.kept[j][0], e)))

    best = [{w: fastest_expansion(j, w) for w in offer.widths} for j, offer in enumerate(space.stages)]
    members = (
        replace(minimum, widths=widths, expansions=tuple((best[j][w],) for j, w in enumerate(widths)))
        for widths in itertools.product(*(offer.widths for offer in space.stages))
    )
    return min(members, key=latency)


def smallest_reachable(space: SearchSpace, costs: Callable[[Selection], Mapping[str, float]]) -> dict[str, float]:
    """The smallest value of each cost over the space: parameters and memory at the minimum, latency searched."""
    values = dict(costs(space.minimum))
    if "latency" in values:
        fastest = smallest_latency(space, lambda s: costs(s)["latency"])
        values["latency"] = costs(fastest)["latency"]
    return values


def unreachable(
    space: SearchSpace, costs: Callable[[Selection], Mapping[str, float]], objective: Objective
) -> dict[str, float]:
    """The budgets that no member meets, with the smallest value of each; empty if all can be met."""
    values = smallest_reachable(space, costs)
    return {name: values[name] for name, budget in objective.budgets.items() if values[name] > budget}
