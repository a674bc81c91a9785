"""LiteRT (formerly TensorFlow Lite) on the processor, by its XNNPACK kernels."""

import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from pocketformer.errors import UserError, first_line
from pocketformer.runtimes import input_of

NAME, FORMAT, DEVICES = "litert", "litert", ("cpu",)


class Session:
    def __init__(self, path: str | os.PathLike, threads: int):
        if not Path(path).is_file():
            raise UserError(f"model file not found: {path}")
        try:
            # Of the kernels for operators, the default ones take XNNPACK's wherever it has one.
            self._interpreter = Interpreter(str(path), num_threads=threads)
            self._interpreter.allocate_tensors()
        except Exception as error:  # LiteRT raises ValueError and RuntimeError
            raise UserError(f"LiteRT cannot load {path}: {first_line(error)}") from None
        inputs, outputs = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        described = [(np.dtype(given["dtype"]).name, given["shape_signature"].tolist()) for given in inputs]
        self.shape, self.dtype = input_of(path, described)
        self._input, self._output = inputs[0]["index"], outputs[0]["index"]

    def run(self, x: np.ndarray) -> np.ndarray:
        self.prepare(x)()
        return self._interpreter.get_tensor(self._output)

    def prepare(self, x: np.ndarray) -> Callable[[], object]:
        self._interpreter.set_tensor(self._input, x)  # kept: no call overwrites an input
        return self._interpreter.invoke


def load(path: str | os.PathLike, threads: int = 1, device: str = "cpu") -> Session:
    """An interpreter of a .tflite file. Raises `UserError` for what cannot be loaded."""
    return Session(path, threads)


def fingerprint(device: str = "cpu") -> dict[str, str]:
    return {"runtime": NAME, "version": version("ai-edge-litert")}
