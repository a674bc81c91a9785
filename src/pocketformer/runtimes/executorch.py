"""ExecuTorch with its XNNPACK delegate, on the processor."""

import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch  # before ExecuTorch's library, which needs torch's

from pocketformer.errors import UserError, first_line
from pocketformer.runtimes import input_of

try:  # by itself: the public name imports the whole converter, 5 to 10 s
    from executorch.extension.pybindings import _C as library
except ImportError:
    from executorch.extension.pybindings import portable_lib as library

NAME, FORMAT, DEVICES = "executorch", "executorch", ("cpu",)
# A constant in our files: whether they take any number of images.
DYNAMIC = "dynamic_batch"
_DTYPES = {0: "uint8", 6: "float32"}  # by ScalarType's number
_threads: int | None = None  # of the process's only pool, once a session uses it


class Session:
    def __init__(self, path: str | os.PathLike, threads: int):
        if not Path(path).is_file():
            raise UserError(f"model file not found: {path}")
        with open(path, "rb") as file:
            if file.read(8)[4:6] != b"ET":  # over the names in anything else, the library aborts
                raise UserError(f"ExecuTorch cannot load {path}: not an ExecuTorch program")
        _use_threads(threads)
        try:
            self._module = library._load_for_executorch(str(path))
            names, meta = self._module.method_names(), self._module.method_meta("forward")
            found = [meta.input_tensor_meta(i) for i in range(meta.num_inputs())]
            dynamic = DYNAMIC in names and bool(self._module.run_method(DYNAMIC, ())[0])
        except Exception as error:  # the library raises RuntimeError for all
            raise UserError(f"ExecuTorch cannot load {path}: damaged or incomplete ({first_line(error)})") from None
        inputs = [(_DTYPES.get(given.dtype()), tuple(given.sizes())) for given in found]
        shape, self.dtype = input_of(path, inputs)
        self.shape = (1, *shape[1:]) if dynamic else shape

    def run(self, x: np.ndarray) -> np.ndarray:
        return self._module.run_method("forward", (torch.from_numpy(x),))[0].numpy()

    def prepare(self, x: np.ndarray) -> Callable[[], object]:
        inputs = (torch.from_numpy(x),)
        return lambda: self._module.run_method("forward", inputs, clone_outputs=False)


def _use_threads(threads: int) -> None:
    """Replacing the pool would leave the sessions that use it with a dangling pointer."""
    global _threads
    if _threads not in (None, threads):
        raise UserError(f"ExecuTorch already uses {_threads} thread(s) in this process and cannot change that")
    if library._threadpool_get_thread_count() != threads:
        library._unsafe_reset_threadpool(threads)
    _threads = threads


def load(path: str | os.PathLike, threads: int = 1, device: str = "cpu") -> Session:
    """A loaded program (.pte). Raises `UserError` for what cannot be loaded.

    All sessions of a process share one pool of threads: another number than the first one is a `UserError`.
    A damaged file can crash the process: use `Worker`.
    """
    return Session(path, threads)


def fingerprint(device: str = "cpu") -> dict[str, str]:
    return {"runtime": NAME, "version": version("executorch")}
