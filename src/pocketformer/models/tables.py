"""Tables of attention biases in checkpoints: the grid that each is from, and re-sampling to the model's."""

import math
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from pocketformer.architecture.blocks import AttentionBlock
from pocketformer.architecture.design import Grid
from pocketformer.errors import UserError
from pocketformer.models.bias import AttentionBias, resample

if TYPE_CHECKING:
    from pocketformer.models.network import Network

State = dict[str, torch.Tensor]


def attentions(model: "Network") -> Iterator[tuple[str, torch.nn.Module]]:
    for name, module in model.named_modules():
        if isinstance(getattr(module, "bias", None), AttentionBias):
            yield name, module


def _grids(model: "Network", resolution: int | Grid) -> dict[str, Grid]:
    """The grid of each table in the same architecture at another resolution."""
    described = model.architecture.blocks(resolution)
    values = {id(module): value for module, value in zip(model.sequence(), described, strict=False)}
    result = {}
    for name, module in attentions(model):
        value = values[id(module)]
        result[f"{name}.bias.table"] = value.query_grid if isinstance(value, AttentionBlock) else value.grid
    return result


def at_grids(
    model: "Network", given: State, resolution: int | Grid | None, square: bool, path: str | os.PathLike
) -> tuple[State, tuple[str, ...], list[str]]:
    """The tensors with the tables of attention biases at the model's grids; which were re-sampled; notes."""
    stated = _grids(model, resolution) if resolution is not None else {}
    changed, note, result = [], [], dict(given)
    for name, module in attentions(model):
        name, grid = f"{name}.bias.table", module.bias.grid
        table = given.get(name)
        if table is None or table.ndim != 2 or not table.numel() or not is_plain(table):
            continue  # told with the other differences
        old, length = stated.get(name), table.shape[1]
        side = math.isqrt(length)
        if old is not None and math.prod(old) != length:
            here = f"{old[0]}x{old[1]} at that resolution"
            raise UserError(f"weights {path}: {name} has {length} offsets, its grid is {here}: give the file's own")
        if old is None and (square or length != math.prod(grid)) and side * side == length:
            old = (side, side)
        elif old is None and length == math.prod(grid):
            old = grid
        elif old is None:
            raise UserError(f"weights {path}: the attention grids are not square; say resolution=(height, width)")
        if old != grid:
            if not changed:
                sizes = " to ".join(f"{height}x{width}" for height, width in (old, grid))
                note.append(f"attention biases were re-sampled for this resolution ({sizes} and so on)")
            changed.append(name)
            result[name] = resample(table, old, grid)
    return result, tuple(changed), note


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether copying it can go wrong in no other way than by its shape."""
    return tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
