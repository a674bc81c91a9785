"""What `--init` names: the trained network of a run, the supernet of a search or of its own, or a file of weights."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pocketformer import files
from pocketformer.architecture import Architecture, Selection
from pocketformer.deploy import format_by_name
from pocketformer.errors import UserError
from pocketformer.models import Network, weights
from pocketformer.models.weights import Weights
from pocketformer.pipelines.shrinking import Searched, load_searched
from pocketformer.pipelines.supernets import load_supernet
from pocketformer.pipelines.trained import is_weights_alone, refuse_no_network
from pocketformer.progress import say
from pocketformer.supernet import Supernet
from pocketformer.training import checkpoint, class_order
from pocketformer.training.class_order import ClassOrder, few


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
    if format_by_name(folder) is not None:
        raise UserError(f"--init {init} is an exported file, from which nothing can be trained: give the run's folder")
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
    refuse_no_network(folder)
    source, _ = checkpoint.load_model(folder)
    if source.architecture != architecture.with_design(resolution=source.architecture.design.resolution):
        where = folder / "supernet"
        other = f" (its supernet's weights, for any of its subnets: --init {where})" if where.is_dir() else ""
        raise UserError(f"--init {init} is of another architecture{other}")
    return weights_of(source)


def weights_of(network: Network) -> Weights:
    """Those of a network of ours, as of a file of it."""
    normalisation = network.pretrained_cfg["mean"], network.pretrained_cfg["std"]
    classes = checkpoint.class_names(network)
    return Weights(network.state_dict(), network.resolution, normalisation, classes and tuple(classes))


def for_classes(found: Weights, classes: Sequence[str], order: ClassOrder | None, what: str) -> Weights:
    """Weights of one network with their heads in the order of the data's classes, or without heads that are of other
    classes. What was done, or taken for granted, is said when they are loaded."""
    heads = {name: t for name, t in found.tensors.items() if name.startswith(("head.", "head_dist."))}
    count = next((len(tensor) for tensor in heads.values() if tensor.ndim), 0)
    if count != len(classes):  # told where they are dropped
        return found
    known = found.classes if found.classes is not None and len(found.classes) == count else None
    rows = class_order.rows(known, count, classes, order, what)
    if rows is None:
        left = {name: tensor for name, tensor in found.tensors.items() if name not in heads}
        note = f"its {count} classes ({few(known)}) are others than the data's ({few(classes)}): a new head"
        return replace(found, tensors=left, classes=None, notes=(*found.notes, note))
    notes = [*found.notes]
    if known is None:
        how = f"--class-order {order.rule}" if order else "sorted order"
        notes.append(f"it names no classes; the data's are taken in {how}")
    elif order is not None:
        notes.append("it names its classes: --class-order is not needed for it, and not used")
    if rows != list(range(count)):
        notes.append("its classes are in another order: the head was put into the data's")
    heads = {name: tensor[rows] if len(tensor) == count else tensor for name, tensor in heads.items() if tensor.ndim}
    return replace(found, tensors={**found.tensors, **heads}, classes=tuple(classes), notes=tuple(notes))


def reorder(supernet: Supernet, known: Sequence[str], classes: Sequence[str], what: str) -> None:
    """The head of a supernet for the data's classes, which must be those that it knows."""
    rows = class_order.rows(known, len(known), classes, None, what)
    if rows is None:
        raise UserError(f"{what} knows the classes {few(known)}, but the data has {few(classes)}")
    if rows != list(range(len(rows))):
        for head in (supernet.head, getattr(supernet, "head_dist", None)):
            for parameter in head.parameters() if head is not None else ():
                parameter.data = parameter.data[rows]


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
