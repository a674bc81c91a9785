"""Trained networks as a person names them: a folder of ours, or a file of weights and its architecture."""

from pathlib import Path

from pocketformer.architecture import Architecture
from pocketformer.architecture.design import Grid
from pocketformer.errors import UserError
from pocketformer.models import Network
from pocketformer.training import checkpoint
from pocketformer.training.batches import stored_size


def load_architecture(text: str) -> Architecture:
    """A published name, the path of an `architecture.json`, or a folder that holds one."""
    path = Path(text)
    if path.is_dir():
        path = path / "architecture.json"
    return Architecture.load(path) if path.suffix == ".json" else Architecture.named(text)


def is_weights_alone(path: Path) -> bool:
    """Whether it is a file of weights with no `config.json` of ours that describes it."""
    described = path.name == "model.safetensors" and path.with_name("config.json").is_file()
    return path.is_file() and path.suffix != ".onnx" and not described


def load_trained(path: Path, architecture: str | None) -> tuple[Network, dict]:
    """The network, in eval mode, and its configuration (whose `classes` a file of weights alone does not know)."""
    described = load_architecture(architecture) if architecture else None
    if not is_weights_alone(path):
        return checkpoint.load_model(path, described)
    if described is None:
        raise UserError(f"{path} is a file of weights alone: say of which --architecture")
    model, config = checkpoint.load_file(path, described)
    return model, {**config, "data": {"stored_size": size_to_store(model.resolution)}}


def size_to_store(resolution: Grid) -> Grid:
    """Of small images nothing is cut off; of others the margin that is usual on ImageNet."""
    return stored_size(resolution, 1.0 if max(resolution) <= 64 else 0.875)
