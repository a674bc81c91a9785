"""A trained detector as a folder: weights, architecture, and what its images and classes are."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pocketformer import files
from pocketformer.architecture import Architecture
from pocketformer.dense.backbone import Backbone
from pocketformer.dense.detection.detector import Detector
from pocketformer.dense.detection.heads import Heads
from pocketformer.errors import UserError
from pocketformer.models import create_model
from pocketformer.training import checkpoint
from pocketformer.training.colours import UNKNOWN
from pocketformer.training.depths import Depth
from pocketformer.training.pixels import Normalisation, normalisation_of

TASK = "detection"
_NAMES = ("classes", "size", "mean", "std", "heads")


@dataclass(frozen=True, eq=False)
class Trained:
    """A detector in eval mode; `classes`: {category id: name} in the order of its labels; `size`: short and long side
    that images are resized to, px; `depth`: of those of more than 8 bits."""

    model: Detector
    classes: Mapping[int, str]
    size: tuple[int, int]
    depth: Depth = UNKNOWN

    @property
    def normalisation(self) -> Normalisation:
        return normalisation_of(self.model.pyramid.backbone.network)


def save_detector(folder: Path, trained: Trained) -> None:
    """Writes `model.safetensors`, which comes last, `architecture.json` and `config.json`."""
    network = trained.model.pyramid.backbone.network
    network.architecture.save(folder / "architecture.json")
    config = {
        "task": TASK,
        "classes": [{"id": number, "name": name} for number, name in trained.classes.items()],
        "size": list(trained.size),
        "mean": list(trained.normalisation.mean),
        "std": list(trained.normalisation.std),
        "heads": trained.model.heads.to_dict(),
        "parameters": sum(p.numel() for p in trained.model.parameters()),
        **trained.depth.recorded(),
    }
    files.write_json(folder / "config.json", config)
    checkpoint.save_tensors(folder / "model.safetensors", trained.model)


def load_detector(folder: Path) -> Trained:
    """The detector of a folder written by `save_detector`. `UserError` for anything else."""
    if folder.name == "model.safetensors":
        folder = folder.parent
    if folder.is_file():
        raise UserError(f"{folder} is a file: give the folder of the detector")
    if not folder.is_dir():
        raise UserError(f"no such checkpoint folder: {folder}")
    config = files.read_json(folder / "config.json", "model configuration")
    if not isinstance(config, dict) or config.get("task") != TASK:
        kind = f"a model for {config['task']}" if isinstance(config, dict) and config.get("task") else "no detector"
        raise UserError(f"{folder} holds {kind}: name the folder of `detect train`")
    missing = [name for name in _NAMES if name not in config]
    if missing:
        raise UserError(f"{folder / 'config.json'} is not a detector's configuration (no {missing[0]!r})")
    try:
        classes = {int(entry["id"]): str(entry["name"]) for entry in config["classes"]}
        height, width = map(int, config["size"])
        mean, std = (tuple(map(float, config[name])) for name in ("mean", "std"))
        heads = Heads.from_dict(config["heads"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / 'config.json'} is not a detector's configuration ({error})") from None
    network = create_model(Architecture.load(folder / "architecture.json"), num_classes=0, distilled=False)
    network.pretrained_cfg |= {"mean": mean, "std": std}
    model = Detector(Backbone(network, (height, width)), len(classes), heads)
    checkpoint.load_weights(model, folder / "model.safetensors")
    return Trained(model.eval(), classes, (height, width), Depth.of_record(config))
