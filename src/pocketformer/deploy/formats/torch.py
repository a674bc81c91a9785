"""PyTorch's own exported programs (.pt2)."""

import copy
import io
import json
import zipfile
from pathlib import Path

import torch
from torch import nn

from pocketformer.deploy.eager import eager
from pocketformer.deploy.facts import Facts
from pocketformer.deploy.quiet import converting
from pocketformer.deploy.raw import around
from pocketformer.errors import UserError

NAME, COMPANION = "torch", None
FACTS = "facts.json"  # the extra file
PRECISIONS = ("float32", "float16", "bfloat16")


def write_quick(module: nn.Module, example: torch.Tensor, path: Path) -> None:
    """As `write` does, which is quick enough."""
    write(module, example, path)


@converting("torch.export")
def write(
    module: nn.Module,
    example: torch.Tensor,
    path: Path,
    precision: str = "float32",
    calibration: torch.Tensor | None = None,
    dynamic_batch: bool = False,
    facts: Facts | None = None,
) -> None:
    """Input and output are float32 in every precision; `precision` is that of the weights and of all between."""
    if precision != "float32":
        module = around(module, lambda network: _Lower(network, precision))
    program = exported(module, example, dynamic_batch)
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={} if facts is None else {FACTS: json.dumps(facts.metadata())})
    path.write_bytes(buffer.getbuffer())


def read_metadata(path: Path) -> dict[str, str]:
    """Without loading the program, which could run code. Raises `UserError` for what is no archive."""
    return archived(path, f"extra/{FACTS}")


def archived(path: Path, ending: str) -> dict[str, str]:
    """The texts of the JSON in an archive whose name ends like this; none where it has no such."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = next((name for name in archive.namelist() if name.endswith(ending)), None)
            found = {} if name is None else json.loads(archive.read(name))
    except (zipfile.BadZipFile, ValueError) as error:
        raise UserError(f"{path} is no archive of PyTorch's ({error})") from None
    return {name: value for name, value in found.items() if isinstance(value, str)} if isinstance(found, dict) else {}


def exported(module: nn.Module, example: torch.Tensor, dynamic_batch: bool) -> torch.export.ExportedProgram:
    """The graph of a module as PyTorch runs it fastest, for inputs of the example's shape or any number of them."""
    shapes = None
    if dynamic_batch:  # with one example, torch.export would take the batch for a constant
        example, shapes = torch.cat([example, example]), ({0: torch.export.Dim("batch")},)
    return torch.export.export(eager(module), (example,), dynamic_shapes=shapes)


class _Lower(nn.Module):
    """A copy that computes in another precision. Maps of float32 to float32."""

    def __init__(self, module: nn.Module, precision: str):
        super().__init__()
        self.dtype = getattr(torch, precision)
        self.module = copy.deepcopy(module).to(self.dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(x.to(self.dtype)).float()


def describe(path: Path) -> str:
    """The version of PyTorch that wrote it."""
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("models/model.json"))
        written = json.loads(archive.read(name))
    return f"torch.export program of PyTorch {written['torch_version']}"
