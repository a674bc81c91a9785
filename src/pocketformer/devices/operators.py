"""The operators of V1's latency analysis (V1 Sec. 3, Fig. 2; Appendix Table 3) as small modules, pair by pair.

All are deployed forms: BatchNorms are folded. Maps are (B, C, H, W), tokens (B, N, C). Each keeps its input's shape,
so that rows of them can be timed, but for the patch embeddings, of which several read the same image.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from pocketformer.architecture import Architecture
from pocketformer.architecture.blocks import PatchStem, Stem
from pocketformer.architecture.design import Grid
from pocketformer.deploy.efficientformer import FusedPool
from pocketformer.devices.candidates import fused
from pocketformer.models.efficientformer import to_map, to_tokens

ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU, "hardswish": nn.Hardswish, "silu": nn.SiLU}
OBSERVATIONS = {  # V1 Sec. 3, in our words
    1: "patch embedding by a large kernel is a bottleneck",
    2: "the token mixer needs consistent dimensions; MHSA need not be the bottleneck",
    3: "CONV-BN is faster than LN-Linear",
    4: "what an activation costs depends on the device (GELU hardly more than ReLU, HardSwish more)",
}
_EXPANSION = 4  # of both papers' MLPs
_DEIT_PATCH, _DEIT_WIDTH = 16, 384  # DeiT-S, which Observation 1 names


@dataclass(frozen=True)
class Operator:
    """`build()` makes one with random weights; `shape` is its input's without the batch."""

    name: str
    shape: tuple[int, ...]
    build: Callable[[], nn.Module]
    parallel: bool = False  # it changes the shape

    def chain(self, repeats: int) -> nn.Module:
        """`repeats` of them with weights of their own, one behind the other (or side by side, summed)."""
        copies = [self.build() for _ in range(repeats)]
        return (_Sum(copies) if self.parallel else nn.Sequential(*copies)).eval()

    def write(self, format: ModuleType, repeats: int, path: Path, batch: int = 1) -> None:
        format.write_quick(self.chain(repeats), torch.randn(batch, *self.shape), path)


@dataclass(frozen=True)
class Comparison:
    """One statement of the paper: the sum of `slower` takes longer than the sum of `faster`.

    With `hardly`, the statement is that it hardly does.
    """

    observation: int
    title: str
    source: str
    slower: tuple[Operator, ...]
    faster: tuple[Operator, ...]
    hardly: bool = False


