"""Core ML on the processor of a Mac. Elsewhere its packages can be written, not run."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pocketformer.errors import UserError, first_line
from pocketformer.runtimes import input_of

if sys.platform != "darwin":
    raise ImportError("Core ML runs on macOS only")

import coremltools as ct

NAME, FORMAT, DEVICES = "coreml", "coreml", ("cpu",)


class Session:
    def __init__(self, path: str | os.PathLike):
        if not Path(path).is_dir():
            raise UserError(f"model package not found: {path}")
        try:
            self._model = ct.models.MLModel(str(path), compute_units=ct.ComputeUnit.CPU_ONLY)
            found = self._model.get_spec().description
        except Exception as error:  # Core ML raises plain RuntimeError
            raise UserError(f"Core ML cannot load {path}: {first_line(error)}") from None
        arrays = [given.type.multiArrayType for given in found.input]
        given = [("float32" if a.dataType == a.FLOAT32 else None, tuple(a.shape)) for a in arrays]
        self.shape, self.dtype = input_of(path, given)
        self._input, self._output = found.input[0].name, found.output[0].name

    def run(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(self._model.predict({self._input: x})[self._output], dtype=np.float32)

    def prepare(self, x: np.ndarray) -> Callable[[], object]:
        inputs = {self._input: x}
        return lambda: self._model.predict(inputs)


def load(path: str | os.PathLike, threads: int = 1, device: str = "cpu") -> Session:
    """A loaded package. Core ML chooses its number of threads itself. Raises `UserError` for what cannot be loaded."""
    return Session(path)


def fingerprint(device: str = "cpu") -> dict[str, str]:
    return {"runtime": NAME, "version": ct.__version__}
