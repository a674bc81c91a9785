"""Weight files of any origin, read into a flat dict of tensors. A file is data: nothing in it is ever executed."""

import argparse
import json
import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from pocketformer import files
from pocketformer.architecture.design import Grid
from pocketformer.errors import UserError

# Where training programs keep weights beside optimisers and the like: the official ones, timm's, others.
_TRAINED, _AVERAGED = ("model", "state_dict"), ("model_ema", "state_dict_ema")


@dataclass(frozen=True)
class Weights:
    """Tensors by name as in the file, but for the distillation head, which is `head_dist` throughout; and the
    resolution that the file states (ours do), else None."""

    tensors: dict[str, torch.Tensor]
    resolution: Grid | None = None


def read(path: str | os.PathLike, ema: bool = False) -> Weights:
    """Reads a torch file, a safetensors file, or one of our folders; with `ema` the averaged weights in it.

    Raises `UserError` for what is missing, damaged, holds pickled code, or no weights.
    """
    path = Path(path)
    if path.is_dir():
        _check_folder(path)
        path = path / "model.safetensors"
    if path.suffix == ".safetensors":
        tensors, resolution = read_safetensors(path)
        if ema:
            raise UserError(f"{path} holds one set of weights, none of them averaged (ema)")
    else:
        tensors, resolution = _contained(path, _read_torch(path), ema), None
    return Weights({_canonical(name): tensor for name, tensor in _stripped(tensors).items()}, resolution)


def read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], Grid | None]:
    """The tensors of a safetensors file, and the resolution in its header or in the `config.json` of its folder."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            stated = (file.metadata() or {}).get("resolution")
    except FileNotFoundError:
        raise UserError(f"no weights at {path}") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"weights {path} cannot be read: {error}") from None
    config = path.with_name("config.json")
    try:
        if stated is not None:
            return tensors, _grid(json.loads(stated))
        if path.name == "model.safetensors" and config.is_file():
            found = files.read_json(config, "model configuration")
            if isinstance(found, dict) and "resolution" in found:
                return tensors, _grid(found["resolution"])
    except (ValueError, TypeError):
        raise UserError(f"weights {path}: the stated resolution is none") from None
    return tensors, None


def _grid(value: Any) -> Grid:
    height, width = map(int, value)
    if min(height, width) < 1:
        raise ValueError
    return height, width


def _check_folder(path: Path) -> None:
    config = path / "config.json"
    if not (path / "model.safetensors").is_file():
        raise UserError(f"no weights at {path / 'model.safetensors'}")
    described = files.read_json(config, "model configuration") if config.is_file() else {}
    if isinstance(described, dict) and "space" in described:
        raise UserError(f"{path} holds a supernet, not a single network: `search` it and `train` what it finds")


def _read_torch(path: Path) -> Any:
    try:
        file = open(path, "rb")  # noqa: SIM115 (closed below; what cannot be opened is told apart)
    except FileNotFoundError:
        raise UserError(f"no weights at {path}") from None
    except OSError as error:
        raise UserError(f"weights {path} cannot be read: {error.strerror}") from None
    try:
        # The official training files keep their command line, a plain record.
        with file, torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of how the file was written
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a file makes torch raise, whose texts advise to load it unsafely
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            what = f"{path} holds more than weights (pickled {shown(found[1])}), which may be code: not loaded"
            raise UserError(f"{what}; save the state dict alone") from None
        raise UserError(f"weights {path} cannot be read: damaged, cut off, or no file of weights") from None


def _contained(path: Path, value: Any, ema: bool) -> dict[str, torch.Tensor]:
    """The state dict in what a file held."""
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no weights but a {type(value).__name__}")
    for name in _AVERAGED if ema else (*_TRAINED, *_AVERAGED):
        if isinstance(value.get(name), dict):
            value = value[name]
            break
    else:
        if ema:
            raise UserError(f"{path} holds no averaged weights ({' or '.join(_AVERAGED)})")
    tensors = {name: t for name, t in value.items() if isinstance(name, str) and isinstance(t, torch.Tensor)}
    if not tensors:
        raise UserError(f"{path} holds no weights; its first entries are {first(value)}")
    return tensors


def first(names: Any, count: int = 3) -> str:
    """The first few of some names, to be told to a person."""
    names = [shown(str(name)) for name in names]
    return ", ".join(names[:count]) + (", …" if len(names) > count else "") if names else "none"


def shown(name: str) -> str:
    """A name out of a file as a person's terminal may get it."""
    return (name if name.isprintable() else ascii(name))[:100]


def _stripped(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without the `module.` in front of every name that parallel training leaves."""
    while tensors and all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


def _canonical(name: str) -> str:
    return re.sub(r"^dist_head\.", "head_dist.", name)
