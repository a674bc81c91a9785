"""State dicts of any layout where timm hands over tensors, not a file for `load_checkpoint`."""

import copy
import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from pocketformer.architecture.design import Grid
from pocketformer.errors import UserError
from pocketformer.models import checkpoints, layouts, weights

if TYPE_CHECKING:
    from pocketformer.models.network import Network

State = dict[str, torch.Tensor]

_SOURCE = "of the given state dict"


def converted(
    state: Mapping[str, Any], model: "Network", num_classes: int, in_chans: int, resolution: Grid | None = None
) -> State:
    """The official implementation's, timm's or our names and shapes as those of `model`, which is left as it is.

    Tables of attention biases are re-sampled, `resolution` (the file's) saying their grids if they are not square;
    heads copied or dropped; classes and channels stay those of the file, which are given. Raises `UserError` as
    `load_checkpoint` does.
    """
    twin = type(model)(model.architecture, num_classes, model.resolution, model.distilled, in_chans)
    _tell(checkpoints.fit(twin, _weights(state, resolution), _SOURCE).notes)
    return twin.state_dict()


def renamed(state: Mapping[str, Any], model: "Network", strict: bool = True) -> Mapping[str, Any]:
    """For `load_state_dict`: as it is where its names are the model's, which no layout but ours has of the stem's
    norm; else converted as above, without `strict` what there is of it."""
    if any(name in state for name in ("stem.conv1.norm.weight", "stem.conv.norm.weight")):
        state, notes = checkpoints.for_channels(model, state)
        _tell(notes)
        return state
    found = _weights(state)
    try:
        layout, _, found = checkpoints.recognise(model, found, _SOURCE, strict=False)
    except UserError:
        if strict:
            raise
        return state
    if layout == layouts.OURS and any(name in state for name in found.tensors):
        return state
    given, loaded = checkpoints.matched(model, found, _SOURCE, strict=strict)
    _tell(loaded.notes)
    return {**model.state_dict(), **given} if strict else given


class Wrapped:
    """Before timm's wrapper of a network's features loads a state dict: whatever layout it has, under the names that
    the wrapper gives to the tensors. What the wrapper left of the network is left of the file."""

    def __init__(self, network: "Network", wrapper: torch.nn.Module):
        names = {id(tensor): name for name, tensor in network.state_dict(keep_vars=True).items()}
        found = wrapper.state_dict(keep_vars=True).items()
        self.names = {theirs: names[id(tensor)] for theirs, tensor in found}
        self.shape = copy.deepcopy(network).to("meta")
        self.shape.reset_classifier(0)

    def __call__(self, wrapper: torch.nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        if prefix or state.keys() <= self.names.keys():  # its own
            return
        given, loaded = checkpoints.matched(self.shape, _weights(state), _SOURCE)
        _tell(loaded.notes)
        own = wrapper.state_dict()
        state.clear()
        state.update({theirs: given.get(ours, own[theirs]) for theirs, ours in self.names.items()})


def _weights(state: Mapping[str, Any], resolution: Grid | None = None) -> weights.Weights:
    tensors = {name: t for name, t in state.items() if isinstance(t, torch.Tensor)}
    on_host = {name: t if t.is_meta else t.cpu() for name, t in tensors.items()}
    return weights.named(on_host, resolution)


def _tell(notes: Iterable[str]) -> None:
    for note in notes:
        logging.getLogger("pocketformer").warning("%s", note)
