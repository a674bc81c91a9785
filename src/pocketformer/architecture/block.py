"""What every block value has, and the grid and key conventions that they share.

A block's `costs` lists its layers (see `architecture.layers` for what is counted). Grids are (height, width) in
positions; widths are channels.

Its `activations` is the largest number of values alive at once while the *fused* block runs on one image, its
operators in the order of the code in `deploy` and each value freed behind its last use. Elementwise operators, norms
and softmax run in place of an input that nothing else needs, but not GELU, which ONNX Runtime neither fuses into a
convolution nor runs in place; changes of layout are free. Weights, constants and a runtime's own workspace are not
counted: it is a floor that a runtime may exceed, not a measurement of one (`benchmarks/memory.py` compares them).
"""

from functools import lru_cache

from pocketformer.architecture import layers
from pocketformer.architecture.design import Grid
from pocketformer.architecture.layers import Cost


def strided(grid: Grid, stride: int) -> Grid:
    """The grid after a stride: rounded up, as a padded 3x3 convolution gives it."""
    return (-(-grid[0] // stride), -(-grid[1] // stride))


def block_key(kind: str, *parts: str) -> str:
    return " ".join((kind, *filter(None, parts)))


def grid_text(grid: Grid) -> str:
    return f"{grid[0]}x{grid[1]}"


def activated(activation: str, values: int) -> int:
    """Values alive while a map of so many goes through its activation."""
    return 2 * values if activation == "gelu" else values


def norm_text(norm: str) -> str:
    """Of a latency key: BatchNorm is folded away."""
    return "" if norm == "bn" else norm


@lru_cache(maxsize=65536)
def _cost(block: "Block") -> Cost:
    return layers.sum_costs(block.costs())


class Block:
    """What all block values have: `grid` of the input, `width` of the output, `costs()`, `activations()`, `key()`,
    and these."""

    kind: str

    @property
    def out_grid(self) -> Grid:
        """Of the output: that of the input, unless the block strides."""
        return self.grid

    @property
    def inputs(self) -> int:
        """Channels of the input, on `grid`."""
        return getattr(self, "in_chans", None) or getattr(self, "in_width", None) or self.width

    @property
    def cost(self) -> Cost:
        return _cost(self)

    def parameters(self) -> int:
        """Every trainable number (contract 6.2)."""
        return _cost(self).parameters

    def macs(self) -> int:
        """Multiply-adds of one image: convolutions, linears and the attention products."""
        return _cost(self).macs


class LocalBlock(Block):
    """A block with an expansion ratio."""

    @property
    def hidden(self) -> int:
        return int(self.width * self.expansion)


def conv_norm(
    norm: str, inputs: int, outputs: int, kernel: int, grid: Grid, groups: int = 1, act: str = ""
) -> tuple[Cost, ...]:
    """A convolution, its norm and its activation."""
    after = (layers.norm(norm, outputs), layers.activation(act, outputs, grid))
    return (layers.conv(inputs, outputs, kernel, grid, groups), *after)
