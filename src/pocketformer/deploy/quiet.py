"""Converters in silence: what they say is for their own developers. What they raise, in one line."""

import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

import torch

from pocketformer.errors import UserError, WorkError, first_line


@contextmanager
def quiet() -> Iterator[None]:
    """Without warnings, logs and progress, those of native code included; and on one thread.

    Tracing runs many tiny operators, and handing those to threads takes longer than computing them.
    """
    threads, disabled = torch.get_num_threads(), logging.root.manager.disable
    sys.stderr.flush()
    kept = os.dup(2)  # native code writes to the descriptor
    with tempfile.TemporaryFile() as log, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        logging.disable(logging.CRITICAL)
        os.dup2(log.fileno(), 2)
        try:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            logging.disable(disabled)
            torch.set_num_threads(threads)


@contextmanager
def converting(what: str) -> Iterator[None]:
    """Around a converter, or as a decorator of what calls one: in silence, and without gradients.

    Converters raise many types: each becomes a `WorkError` that names `what`. What the system refuses, such as a
    full disk, is not the network's fault and stays an `OSError`.
    """
    try:
        with quiet(), torch.no_grad():
            yield
    except (UserError, WorkError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise WorkError(f"export refused: {what} rejects this network ({first_line(error)})") from None
