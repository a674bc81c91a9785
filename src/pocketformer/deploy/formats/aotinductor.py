"""Native code of a network, compiled by PyTorch's AOTInductor for this kind of processor (.aoti.pt2).

Needs g++ or clang++ (what the variable CXX names). A file holds machine code, which runs when it is loaded.
"""

from pathlib import Path

import torch
from torch import nn

from pocketformer.deploy.formats.torch import exported, quiet, refused
from pocketformer.runtimes.torch_compile import need_compiler

NAME, COMPANION, RUNTIME = "aotinductor", None, "aotinductor"
PRECISIONS = ("float32",)
_OPTIONS = {}


def write_quick(module: nn.Module, example: torch.Tensor, path: Path) -> None:
    """As `write` does: compiling for a shorter time would give slower code."""
    write(module, example, path)


def write(
    module: nn.Module,
    example: torch.Tensor,
    path: Path,
    precision: str = "float32",
    calibration: torch.Tensor | None = None,
    dynamic_batch: bool = False,
) -> None:
    """Takes from 10 s for a tiny network to minutes. Raises `UserError` without a C++ compiler."""
    need_compiler()
    program = exported(module, example, dynamic_batch)
    with quiet(), torch.no_grad():
        try:
            torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=dict(_OPTIONS))
        except Exception as error:  # it raises many types
            raise refused("AOTInductor", error) from None


def describe(path: Path) -> str:
    """The version of PyTorch that compiled it."""
    return f"AOTInductor of PyTorch {torch.__version__}"
