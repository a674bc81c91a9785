"""OpenVINO on the processor."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino

from pocketformer.errors import UserError
from pocketformer.runtimes import input_of

NAME, FORMAT, DEVICES = "openvino", "openvino", ("cpu",)
# Where an IR says in which precision it is to be computed; written by the exporter.
PRECISION_INFO = ["pocketformer", "precision"]
_DTYPES = {"f32": "float32", "u8": "uint8"}
_HINTS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "int8": "f32"}  # int8: of what is not quantised


class Session:
    def __init__(self, path: str | os.PathLike, threads: int):
        for part in (Path(path), Path(path).with_suffix(".bin")):
            if not part.is_file():
                raise UserError(f"model file not found: {part}")
        try:
            core = openvino.Core()
            model = core.read_model(str(path))
            precision = "float32"
            if model.has_rt_info(PRECISION_INFO):
                precision = str(model.get_rt_info(PRECISION_INFO).value)
            # Left alone, OpenVINO computes in bfloat16 on processors that have it.
            settings = {
                "INFERENCE_PRECISION_HINT": _HINTS[precision],
                "INFERENCE_NUM_THREADS": threads,
                "NUM_STREAMS": 1,
                "PERFORMANCE_HINT": "LATENCY",
            }
            self._compiled = core.compile_model(model, "CPU", settings)
        except Exception as error:  # OpenVINO raises plain RuntimeError
            raise UserError(f"OpenVINO cannot load {path}: {_reason(error)}") from None
        self.shape, self.dtype = input_of(path, [_described(given) for given in self._compiled.inputs])
        self._request = self._compiled.create_infer_request()

    def run(self, x: np.ndarray) -> np.ndarray:
        return self._request.infer([x], share_inputs=True)[0].copy()

    def prepare(self, x: np.ndarray) -> Callable[[], object]:
        self._input = x  # the tensor shares its memory and does not keep it
        self._request.set_input_tensor(openvino.Tensor(x, shared_memory=True))
        return self._request.infer


def _described(given: openvino.ConstOutput) -> tuple[str | None, list[int | None]]:
    shape = given.partial_shape
    sides = [] if shape.rank.is_dynamic else [None if side.is_dynamic else side.get_length() for side in shape]
    return _DTYPES.get(given.element_type.get_type_name()), sides


def _reason(error: Exception) -> str:
    """The last line: those before it say where in OpenVINO's source the check stands."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def load(path: str | os.PathLike, threads: int = 1, device: str = "cpu") -> Session:
    """A compiled IR (.xml with its .bin). Raises `UserError` for what cannot be loaded."""
    return Session(path, threads)


def fingerprint(device: str = "cpu") -> dict[str, str]:
    return {"runtime": NAME, "version": openvino.__version__.partition("-")[0]}
