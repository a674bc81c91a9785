"""Model files loaded side by side by one runtime, in a process of their own."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pocketformer.errors import WorkError, first_line
from pocketformer.runtimes import Session, check_device, runtime
from pocketformer.runtimes.worker import Worker

if TYPE_CHECKING:
    import numpy as np


class Sessions:
    """Sessions of one runtime by name. Use as a context: the process ends with it.

    What the runtime cannot load is a `UserError`, what it cannot run or crashes over a `WorkError`; both name it.
    Without `device`, they run on the first that the runtime knows.
    """

    def __init__(self, runtime_name: str, threads: int = 1, device: str | None = None, worker: Worker | None = None):
        self.device = check_device(runtime(runtime_name), device)
        self.runtime, self.worker = runtime_name, worker or Worker()
        self._settings = (runtime_name, threads, self.device)

    def load(self, name: str, path: str | os.PathLike) -> tuple[int, ...]:
        """Opens a file under a name; the shape of its input."""
        what = f"{self.runtime} crashed while it loaded {name}"
        return self.worker.call(_load, name, Path(path), *self._settings, what=what)

    def dtype(self, name: str) -> str:
        """Of the input of a loaded file: float32, or uint8."""
        return self.worker.call(_dtype, name, what="asking a session")

    def drop(self, names: Sequence[str]) -> None:
        self.worker.call(_drop, list(names), what="closing sessions")

    def run(self, name: str, x: "np.ndarray", sizes: Sequence[int] = (1,)) -> "np.ndarray":
        """Outputs (N, ...) for inputs (N, ...), run in batches of `sizes` in turn."""
        what = f"{self.runtime} crashed while it ran {name}"
        return self.worker.call(_run, name, x, tuple(sizes), what=what)

    def close(self) -> None:
        self.worker.close()

    def __enter__(self) -> "Sessions":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_loaded: dict[str, Session] = {}  # in the worker's process
_calls: dict[str, Callable[[], object]] = {}


def _load(name: str, path: Path, runtime_name: str, threads: int, device: str) -> tuple[int, ...]:
    _loaded[name] = runtime(runtime_name).load(path, threads, device)
    return tuple(_loaded[name].shape)


def _dtype(name: str) -> str:
    return _loaded[name].dtype


def _drop(names: list[str]) -> None:
    for name in names:
        _calls.pop(name, None)
        del _loaded[name]


def _run(name: str, x: "np.ndarray", sizes: tuple[int, ...]) -> "np.ndarray":
    import numpy as np

    outputs, start = [], 0
    try:
        while start < len(x):
            size = sizes[len(outputs) % len(sizes)]
            outputs.append(_loaded[name].run(np.ascontiguousarray(x[start : start + size])))
            start += size
    except Exception as error:  # each runtime raises its own
        raise cannot_run(name, error) from None
    return np.concatenate(outputs)


def prepared(name: str) -> Callable[[], object]:
    """In the worker's process: a call to be timed, on a fixed random input. It has run once."""
    import numpy as np

    if name not in _calls:
        session, random = _loaded[name], np.random.default_rng(0)
        if session.dtype == "uint8":
            x = random.integers(0, 256, session.shape, dtype=np.uint8)
        else:
            x = random.standard_normal(session.shape, dtype=np.float32)
        _calls[name] = session.prepare(x)
    try:
        _calls[name]()
    except Exception as error:
        raise cannot_run(name, error) from None
    return _calls[name]


def cannot_run(name: str, error: Exception) -> WorkError:
    return WorkError(f"{name} cannot be run: {first_line(error)}")
