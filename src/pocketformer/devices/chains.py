"""Which chains of blocks to time, and what each block costs according to them. Pure Python.

A block alone costs more than within a network: the runtime changes the layout at both ends and starts a session.
Hence differences: a block that keeps its shape costs (four in a row - one) / 3, and one - that is the overhead at
the ends. Any other block is timed between FFNs, whose costs and end overheads are then known.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pocketformer.architecture import FFN, SearchSpace
from pocketformer.architecture.architecture import stage_block
from pocketformer.architecture.blocks import AttentionBlock, BlockValue, FFNBlock, Grid, Head, Stem
from pocketformer.devices.table import space_blocks

_REPEATS = 4
_LEAST = 0.02  # a block's cost is at least this share of the chain it was timed in, whatever the noise


@dataclass(frozen=True)
class Chain:
    """Blocks in a row, of which `target` is the one to be known."""

    target: BlockValue
    blocks: tuple[BlockValue, ...]

    @property
    def name(self) -> str:
        keys = [block.key() for block in self.blocks]
        return f"{len(keys)} x {keys[0]}" if len(set(keys)) == 1 else " > ".join(keys)


def keeps_shape(block: BlockValue) -> bool:
    return isinstance(block, FFNBlock | AttentionBlock)


def space_chains(space: SearchSpace, num_classes: int) -> list[Chain]:
    """The chains that a space needs; those of one block stand next to each other."""
    chains = []
    for block in space_blocks(space, num_classes).values():
        if keeps_shape(block):
            chains += [Chain(block, (block,)), Chain(block, (block,) * _REPEATS)]
        else:
            chains.append(Chain(block, _between_ffns(space, block)))
    return chains


def _between_ffns(space: SearchSpace, block: BlockValue) -> tuple[BlockValue, ...]:
    def ffn(width: int, grid: Grid) -> BlockValue:
        for j, stage in enumerate(space.stages):
            if space.grids[j] == grid and width in stage.widths:
                return stage_block(space.design, j, width, FFN(space.expansions[0]), grid)
        raise AssertionError(
            f"no stage of width {width} at {grid}"
        )  # space_blocks takes them from the stages

    if isinstance(block, Stem):
        return (block, ffn(block.width, block.out_grid))
    if isinstance(block, Head):
        return (ffn(block.width, block.grid), block)
    return (ffn(block.in_width, block.grid), block, ffn(block.width, block.out_grid))


def block_costs(
    chains: Sequence[Chain], times: Mapping[str, Sequence[float]]
) -> tuple[dict[str, list[float]], dict[str, float], float]:
    """From the times of each chain by name (ms, drift removed, one per round): per key the block's cost in each
    round and overall, and the overhead of a session that runs nothing (ms)."""
    rounds: dict[str, list[float]] = {}
    costs: dict[str, float] = {}
    overhead: dict[str, float] = {}
    for single, row in zip(chains, chains[1:], strict=False):
        if keeps_shape(single.target) and len(single.blocks) == 1:
            key, one = single.target.key(), times[single.name]
            rounds[key] = [
                (many - first) / (len(row.blocks) - 1)
                for many, first in zip(times[row.name], one, strict=True)
            ]
            costs[key] = _at_least(statistics.median(rounds[key]), one)
            overhead[key] = statistics.median(one) - costs[key]
    nothing = max(min(overhead.values()), 0.0)
    for chain in chains:
        if not keeps_shape(chain.target):
            key, whole = chain.target.key(), times[chain.name]
            ends = [overhead.get(block.key(), nothing) for block in (chain.blocks[0], chain.blocks[-1])]
            known = sum(costs[b.key()] for b in chain.blocks if b != chain.target) + sum(ends) / 2
            rounds[key] = [sample - known for sample in whole]
            costs[key] = _at_least(statistics.median(rounds[key]), whole)
    return rounds, costs, nothing


def _at_least(cost: float, times: Sequence[float]) -> float:
    return max(cost, _LEAST * statistics.median(times))
