"""PyTorch's own exported programs (.pt2)."""

import copy
import io
import json
import logging
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from pocketformer.errors import WorkError

NAME, COMPANION, RUNTIME = "torch", None, "torch"
PRECISIONS = ("float32", "float16", "bfloat16")


def write_quick(module: nn.Module, example: torch.Tensor, path: Path) -> None:
    """As `write` does, which is quick enough."""
    write(module, example, path)


def write(
    module: nn.Module,
    example: torch.Tensor,
    path: Path,
    precision: str = "float32",
    calibration: torch.Tensor | None = None,
    dynamic_batch: bool = False,
) -> None:
    """Input and output are float32 in every precision; `precision` is that of the weights and of all between."""
    program = exported(module if precision == "float32" else _Lower(module, precision), example, dynamic_batch)
    buffer = io.BytesIO()
    with quiet():
        torch.export.save(program, buffer)
    path.write_bytes(buffer.getbuffer())


def exported(module: nn.Module, example: torch.Tensor, dynamic_batch: bool) -> torch.export.ExportedProgram:
    """The graph of a module, for inputs of the example's shape or any number of them. Raises `WorkError`."""
    shapes = None
    if dynamic_batch:  # with one example, torch.export would take the batch for a constant
        example, shapes = torch.cat([example, example]), ({0: torch.export.Dim("batch")},)
    with quiet(), torch.no_grad():
        try:
            return torch.export.export(module, (example,), dynamic_shapes=shapes)
        except Exception as error:  # it raises many types
            raise refused("torch.export", error) from None


def refused(what: str, error: Exception) -> WorkError:
    """What to raise for a converter's exception."""
    lines = str(error).strip().splitlines()
    reason = lines[0] if lines else type(error).__name__
    return WorkError(f"export refused: {what} rejects this network ({reason})")


class _Lower(nn.Module):
    """A copy that computes in another precision. Maps of float32 to float32."""

    def __init__(self, module: nn.Module, precision: str):
        super().__init__()
        self.dtype = getattr(torch, precision)
        self.module = copy.deepcopy(module).to(self.dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(x.to(self.dtype)).float()


@contextmanager
def quiet() -> Iterator[None]:
    """Without a converter's warnings and logs, and on one thread: handing tiny operators to threads is slow."""
    threads, disabled = torch.get_num_threads(), logging.root.manager.disable
    torch.set_num_threads(1)
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        torch.set_num_threads(threads)


def describe(path: Path) -> str:
    """The version of PyTorch that wrote it."""
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("models/model.json"))
        written = json.loads(archive.read(name))
    return f"torch.export program of PyTorch {written['torch_version']}"
