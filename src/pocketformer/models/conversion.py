"""State dicts of any layout where timm hands over tensors, not a file for `load_checkpoint`."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from pocketformer.architecture.design import Grid
from pocketformer.models import checkpoints, weights

if TYPE_CHECKING:
    from pocketformer.models.network import Network


def converted(
    state: Mapping[str, Any], model: "Network", num_classes: int, in_chans: int, resolution: Grid | None = None
) -> dict[str, torch.Tensor]:
    """The official implementation's, timm's or our names and shapes as those of `model`, which is left as it is.

    Tables of attention biases are re-sampled, `resolution` (the file's) saying their grids if they are not square;
    heads copied or dropped; classes and channels stay those of the file, which are given. Raises `UserError` as
    `load_checkpoint` does.
    """
    twin = type(model)(model.architecture, num_classes, model.resolution, model.distilled, in_chans)
    tensors = {name.replace("dist_head.", "head_dist."): t for name, t in state.items() if isinstance(t, torch.Tensor)}
    loaded = checkpoints.fit(twin, weights.Weights(tensors, resolution), "given")
    for note in loaded.notes:
        logging.getLogger("pocketformer").warning("%s", note)
    return twin.state_dict()
