"""Regularised evolution (Real et al., 2019: "Regularized Evolution for Image Classifier Architecture Search")."""

import random
from collections import deque
from dataclasses import dataclass
from itertools import islice

from pocketformer.architecture import Selection
from pocketformer.errors import UserError
from pocketformer.search.alternatives.proposing import TOGETHER, Problem, Proposals, Proposing, better
from pocketformer.search.alternatives.window import Window
from pocketformer.search.frontier import frontier, regrowth

_TRIES = 200  # mutations of a parent, until a draw of its own takes the place of a child
_MOVES = 12  # of one mutation, at most


@dataclass(frozen=True)
class Evolution(Proposing):
    """The first `population` are drawn as random search draws. From then on the best of `tournament` living ones has
    a child, and the oldest dies. A child is one or more random moves away, slimming or reverse, until it holds
    all budgets and is new."""

    population: int = 32
    tournament: int = 8

    name, how = "evolution", "child"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.tournament <= self.population:
            raise UserError(f"a tournament of {self.tournament} needs a population as large, not {self.population}")

    def propose(self, problem: Problem) -> Proposals:
        rng = random.Random(f"evolution {self.seed}")
        draws = Window(problem.objective).draws(problem.space, problem.costs, rng)
        alive: deque = deque(maxlen=self.population)
        seen: set[Selection] = set()
        first = islice(draws, self.population)
        while batch := list(islice(first, TOGETHER)):
            scores = yield batch
            seen.update(batch)
            alive.extend(zip(batch, scores, strict=True))
        while alive:
            contest = rng.sample(alive, min(self.tournament, len(alive)))
            parent, _ = max(contest, key=lambda member: better(member[1]))
            child = _child(parent, problem, rng, seen) or next((d for d in draws if d not in seen), None)
            if child is None:
                return
            (score,) = yield [child]
            seen.add(child)
            alive.append((child, score))


def _child(parent: Selection, problem: Problem, rng: random.Random, seen: set[Selection]) -> Selection | None:
    for _ in range(_TRIES):
        child = parent
        for _ in range(_MOVES):
            _, child = rng.choice(frontier(child) + regrowth(child))
            if child not in seen and problem.fits(child):
                return child
    return None
