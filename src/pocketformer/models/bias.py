"""Attention bias: a learnable table with one entry a head and offset, at any grid (contract 6.11).

Offsets are |dy| * W + |dx| on the grid of the keys. On another grid the same content lies at offsets that are
larger in proportion, so the table, a function of (|dy|, |dx|), is sampled there: the table, not the N x N matrix
that is gathered from it, so that on every grid the bias is a function of the offset alone.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from operator import index

import torch
from torch import fx, nn

from pocketformer.architecture.design import Grid
from pocketformer.errors import UserError


class AttentionBias(nn.Module):
    """ab of V2 eq. 6. Gathered anew in each forward, so that no gathered bias outlives the weights.

    Queries and keys are the grid's positions at their strides. With `dynamic` another grid than the built one
    samples the table anew in each forward (it is small; the matrix is gathered in any case); without, it is refused.
    """

    def __init__(self, heads: int, grid: Grid, query_stride: int = 1, key_stride: int = 1):
        super().__init__()
        self.grid, self.query_stride, self.key_stride = tuple(grid), query_stride, key_stride
        self.dynamic = False
        self.table = nn.Parameter(torch.zeros(heads, grid[0] * grid[1]))
        self.register_buffer("index", offset_index(grid, query_stride, key_stride), persistent=False)

    def forward(self, grid: Grid) -> torch.Tensor:
        """(heads, M, N) for M queries and N keys on `grid`."""
        strides = self.query_stride, self.key_stride
        return _at(self.table, self.index, self.grid, grid, strides, self.dynamic)

    @torch.inference_mode(False)
    def set_grid(self, grid: Grid) -> None:
        """Another grid for good: the table is sampled once. It stays the parameter it was, for an optimiser that has it
        already; one that has taken a step with it will refuse its new shape."""
        if tuple(grid) == self.grid:
            return
        self.table.data = resample(self.table.detach(), self.grid, grid)
        self.table.grad = None
        self.grid = tuple(grid)
        self._reset_index()

    @torch.inference_mode(False)  # what it makes is for trainings too
    def _reset_index(self) -> None:
        self.index = offset_index(self.grid, self.query_stride, self.key_stride, self.table.device)

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._reset_index()  # no state dict holds it: on the meta device, or after `to_empty`, it has no values


@fx.wrap  # a symbolic trace cannot look into a grid
def _at(
    table: torch.Tensor, index: torch.Tensor, built: Grid, grid: Grid, strides: tuple[int, int], dynamic: bool
) -> torch.Tensor:
    """The bias on `grid` of a table and its index for the grid `built`; strides are those of queries and keys."""
    if tuple(grid) == built:
        return gather(table, index)
    if not dynamic:
        wanted, found = (f"{height}x{width}" for height, width in (built, grid))
        raise UserError(
            f"the image size gives an attention grid of {found}, the model was built for {wanted}: build it for "
            "this resolution, call set_input_size, or use dynamic=True"
        )
    return gather(resample(table, built, grid), offset_index(grid, *strides, table.device))


def offset_index(
    grid: Grid, query_stride: int = 1, key_stride: int = 1, device: torch.device | None = None
) -> torch.Tensor:
    """Entry of the bias table for each (query, key) pair: int64 (M, N), |dy| * W + |dx|."""
    dy, dx = (_offsets(size, query_stride, key_stride, device) for size in grid)
    index = dy[:, None, :, None] * grid[1] + dx[None, :, None, :]
    return index.flatten(2).flatten(0, 1)


def _offsets(size: int, query_stride: int, key_stride: int, device: torch.device | None) -> torch.Tensor:
    """|query - key| along one axis: (queries, keys)."""
    places = torch.arange(size, device=device)
    return (places[::query_stride, None] - places[None, ::key_stride]).abs()


def gather(table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """`table[:, index]`: (heads, M, N). Selected it takes half of the time, with gradients a third, and memory for the
    index and the result alone."""
    return table.index_select(1, index.flatten()).unflatten(1, index.shape)


def resample(table: torch.Tensor, grid: Grid, new_grid: Grid) -> torch.Tensor:
    """The table (heads, h * w) of another grid, (heads, h' * w'): entry d' is the table at d' * h / h'."""
    if tuple(grid) == tuple(new_grid):
        return table
    precise = torch.float64 if table.dtype is torch.float64 else torch.float32  # not all devices have float64
    rows, columns = (
        torch.tensor(_constant(index(old), index(new)), dtype=precise, device=table.device)
        for old, new in zip(grid, new_grid, strict=True)
    )  # `index` for compilers' symbolic sizes
    with _as_it_is(table.device.type):
        values = rows @ table.to(precise).unflatten(1, tuple(grid)) @ columns.T
    return values.flatten(1).to(table.dtype)


def _as_it_is(device: str) -> AbstractContextManager:
    """Autocast would round table and weights, at all grids but the built one."""
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


@torch.compiler.assume_constant_result  # torch.compile would trace the arithmetic, and warn of the cache
def _constant(old: int, new: int) -> tuple[tuple[float, ...], ...]:
    return interpolation(old, new)


@lru_cache(maxsize=256)
def interpolation(old: int, new: int) -> tuple[tuple[float, ...], ...]:
    """Matrix (new, old): cubic interpolation (Keys 1981) of a function of |offset| at offsets 0, old / new, ...

    At both ends the function goes on as the parabola through the three entries there: a finer grid's last offset
    lies less than one behind the table's, and at zero a table may well have a cusp, so that its mirror image is no
    guide. Numbers, not a tensor: one made inside `inference_mode`, an export or on the meta device would be of no use
    outside, yet stay in the cache.
    """
    weights = [[0.0] * old for _ in range(new)]
    for i, row in enumerate(weights):
        place, rest = divmod(i * old, new)  # exact: where offsets coincide the weights are 0 and 1
        for step, weight in zip((-1, 0, 1, 2), _keys(rest / new), strict=True):
            for entry, share in _entries(place + step, old):
                row[entry] += weight * share
    return tuple(map(tuple, weights))


def _keys(t: float) -> tuple[float, float, float, float]:
    """Weights of the four neighbours of a place `t` behind the second one; third-order accurate."""
    return (
        ((-t + 2) * t - 1) * t / 2,
        ((3 * t - 5) * t * t + 2) / 2,
        ((-3 * t + 4) * t + 1) * t / 2,
        (t - 1) * t * t / 2,
    )


def _entries(place: int, size: int) -> list[tuple[int, float]]:
    """A place on or beyond the table as a weighted sum of its entries."""
    if 0 <= place < size:
        return [(place, 1.0)]
    end, inward, beyond = (0, 1, -place) if place < 0 else (size - 1, -1, place - size + 1)
    if size < 3:  # no parabola through fewer: constant
        return [(end, 1.0)]
    shares = ((beyond + 1) * (beyond + 2) / 2, -float(beyond * (beyond + 2)), beyond * (beyond + 1) / 2)
    return [(end + inward * i, share) for i, share in enumerate(shares)]
