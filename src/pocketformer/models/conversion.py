"""State dicts of any layout where timm hands over tensors, not a file for `load_checkpoint`."""

import logging
from collections.abc import Mapping
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
    _tell(checkpoints.fit(twin, _weights(state, resolution), _SOURCE))
    return twin.state_dict()


def renamed(state: Mapping[str, Any], model: "Network", strict: bool = True) -> Mapping[str, Any]:
    """For `load_state_dict`: as it is where its names are the model's, which no layout but ours has of the stem's
    norm; else converted as above, without `strict` what there is of it."""
    if any(name in state for name in ("stem.conv1.norm.weight", "stem.conv.norm.weight")):
        return state
    found = _weights(state)
    try:
        layout, _ = checkpoints.recognise(model, found, _SOURCE, strict=False)
    except UserError:
        if strict:
            raise
        return state
    if layout == layouts.OURS and any(name in state for name in found.tensors):
        return state
    given, loaded = checkpoints.matched(model, found, _SOURCE, strict=strict)
    _tell(loaded)
    return {**model.state_dict(), **given} if strict else given


def _weights(state: Mapping[str, Any], resolution: Grid | None = None) -> weights.Weights:
    tensors = {name: t for name, t in state.items() if isinstance(t, torch.Tensor)}
    on_host = {name: t if t.is_meta else t.cpu() for name, t in tensors.items()}
    return weights.named(on_host, resolution, None)


def _tell(loaded: checkpoints.Loaded) -> None:
    for note in loaded.notes:
        logging.getLogger("pocketformer").warning("%s", note)
