"""The runtimes that networks are deployed on, one module each.

A runtime's module has `NAME`; `SUFFIX` of its model files; `write(module, example, path)`, which writes a
fused module for inputs of exactly the example's shape; `load(path, threads)`, which returns a `Session`; and
`fingerprint()`, its name and version for latency records.
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Protocol

from pocketformer.errors import UserError

if TYPE_CHECKING:
    import numpy as np

RUNTIMES = ("onnxruntime",)


class Session(Protocol):
    """A loaded model file."""

    shape: tuple[int, ...]  # of the input, batch included

    def run(self, x: "np.ndarray") -> "np.ndarray":
        """float32 input of `shape` to the output."""
        ...


def runtime(name: str) -> ModuleType:
    """The module of a runtime. Raises `UserError` if it is unknown or not installed."""
    if name not in RUNTIMES:
        raise UserError(f"no runtime {name!r}; known: {', '.join(RUNTIMES)}")
    try:
        return import_module(f"{__name__}.{name}")
    except ImportError as error:
        raise UserError(f"runtime {name} cannot be used here: {error}") from None
