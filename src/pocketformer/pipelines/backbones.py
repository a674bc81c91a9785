"""Backbones as a person names them: an architecture, and what its weights start from."""

from dataclasses import replace
from pathlib import Path

from pocketformer.architecture import Architecture
from pocketformer.dense.backbone import Backbone
from pocketformer.dense.recipe import DenseRecipe
from pocketformer.models import checkpoints, create_model
from pocketformer.models.weights import Weights
from pocketformer.pipelines.shrinking import Searched
from pocketformer.pipelines.starts import open_start, weights_of
from pocketformer.pipelines.trained import is_weights_alone
from pocketformer.progress import say


def open_backbone(architecture: Architecture, init: str | None, recipe: DenseRecipe) -> Backbone:
    """The backbone for images of the recipe's size, with the weights that `init` names, for any classes: a run of
    `train`, `design`, `search` or `supernet`, or a file of weights (official, timm's or ours); None: fresh ones. Its
    norms are frozen if they come from this network's own training: the running statistics of a supernet's switches are
    of many subnets, and wrong for each (contract 6.5). Raises `UserError` for what does not fit."""
    network = create_model(
        architecture,
        num_classes=0,
        distilled=False,
        drop_path=recipe.drop_path,
        layer_scale=recipe.layer_scale,
    )
    if init is None:
        return Backbone(network, recipe.size)
    found, own = _read(init, architecture)
    for note in checkpoints.fit(network, found, init).notes:
        say(f"note: {note}")
    if not own:
        say(f"note: the norms of {init} were shared by a supernet's subnets: here they learn, instead of being frozen")
    return Backbone(network, recipe.size, frozen_norms=own)


def _read(init: str, architecture: Architecture) -> tuple[Weights, bool]:
    """The weights, and whether they were trained as this network."""
    found = open_start(init, architecture)
    if is_weights_alone(Path(init)):
        return found, True
    own = isinstance(found, Weights)
    if not own:
        supernet, place = (found.supernet, found.found) if isinstance(found, Searched) else (found[0], found[2])
        found = weights_of(supernet.extract(place))
    tensors = {name: tensor for name, tensor in found.tensors.items() if not name.startswith("head")}
    return replace(found, tensors=tensors), own  # a backbone has no classifiers
