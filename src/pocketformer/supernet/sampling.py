"""Which subnets one training step runs: one small class a rule.

Each is a function of (seed, step): a resumed run, and every process of a job, draws the same.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import Protocol

from pocketformer.architecture import Architecture, SearchSpace, Selection
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
            cost, member = near(self.space, self.cost, rng.uniform(low, high), rng)
            if low <= cost <= high:
                break
        return member


def near(
    space: SearchSpace, cost: Callable[[Architecture], float], target: float, rng: Random
) -> tuple[float, Selection]:
    """A random member that costs about as much as the target, and its cost: `LatencyAware`'s law."""
    start = space.sample_selection(rng)
    below = cost(start.architecture) < target
    passed: list[tuple[float, Selection]] = []
    for member in path(start, space.whole if below else space.minimum, rng):
        passed.append((cost(member.architecture), member))
        if (passed[-1][0] < target) != below:
            break
    return min(passed, key=lambda found: abs(found[0] - target))


def path(start: Selection, end: Selection, rng: Random) -> Iterator[Selection]:
    """Members from `start` to `end`, each one choice nearer to the end than the one before, in random order. (A stage's
    last FFN gives way to those of the end at once.)"""
    space, now, goal = start.space, _choices(start), _choices(end)
    differing = [place for place in now if now[place] != goal[place]]
    rng.shuffle(differing)
    yield start
    for stage, slot in differing:
        if now[stage, slot] == goal[stage, slot]:
            continue
        now[stage, slot] = goal[stage, slot]
        ffns = [(stage, ffn) for ffn in _ffns(space, stage)]
        if not any(now[ffn] for ffn in ffns):
            now.update({ffn: goal[ffn] for ffn in ffns})
        yield _member(space, now)


def _choices(selection: Selection) -> dict[tuple[int, int], float]:
    """{(stage, slot): its expansion, 1 of an attention block, 0 if it is removed}; slot -1 is the stage's width."""
    found: dict[tuple[int, int], float] = {}
    for j, stage in enumerate(selection.space.stages):
        found[j, -1] = selection.widths[j]
        for slot in range(stage.slots):
            kept = slot in selection.kept[j]
            found[j, slot] = 0 if not kept else 1 if stage.is_attention(slot) else selection.expansion(j, slot)
    return found


def _member(space: SearchSpace, choices: dict[tuple[int, int], float]) -> Selection:
    stages = range(len(space.stages))
    kept = tuple(tuple(slot for slot in range(space.stages[j].slots) if choices[j, slot]) for j in stages)
    expansions = tuple(tuple(choices[j, slot] for slot in _ffns(space, j) if choices[j, slot]) for j in stages)
    return Selection(space, tuple(choices[j, -1] for j in stages), kept, expansions)


def _ffns(space: SearchSpace, stage: int) -> list[int]:
    return [slot for slot in range(space.stages[stage].slots) if not space.stages[stage].is_attention(slot)]


def _ends(space: SearchSpace) -> tuple[Selection, Selection]:
    return space.whole, space.select(space.smallest)


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(f"random_{i + 1}" for i in range(count))


def _rng(seed: int, step: int) -> Random:
    return Random(f"{seed}/{step}")
