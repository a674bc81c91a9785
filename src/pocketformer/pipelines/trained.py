"""Trained networks as a person names them: a folder of ours, or weights alone and their architecture."""

from pathlib import Path

from pocketformer.architecture import Architecture
from pocketformer.architecture.design import Grid
from pocketformer.deploy import format_by_name
from pocketformer.errors import UserError
from pocketformer.models import Network, weights
from pocketformer.runs import read_config
from pocketformer.training import checkpoint
from pocketformer.training.batches import stored_size


def load_architecture(text: str, size: Grid | None = None) -> Architecture:
    """A published name, the path of an `architecture.json`, or a folder that holds one; for images of `size` (height,
    width) if that is given. Raises `UserError` for what is none, and for a size that its strides leave nothing of."""
    path = Path(text)
    if path.is_dir():
        path = path / "architecture.json"
    if path.suffix != ".json" and (path.exists() or len(path.parts) > 1):
        raise UserError(f"{text} is no architecture: give a published name, an architecture.json or a folder with one")
    found = Architecture.load(path) if path.suffix == ".json" else Architecture.named(text)
    if size is None:
        return found
    found.design.check_size(size)
    return found.with_design(resolution=size)


def is_weights_alone(path: Path) -> bool:
    """Whether it is a file or folder of weights with no `architecture.json` of ours that describes it."""
    if path.is_dir():
        described = (path / "architecture.json").is_file() or weights.is_supernet(path)
        return not described and any((path / name).is_file() for name in weights.NAMES)
    if path.name == "model.safetensors":
        described = all(path.with_name(name).is_file() for name in ("architecture.json", "config.json"))
        return path.is_file() and not described and not weights.is_supernet(path.parent)
    return path.is_file() and format_by_name(path) is None


def learned_from(weights: str | Path) -> tuple[dict, int] | None:
    """What a run's weights learned from (`images.identity`, as far as it is known) and the seed that split it: of the
    run that the file or folder lies in, at most three folders up. None: of no run of ours."""
    config = run_above(weights)
    if config is None:
        return None
    facts, seed = config["facts"], config["settings"].get("seed")
    if "split_fingerprint" not in facts or seed is None:
        return None
    return {"fingerprint": facts["data_fingerprint"], **facts}, seed


def run_above(weights: str | Path) -> dict | None:
    """The configuration of the run that a file or folder lies in, at most three folders up."""
    folder = run_folder(weights)
    return None if folder is None else read_config(folder)


def run_folder(weights: str | Path) -> Path | None:
    """The folder of the run that a file or folder lies in, at most three folders up."""
    path = Path(weights).resolve()
    for folder in [path, *path.parents][:4]:
        if (folder / "config.yaml").is_file():
            try:
                read_config(folder)
            except UserError:  # somebody else's: weights may lie anywhere
                continue
            return folder
    return None


def load_trained(path: Path, architecture: str | None) -> tuple[Network, dict]:
    """The network, in eval mode, and its configuration (whose `classes` weights alone do not know)."""
    if format_by_name(path) is not None and path.exists():
        raise UserError(f"{path} is an exported file, whose weights are not read: give the run that it came from")
    described = load_architecture(architecture) if architecture else None
    kept = path.name in checkpoint.OURS and path.is_file() and path.with_name("architecture.json").is_file()
    if not is_weights_alone(path) or (kept and described is None):
        refuse_no_network(path)
        return checkpoint.load_model(path, described)
    if described is None:
        refuse_no_network(path)
        raise UserError(f"{path} holds weights alone: say of which --architecture")
    model, config = checkpoint.load_file(path, described)
    return model, {**config, "data": {"stored_size": size_to_store(model.resolution)}}


def refuse_no_network(path: Path) -> None:
    """Raises `UserError` for a file or folder of a run that is not its network, with where that is."""
    run = run_folder(path)
    if path.is_file():
        state = path.match("last*.ckpt")
        if run is not None and state and (path.parent / "config.json").is_file():
            raise UserError(f"{path} is the state of a training, not its network: give its folder, {path.parent}")
        try:
            weights.read(path)
        except UserError as error:
            inside = "" if run is None or path.name in checkpoint.OURS else f"; it lies in a run: give {run}"
            raise UserError(f"{error}{inside}") from None
        return
    if not path.is_dir() or (path / "config.json").is_file():  # told by whoever reads it
        return
    if run is None:
        raise UserError(f"{path} holds no trained network (no config.json)")
    if run != path.resolve():
        raise UserError(f"{path} holds no trained network, but lies in a run: give {run}")
    command = read_config(run)["command"]
    if command == "search":
        raise UserError(
            f"{path} is a search, which trains no network: `train --architecture {path} --init {path}` does"
        )
    raise UserError(f"{path} is a run of '{command}' that has left no network (yet): its command, repeated, resumes it")


def size_to_store(resolution: Grid) -> Grid:
    """Of small images nothing is cut off; of others the margin that is usual on ImageNet."""
    return stored_size(resolution, 1.0 if max(resolution) <= 64 else 0.875)
