"""Native code that AOTInductor compiled, on the processor."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch._inductor

from pocketformer.errors import UserError, first_line
from pocketformer.runtimes import input_of

NAME, FORMAT, DEVICES = "aotinductor", "aotinductor", ("cpu",)


class Session:
    def __init__(self, path: str | os.PathLike, threads: int):
        if not Path(path).is_file():
            raise UserError(f"model file not found: {path}")
        torch.set_num_threads(threads)
        try:
            self._module = torch._inductor.aoti_load_package(str(path))
            found = self._module.get_metadata()
            given = found.get("dtype", "float32"), json.loads(found["input"])
        except Exception as error:  # RuntimeError, and KeyError for another's package
            raise UserError(f"AOTInductor cannot load {path}: {first_line(error)}") from None
        self.shape, self.dtype = input_of(path, [given])  # ours alone say what they take

    @torch.inference_mode()
    def run(self, x: np.ndarray) -> np.ndarray:
        return self._module(torch.from_numpy(x)).numpy()

    def prepare(self, x: np.ndarray) -> Callable[[], object]:
        inputs, run = [torch.from_numpy(x)], self._module.loader.run  # without what Python adds to each call
        return torch.inference_mode()(lambda: run(inputs))


def load(path: str | os.PathLike, threads: int = 1, device: str = "cpu") -> Session:
    """A loaded package (.aoti.pt2). Raises `UserError` for what cannot be loaded.

    It is machine code, which this runs: load only files that you made. The number of threads is set for the
    whole process.
    """
    return Session(path, threads)


def fingerprint(device: str = "cpu") -> dict[str, str]:
    return {"runtime": NAME, "version": torch.__version__}
