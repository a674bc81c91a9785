"""Backbones as a person names them: an architecture, and what its weights start from."""

from pathlib import Path

from pocketformer import files
from pocketformer.architecture import Architecture
from pocketformer.dense.backbone import Backbone
from pocketformer.dense.recipe import DenseRecipe
from pocketformer.errors import UserError
from pocketformer.models import Network, checkpoints, create_model, weights
from pocketformer.models.weights import Weights
from pocketformer.pipelines.shrinking import load_searched
from pocketformer.pipelines.supernets import load_supernet
from pocketformer.pipelines.trained import is_weights_alone
from pocketformer.pipelines.trainings import is_search
from pocketformer.progress import say
from pocketformer.training import checkpoint


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
    folder = Path(init)
    if not folder.exists():
        raise UserError(f"--init {init}: no such file or folder")
    if is_search(init) and not (folder / "model.safetensors").is_file():
        found = load_searched(folder, architecture)
        return _weights(found.supernet.extract(found.found)), False
    if is_weights_alone(folder):
        return weights.read(folder), True
    config = (folder / "supernet" if (folder / "supernet").is_dir() else folder) / "config.json"
    if config.is_file() and (task := files.read_json(config).get("task")):
        raise UserError(f"--init {init} is a model for {task}; give the network that it began with, or its weights")
    if config.is_file() and "space" in files.read_json(config):
        supernet, _ = load_supernet(folder)
        return _weights(supernet.extract(supernet.select(architecture))), False
    source, _ = checkpoint.load_model(folder)
    if source.architecture != architecture:
        raise UserError(f"--init {init} is of another architecture")
    return _weights(source), True


def _weights(source: Network) -> Weights:
    """Without the classifiers, of which a backbone has none."""
    normalisation = source.pretrained_cfg["mean"], source.pretrained_cfg["std"]
    state = {name: tensor for name, tensor in source.state_dict().items() if not name.startswith("head")}
    return Weights(state, source.resolution, normalisation)
