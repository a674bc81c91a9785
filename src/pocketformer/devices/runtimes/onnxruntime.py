"""ONNX Runtime on the processor, float32."""

import os

import numpy as np
import onnxruntime

from pocketformer.deploy.onnx import open_onnx
from pocketformer.deploy.onnx import write_onnx as write
from pocketformer.errors import UserError

__all__ = ["NAME", "SUFFIX", "Session", "fingerprint", "load", "write"]

NAME = "onnxruntime"
SUFFIX = ".onnx"


class Session:
    def __init__(self, path: str | os.PathLike, threads: int):
        self._session = open_onnx(path, threads)
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or not all(isinstance(side, int) for side in inputs[0].shape):
            raise UserError(f"{path}: needs one input of fixed shape, as `export` writes it")
        self.shape = tuple(inputs[0].shape)
        self._name = inputs[0].name

    def run(self, x: np.ndarray) -> np.ndarray:
        return self._session.run(None, {self._name: x})[0]


def load(path: str | os.PathLike, threads: int = 1) -> Session:
    """A session of an ONNX file. Raises `UserError` for what cannot be loaded."""
    return Session(path, threads)


def fingerprint() -> dict[str, str]:
    return {"runtime": NAME, "version": onnxruntime.__version__}
