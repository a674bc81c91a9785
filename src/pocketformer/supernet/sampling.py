"""Which subnets one training step runs: one small class a rule."""

import random
from dataclasses import dataclass

from pocketformer.architecture import SearchSpace, Selection


@dataclass(frozen=True)
class Sandwich:
    """The sandwich rule (paper Alg. 1): largest, smallest and `random` sampled subnets, largest first, so that
    its output can be the target of the others. A function of (seed, step): a resumed run draws the same."""

    space: SearchSpace
    random: int = 2
    seed: int = 0

    def subnets(self, step: int) -> tuple[Selection, ...]:
        rng = random.Random(f"{self.seed}/{step}")
        sampled = (self.space.sample_selection(rng) for _ in range(self.random))
        return (self.space.whole, self.space.select(self.space.smallest), *sampled)
