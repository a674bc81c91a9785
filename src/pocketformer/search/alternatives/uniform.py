"""Uniform scaling of one shape: all widths, all depths and all expansions by one factor each."""

from collections.abc import Iterator
from dataclasses import dataclass

from pocketformer.architecture import FFN, Architecture, Attention, SearchSpace, Selection, Stage
from pocketformer.search.alternatives.proposing import TOGETHER, Problem, Proposals, Proposing
from pocketformer.search.alternatives.window import Window

Blocks = tuple[FFN | Attention, ...]
_FACTORS = tuple(i / 20 for i in range(1, 21))


@dataclass(frozen=True)
class Uniform(Proposing):
    """Of the scalings inside the window (where there are none, of all that hold the budgets) those that use most of the
    budget come first, as far as the evaluations reach. `shape` is what is scaled; None: the space's largest member."""

    shape: Architecture | None = None

    name, how = "uniform", "scaling"

    def propose(self, problem: Problem) -> Proposals:
        shape, window = self.shape or problem.space.largest, Window(problem.objective)
        scaled = list(scalings(problem.space, shape))
        fitting = [s for s in scaled if window.holds(problem.costs(s))]
        if not fitting:  # another budget binds, or none of the few scalings comes near: those that fit at all
            window = Window(problem.objective, 0.0, any=True)
            fitting = [s for s in scaled if window.holds(problem.costs(s))]
        fitting.sort(key=lambda s: -window.used(problem.costs(s)) if problem.objective.budgets else 0)
        for i in range(0, len(fitting), TOGETHER):
            yield fitting[i : i + TOGETHER]


def scalings(space: SearchSpace, shape: Architecture) -> Iterator[Selection]:
    """Each member that is `shape` with its widths, depths and expansions times a factor each, to the nearest that
    the space offers; the deeper, the wider and the more expanded first."""
    falling = _FACTORS[::-1]
    offers = list(zip(space.stages, shape.stages, strict=True))
    depths = dict.fromkeys(tuple(shortened(stage, f) for stage in shape.stages) for f in falling)
    widths = dict.fromkeys(tuple(_nearest(offer.widths, f * stage.width) for offer, stage in offers) for f in falling)
    for blocks in depths:
        for wide in widths:
            expanded = dict.fromkeys(tuple(_expanded(space, b, f) for b in blocks) for f in falling)
            for kept in expanded:
                stages = tuple(Stage(w, b) for w, b in zip(wide, kept, strict=True))
                yield space.select(Architecture(stages, space.design))


def _expanded(space: SearchSpace, blocks: Blocks, factor: float) -> Blocks:
    return tuple(FFN(_nearest(space.expansions, factor * b.expansion)) if isinstance(b, FFN) else b for b in blocks)


def shortened(stage: Stage, factor: float) -> Blocks:
    """The stage's last FFNs and attention blocks, each `factor` of their number; at least one FFN."""
    ffns = sum(isinstance(b, FFN) for b in stage.blocks)
    left = {FFN: max(1, round(factor * ffns)), Attention: round(factor * (len(stage.blocks) - ffns))}
    kept = []
    for block in reversed(stage.blocks):
        if left[type(block)] > 0:
            left[type(block)] -= 1
            kept.insert(0, block)
    return tuple(kept)


def _nearest(offered: tuple, value: float):
    """Of two at the same distance, the larger."""
    return min(offered, key=lambda x: (abs(x - value), -x))
