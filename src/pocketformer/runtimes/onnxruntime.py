"""ONNX Runtime, on the processor or an NVIDIA GPU."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime

from pocketformer.errors import UserError, first_line
from pocketformer.runtimes import input_of

NAME, FORMAT, DEVICES = "onnxruntime", "onnx", ("cpu", "cuda")
_DTYPES = {"tensor(float)": "float32", "tensor(uint8)": "uint8"}
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class Session:
    def __init__(self, path: str | os.PathLike, threads: int, device: str):
        if not Path(path).is_file():
            raise UserError(f"model file not found: {path}")
        if _PROVIDERS[device] not in onnxruntime.get_available_providers():
            raise UserError("this build of ONNX Runtime has no CUDA: pip install onnxruntime-gpu")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        # Threads that spin while they wait would slow down the other sessions of an interleaved measurement.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=[_PROVIDERS[device]])
        except Exception as error:  # the runtime's exceptions share no base of their own
            raise UserError(f"ONNX Runtime cannot load {path}: {first_line(error)}") from None
        if _PROVIDERS[device] not in self._session.get_providers():  # it goes on with the processor, and says nothing
            raise UserError("ONNX Runtime cannot use CUDA here: a library or the GPU is missing")
        inputs = self._session.get_inputs()
        self.shape, self.dtype = input_of(path, [(_DTYPES.get(given.type), given.shape) for given in inputs])
        self._name, self._output, self._device = inputs[0].name, self._session.get_outputs()[0].name, device

    def run(self, x: np.ndarray) -> np.ndarray:
        return self._session.run(None, {self._name: x})[0]

    def prepare(self, x: np.ndarray) -> Callable[[], object]:
        if self._device == "cpu":
            return lambda: self._session.run(None, {self._name: x})
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(self._name, onnxruntime.OrtValue.ortvalue_from_numpy(x, "cuda", 0))
        binding.bind_output(self._output, "cuda")
        return lambda: self._session.run_with_iobinding(binding)


def load(path: str | os.PathLike, threads: int = 1, device: str = "cpu") -> Session:
    """A session of an ONNX file, with all graph optimisations. Raises `UserError` for what cannot be loaded."""
    return Session(path, threads, device)


def fingerprint(device: str = "cpu") -> dict[str, str]:
    return {"runtime": NAME, "version": onnxruntime.__version__}
