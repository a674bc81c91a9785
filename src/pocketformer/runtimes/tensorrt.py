"""TensorRT on an NVIDIA GPU."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorrt as trt
import torch

from pocketformer.errors import UserError
from pocketformer.runtimes import input_of

NAME, FORMAT, DEVICES = "tensorrt", "tensorrt", ("cuda",)


class Log(trt.ILogger):
    """Keeps the first error; the rest of what TensorRT says goes nowhere."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.error = ""

    def log(self, severity: trt.ILogger.Severity, message: str) -> None:
        if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR) and message.strip():
            self.error = self.error or message.strip().splitlines()[0]


class Session:
    def __init__(self, path: str | os.PathLike):
        if not Path(path).is_file():
            raise UserError(f"model file not found: {path}")
        if not torch.cuda.is_available():
            raise UserError("TensorRT needs an NVIDIA GPU, and PyTorch finds none here")
        self._log = Log()  # TensorRT refers to it as long as the engine lives
        self._runtime = trt.Runtime(self._log)
        self._engine = self._runtime.deserialize_cuda_engine(Path(path).read_bytes())
        if self._engine is None:
            raise UserError(f"TensorRT cannot load {path}: {self._log.error or 'no engine'}")
        self._context = self._engine.create_execution_context()
        self._stream = torch.cuda.Stream()
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        inputs = [name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        described = [self._described(name) for name in inputs]
        self.shape, self.dtype = input_of(path, [("float32" if ok else None, sides) for ok, sides in described])
        self._buffers = {}
        for name in names:
            mode, (float32, sides) = self._engine.get_tensor_mode(name), self._described(name)
            if mode in self._buffers or min(sides, default=1) < 1 or not float32:
                raise UserError(f"{path}: needs one float32 input and output of fixed size, as `export` writes it")
            self._buffers[mode] = torch.empty(sides, device="cuda")
            self._context.set_tensor_address(name, self._buffers[mode].data_ptr())

    def _described(self, name: str) -> tuple[bool, tuple[int, ...]]:
        return self._engine.get_tensor_dtype(name) == trt.float32, tuple(self._engine.get_tensor_shape(name))

    def run(self, x: np.ndarray) -> np.ndarray:
        self.prepare(x)()
        return self._buffers[trt.TensorIOMode.OUTPUT].cpu().numpy()

    def prepare(self, x: np.ndarray) -> Callable[[], object]:
        self._buffers[trt.TensorIOMode.INPUT].copy_(torch.from_numpy(x))
        torch.cuda.synchronize()  # the copy is on another stream
        return self._invoke

    def _invoke(self) -> None:
        if not self._context.execute_async_v3(self._stream.cuda_stream):
            raise RuntimeError(self._log.error or "TensorRT could not run the engine")
        self._stream.synchronize()


def load(path: str | os.PathLike, threads: int = 1, device: str = "cuda") -> Session:
    """An engine (.engine) on the current GPU. Raises `UserError` for what cannot be loaded."""
    return Session(path)


def fingerprint(device: str = "cuda") -> dict[str, str]:
    """With the GPU: an engine is made for one kind."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {"runtime": NAME, "version": trt.__version__, "gpu": gpu}
