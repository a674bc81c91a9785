"""The blocks of EfficientFormerV2 as values: unified FFN, MHSA, attention downsampling."""

from dataclasses import dataclass

from pocketformer.architecture import layers
from pocketformer.architecture.block import (
    Block,
    LocalBlock,
    activated,
    block_key,
    conv_norm,
    grid_text,
    norm_text,
    strided,
)
from pocketformer.architecture.layers import Cost, Grid, positions


@dataclass(frozen=True)
class FFNBlock(LocalBlock):
    """Unified FFN (V2 Sec. 3.1, eq. 4): 1x1, depthwise 3x3, 1x1, each with its norm; scaled, residual."""

    width: int
    expansion: float
    grid: Grid
    activation: str
    norm: str = "bn"
    kind = "ffn"

    def costs(self) -> tuple[Cost, ...]:
        w, h, grid, act = self.width, self.hidden, self.grid, self.activation
        first = conv_norm(self.norm, w, h, 1, grid, act=act)
        first += conv_norm(self.norm, h, h, 3, grid, groups=h, act=act)
        return (*first, *conv_norm(self.norm, h, w, 1, grid), layers.parameters(w))  # + layer scale

    def activations(self) -> int:
        return positions(self.grid) * max(self.width + 2 * self.hidden, 2 * self.width + self.hidden)

    def key(self) -> str:
        return block_key(
            "ffn", f"{self.width}x{self.expansion:g}", grid_text(self.grid), self.activation, norm_text(self.norm)
        )


class _Attending(Block):
    """Channels of all heads' keys (and queries), and of their values."""

    @property
    def keys(self) -> int:
        return self.heads * self.key_dim

    @property
    def values(self) -> int:
        return self.heads * self.value_dim


@dataclass(frozen=True)
class AttentionBlock(_Attending):
    """MHSA on a map (V2 Sec. 3.3, eq. 5 and 6), with talking heads, local value and attention bias unless switched
    off. `stride` > 1 is stride attention (Sec. 3.4): q, k and v at the strided grid, the output interpolated back
    to `grid`; with `full_queries` only keys and values are strided (eq. 1)."""

    width: int
    heads: int
    key_dim: int
    value_dim: int
    grid: Grid
    stride: int
    activation: str
    norm: str = "bn"
    local_value: bool = True
    talking_heads: bool = True
    bias: bool = True
    full_queries: bool = False
    kind = "attention"

    @property
    def key_grid(self) -> Grid:
        return strided(self.grid, self.stride)

    @property
    def query_grid(self) -> Grid:
        return self.grid if self.full_queries else self.key_grid

    def costs(self) -> tuple[Cost, ...]:
        w, k, v = self.width, self.keys, self.values
        m, n = positions(self.query_grid), positions(self.key_grid)
        costs: tuple[Cost, ...] = ()
        if self.stride > 1:
            costs += conv_norm(self.norm, w, w, 3, self.key_grid, groups=w)
        costs += conv_norm(self.norm, w, k, 1, self.query_grid)
        costs += conv_norm(self.norm, w, k, 1, self.key_grid) + conv_norm(self.norm, w, v, 1, self.key_grid)
        if self.local_value:
            costs += conv_norm(self.norm, v, v, 3, self.key_grid, groups=v)
        if self.talking_heads:
            costs += 2 * (layers.conv(self.heads, self.heads, 1, (m, n)),)
        costs += (layers.products(m, n, self.heads, self.key_dim, self.value_dim),)
        costs += (layers.parameters(self.heads * m if self.bias else 0),)  # one an offset; m = n unless eq. 1
        projected = (layers.activation(self.activation, v, self.grid), *conv_norm(self.norm, v, w, 1, self.grid))
        return (*costs, *projected, layers.parameters(w))

    def activations(self) -> int:
        m, n, full = positions(self.query_grid), positions(self.key_grid), positions(self.grid)
        k, v, mixing = self.keys, self.values, self.heads * m * n
        strided = self.width * n if self.stride > 1 else 0
        moments = [
            strided + n * v + (m + n) * k,  # the projections
            n * v + (m + n) * k + mixing,  # the scores of q and k
            n * v + mixing + max(m * v, mixing if self.talking_heads else 0),  # weights times v
            activated(self.activation, v * full),
            (v + self.width) * full,  # the output's projection
        ]
        if self.local_value:
            moments.append(m * v + 2 * n * v)
        if self.stride > 1:  # interpolation: of the local value, or of the whole output
            moments.append(((full if self.full_queries else 0) + n + full) * v)
        if self.full_queries and not self.local_value:
            moments.pop()  # nothing to interpolate
        return self.width * full + max(moments)

    def key(self) -> str:
        heads = f"h{self.heads}k{self.key_dim}v{self.value_dim}"
        off = [f"no-{name.replace('_', '-')}" for name in ("local_value", "talking_heads") if not getattr(self, name)]
        # The fused graph adds a constant to the scores with and without a bias; without both it adds none.
        off += ["no-bias"] if not self.bias and not self.talking_heads else []
        off += ["full-queries"] if self.full_queries and self.stride > 1 else []
        where = f"{grid_text(self.grid)}/{self.stride}"
        return block_key("attention", str(self.width), heads, where, self.activation, norm_text(self.norm), *off)


