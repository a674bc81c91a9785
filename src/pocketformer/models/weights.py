"""Weight files of any origin, read into a flat dict of tensors. A file is data: nothing in it is ever executed."""

import json
import math
import os
import pickletools
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from pocketformer import files
from pocketformer.architecture.design import Grid
from pocketformer.errors import UserError
from pocketformer.models import labels, parts, pickles
from pocketformer.models.parts import first, shown
from pocketformer.models.pickles import Placeholder

NAMES = ("model.safetensors", "pytorch_model.bin")  # of the weights in a folder: ours and Hugging Face's, older ones
INDEX = "model.safetensors.index.json"  # of weights in several files
HEADER = "pocketformer"  # the only entry in the header of our files, which has no order: equal files are equal bytes
_HOW = "save the state dict alone (torch.save(model.state_dict(), FILE))"

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Weights:
    """All tensors of a file by their dotted names, and how the names of the dictionary begin that each lay in; the
    resolution, the (mean, std) and the names of the classes that the file or the `config.json` beside it states, else
    None; and what was passed over, in sentences."""

    tensors: dict[str, torch.Tensor]
    resolution: Grid | None = None
    normalisation: Normalisation | None = None
    classes: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    homes: Mapping[str, str] = field(default_factory=dict)

    def of(self, wanted: Collection[str], path: str | os.PathLike = "") -> "Weights":
        """Of a network with the wanted names: its tensors by these names, wherever they lie in the file."""
        votes = parts.count(self.tensors, wanted)
        prefix = parts.choose(votes, self.tensors, path)
        part = parts.take(prefix, votes, self.tensors, self.homes)
        return replace(self, tensors=part.tensors, homes={}, notes=(*self.notes, *part.notes))


def read(path: str | os.PathLike, ema: bool = False) -> Weights:
    """Reads a torch file, a safetensors file, or a folder of ours or Hugging Face's; with `ema` the averaged weights
    are meant.

    Raises `UserError` for what is missing, damaged, holds code, or no weights.
    """
    path = Path(path)
    if path.is_dir():
        path = _in_folder(path)
    if path.name.endswith(INDEX.removeprefix("model")):
        value, header = _shards(path), {}
    elif _is_safetensors(path):
        value, header = _safetensors(path)
    else:
        value, header = _read_torch(path), {}
    found = named(_contained(path, value), *_stated(path, header, value))
    return replace(found, tensors=parts.averaged_only(found.tensors, path)) if ema else found


def named(
    value: Any,
    resolution: Grid | None = None,
    normalisation: Normalisation | None = None,
    classes: tuple[str, ...] | None = None,
) -> Weights:
    """The tensors of nested dictionaries, and what is stated of them."""
    tensors, homes = parts.flat(value)
    names = parts.plain_names(tensors)
    homes = dict(zip(names, homes.values(), strict=True))
    return Weights(dict(zip(names, tensors.values(), strict=True)), resolution, normalisation, classes, (), homes)


def _is_safetensors(path: Path) -> bool:
    """By how it begins, whatever it is called: a length of eight bytes, then JSON; not an archive or a pickle."""
    try:
        with open(path, "rb") as file:
            begins = file.read(9)
    except OSError:  # told by whoever reads it
        begins = b""
    return begins[8:] == b"{" or (path.suffix == ".safetensors" and not begins.startswith((b"PK", b"\x80")))


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


