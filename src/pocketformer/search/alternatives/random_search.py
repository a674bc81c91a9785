"""Random subnets of the budgets' cost: what every search is held against (V2 Tables 4 and 6, Fig. 4)."""

import random
from itertools import islice

from pocketformer.search.alternatives.proposing import TOGETHER, Problem, Proposals, Proposing
from pocketformer.search.alternatives.window import Window


class RandomSearch(Proposing):
    """Draws by the contract's sampling law (6.6), within 0.9 to 1.0 of the latency budget."""

    name, how = "random", "draw"

    def propose(self, problem: Problem) -> Proposals:
        rng = random.Random(f"random search {self.seed}")
        draws = Window(problem.objective).draws(problem.space, problem.costs, rng)
        while batch := list(islice(draws, TOGETHER)):
            yield batch
