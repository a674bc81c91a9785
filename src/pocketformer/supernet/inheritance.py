"""Subnets of a network that was trained alone: they inherit its weights and norms (EagleEye; V2 App. B, Fig. 5)."""

import torch
from torch import nn

from pocketformer.supernet.elastic import ElasticConvNorm, SwitchNorm, switch_of
from pocketformer.supernet.supernet import Supernet


@torch.no_grad()
def inherit_norms(supernet: Supernet) -> None:
    """Gives every switch the first channels of the norms of the largest subnet, weights and statistics.

    Only the largest subnet's norms have learnt if it was trained alone. A subnet is then a slice of that network, as
    `Supernet.extract` cuts it: the first channels of every layer, in the order that training left them in.
    """
    largest = supernet.space.whole
    for step in largest.steps[:-1]:
        for layer in supernet.block(step).modules():
            if isinstance(layer, ElasticConvNorm):
                _hand_on(layer.norms, switch_of(step))
    _hand_on(supernet.norms, str(largest.widths[-1]))


def _hand_on(norms: nn.ModuleDict, largest: str) -> None:
    source = norms[largest]
    for norm in norms.values():
        assert isinstance(norm, SwitchNorm)
        for name, tensor in norm.state_dict(keep_vars=True).items():
            value = getattr(source, name)
            tensor.copy_(value[: norm.num_features] if value.ndim else value)
