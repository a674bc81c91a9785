"""Checkpoints: `last.ckpt` to resume, safetensors to use. Both are written whole; neither can execute code."""

import contextlib
import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from pocketformer import files
from pocketformer.architecture import Architecture
from pocketformer.errors import UserError
from pocketformer.models import Network, checkpoints, create_model, registry, weights
from pocketformer.models.blank import Blank
from pocketformer.progress import say

OURS = ("model.safetensors", "best.safetensors")  # weights in a run's folder, whose files beside them describe them


class _Sink(io.BufferedWriter):
    """A file that remembers why it could not be written: torch hides a full disk in a `RuntimeError` of its own."""

    error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self.error = error
            raise


def save_last(path: Path, state: dict[str, Any], keep: int = 1) -> None:
    """Writes `last.ckpt`; those before it become `last.1.ckpt` and so on, `keep` in all.

    At each moment the newest that is there is whole: the names move on only when the new one is written, and between
    two renames one is missing at most.
    """
    with files.whole(path) as temporary:
        with _Sink(io.FileIO(temporary, "wb")) as sink:
            try:
                torch.save(state, sink)
            except RuntimeError:
                if sink.error is None:
                    raise
                raise sink.error from None
        names = kept_names(path, keep)
        for older, newer in zip(reversed(names[1:]), reversed(names[:-1]), strict=True):
            if newer.exists():
                newer.replace(older)


def kept_names(path: Path, keep: int) -> list[Path]:
    """`last.ckpt` and the names of those before it, the newest first."""
    return [path, *(path.with_name(f"{path.stem}.{age}{path.suffix}") for age in range(1, keep))]


def load_last(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError):  # whose texts advise to load it unsafely
            raise UserError(f"checkpoint {path} is damaged; delete it to begin this training anew") from None


def save_tensors(path: Path, module: nn.Module) -> None:
    tensors = {name: tensor.detach().contiguous() for name, tensor in module.state_dict().items()}
    with files.whole(path) as temporary:
        temporary.write_bytes(save(tensors, facts_of(module)))


def facts_of(module: nn.Module) -> dict[str, str] | None:
    """What a network's tensors do not say, as a file of weights states it: {our name: JSON}. None: no network."""
    if not isinstance(module, Network):
        return None
    facts = {"resolution": module.resolution, **_normalisation(module)}  # grids cannot be read off the tables' lengths
    facts |= {"classes": names} if (names := class_names(module)) else {}
    return {weights.HEADER: json.dumps(facts)}


def class_names(model: nn.Module) -> list[str] | None:
    """The names of the classes that a network knows, where anything said them: a note on the network, as timm's."""
    names = (getattr(model, "pretrained_cfg", None) or {}).get("label_names")
    return None if names is None or len(names) != model.num_classes else list(names)


def save_model(folder: str | os.PathLike, model: Network, classes: tuple[str, ...], data: dict) -> None:
    """A folder with `model.safetensors`, `architecture.json` and `config.json` (classes, size, how images were
    prepared): everything needed to use the network, here or by `timm.create_model("local-dir:FOLDER", ...)`."""
    if checkpoints.is_pruned(model):
        raise UserError("a network whose last stages or norm were taken out cannot be saved as a folder")
    folder = Path(folder)
    stored = data.get("stored_size") or model.resolution
    crop_pct = min(size / whole for size, whole in zip(model.resolution, stored, strict=True))
    model.architecture.save(folder / "architecture.json")
    config = {
        "num_classes": model.num_classes,
        "classes": list(classes),
        "resolution": list(model.resolution),
        "in_chans": model.in_chans,
        "distilled": model.distilled,
        **_normalisation(model),
        "parameters": sum(p.numel() for p in model.parameters()),
        "data": data,
        **registry.timm_config(model, classes, crop_pct),
    }
    config["pretrained_cfg"] |= _normalisation(model)
    model.pretrained_cfg["label_names"] = list(classes)
    files.write_json(folder / "config.json", config)
    save_tensors(folder / "model.safetensors", model)


