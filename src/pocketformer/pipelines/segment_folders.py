"""Trained segmenters as folders: `model.safetensors`, `architecture.json` and `config.json`, all that is needed to use
them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pocketformer import files
from pocketformer.architecture import Architecture
from pocketformer.architecture.design import Grid
from pocketformer.dense.backbone import Backbone
from pocketformer.dense.segmentation.labels import Coding
from pocketformer.dense.segmentation.segmenter import Segmenter
from pocketformer.errors import UserError
from pocketformer.models import create_model
from pocketformer.training import checkpoint
from pocketformer.training.colours import UNKNOWN
from pocketformer.training.depths import Depth
from pocketformer.training.pixels import Normalisation, normalisation_of

TASK = "semantic segmentation"


@dataclass(frozen=True)
class Trained:
    """A segmenter in evaluation mode and what is known of its training. `size`: of its crops, by which the scale of
    images is meant too; `depth`: of those of more than 8 bits; `ignores`: whether the ignored label was asked for, or
    on any mask."""

    model: Segmenter
    classes: tuple[str, ...]
    size: Grid
    coding: Coding
    source: str
    depth: Depth = UNKNOWN
    ignores: bool = True

    @property
    def normalisation(self) -> Normalisation:
        return normalisation_of(self.model.backbone.network)


def save_segmenter(
    folder: str | os.PathLike,
    model: Segmenter,
    classes: Sequence[str],
    size: Grid,
    coding: Coding,
    source: str,
    depth: Depth = UNKNOWN,
    ignores: bool = True,
) -> None:
    """Writes the folder, `model.safetensors` last: where that is, the rest is."""
    folder, network = Path(folder), model.backbone.network
    normalisation = normalisation_of(network)
    network.architecture.save(folder / "architecture.json")
    config = {
        "task": TASK,
        "num_classes": model.num_classes,
        "classes": list(classes),
        "size": list(size),
        "mean": list(normalisation.mean),
        "std": list(normalisation.std),
        "ignore_index": coding.ignored,
        "reduce_zero_label": coding.reduce_zero_label,
        "values": list(coding.values),
        "void": list(coding.void),
        "colours": coding.colours,
        "rounded": coding.rounded,
        "ignores": ignores,
        "parameters": sum(p.numel() for p in model.parameters()),
        "data": {"source": source, **depth.recorded()},
    }
    files.write_json(folder / "config.json", config)
    checkpoint.save_tensors(folder / "model.safetensors", model)


def load_segmenter(folder: str | os.PathLike) -> Trained:
    """The segmenter of a folder. Raises `UserError` in one line for any other."""
    folder = Path(folder)
    if folder.name == "model.safetensors":
        folder = folder.parent
    if folder.is_file():
        raise UserError(f"{folder} is a file: give the folder of the segmenter")
    if not folder.is_dir():
        raise UserError(f"no such folder of a segmenter: {folder}")
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no segmenter (no config.json); a training that is not done has none yet")
    config = files.read_json(folder / "config.json", "model configuration")
    if not isinstance(config, dict) or config.get("task") != TASK:
        raise UserError(f"{folder} holds another network than a segmenter: give the folder of a `segment train`")
    described = Architecture.load(folder / "architecture.json")
    try:
        size = (int(config["size"][0]), int(config["size"][1]))
        coding = _coding(config)
        classes = tuple(map(str, config["classes"]))
        normalisation = {name: tuple(map(float, config[name])) for name in ("mean", "std")}
        source = str(config["data"]["source"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        what = f"{type(error).__name__}: {error}"
        raise UserError(f"{folder / 'config.json'} is not a segmenter's configuration ({what})") from None
    network = create_model(described, num_classes=0, distilled=False)
    network.pretrained_cfg |= normalisation
    model = Segmenter(Backbone(network, size), len(classes))
    checkpoint.load_weights(model, folder / "model.safetensors")
    depth, ignores = Depth.of_record(config["data"]), bool(config.get("ignores", True))
    return Trained(model.eval(), classes, size, coding, source, depth, ignores)


def _coding(config: dict) -> Coding:
    values, void = (tuple(map(int, config.get(name, ()))) for name in ("values", "void"))
    facts = {name: bool(config.get(name, False)) for name in ("colours", "rounded")}
    return Coding(int(config["ignore_index"]), bool(config["reduce_zero_label"]), values, void, **facts)
