"""PyTorch itself, operator by operator, on the processor or an NVIDIA GPU."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from pocketformer.errors import UserError, first_line
from pocketformer.runtimes import input_of

NAME, FORMAT, DEVICES = "torch", "torch", ("cpu", "cuda")


class Session:
    def __init__(self, path: str | os.PathLike, threads: int, device: str):
        program = load_program(path, device)
        torch.set_num_threads(threads)
        self.shape, self.dtype = input_of(path, _described(program))
        self.device = device
        self.module = program.module(check_guards=False)  # `run` is given what `shape` says

    @torch.inference_mode()
    def run(self, x: np.ndarray) -> np.ndarray:
        return self.module(torch.from_numpy(x).to(self.device)).cpu().numpy()

    def prepare(self, x: np.ndarray) -> Callable[[], object]:
        tensor = torch.from_numpy(x).to(self.device)

        @torch.inference_mode()
        def call() -> None:
            self.module(tensor)
            if self.device == "cuda":
                torch.cuda.synchronize()

        return call


def load_program(path: str | os.PathLike, device: str) -> torch.export.ExportedProgram:
    """The program in a file, on a device. Raises `UserError` for what cannot be loaded."""
    if not Path(path).is_file():
        raise UserError(f"model file not found: {path}")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("PyTorch finds no CUDA device here")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with open(path, "rb") as file:  # by its name, a wrong ending would be an error
                program = torch.export.load(file)
        if device != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, device)
    except Exception as error:  # zip, JSON and pickle errors
        raise UserError(f"PyTorch cannot load {path}: {first_line(error)}") from None
    return program


def _described(program: torch.export.ExportedProgram) -> list[tuple[str, torch.Size]]:
    names = program.graph_signature.user_inputs
    values = [node.meta["val"] for node in program.graph.nodes if node.name in names]
    return [(str(getattr(v, "dtype", "")).removeprefix("torch."), getattr(v, "shape", ())) for v in values]


def load(path: str | os.PathLike, threads: int = 1, device: str = "cpu") -> Session:
    """A loaded program (.pt2). Raises `UserError` for what cannot be loaded.

    `torch.export.load` unpickles parts of a file and evaluates its symbolic sizes as Python: a file from someone
    else can run any code. Load only files that you made. The number of threads is set for the whole process.
    """
    return Session(path, threads, device)


def fingerprint(device: str = "cpu") -> dict[str, str]:
    found = {"runtime": NAME, "version": torch.__version__}
    return found | {"gpu": torch.cuda.get_device_name()} if device == "cuda" else found
