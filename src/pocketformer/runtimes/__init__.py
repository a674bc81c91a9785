"""The runtimes that networks are deployed on, one module each, and the process that they run in.

A runtime's module has `NAME`; `FORMAT`, the export format that it runs; `DEVICES`; `load(path, threads, device)`,
which returns a `Session`; and `fingerprint(device)`, what latency records say about it. The first of `DEVICES` is the
one it runs on unless told otherwise. Native code can crash:
`worker.Worker` loads and runs sessions in a process of their own.
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Protocol

from pocketformer.errors import UserError, first_line

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    import numpy as np

# Names as people give them, and the modules behind them.
_MODULES = {
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "executorch": "executorch",
    "litert": "litert",
    "coreml": "coreml",
    "torch": "torch",
    "torch-compile": "torch_compile",
    "aotinductor": "aotinductor",
    "tensorrt": "tensorrt",
}
RUNTIMES = tuple(_MODULES)
# Packages that are no part of a plain installation, and the extra that brings them.
_EXTRAS = {
    "openvino": "openvino",
    "nncf": "openvino",
    "executorch": "executorch",
    "torchao": "executorch",
    "ai_edge_litert": "litert",
    "litert_torch": "litert",
    "coremltools": "coreml",
    "tensorrt": "tensorrt",
}


DTYPES = ("float32", "uint8")  # of inputs


class Session(Protocol):
    """A loaded model file."""

    shape: tuple[int, ...]  # of the input, batch included
    dtype: str  # of the input, one of DTYPES

    def run(self, x: "np.ndarray") -> "np.ndarray":
        """Input of `shape` and `dtype` to the float32 output."""
        ...

    def prepare(self, x: "np.ndarray") -> "Callable[[], object]":
        """A call to be timed: runs on `x`, which is where the device wants it, and returns when it is done."""
        ...


def runtime(name: str) -> ModuleType:
    """The module of a runtime. Raises `UserError` if it is unknown or not installed."""
    if name not in _MODULES:
        raise UserError(f"no runtime {name!r}; known: {', '.join(RUNTIMES)}")
    return import_part(f"{__name__}.{_MODULES[name]}", f"runtime {name}")


def import_part(module: str, what: str) -> ModuleType:
    """Imports a module that needs a package of an extra. Raises `UserError` that names the extra if it is missing."""
    try:
        return import_module(module)
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if package in _EXTRAS and isinstance(error, ModuleNotFoundError):
            extra = _EXTRAS[package]
            raise UserError(
                f"{what} needs {package}, which is not installed: pip install 'pocketformer[{extra}]'"
            ) from None
        raise UserError(f"{what} cannot be used here: {first_line(error)}") from None


def check_device(module: ModuleType, device: str | None) -> str:
    """`device` (cpu, cuda), or the runtime's first for None. Raises `UserError` unless the runtime runs on it."""
    if device is None:
        return module.DEVICES[0]
    if device not in module.DEVICES:
        raise UserError(f"{module.NAME} does not run on {device!r} here; it runs on {', '.join(module.DEVICES)}")
    return device


def input_of(path: "str | os.PathLike", inputs: "Sequence[tuple[str | None, Sequence]]") -> tuple[tuple[int, ...], str]:
    """Shape and type of a file's only input, with 1 for a number of images that is free.

    `inputs`: of each input, its type and its sides (what is no positive number is free). Raises `UserError` unless
    there is one, float32 or uint8, in which at most the first side is free.
    """
    shape, dtype = (), None
    for dtype, sides in inputs:
        batch, *rest = [side if isinstance(side, int) and side > 0 else None for side in sides] or [None]
        shape = (batch or 1, *rest) if dtype in DTYPES and rest and None not in rest else ()
    if len(inputs) != 1 or not shape:
        raise UserError(f"{path}: needs one float32 or uint8 input of fixed size, as `export` writes it")
    return shape, dtype