def comparisons(name: str = "efficientformer_l1") -> tuple[Comparison, ...]:
    """Observations 1 to 4 at the widths and grids of a published network's four stages (V1's fastest)."""
    network = Architecture.named(name)
    size = network.design.resolution
    widths = [stage.width for stage in network.stages]
    grids = [(size[0] // 2**j, size[1] // 2**j) for j in range(2, 6)]
    stages = list(zip(widths, grids, strict=True))
    return (*_embeddings(size, widths[0]), *_mixers(stages[2:]), *_mlps(stages), *_activations(stages[1:]))


def _embeddings(size: Grid, width: int) -> list[Comparison]:
    large = Operator(f"patch embedding 7x7/4, width {width}", (3, *size), partial(_patch, size, width), True)
    small = Operator(f"conv stem, width {width}", (3, *size), partial(_stem, size, width), True)
    patch = partial(nn.Conv2d, 3, _DEIT_WIDTH, _DEIT_PATCH, _DEIT_PATCH)
    largest = Operator(f"patch embedding 16x16/16, width {_DEIT_WIDTH}", (3, *size), patch, True)
    four = Operator(f"four-conv stem, width {_DEIT_WIDTH}", (3, *size), partial(_four_convs, _DEIT_WIDTH), True)
    return [
        Comparison(1, f"7x7 patch embedding vs conv stem, {size[0]} px", "Table 3, V5", (large,), (small,)),
        Comparison(1, f"16x16 patch embedding (DeiT-S) vs 4 convs, {size[0]} px", "Fig. 2", (largest,), (four,)),
    ]


def _mixers(stages: list[tuple[int, Grid]]) -> list[Comparison]:
    pooled, reshaped, beside = [], [], []
    for width, grid in stages:
        at, shape = f"{grid[0]}x{grid[1]}, width {width}", (width, *grid)
        tokens = (grid[0] * grid[1], width)
        pool = Operator(f"pooling, {at}", shape, partial(Pooling, width))
        attention = Operator(f"MHSA on tokens, {at}", tokens, partial(Attention, width))
        both = Operator(f"pooling and reshaped MHSA, {at}", shape, partial(Reshaped, width, grid))
        mlp = Operator(f"LN-Linear MLP, {at}", tokens, partial(TokenMLP, width))
        pooled.append(Comparison(2, f"MHSA vs pooling as mixer, {at}", "Sec. 3", (attention,), (pool,)))
        title = f"map-tokens-map reshapes around MHSA, {at}"
        reshaped.append(Comparison(2, title, "Sec. 3, LeViT", (both,), (pool, attention)))
        beside.append(Comparison(2, f"MLP vs the MHSA beside it, {at}", "Sec. 3, DeiT", (mlp,), (attention,)))
    return pooled + reshaped + beside


def _mlps(stages: list[tuple[int, Grid]]) -> list[Comparison]:
    found, normed = [], []
    for width, grid in stages:
        at = f"{grid[0]}x{grid[1]}, width {width}"
        tokens = Operator(f"LN-Linear MLP, {at}", (grid[0] * grid[1], width), partial(TokenMLP, width))
        conv = _conv_mlp(width, grid, "gelu")
        group = Operator(f"GN-CONV MLP, {at}", (width, *grid), partial(MapMLP, width, group_norm=True))
        found.append(Comparison(3, f"LN-Linear vs CONV-BN MLP, {at}", "Sec. 3", (tokens,), (conv,)))
        normed.append(Comparison(3, f"GN vs BN in the MLP, {at}", "Table 3, V2", (group,), (conv,)))
    return found + normed


def _activations(stages: list[tuple[int, Grid]]) -> list[Comparison]:
    found = []
    for slower, faster, hardly in (("gelu", "relu", True), ("hardswish", "gelu", False), ("silu", "relu", False)):
        for width, grid in stages:
            title = f"{slower} {'hardly slower than' if hardly else 'vs'} {faster}, {grid[0]}x{grid[1]}, width {width}"
            pair = _conv_mlp(width, grid, slower), _conv_mlp(width, grid, faster)
            source = "(not in the paper)" if slower == "silu" else "Sec. 3, Table 3"
            found.append(Comparison(4, title, source, pair[:1], pair[1:], hardly))
    return found


def _conv_mlp(width: int, grid: Grid, activation: str) -> Operator:
    name = f"CONV-BN MLP, {activation}, {grid[0]}x{grid[1]}, width {width}"
    return Operator(name, (width, *grid), partial(MapMLP, width, activation))


def _patch(size: Grid, width: int) -> nn.Module:
    return fused(PatchStem(3, width, size, 4))


def _stem(size: Grid, width: int) -> nn.Module:
    return fused(Stem(3, width, size, (2, 2), "relu"))


def _four_convs(width: int) -> nn.Module:
    """The stem of LeViT-256 and its like: to stride 16 by 3x3 convolutions, their BatchNorms folded."""
    layers, inputs = [], 3
    for outputs in (width // 8, width // 4, width // 2, width):
        layers += [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.ReLU()]
        inputs = outputs
    return nn.Sequential(*layers[:-1])


class _Sum(nn.Module):
    def __init__(self, branches: list[nn.Module]):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return sum(branch(x) for branch in self.branches)


class Pooling(FusedPool):
    """The token mixer of MB4D (V1 eq. 4) with its residual and layer scale, on a map; values keep their size."""

    def __init__(self, width: int):
        super().__init__(torch.full((width,), 0.5))


class Attention(nn.Module):
    """The token mixer of MB3D (V1 eq. 6) with V1's dimensions, residual, on tokens; no norm: pooling has none either.

    No bias either, and the scale of the scores is in the weights, as in the deployed graph: without it, the softmax
    would be full of denormal numbers, which take several times as long.
    """

    def __init__(self, width: int, heads: int = 8, key_dim: int = 32, value_dim: int = 128):
        super().__init__()
        self.heads, self.dims = heads, [heads * key_dim, heads * key_dim, heads * value_dim]
        self.qkv, self.proj = nn.Linear(width, sum(self.dims)), nn.Linear(heads * value_dim, width)
        with torch.no_grad():
            self.qkv.weight[: self.dims[0]] *= key_dim**-0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.qkv(x).split(self.dims, dim=2)
        queries, keys, values = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        y = (queries @ keys.transpose(-2, -1)).softmax(dim=-1) @ values
        return x + self.proj(y.transpose(1, 2).flatten(2))


class Reshaped(nn.Module):
    """Attention between poolings: on the way, the map becomes tokens and a map again (LeViT's habit)."""

    def __init__(self, width: int, grid: Grid):
        super().__init__()
        self.pool, self.attention, self.grid = Pooling(width), Attention(width), grid

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return to_map(self.attention(to_tokens(self.pool(x))), self.grid)


class MapMLP(nn.Module):
    """CONV-BN: 1x1 convolutions with BatchNorm folded; with `group_norm` one group, which cannot be folded."""

    def __init__(self, width: int, activation: str = "gelu", group_norm: bool = False):
        super().__init__()
        hidden = _EXPANSION * width
        self.fc1, self.fc2 = nn.Conv2d(width, hidden, 1), nn.Conv2d(hidden, width, 1)
        self.act = ACTIVATIONS[activation]()
        self.norms = nn.ModuleList([nn.GroupNorm(1, n) if group_norm else nn.Identity() for n in (hidden, width)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.norms[1](self.fc2(self.act(self.norms[0](self.fc1(x)))))


class TokenMLP(nn.Module):
    """LN-Linear: LayerNorm and two linears, on tokens (V1 eq. 5)."""

    def __init__(self, width: int):
        super().__init__()
        self.norm, self.act = nn.LayerNorm(width), nn.GELU()
        self.fc1, self.fc2 = nn.Linear(width, _EXPANSION * width), nn.Linear(_EXPANSION * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.fc2(self.act(self.fc1(self.norm(x))))
