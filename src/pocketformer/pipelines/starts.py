"""What `--init` names: the trained network of a run, the supernet of a search or of its own, or a file of weights."""

from pathlib import Path

from pocketformer import files
from pocketformer.architecture import Architecture, Selection
from pocketformer.errors import UserError
from pocketformer.models import Network, weights
from pocketformer.models.weights import Weights
from pocketformer.pipelines.shrinking import Searched, load_searched
from pocketformer.pipelines.supernets import load_supernet
from pocketformer.pipelines.trained import is_weights_alone
from pocketformer.progress import say
from pocketformer.supernet import Supernet
from pocketformer.training import checkpoint


def searched_by(init: str | None, shrink: bool = False) -> Path | None:
    """The folder of the search whose supernet `--init` stands for: a folder of `search`; of `design` the folder of the
    supernet, and the run itself as long as it has shipped no network, or to `shrink`. None: it is something else."""
    if init is None:
        return None
    folder = _folder(init)
    if _is_search(folder) and (shrink or not _has_network(folder)):
        return folder
    parent = folder.resolve().parent
    return parent if _is_search(parent) and folder.resolve() == parent / "supernet" else None


def is_shared(init: str, shrink: bool = False) -> bool:
    """Whether the weights are a supernet's."""
    return searched_by(init, shrink) is not None or _supernet(_folder(init)) is not None


def open_start(
    init: str, architecture: Architecture, shrink: bool = False
) -> Searched | tuple[Supernet, dict, Selection] | Weights:
    """A search; or a supernet, its `config.json` and the network's place in it; or the weights of one network.

    A folder of `design` is the network that it shipped. Of a network or supernet for images of another size, the
    tables of attention biases are to be re-sampled. Raises `UserError` for what is not there, or of another
    architecture.
    """
    if not Path(init).exists():
        raise UserError(f"--init {init}: no such file or folder")
    folder = _folder(init)
    if (search := searched_by(init, shrink)) is not None:
        if search == folder and (folder / "supernet").is_dir() and not shrink:
            say(f"note: {init} has shipped no network (yet): this begins with its supernet's weights")
        return load_searched(search, architecture)
    if is_weights_alone(folder):
        return weights.read(folder)
    if (supernet := _supernet(folder)) is not None:
        network, config = load_supernet(supernet)
        return network, config, network.select(architecture.with_design(resolution=network.space.resolution))
    config = folder / "config.json"
    if config.is_file() and (task := files.read_json(config).get("task")):
        raise UserError(f"--init {init} is a model for {task}; give the network that it began with, or its weights")
    source, _ = checkpoint.load_model(folder)
    if source.architecture != architecture.with_design(resolution=source.architecture.design.resolution):
        where = folder / "supernet"
        other = f" (its supernet's weights, for any of its subnets: --init {where})" if where.is_dir() else ""
        raise UserError(f"--init {init} is of another architecture{other}")
    return weights_of(source)


def weights_of(network: Network) -> Weights:
    """Those of a network of ours, as of a file of it."""
    normalisation = network.pretrained_cfg["mean"], network.pretrained_cfg["std"]
    return Weights(network.state_dict(), network.resolution, normalisation)


def _folder(init: str) -> Path:
    """The folder of a run where the file of its weights is named."""
    path = Path(init)
    return path.parent if path.name == "model.safetensors" and not is_weights_alone(path) else path


def _is_search(folder: Path) -> bool:
    return (folder / "search.jsonl").is_file()


def _has_network(folder: Path) -> bool:
    return (folder / "model.safetensors").is_file()


def _supernet(folder: Path) -> Path | None:
    """The folder with a supernet's weights, if there is one and no single network's."""
    if _has_network(folder) and not weights.is_supernet(folder):
        return None
    return next((place for place in (folder / "supernet", folder) if weights.is_supernet(place)), None)
