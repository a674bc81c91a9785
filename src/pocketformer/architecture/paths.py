"""Random paths through a space: from one member to another, one choice at a time."""

from collections.abc import Callable, Iterator
from random import Random

from pocketformer.architecture.selection import Selection
from pocketformer.architecture.space import SearchSpace


def near(space: SearchSpace, cost: Callable[[Selection], float], target: float, rng: Random) -> tuple[float, Selection]:
    """A random member that costs about as much as the target, and its cost: one by the uniform law, or from there on a
    random path to the largest or the smallest member the nearest to the target."""
    start = space.sample_selection(rng)
    below = cost(start) < target
    passed: list[tuple[float, Selection]] = []
    for member in path(start, space.whole if below else space.minimum, rng):
        passed.append((cost(member), member))
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
