"""Weight files of any origin, read into a flat dict of tensors. A file is data: nothing in it is ever executed."""

import argparse
import json
import os
import pickletools
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
NAMES = ("model.safetensors", "pytorch_model.bin")  # of the weights in a folder: ours and Hugging Face's, older ones
HEADER = "pocketformer"  # the only entry in the header of our files, which has no order: equal files are equal bytes

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Weights:
    """Tensors by name as in the file, but for what programs put in front of names and for the distillation head, which
    is `head_dist` throughout; the resolution and (mean, std) that the file or the `config.json` beside it states (ours
    and Hugging Face's do), else None; and what was passed over, in sentences."""

    tensors: dict[str, torch.Tensor]
    resolution: Grid | None = None
    normalisation: Normalisation | None = None
    notes: tuple[str, ...] = ()


def read(path: str | os.PathLike, ema: bool = False) -> Weights:
    """Reads a torch file, a safetensors file, or a folder of ours or Hugging Face's; with `ema` the averaged weights.

    Raises `UserError` for what is missing, damaged, holds pickled code, or no weights.
    """
    path = Path(path)
    if path.is_dir():
        path = _in_folder(path)
    about = {}
    if path.suffix == ".safetensors":
        tensors, about = _safetensors(path)
        if ema:
            raise UserError(f"{path} holds one set of weights, none of them averaged (ema)")
    else:
        tensors = _contained(path, _read_torch(path), ema)
    return named(tensors, *_stated(path, about))


def named(tensors: dict[str, torch.Tensor], *stated: Any) -> Weights:
    """Tensors under the names that the network itself gives them."""
    tensors, notes = _of_backbone(_stripped(tensors))
    tensors = {re.sub(r"^dist_head\.", "head_dist.", name): tensor for name, tensor in tensors.items()}
    return Weights(tensors, *(stated or (None, None)), notes)


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    return _safetensors(path)[0]


def _safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors of a file and what its header says."""
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"no weights at {path}") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"weights {path} cannot be read: {error}") from None


def _stated(path: Path, header: dict[str, str]) -> tuple[Grid | None, Normalisation | None]:
    """Resolution and normalisation by the header of a file, or else by the `config.json` of its folder."""
    config, found = path.with_name("config.json"), {}
    if path.name in NAMES and config.is_file():
        found = files.read_json(config, "model configuration")
        found = found if isinstance(found, dict) else {}
    cfg = found.get("pretrained_cfg")  # timm's
    cfg = cfg if isinstance(cfg, dict) else {}
    try:
        size = cfg["input_size"][1:] if "input_size" in cfg else None
        found = {"resolution": size, **cfg, **found, **json.loads(header.get(HEADER, "{}"))}
        resolution = None if found["resolution"] is None else _grid(found["resolution"])
    except (ValueError, TypeError):
        raise UserError(f"weights {path}: the stated resolution is none") from None
    try:
        values = [tuple(map(float, found[name])) for name in ("mean", "std") if found.get(name) is not None]
        if values and (len(values) == 1 or len(values[0]) != len(values[1]) or min(values[1]) <= 0):
            raise ValueError
    except (ValueError, TypeError):
        raise UserError(f"weights {path}: the stated mean and std are none") from None
    return resolution, tuple(values) or None


def _grid(value: Any) -> Grid:
    height, width = map(int, value)
    if min(height, width) < 1:
        raise ValueError
    return height, width


def is_supernet(folder: Path) -> bool:
    config = folder / "config.json"
    described = files.read_json(config, "model configuration") if config.is_file() else {}
    return isinstance(described, dict) and "space" in described


def _in_folder(path: Path) -> Path:
    for name in NAMES:
        if (path / name).is_file():
            break
    else:
        raise UserError(f"no weights at {path / NAMES[0]}")
    if is_supernet(path):
        raise UserError(f"{path} holds a supernet, not a single network: `search` it and `train` what it finds")
    return path / name


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
        found = re.search(r"GLOBAL (\S+)", str(error))
        if code := found[1] if found else _pickled_code(path):
            what = f"{path} holds more than weights (pickled {shown(code)}), which may be code: not loaded"
            raise UserError(f"{what}; save the state dict alone") from None
        raise UserError(f"weights {path} cannot be read: damaged, cut off, or no file of weights") from None


def _pickled_code(path: Path) -> str | None:
    """The first name that a bare pickle would import; it is taken apart here, not executed."""
    texts, found = [], None
    try:
        with open(path, "rb") as file:
            for code, argument, _ in pickletools.genops(file):
                if "UNICODE" in code.name:
                    texts = [*texts[-1:], argument]
                elif code.name in ("GLOBAL", "INST", "STACK_GLOBAL") and found is None:
                    found = ".".join(argument.split() if argument else texts)
    except Exception:  # no pickle
        return None
    return found


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
    """Without what parallel training, compilation, averaging and timm's wrapper of features put in front of names."""
    tensors = {name: tensor for name, tensor in tensors.items() if name.rpartition(".")[2] != "n_averaged"}
    names = [_bare(name) for name in tensors]
    if names and all(name.startswith("model.") for name in names):
        names = [_bare(name.removeprefix("model.")) for name in names]
    if len(set(names)) < len(names):  # two networks in one, then
        return tensors
    return dict(zip(names, tensors.values(), strict=True))


def _bare(name: str) -> str:
    return re.sub(r"^((module|_orig_mod)\.)+", "", name).replace("._orig_mod.", ".")


def _of_backbone(tensors: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """Of a detector's file the tensors of the backbone, and what else there was."""
    inside = {n.removeprefix("backbone."): t for n, t in tensors.items() if n.startswith("backbone.")}
    if not inside or len(inside) == len(tensors):
        return inside or tensors, ()
    parts = dict.fromkeys(name.split(".")[0] for name in tensors if not name.startswith("backbone."))
    return inside, (f"of the file only its backbone was taken, not {first(parts)}",)
