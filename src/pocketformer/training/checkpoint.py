"""Checkpoints: `last.ckpt` to resume, safetensors to use. Both are written whole; neither can execute code."""

import io
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from pocketformer import files
from pocketformer.architecture import Architecture
from pocketformer.errors import UserError
from pocketformer.models import Network, create_model


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


def save_last(path: Path, state: dict[str, Any]) -> None:
    with files.whole(path) as temporary, _Sink(io.FileIO(temporary, "wb")) as sink:
        try:
            torch.save(state, sink)
        except RuntimeError:
            if sink.error is None:
                raise
            raise sink.error from None


def load_last(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError):  # whose texts advise to load it unsafely
            raise UserError(f"checkpoint {path} is damaged; delete it to begin this training anew") from None


def save_tensors(path: Path, module: nn.Module) -> None:
    tensors = {name: tensor.detach().contiguous() for name, tensor in module.state_dict().items()}
    with files.whole(path) as temporary:
        temporary.write_bytes(save(tensors))


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"no weights at {path}") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"weights {path} cannot be read: {error}") from None


def save_model(folder: str | os.PathLike, model: Network, classes: tuple[str, ...], data: dict) -> None:
    """A folder with `model.safetensors`, `architecture.json` and `config.json` (classes, size, how images were
    prepared): everything needed to use the network."""
    folder = Path(folder)
    model.architecture.save(folder / "architecture.json")
    config = {
        "num_classes": model.num_classes,
        "classes": list(classes),
        "resolution": list(model.resolution),
        "in_chans": model.in_chans,
        "distilled": model.distilled,
        "mean": list(model.pretrained_cfg["mean"]),
        "std": list(model.pretrained_cfg["std"]),
        "parameters": sum(p.numel() for p in model.parameters()),
        "data": data,
    }
    files.write_json(folder / "config.json", config)
    save_tensors(folder / "model.safetensors", model)


def load_model(folder: str | os.PathLike, architecture: str | os.PathLike | None = None) -> tuple[Network, dict]:
    """The network of a folder written by `save_model`, in eval mode, and its `config.json`."""
    folder = Path(folder)
    if folder.name == "model.safetensors":
        folder = folder.parent
    if not folder.is_dir():
        raise UserError(f"no such checkpoint folder: {folder}")
    config = files.read_json(folder / "config.json", "model configuration")
    if not isinstance(config, dict):
        raise UserError(f"{folder / 'config.json'} is not a model configuration")
    if "space" in config:
        raise UserError(f"{folder} holds a supernet, not a single network: `search` it and `train` what it finds")
    missing = [name for name in ("classes", "data", "resolution") if name not in config]
    if missing:
        raise UserError(f"{folder / 'config.json'} is not a model configuration (no {missing[0]!r})")
    described = Architecture.load(architecture or folder / "architecture.json")
    try:
        model = create_model(
            described,
            config["num_classes"],
            tuple(config["resolution"]),
            config["distilled"],
            config["in_chans"],
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / 'config.json'} is not a model configuration ({error})") from None
    load_weights(model, folder / "model.safetensors")
    return model.eval(), config


def load_weights(model: nn.Module, path: Path) -> None:
    """Loads safetensors weights that must fit exactly; names the first differences if they do not."""
    state, own = load_tensors(path), model.state_dict()
    wrong = [name for name in own if name not in state or state[name].shape != own[name].shape]
    wrong += [name for name in state if name not in own]
    if wrong:
        raise UserError(f"weights {path} do not fit this model: {len(wrong)} differ, first {', '.join(wrong[:3])}")
    model.load_state_dict(state)
