"""Subnets that cost about as much as a budget allows."""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

from pocketformer.architecture import SearchSpace, Selection
from pocketformer.architecture.paths import near
from pocketformer.search.joint import CostFunction, Costs
from pocketformer.search.metrics import kind_of
from pocketformer.search.objective import Objective

_IDLE_DRAWS = 2_000  # in which the uniform law finds nothing more: the window is narrow, or where it hardly ever comes
_IDLE_PATHS = 500


@dataclass(frozen=True)
class Window:
    """What holds all budgets and uses at least `share` of the latency's (of several devices, of one; without a
    latency budget, or with `any`, of any). A smallest score alone has no upper end."""

    objective: Objective
    share: float = 0.9
    any: bool = False

    def holds(self, costs: Costs) -> bool:
        return self.objective.met(costs) and (not self.objective.budgets or self.used(costs) >= self.share)

    def used(self, costs: Costs) -> float:
        """The share of the budget that binds."""
        usage = self.objective.usage(costs)
        latencies = [share for name, share in usage.items() if kind_of(name) == "latency" and not self.any]
        return max(latencies or usage.values())

    def draws(self, space: SearchSpace, costs: CostFunction, rng: random.Random) -> Iterator[Selection]:
        """Different members inside the window, until none has been found for long: by rejection from the contract's
        sampling law (6.6), and where that hardly ever comes, along random paths to a use drawn uniformly.

        Where another budget than the latency's keeps all of them out, those that use `share` of that one."""
        found: set[Selection] = set()
        costs = cache(costs)  # in a small space the same members come again and again

        def new(members: Iterator[Selection], idle: int) -> Iterator[Selection]:
            left = idle
            for member in members:
                left -= 1
                if member not in found and self.holds(costs(member)):
                    found.add(member)
                    left = idle
                    yield member
                if not left:
                    return

        yield from new((space.sample_selection(rng) for _ in itertools.count()), _IDLE_DRAWS)
        if self.objective.budgets and not space.metapath:  # not every step of a path is a network of V1
            yield from new(self._near(space, costs, rng), _IDLE_PATHS)
        if not found and not self.any:
            yield from replace(self, any=True).draws(space, costs, rng)

    def _near(self, space: SearchSpace, costs: CostFunction, rng: random.Random) -> Iterator[Selection]:
        while True:
            yield near(space, lambda s: self.used(costs(s)), rng.uniform(self.share, 1), rng)[1]
