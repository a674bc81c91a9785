"""The runtimes that networks are deployed on, one module each, and the process that they run in.

A runtime's module has `NAME`; `FORMAT`, the export format that it runs; `DEVICES`; `load(path, threads, device)`,
which returns a `Session`; and `fingerprint(device)`, what latency records say about it. Native code can crash:
`worker.Worker` loads and runs sessions in a process of their own.
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Protocol

from pocketformer.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

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


class Session(Protocol):
    """A loaded model file."""

    shape: tuple[int, ...]  # of the input, batch included

    def run(self, x: "np.ndarray") -> "np.ndarray":
        """float32 input of `shape` to the float32 output."""
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
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{what} cannot be used here: {reason}") from None


def check_device(module: ModuleType, device: str) -> None:
    """Raises `UserError` unless the runtime runs on `device` (cpu, cuda)."""
    if device not in module.DEVICES:
        raise UserError(f"{module.NAME} does not run on {device!r} here; it runs on {', '.join(module.DEVICES)}")
