"""Subnets that cost about as much as a budget allows."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from pocketformer.architecture import SearchSpace, Selection
from pocketformer.search.joint import CostFunction, Costs
from pocketformer.search.metrics import kind_of
from pocketformer.search.objective import Objective

_IDLE_DRAWS = 20_000  # give up after so many without a find: a narrow window may hold few members


@dataclass(frozen=True)
class Window:
    """What holds all budgets and uses at least `share` of the latency's (of several devices, of one; without a
    latency budget, of any). A smallest score alone has no upper end."""

    objective: Objective
    share: float = 0.9

    def holds(self, costs: Costs) -> bool:
        return self.objective.met(costs) and (not self.objective.budgets or self.used(costs) >= self.share)

    def used(self, costs: Costs) -> float:
        """The share of the budget that binds."""
        usage = self.objective.usage(costs)
        latencies = [share for name, share in usage.items() if kind_of(name) == "latency"]
        return max(latencies or usage.values())

    def draws(self, space: SearchSpace, costs: CostFunction, rng: random.Random) -> Iterator[Selection]:
        """Different members inside the window, by rejection from the contract's sampling law (6.6), until none has
        been found for long."""
        found: set[Selection] = set()
        idle = 0
        while idle < _IDLE_DRAWS:
            selection = space.sample_selection(rng)
            idle += 1
            if selection not in found and self.holds(costs(selection)):
                found.add(selection)
                idle = 0
                yield selection