@dataclass(frozen=True)
class AttentionDownsampling(_Attending):
    """Attention whose query is subsampled (pooling and depthwise convolution, summed), keys and values at the full
    grid (V2 eq. 2); with `dual_path` added to a strided convolution (Sec. 3.5)."""

    in_width: int
    width: int
    heads: int
    key_dim: int
    value_dim: int
    grid: Grid  # of the input
    stride: int
    activation: str
    norm: str = "bn"
    local_value: bool = True
    bias: bool = True
    dual_path: bool = True
    kind = "downsampling"

    @property
    def out_grid(self) -> Grid:
        return strided(self.grid, self.stride)

    def costs(self) -> tuple[Cost, ...]:
        i, o, k, v, out = self.in_width, self.width, self.keys, self.values, self.out_grid
        m, n = positions(out), positions(self.grid)
        costs = conv_norm(self.norm, i, o, 3, out) if self.dual_path else ()
        costs += (layers.conv(i, i, 3, out, groups=i), layers.pooling(i, 1, out))  # of the query, no norm
        costs += conv_norm(self.norm, i, k, 1, out)
        costs += conv_norm(self.norm, i, k, 1, self.grid) + conv_norm(self.norm, i, v, 1, self.grid)
        if self.local_value:
            costs += conv_norm(self.norm, v, v, 3, out, groups=v)
        costs += (layers.products(m, n, self.heads, self.key_dim, self.value_dim),)
        costs += (layers.parameters(self.heads * n if self.bias else 0), layers.activation(self.activation, v, out))
        return costs + conv_norm(self.norm, v, o, 1, out)

    def activations(self) -> int:
        n, m = positions(self.grid), positions(self.out_grid)
        i, o, k, v, mixing = self.in_width, self.width, self.keys, self.values, self.heads * m * n
        keeps = i * n if self.dual_path else 0  # the input, for the convolution after the attention
        return max(
            i * n + n * v + m * (i + k),  # the query: subsampled, projected
            i * n + n * v + (m + n) * k,  # the projections
            keeps + n * v + (m + n) * k + mixing,  # the scores of q and k
            keeps + n * v + mixing + m * v,  # weights times v
            keeps + (n * v + 2 * m * v if self.local_value else 0),
            keeps + activated(self.activation, m * v),
            keeps + m * (v + o),  # the output's projection
            keeps + 2 * m * o if self.dual_path else 0,
        )

    def key(self) -> str:
        kind = "dual-path-downsampling" if self.dual_path else "attention-downsampling"
        widths, heads = f"{self.in_width}-{self.width}", f"h{self.heads}k{self.key_dim}v{self.value_dim}"
        where = f"{grid_text(self.grid)}/{self.stride}"
        off = ["no-local-value"] if not self.local_value else []
        off += ["no-bias"] if not self.bias else []
        return block_key(kind, widths, heads, where, self.activation, norm_text(self.norm), *off)
