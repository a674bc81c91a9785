"""Latency-driven slimming (V1 Sec. 4.2, App. A Alg. 1): a MetaPath supernet is slimmed by three actions a step."""

from collections.abc import Iterator
from dataclasses import dataclass

from pocketformer.architecture import Selection, metapath
from pocketformer.search.alternatives.v1_scale import PerMillisecond, latency_only
from pocketformer.search.frontier import Action
from pocketformer.search.joint import Move
from pocketformer.search.method import Begun
from pocketformer.search.objective import Objective
from pocketformer.search.trajectory import Point

Importances = tuple[tuple[float, ...], ...]  # of each stage's MetaPaths: p_block / p_identity


@dataclass(frozen=True)
class V1Slimming:
    """From the whole supernet until all budgets hold: of three actions, each evaluated on the search split, the one of
    least accuracy drop per ms saved; one that costs no accuracy first (contract 6.7)."""

    importances: Importances

    def to_dict(self) -> dict:
        return {"method": "v1-slimming", "importances": [list(stage) for stage in self.importances]}

    def moves(self, begun: Begun) -> Iterator[Move]:
        compass = PerMillisecond.of(begun.objective).compass

        def actions(selection: Selection) -> list[tuple[Action, Selection]]:
            now = compass(begun.costs(selection))
            narrower = (pair for j in self.by_importance(selection) for pair in narrowings(selection, j))
            width = next((pair for pair in narrower if compass(begun.costs(pair[1])) > now), None)
            found = (self.depth_reduction(selection), global_reduction(selection), width)
            return sorted((pair for pair in found if pair is not None), key=lambda pair: pair[0])

        return latency_only(begun, begun.last.selection, begun.last.step, actions=actions)

    def depth_reduction(self, selection: Selection) -> tuple[Action, Selection] | None:
        """DR: the least important MetaPath becomes identity. A stage keeps at least one block."""
        blocks = [b for b in metapath.blocks(selection) if selection.may_lose(b.stage, b.slot)]
        if not blocks:
            return None
        least = min(blocks, key=lambda b: self.importances[b.stage][b.place])
        return Action(least.stage, least.slot, "depth"), selection.without(least.stage, least.slot)

    def by_importance(self, selection: Selection) -> list[int]:
        """The stages, least important first: each has the sum over its blocks."""
        sums = [0.0] * len(selection.widths)
        for block in metapath.blocks(selection):
            sums[block.stage] += self.importances[block.stage][block.place]
        return sorted(range(len(sums)), key=lambda j: sums[j])

    def result(self, points: list[Point], objective: Objective) -> Point:
        return points[-1]


def global_reduction(selection: Selection) -> tuple[Action, Selection] | None:
    """MR: the first MB3D becomes an MB4D."""
    first = metapath.first_global(selection)
    if first is None:
        return None
    return Action(first.stage, first.slot - 1, "depth"), selection.without(first.stage, first.slot - 1)


def narrowings(selection: Selection, stage: int) -> Iterator[tuple[Action, Selection]]:
    """WR: the stage one step narrower, then two, …: a step need not save time where a device rounds widths up."""
    for width in reversed([w for w in selection.space.stages[stage].widths if w < selection.widths[stage]]):
        yield Action(stage, -1, "width", width), selection.with_width(stage, width)
