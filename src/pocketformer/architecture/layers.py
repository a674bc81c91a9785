"""What single layers cost, in two conventions: ours, and that of the papers' own profiler.

Ours counts every trainable number, and the multiply-adds of convolutions, linears and the two attention products.
The papers' figures (V2 Tables 1 and 2) follow the authors' profiler: weights of convolutions and linears, linear
biases and LayerNorms, but for a convolution's bias one number per input channel of a group, and no BatchNorm,
layer scale or attention bias; multiply-adds also of average pooling (its window per output), LayerNorm (2 per
value) and GELU (channels x height on a map), none of interpolation and softmax.
"""

from typing import NamedTuple

from pocketformer.architecture.design import Grid


class Cost(NamedTuple):
    """Costs add up: `sum_costs` of a block's layers is the block's."""

    parameters: int = 0
    macs: int = 0
    buffer_bytes: int = 0  # what a checkpoint holds besides parameters: running statistics and their counters
    paper_parameters: int = 0
    paper_macs: int = 0


def sum_costs(costs) -> Cost:
    return Cost(*(sum(column) for column in zip(*costs, strict=True)))


def positions(grid: Grid) -> int:
    return grid[0] * grid[1]


def conv(inputs: int, outputs: int, kernel: int, grid: Grid, groups: int = 1) -> Cost:
    """A convolution with bias (every one has it, also in front of a norm) onto `grid`."""
    weights = outputs * (inputs // groups) * kernel * kernel
    macs = weights * positions(grid)
    return Cost(weights + outputs, macs, 0, weights + inputs // groups, macs)


def linear(inputs: int, outputs: int, tokens: int = 1) -> Cost:
    weights, macs = inputs * outputs, inputs * outputs * tokens
    return Cost(weights + outputs, macs, 0, weights + outputs, macs)


def norm(kind: str, width: int, values: int = 0) -> Cost:
    """`values` is the size of what a LayerNorm normalises."""
    match kind:
        case "bn":
            return Cost(2 * width, 0, 4 * 2 * width + 8)
        case "gn":
            return Cost(2 * width)
        case "ln":
            return Cost(2 * width, 0, 0, 2 * width, 2 * values)
    raise ValueError(kind)


def activation(kind: str, width: int, grid: Grid | None = None, tokens: int = 0) -> Cost:
    """Of a map on `grid`, or of `tokens`."""
    if kind != "gelu":
        return Cost()
    return Cost(paper_macs=width * (tokens if grid is None else grid[0]))


def pooling(width: int, kernel: int, grid: Grid) -> Cost:
    return Cost(paper_macs=width * kernel * kernel * positions(grid))


def products(queries: int, keys: int, heads: int, key_dim: int, value_dim: int) -> Cost:
    """q.k and attention.v of `queries` x `keys` positions."""
    macs = heads * queries * keys * (key_dim + value_dim)
    return Cost(macs=macs, paper_macs=macs)


def parameters(count: int) -> Cost:
    """A layer scale or a table of attention biases."""
    return Cost(count)
