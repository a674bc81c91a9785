"""The blocks of EfficientFormer (V1) as values: MB4D, and MB3D as its two residual halves."""

from dataclasses import dataclass

from pocketformer.architecture import layers
from pocketformer.architecture.block import Block, LocalBlock, activated, block_key, conv_norm, grid_text, norm_text
from pocketformer.architecture.layers import Cost, Grid, positions


@dataclass(frozen=True)
class MetaBlock(LocalBlock):
    """MB4D (V1 Sec. 4.1, eq. 4): a token mixer and an MLP of 1x1 convolutions, each scaled and residual.

    `mixer` is "pool" (3x3 average minus its input), "dwconv" (V2 Table 1, row 2) or "none": the MLP of an
    attention block on a map.
    """

    width: int
    expansion: float
    mixer: str
    grid: Grid
    activation: str
    norm: str = "bn"
    kind = "ffn"

    def costs(self) -> tuple[Cost, ...]:
        w, h, grid = self.width, self.hidden, self.grid
        costs = conv_norm(self.norm, w, h, 1, grid, act=self.activation) + conv_norm(self.norm, h, w, 1, grid)
        costs += (layers.parameters(w),)
        match self.mixer:
            case "pool":
                costs += (layers.pooling(w, 3, grid), layers.parameters(w))
            case "dwconv":
                costs += (*conv_norm(self.norm, w, w, 3, grid, groups=w), layers.parameters(w))
        return costs

    def activations(self) -> int:
        hidden = activated(self.activation, self.hidden)
        return positions(self.grid) * (self.width + max(hidden, self.hidden + self.width))  # input; hidden map, output

    def key(self) -> str:
        widths = f"{self.width}x{self.expansion:g}"
        return block_key("meta-block", widths, self.mixer, grid_text(self.grid), self.activation, norm_text(self.norm))


@dataclass(frozen=True)
class TokenFFNBlock(LocalBlock):
    """The MLP of an MB3D (V1 Sec. 4.1, eq. 5): LayerNorm, two linears; scaled, residual."""

    width: int
    expansion: float
    grid: Grid
    activation: str
    kind = "ffn"

    def costs(self) -> tuple[Cost, ...]:
        w, h, n = self.width, self.hidden, positions(self.grid)
        act = layers.activation(self.activation, h, tokens=n)
        mlp = (layers.linear(w, h, n), act, layers.linear(h, w, n))
        return (layers.norm("ln", w, w * n), *mlp, layers.parameters(w))

    def activations(self) -> int:
        hidden = activated(self.activation, self.hidden)
        return positions(self.grid) * (self.width + max(hidden, self.hidden + self.width))

    def key(self) -> str:
        return block_key("token-ffn", f"{self.width}x{self.expansion:g}", grid_text(self.grid), self.activation)


@dataclass(frozen=True)
class TokenAttentionBlock(Block):
    """The attention of an MB3D (V1 Sec. 4.1, eq. 5 and 6): LayerNorm, one linear for q, k and v, attention bias."""

    width: int
    heads: int
    key_dim: int
    value_dim: int
    grid: Grid
    bias: bool = True
    kind = "attention"

    def costs(self) -> tuple[Cost, ...]:
        w, n = self.width, positions(self.grid)
        values = self.heads * self.value_dim
        qkv = layers.linear(w, 2 * self.heads * self.key_dim + values, n)
        attention = layers.products(n, n, self.heads, self.key_dim, self.value_dim)
        table = layers.parameters(self.heads * n if self.bias else 0)
        return (layers.norm("ln", w, w * n), qkv, attention, table, layers.linear(values, w, n), layers.parameters(w))

    def activations(self) -> int:
        n, width, heads = positions(self.grid), self.width, self.heads
        qkv, values = heads * (2 * self.key_dim + self.value_dim), heads * self.value_dim
        return n * (width + max(width + qkv, qkv + heads * n + values, 2 * values, values + width))

    def key(self) -> str:
        heads = f"h{self.heads}k{self.key_dim}v{self.value_dim}"
        return block_key(
            "token-attention", str(self.width), heads, grid_text(self.grid), "" if self.bias else "no-bias"
        )
