"""Which subnets one training step runs: one small class a rule.

Each is a function of (seed, step): a resumed run, and every process of a job, draws the same.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import Protocol

from pocketformer.architecture import Architecture, SearchSpace, Selection
from pocketformer.architecture.paths import near
from pocketformer.errors import UserError

NEAR = 0.2  # how far from a budget members are near it, as a share of it
_TRIES = 50


class Rule(Protocol):
    """`roles` names the subnets of every step, in their order: "largest" (which is the first, or missing, so that its
    output can be the target of the others), "smallest", "random_1", …"""

    @property
    def roles(self) -> tuple[str, ...]: ...

    def subnets(self, step: int) -> tuple[Selection, ...]: ...


@dataclass(frozen=True)
class Sandwich:
    """The sandwich rule (paper Sec. 4.2.2, Alg. 1): largest, smallest and `random` subnets of the uniform law, which is
    `SearchSpace.sample_selection`'s (contract 6.6)."""

    space: SearchSpace
    random: int = 2
    seed: int = 0

    @property
    def roles(self) -> tuple[str, ...]:
        return ("largest", "smallest", *_numbered(self.random))

    def subnets(self, step: int) -> tuple[Selection, ...]:
        rng = _rng(self.seed, step)
        return (*_ends(self.space), *(self.space.sample_selection(rng) for _ in range(self.random)))


@dataclass(frozen=True)
class Uniform:
    """`random` subnets of the uniform law alone: no weight is trained in every step."""

    space: SearchSpace
    random: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.random < 1:
            raise UserError("uniform sampling runs nothing but random subnets: at least 1")

    @property
    def roles(self) -> tuple[str, ...]:
        return _numbered(self.random)

    def subnets(self, step: int) -> tuple[Selection, ...]:
        rng = _rng(self.seed, step)
        return tuple(self.space.sample_selection(rng) for _ in range(self.random))


@dataclass(frozen=True)
class LargestAlone:
    """The largest subnet and no other: a network trained on its own (V2 App. B, Fig. 5: EagleEye)."""

    space: SearchSpace

    @property
    def roles(self) -> tuple[str, ...]:
        return ("largest",)

    def subnets(self, step: int) -> tuple[Selection, ...]:
        return (self.space.whole,)


@dataclass(frozen=True)
class LatencyAware:
    """The sandwich whose random subnets are spread evenly over a range of `cost` (latency, or anything else of an
    architecture), where the uniform law hardly leaves the range's middle.

    The law: a target is drawn uniformly from the range, and a member by the uniform law. From this member a path leads
    to the largest subnet if it costs less than the target, else to the absolute minimum: the choices in which they
    differ (widths, expansions, slots kept or not) are taken over one by one, in random order. Of the members on this
    path up to the first that has passed the target, the one nearest to the target is taken, and accepted if it is
    within the range; else all is drawn anew (at most 50 times: a range may hold no member).

    The range is that from the smallest subnet of the training to the largest; with a `budget`, what is within a fifth
    of it (`NEAR`).
    """

    space: SearchSpace
    cost: Callable[[Architecture], float]
    random: int = 2
    seed: int = 0
    budget: float | None = None

    @property
    def roles(self) -> tuple[str, ...]:
        return ("largest", "smallest", *_numbered(self.random))

    @cached_property
    def range(self) -> tuple[float, float]:
        """Raises `UserError` if no member is near the budget."""
        high = self.cost(self.space.largest)
        if self.budget is None:
            return self.cost(self.space.smallest), high
        least = self.cost(self.space.minimum.architecture)
        near = max(least, self.budget * (1 - NEAR)), min(high, self.budget * (1 + NEAR))
        if near[0] > near[1]:
            raise UserError(
                f"no member of space {self.space.name} is near a budget of {self.budget:.4g}: they have "
                f"{least:.4g} to {high:.4g}"
            )
        return near

    def subnets(self, step: int) -> tuple[Selection, ...]:
        rng = _rng(self.seed, step)
        return (*_ends(self.space), *(self._draw(rng) for _ in range(self.random)))

    def _draw(self, rng: Random) -> Selection:
        low, high = self.range
        for _ in range(_TRIES):
            cost, member = near(self.space, lambda s: self.cost(s.architecture), rng.uniform(low, high), rng)
            if low <= cost <= high:
                break
        return member


def _ends(space: SearchSpace) -> tuple[Selection, Selection]:
    return space.whole, space.select(space.smallest)


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(f"random_{i + 1}" for i in range(count))


def _rng(seed: int, step: int) -> Random:
    return Random(f"{seed}/{step}")
