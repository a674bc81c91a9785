"""A process of its own for native code: what crashes there ends in one line here, not in the end of the job.

Calls go over pipes as pickles between our own two processes. Not `multiprocessing`: spawning there runs the
caller's main script again, which a script without a main guard does not survive.
"""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from pocketformer.errors import UserError, WorkError

_PREFIX = "pocketformer-worker-"
_COMPILED = f"pocketformer-compiled-{os.getuid() if hasattr(os, 'getuid') else 0}"


class Worker:
    """Runs functions in another process, which lives until `close`; after a crash, a new one is started."""

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None

    def call(self, function: Callable, *arguments: Any, what: str, progress: Callable | None = None) -> Any:
        """`function(*arguments)` there; both are pickled, and so is what it returns or raises.

        With `progress`, the function gets a keyword `progress`, and what it is called with arrives here.
        Raises `WorkError`, which starts with `what`, if the process dies.
        """
        process = self._process = self._process or self._start()
        try:
            pickle.dump((function, arguments, progress is not None), process.stdin)
            process.stdin.flush()
            while True:
                kind, value = pickle.load(process.stdout)
                if kind == "progress":
                    progress(*value)
                elif kind == "error":
                    raise value
                else:
                    return value
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            raise WorkError(f"{what}: {self._end()}") from None
        except KeyboardInterrupt:  # it may be deep in native code
            self.close()
            raise

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._end()

    def _start(self) -> subprocess.Popen:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        # What a runtime unpacks there would stay when its process is killed; what PyTorch compiled is to stay.
        self._folder = tempfile.TemporaryDirectory(prefix=_PREFIX)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "TMPDIR": self._folder.name}
        environment.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.join(tempfile.gettempdir(), _COMPILED))
        # -P: a `numpy.py` in the folder where the user happens to be is not ours to run.
        command = [sys.executable, "-P", "-c", f"from {__name__} import serve; serve()"]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self._log, env=environment)

    def _end(self) -> str:
        """How the process ended."""
        process, self._process = self._process, None
        for stream in (process.stdin, process.stdout):
            try:
                stream.close()
            except BrokenPipeError:
                continue
        code = process.wait()
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").split("\n")
        self._log.close()
        self._folder.cleanup()
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        return f"its process {how}" + (f" ({last[:200]})" if last else "")

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve() -> None:
    """The worker's side. Stdout belongs to the answers; what libraries print goes to stderr."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the caller, who decides
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    def answer(kind: str, value: Any) -> None:
        data = pickle.dumps((kind, value))
        answers.write(data)
        answers.flush()

    try:
        while True:
            _serve_one(answer)
    except (EOFError, BrokenPipeError):  # the caller was killed, and cannot do it
        if os.path.basename(folder := tempfile.gettempdir()).startswith(_PREFIX):
            shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)  # without another try to send what is left


def _serve_one(answer: Callable[[str, Any], None]) -> None:
    function, arguments, reports = pickle.load(sys.stdin.buffer)
    try:
        extra = {"progress": lambda *value: answer("progress", value)} if reports else {}
        answer("done", function(*arguments, **extra))
    except (UserError, WorkError) as error:
        answer("error", error)
    except BrokenPipeError:
        raise
    except Exception as error:
        import traceback

        answer("error", RuntimeError(f"{type(error).__name__}: {error}\n{traceback.format_exc()}"))
