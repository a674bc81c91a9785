"""Native code of a network, compiled by PyTorch's AOTInductor for this kind of processor (.aoti.pt2).

Needs g++ or clang++ (what the variable CXX names). A file holds machine code, which runs when it is loaded.
"""

import json
import zipfile
from pathlib import Path

import torch
import torch._inductor
from torch import nn

from pocketformer.deploy.facts import Facts
from pocketformer.deploy.formats.torch import archived, exported
from pocketformer.deploy.quiet import converting
from pocketformer.errors import UserError
from pocketformer.runtimes.torch_compile import need_compiler

NAME, COMPANION = "aotinductor", None
FACTS = "facts"  # the entry of its metadata
PRECISIONS = ("float32",)


def write_quick(module: nn.Module, example: torch.Tensor, path: Path) -> None:
    """As `write` does: compiling for a shorter time would give slower code."""
    write(module, example, path)


@converting("AOTInductor")
def write(
    module: nn.Module,
    example: torch.Tensor,
    path: Path,
    precision: str = "float32",
    calibration: torch.Tensor | None = None,
    dynamic_batch: bool = False,
    facts: Facts | None = None,
) -> None:
    """Takes from 10 s for a tiny network to minutes. Raises `UserError` without a C++ compiler."""
    need_compiler()
    program = exported(module, example, dynamic_batch)
    batch = 0 if dynamic_batch else len(example)  # the package itself does not say what it takes
    given = {"input": json.dumps([batch, *example.shape[1:]]), "dtype": str(example.dtype).removeprefix("torch.")}
    metadata = {**given, "version": torch.__version__}
    if facts is not None:
        metadata[FACTS] = json.dumps(facts.metadata())
    options = {"aot_inductor.metadata": metadata}
    torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=options)


def read_metadata(path: Path) -> dict[str, str]:
    """Without loading the package, which is machine code. Raises `UserError` for what is no archive."""
    found = archived(path, "wrapper_metadata.json")
    try:
        return json.loads(found.get(FACTS, "{}"))
    except ValueError:
        raise UserError(f"{path}: its metadata are damaged") from None


def describe(path: Path) -> str:
    """The version of PyTorch that compiled it, and the processor that it was compiled for."""
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("wrapper_metadata.json"))
        found = json.loads(archive.read(name))
    return f"AOTInductor of PyTorch {found['version']} for {found['AOTI_MACHINE']} with {found['AOTI_CPU_ISA']}"
