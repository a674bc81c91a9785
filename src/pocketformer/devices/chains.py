"""Which chains of blocks to time, and what each block costs according to them. Pure Python.

A block alone costs more than within a network: the runtime changes the layout at both ends and starts a
session. Hence differences: an FFN costs (four in a row - one) / 3, and one - that is the overhead at the
ends. An attention block beside another costs less than in front of FFNs, where it mostly is; hence it alternates
with those, whose cost is known (in V1's design they are MB3D). Any other block is timed once between FFNs, costs and
overheads known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pocketformer.architecture import FFN, Attention, SearchSpace, placement
from pocketformer.architecture.blocks import BlockValue, Grid
from pocketformer.devices.table import space_blocks

_REPEATS = 4
_LEAST = 0.02  # a block's cost is at least this share of the chain it was timed in, whatever the noise


@dataclass(frozen=True)
class Chain:
    """`unit`, `repeats` times in a row; it holds `target`, the block to be known, once."""

    target: BlockValue
    unit: tuple[BlockValue, ...]
    repeats: int = 1

    @property
    def blocks(self) -> tuple[BlockValue, ...]:
        return self.unit * self.repeats

    @property
    def name(self) -> str:
        return f"{self.repeats} x " + " > ".join(block.key() for block in self.unit)

    @property
    def others(self) -> list[str]:
        """Keys of the unit's blocks besides the target."""
        return [block.key() for block in self.unit if block != self.target]


def space_chains(space: SearchSpace, num_classes: int) -> list[Chain]:
    """The chains that a space needs: first pairs, of one and of four units, then the others."""
    pairs, singles = [], []
    for block in space_blocks(space, num_classes).values():
        if block.kind in ("ffn", "attention"):
            unit = (block,)
            if block.kind == "attention":
                unit = (block, _ffn(space, block.width, block.grid, (Attention(),)))
            pairs += [Chain(block, unit), Chain(block, unit, _REPEATS)]
        else:
            singles.append(Chain(block, _between_ffns(space, block)))
    return pairs + singles


def _ffn(space: SearchSpace, width: int, grid: Grid, before: tuple[Attention, ...] = ()) -> BlockValue:
    """The cheapest FFN of the space at a width and grid, behind those blocks."""
    for j, stage in enumerate(space.stages):
        if space.grids[j] == grid and width in stage.widths and (stage.attention or not before):
            return placement.block(space.design, j, width, FFN(space.expansions[0]), grid, before)
    raise AssertionError(f"no stage of width {width} at {grid}")  # space_blocks takes them from the stages


def _between_ffns(space: SearchSpace, block: BlockValue) -> tuple[BlockValue, ...]:
    if block.kind == "head":
        return (_ffn(space, block.width, block.grid), block)
    behind = _ffn(space, block.width, block.out_grid)
    if block.kind == "stem":
        return (block, behind)
    return (_ffn(space, block.in_width, block.grid), block, behind)


def block_costs(chains: Sequence[Chain], times: Mapping[str, float]) -> tuple[dict[str, float], float]:
    """From the time of each chain by name (ms): the cost of each block by key, and the overhead of a session
    that runs nothing (ms)."""
    costs: dict[str, float] = {}
    overhead: dict[str, float] = {}

    def add(chain: Chain, unit: float, ends: float = 0.0) -> None:
        cost = unit - ends - sum(costs[other] for other in chain.others)
        costs[chain.target.key()] = max(cost, _LEAST * times[chain.name])

    one = {chain.target.key(): times[chain.name] for chain in chains if chain.repeats == 1}
    for kind in ("ffn", "attention"):  # FFNs first: the others' costs follow from theirs
        for chain in chains:
            if chain.target.kind == kind and chain.repeats > 1:
                key = chain.target.key()
                unit = (times[chain.name] - one[key]) / (chain.repeats - 1)
                add(chain, unit)
                overhead[key] = one[key] - unit
    nothing = max(min(overhead.values()), 0.0)
    for chain in chains:
        if chain.target.kind not in ("ffn", "attention"):
            ends = [overhead.get(block.key(), nothing) for block in (chain.unit[0], chain.unit[-1])]
            add(chain, times[chain.name], sum(ends) / 2)
    return costs, nothing