def _shards(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of several files of one folder, as their index lists them."""
    index = files.read_json(path, "index of weights")
    listed = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(listed, dict) or not all(isinstance(n, str) and Path(n).name == n for n in listed.values()):
        raise UserError(f"{path} is no index of weights in files beside it (weight_map)")
    tensors = {}
    for name in dict.fromkeys(listed.values()):
        tensors |= read_safetensors(path.with_name(name))
    if lost := [name for name in listed if name not in tensors]:
        raise UserError(f"{path}: {len(lost)} tensors are in none of its files, first {first(lost)}")
    return tensors


def _stated(
    path: Path, header: dict[str, str], value: Any
) -> tuple[Grid | None, Normalisation | None, tuple[str, ...] | None]:
    """Resolution, normalisation and classes by the header of a file, or else by the `config.json` of its folder."""
    config, found = path.with_name("config.json"), {}
    if path.name in (*NAMES, INDEX) and config.is_file():
        found = files.read_json(config, "model configuration")
        found = found if isinstance(found, dict) else {}
    if not header and isinstance(value, dict) and isinstance(value.get(HEADER), str):  # the state of a training
        header = {HEADER: value[HEADER]}
    own = _header(path, header)
    classes = labels.stated(own) or labels.stated(header) or labels.stated(value) or labels.stated(found)
    cfg = found.get("pretrained_cfg")  # timm's
    cfg = cfg if isinstance(cfg, dict) else {}
    try:
        size = cfg["input_size"][1:] if "input_size" in cfg else None
        found = {"resolution": size, **cfg, **found, **own}
        resolution = None if found["resolution"] is None else _grid(found["resolution"])
    except (ValueError, TypeError):
        raise UserError(f"weights {path}: the stated resolution is none") from None
    try:
        values = [tuple(map(float, found[name])) for name in ("mean", "std") if found.get(name) is not None]
        good = all(math.isfinite(value) for value in (*values[0], *values[1])) if len(values) == 2 else not values
        if not good or (values and (len(values[0]) != len(values[1]) or min(values[1]) <= 0)):
            raise ValueError
    except (ValueError, TypeError):
        raise UserError(f"weights {path}: the stated mean and std are none") from None
    return resolution, tuple(values) or None, classes


def _header(path: Path, header: dict[str, str]) -> dict[str, Any]:
    """What our files say in their header."""
    try:
        found = json.loads(header.get(HEADER, "{}"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"weights {path}: the stated resolution is none")
    return found


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
    for name in (*NAMES, INDEX):
        if (path / name).is_file():
            break
    else:
        raise UserError(f"no weights at {path / NAMES[0]}")
    if is_supernet(path):
        raise UserError(f"{path} holds a supernet, not a single network: `search` it and `train` what it finds")
    return path / name


def _read_torch(path: Path) -> Any:
    """What a torch file holds, or one of Python's pickles. `torch.load` would refuse harmless objects beside the
    weights, and takes the memory and time that a hostile file asks for."""
    try:
        path.open("rb").close()
    except FileNotFoundError:
        raise UserError(f"no weights at {path}") from None
    except OSError as error:
        raise UserError(f"weights {path} cannot be read: {error.strerror}") from None
    if size := pickles.swollen(path):
        raise UserError(f"weights {path} cannot be read: it would unpack to {size / 2**30:,.1f} GiB")
    if pickles.is_program(path):
        raise UserError(f"{path} holds more than weights (TorchScript, which is code): not loaded; {_HOW}")
    try:
        value, names = pickles.read(path)
        code = pickles.code_among(names)
    except Exception:  # whatever damage makes of it
        value, code = None, _pickled_code(path)
    if code is not None:
        raise UserError(
            f"{path} holds more than weights (pickled {shown(code)}), which may be code: not loaded; {_HOW}"
        )
    if value is None:
        raise UserError(f"weights {path} cannot be read: damaged, cut off, or no file of weights")
    return value


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


def _contained(path: Path, value: Any) -> Any:
    """What a file held, if there are tensors in it."""
    if any(not name.startswith(("optim", "sched", "scaler")) for name in parts.flat(value)[0]):
        return value
    among = [value, *(value.values() if isinstance(value, dict) else ())]
    if module := next((v for v in among if isinstance(v, Placeholder) and "_modules" in v.attributes), None):
        raise UserError(
            f"{path} holds more than weights (a whole pickled {shown(module.name)}), which is code: not loaded; {_HOW}"
        )
    if not isinstance(value, dict):
        kind = value.name if isinstance(value, Placeholder) else type(value).__name__
        raise UserError(f"{path} holds no weights but a {shown(kind)}")
    raise UserError(f"{path} holds no weights; its first entries are {first(value)}")
