"""PyTorch with `torch.compile`, on the processor or an NVIDIA GPU. Needs a C++ compiler."""

import os
import warnings

import numpy as np
import torch

from pocketformer.errors import UserError, first_line
from pocketformer.runtimes.torch import Session as EagerSession

NAME, FORMAT, DEVICES = "torch-compile", "torch", ("cpu", "cuda")


class Session(EagerSession):
    """Compiled while it is loaded. Runs batches of other sizes than that one after compiling once more."""

    def __init__(self, path: str | os.PathLike, threads: int, device: str):
        need_compiler()
        super().__init__(path, threads, device)
        self.module = torch.compile(self.module)
        try:
            self.run(np.zeros(self.shape, np.float32))
        except Exception as error:
            raise UserError(f"torch.compile cannot compile {path}: {first_line(error)}") from None

    def run(self, x: np.ndarray) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return super().run(x)


def need_compiler() -> None:
    """Raises `UserError` where PyTorch finds no C++ compiler."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise UserError("a C++ compiler is needed: install g++, or name one in the variable CXX") from None


def load(path: str | os.PathLike, threads: int = 1, device: str = "cpu") -> Session:
    """A compiled program (.pt2); compiling takes seconds to minutes. Raises `UserError` for what cannot be loaded.

    As with the runtime `torch`, a file from someone else can run any code. Load only files that you made.
    """
    return Session(path, threads, device)


def fingerprint(device: str = "cpu") -> dict[str, str]:
    found = {"runtime": NAME, "version": torch.__version__}
    return found | {"gpu": torch.cuda.get_device_name()} if device == "cuda" else found
