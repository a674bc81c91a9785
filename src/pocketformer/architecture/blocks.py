"""The blocks of a network as values: what a block is, what it costs, and the key of its latency entry.

Everything that needs to know a block (the model builder, the supernet, the cost model, the latency table, the
plots) takes these values. Grids are (height, width) in positions; widths are channels.

Counting (contract 6.2): `parameters` is every trainable number; `macs` are those of convolutions, linears and
the two attention products, one multiply-add as one. `activations` is the largest number of values alive at once
while the *fused* block runs, batch 1: inputs still needed, plus outputs (norms, scales and activations run in
place).
"""

from dataclasses import dataclass

Grid = tuple[int, int]


def conv_parameters(inputs: int, outputs: int, kernel: int, groups: int = 1) -> int:
    """Every convolution of EfficientFormerV2 has a bias, also in front of a norm."""
    return outputs * (inputs // groups) * kernel * kernel + outputs


def norm_parameters(width: int) -> int:
    return 2 * width


def strided(grid: Grid, stride: int) -> Grid:
    """The grid after a stride: rounded up, as a padded 3x3 convolution gives it."""
    return (-(-grid[0] // stride), -(-grid[1] // stride))


def positions(grid: Grid) -> int:
    return grid[0] * grid[1]


def _key(kind: str, *parts: str) -> str:
    return " ".join((kind, *parts))


def _grid(grid: Grid) -> str:
    return f"{grid[0]}x{grid[1]}"


@dataclass(frozen=True)
class Stem:
    """Two 3x3 convolutions with norm and activation (paper eq. 3); the first has half the width."""

    in_chans: int
    width: int
    grid: Grid  # of the input image
    strides: tuple[int, int]
    activation: str
    kind = "stem"

    @property
    def mid_grid(self) -> Grid:
        return strided(self.grid, self.strides[0])

    @property
    def out_grid(self) -> Grid:
        return strided(self.mid_grid, self.strides[1])

    @property
    def mid_width(self) -> int:
        return self.width // 2

    def parameters(self) -> int:
        mid = self.mid_width
        convs = conv_parameters(self.in_chans, mid, 3) + conv_parameters(mid, self.width, 3)
        return convs + norm_parameters(mid) + norm_parameters(self.width)

    def macs(self) -> int:
        first = positions(self.mid_grid) * self.mid_width * self.in_chans * 9
        return first + positions(self.out_grid) * self.width * self.mid_width * 9

    def activations(self) -> int:
        mid = self.mid_width * positions(self.mid_grid)
        return max(
            self.in_chans * positions(self.grid) + mid,
            mid + self.width * positions(self.out_grid),
        )

    def key(self) -> str:
        strides = f"s{self.strides[0]}{self.strides[1]}"
        return _key("stem", f"{self.in_chans}-{self.width}", strides, _grid(self.grid), self.activation)


@dataclass(frozen=True)
class FFNBlock:
    """Unified FFN (paper Sec. 3.1, eq. 4): 1x1, depthwise 3x3, 1x1, each with its norm; scaled, residual."""

    width: int
    expansion: float
    grid: Grid
    activation: str
    kind = "ffn"

    @property
    def hidden(self) -> int:
        return int(self.width * self.expansion)

    @property
    def out_grid(self) -> Grid:
        return self.grid

    def parameters(self) -> int:
        w, h = self.width, self.hidden
        convs = conv_parameters(w, h, 1) + conv_parameters(h, h, 3, groups=h) + conv_parameters(h, w, 1)
        return convs + 2 * norm_parameters(h) + norm_parameters(w) + w  # + layer scale

    def macs(self) -> int:
        return positions(self.grid) * self.hidden * (2 * self.width + 9)

    def activations(self) -> int:
        return positions(self.grid) * max(self.width + 2 * self.hidden, 2 * self.width + self.hidden)

    def key(self) -> str:
        return _key("ffn", f"{self.width}x{self.expansion:g}", _grid(self.grid), self.activation)


@dataclass(frozen=True)
class AttentionBlock:
    """MHSA with talking heads, local value and attention bias (Sec. 3.3, eq. 5 and 6); stride attention if
    `stride` > 1 (Sec. 3.4): q, k and v at the strided grid, the output interpolated back to `grid`."""

    width: int
    heads: int
    key_dim: int
    value_dim: int
    grid: Grid
    stride: int
    activation: str
    kind = "attention"

    @property
    def out_grid(self) -> Grid:
        return self.grid

    @property
    def attention_grid(self) -> Grid:
        return strided(self.grid, self.stride)

    @property
    def keys(self) -> int:
        return self.heads * self.key_dim

    @property
    def values(self) -> int:
        return self.heads * self.value_dim

    def parameters(self) -> int:
        w, k, v = self.width, self.keys, self.values
        total = conv_parameters(w, w, 3, groups=w) + norm_parameters(w) if self.stride > 1 else 0
        total += 2 * (conv_parameters(w, k, 1) + norm_parameters(k))
        total += conv_parameters(w, v, 1) + norm_parameters(v)
        total += conv_parameters(v, v, 3, groups=v) + norm_parameters(v)  # local value
        total += 2 * conv_parameters(self.heads, self.heads, 1)  # talking heads
        total += self.heads * positions(self.attention_grid)  # one bias per offset
        return total + conv_parameters(v, w, 1) + norm_parameters(w) + w  # + layer scale

    def macs(self) -> int:
        n = positions(self.attention_grid)
        w, k, v = self.width, self.keys, self.values
        total = n * w * 9 if self.stride > 1 else 0
        total += n * w * (2 * k + v) + n * v * 9
        total += n * n * (k + v)  # q.k and attention.v
        total += 2 * n * n * self.heads * self.heads
        return total + positions(self.grid) * v * w  # projection after the upsampling

    def activations(self) -> int:
        n, full = positions(self.attention_grid), positions(self.grid)
        k, v, residual = self.keys, self.values, self.width * positions(self.grid)
        mixing = self.heads * n * n
        at_attention = residual + max(
            2 * n * k + 2 * n * v + mixing,  # q, k, v, local v, scores
            n * 2 * v + 2 * mixing,  # talking heads
            mixing + 3 * n * v,
        )
        upsampled = residual + v * full + (v * n if self.stride > 1 else 0)
        return max(at_attention, upsampled, residual + v * full + self.width * full)

    def key(self) -> str:
        heads = f"h{self.heads}k{self.key_dim}v{self.value_dim}"
        return _key("attention", str(self.width), heads, f"{_grid(self.grid)}/{self.stride}", self.activation)


@dataclass(frozen=True)
class ConvDownsampling:
    """Strided 3x3 convolution and norm between two stages."""

    in_width: int
    width: int
    grid: Grid  # of the input
    stride: int
    activation: str
    kind = "downsampling"

    @property
    def out_grid(self) -> Grid:
        return strided(self.grid, self.stride)

    def parameters(self) -> int:
        return conv_parameters(self.in_width, self.width, 3) + norm_parameters(self.width)

    def macs(self) -> int:
        return positions(self.out_grid) * self.in_width * self.width * 9

    def activations(self) -> int:
        return self.in_width * positions(self.grid) + self.width * positions(self.out_grid)

    def key(self) -> str:
        return _key("downsampling", f"{self.in_width}-{self.width}", f"{_grid(self.grid)}/{self.stride}")


@dataclass(frozen=True)
class DualPathDownsampling:
    """Dual-path attention downsampling (Sec. 3.5, eq. 2): strided convolution + attention whose query is
    subsampled (pooling and depthwise convolution, summed); keys and values at the full grid."""

    in_width: int
    width: int
    heads: int
    key_dim: int
    value_dim: int
    grid: Grid  # of the input
    stride: int
    activation: str
    kind = "downsampling"

    @property
    def out_grid(self) -> Grid:
        return strided(self.grid, self.stride)

    @property
    def keys(self) -> int:
        return self.heads * self.key_dim

    @property
    def values(self) -> int:
        return self.heads * self.value_dim

    def parameters(self) -> int:
        i, o, k, v = self.in_width, self.width, self.keys, self.values
        total = conv_parameters(i, o, 3) + norm_parameters(o)
        total += conv_parameters(i, i, 3, groups=i)  # learnable local downsampling of the query, no norm
        total += 2 * (conv_parameters(i, k, 1) + norm_parameters(k))
        total += conv_parameters(i, v, 1) + norm_parameters(v)
        total += conv_parameters(v, v, 3, groups=v) + norm_parameters(v)
        total += self.heads * positions(self.grid)
        return total + conv_parameters(v, o, 1) + norm_parameters(o)

    def macs(self) -> int:
        n, m = positions(self.grid), positions(self.out_grid)
        i, o, k, v = self.in_width, self.width, self.keys, self.values
        total = m * i * o * 9 + m * i * 9
        total += m * i * k + n * i * (k + v) + m * v * 9
        return total + m * n * (k + v) + m * v * o

    def activations(self) -> int:
        n, m = positions(self.grid), positions(self.out_grid)
        k, v, conv_path = self.keys, self.values, self.width * positions(self.out_grid)
        attention = self.heads * m * n
        return max(
            conv_path + self.in_width * n + m * k + n * (k + v),
            conv_path + (m + n) * k + n * v + m * v + attention,
            conv_path + attention + n * v + 2 * m * v,
        )

    def key(self) -> str:
        widths, heads = f"{self.in_width}-{self.width}", f"h{self.heads}k{self.key_dim}v{self.value_dim}"
        where = f"{_grid(self.grid)}/{self.stride}"
        return _key("dual-path-downsampling", widths, heads, where, self.activation)


@dataclass(frozen=True)
class Head:
    """Final norm, global mean and classifier; with `distilled` two classifiers (averaged when fused)."""

    width: int
    grid: Grid
    num_classes: int
    distilled: bool
    kind = "head"

    @property
    def out_grid(self) -> Grid:
        return (1, 1)

    def parameters(self) -> int:
        heads = 2 if self.distilled else 1
        return norm_parameters(self.width) + heads * (self.width + 1) * self.num_classes

    def macs(self) -> int:
        return (2 if self.distilled else 1) * self.width * self.num_classes

    def activations(self) -> int:
        return self.width * positions(self.grid) + self.width + self.num_classes

    def key(self) -> str:
        """The fused graph has one classifier whether the network was distilled or not."""
        return _key("head", str(self.width), _grid(self.grid), f"classes{self.num_classes}")


BlockValue = Stem | FFNBlock | AttentionBlock | ConvDownsampling | DualPathDownsampling | Head