def _normalisation(model: Network) -> dict[str, list[float]]:
    """Mean and std, one a channel: timm's defaults are of three whatever `in_chans`."""
    found = {name: list(model.pretrained_cfg[name]) for name in ("mean", "std")}
    channels = model.in_chans
    return {name: v if len(v) == channels else [sum(v) / len(v)] * channels for name, v in found.items()}


def load_model(folder: str | os.PathLike, architecture: Architecture | None = None) -> tuple[Network, dict]:
    """The network of a folder written by `save_model`, or of one of the files in it, in eval mode, and its
    `config.json`."""
    folder, file = Path(folder), OURS[0]
    if folder.name in OURS:
        folder, file = folder.parent, folder.name
    if not folder.is_dir():
        raise UserError(f"no such checkpoint folder: {folder}")
    config = files.read_json(folder / "config.json", "model configuration")
    if not isinstance(config, dict):
        raise UserError(f"{folder / 'config.json'} is not a model configuration")
    if task := config.get("task"):
        command = "detect" if task == "detection" else "segment"
        raise UserError(f"{folder} holds a model for {task}, not a classifier: `pocketformer {command}` uses it")
    if "space" in config:
        raise UserError(f"{folder} holds a supernet, not a single network: `search` it and `train` what it finds")
    missing = [name for name in ("classes", "data", "resolution", "mean", "std") if name not in config]
    if missing:
        raise UserError(f"{folder / 'config.json'} is not a model configuration (no {missing[0]!r})")
    described = architecture or Architecture.load(folder / "architecture.json")
    try:
        more = config.get("model_args", {})
        with Blank():  # `load_weights` fills all of it, or refuses the file
            model = Network(
                described,
                config["num_classes"],
                tuple(config["resolution"]),
                config["distilled"],
                config["in_chans"],
                dynamic=bool(more.get("dynamic_img_size")),
                global_pool=more.get("global_pool", "avg"),
            )
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{folder / 'config.json'} is not a model configuration ({error})") from None
    model.pretrained_cfg |= {name: tuple(config[name]) for name in ("mean", "std")}
    model.pretrained_cfg["label_names"] = config["classes"]
    load_weights(model, folder / file)
    return model.eval(), config


def load_file(path: str | os.PathLike, architecture: Architecture) -> tuple[Network, dict]:
    """The network of weights alone (`models.load_checkpoint`), in eval mode, with the file's heads; and of its
    `config.json` what can be known."""
    with torch.device("meta"):
        shape = create_model(architecture)
    _, _, found = checkpoints.recognise(shape, weights.read(path), path)
    head = found.tensors.get("head.weight")
    if head is None or head.ndim != 2:
        raise UserError(f"{path} holds no classifier (head.weight)")
    second = found.tensors.get("head_dist.weight")
    whole = second is None or second.shape == head.shape  # else the network keeps a head of its own
    with Blank() if whole else contextlib.nullcontext():
        model = create_model(architecture, len(head), found.resolution, second is not None)
    loaded = checkpoints.fit(model, found, path)
    for note in loaded.notes:
        say(f"note: {note}")
    classes = found.classes if found.classes is not None and len(found.classes) == len(head) else None
    if found.classes is not None and classes is None:
        say(f"note: {path} names {len(found.classes)} classes, its classifier has {len(head)}: the names are not used")
    return model.eval(), {"classes": classes and list(classes), "data": {}}


def load_weights(model: nn.Module, path: Path) -> None:
    """Loads safetensors weights that must fit exactly; names the first differences if they do not."""
    state, own = weights.read_safetensors(path), model.state_dict()
    wrong = [name for name in own if name not in state or state[name].shape != own[name].shape]
    wrong += [name for name in state if name not in own]
    if wrong:
        raise UserError(f"weights {path} do not fit this model: {len(wrong)} differ, first {', '.join(wrong[:3])}")
    model.load_state_dict(state)
