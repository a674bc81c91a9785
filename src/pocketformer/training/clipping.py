"""Adaptive gradient clipping by timm, with the units of the published code."""

import torch
from timm.utils.agc import adaptive_clip_grad
from torch import nn

from pocketformer.models import efficientformerv2
from pocketformer.supernet import elastic

# Their layer scale is stored there as (C, 1, 1), each channel a unit; V1's as a vector, one unit.
_BY_CHANNEL = (efficientformerv2.FFN, efficientformerv2.Attention, elastic.ElasticFFN, elastic.ElasticAttention)


class Clipping:
    """Limits each unit of a gradient to `factor` times the norm of the same unit of the weights, at least 1e-3.

    A unit is what belongs to one output: a filter, a row, a head of a table; of vectors the whole.
    """

    def __init__(self, model: nn.Module, factor: float):
        self.model, self.factor = model, factor
        self._by_channel = {id(block.scale.gamma) for block in model.modules() if isinstance(block, _BY_CHANNEL)}

    def __call__(self) -> None:
        """Clips the gradients that are there, in place."""
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        adaptive_clip_grad([_column(p) if id(p) in self._by_channel else p for p in parameters], self.factor)


def _column(vector: nn.Parameter) -> torch.Tensor:
    """The same numbers, and the same gradient, as (C, 1)."""
    column = vector.detach()[:, None]
    column.grad = vector.grad[:, None]
    return column
