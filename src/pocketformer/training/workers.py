"""Worker processes that make the samples of a training, and the randomness that each sample is made with."""

import hashlib
import random
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from pocketformer.errors import UserError, WorkError, first_line
from pocketformer.training.orders import Places


def seed_sample(seed: int, epoch: int, row: int, copy: int) -> None:
    """Seeds all generators that timm's and torchvision's transforms draw from."""
    digest = hashlib.blake2b(f"{seed} {epoch} {row} {copy}".encode(), digest_size=20).digest()
    random.seed(digest[:8])
    np.random.seed(int.from_bytes(digest[8:12], "little"))  # it takes no larger number
    # Not torch.manual_seed, which would seed every accelerator too.
    torch.default_generator.manual_seed(int.from_bytes(digest[12:], "little"))


class _Told(Dataset):
    """Errors as values: what torch raises in their place has a traceback for a message."""

    def __init__(self, samples: Dataset):
        self.samples = samples

    def __getitem__(self, places: Places):
        try:
            return self.samples[places]
        except (UserError, WorkError) as error:
            return type(error)(str(error))
        except MemoryError:
            return WorkError("a process that prepares images ran out of memory; pass fewer --workers")
        except Exception as error:
            return WorkError(f"a process that prepares images failed: {type(error).__name__}: {first_line(error)}")


def by_workers(samples: Dataset, places: Iterator[Places], workers: int) -> Iterator[tuple]:
    """`samples[...]` of all places in order, made by so many processes, which live as long as the iterator. Raises
    `WorkError` in one line if one of them dies, and what `samples` raises of the package's own."""
    with _own_child_signal(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*worker processes in total", category=UserWarning)  # as told
        loader = DataLoader(
            _Told(samples),
            batch_size=None,
            sampler=_Once(places),
            num_workers=workers,
            collate_fn=_as_it_is,
            generator=torch.Generator(),  # else it draws from the generator of this process
        )
        made = iter(loader)
    try:
        while True:
            found = _next(made)
            if found is None:
                return
            if isinstance(found, Exception):
                raise found
            yield found
    finally:
        # Here, not whenever a traceback is collected: that closes the queues first and then waits for each worker.
        del made


def _next(made: Iterator):
    try:
        return next(made, None)
    except (RuntimeError, OSError, EOFError) as error:
        return WorkError(
            f"a process that prepares images died ({first_line(error)}): memory may be short, /dev/shm too small, "
            "or it was killed; pass fewer --workers, and run the same command to continue"
        )


class _Once:
    """What a loader takes for a sampler: something to iterate over, here once."""

    def __init__(self, places: Iterator[Places]):
        self._places = places

    def __iter__(self) -> Iterator[Places]:
        return self._places


def _as_it_is(found):
    return found


@contextmanager
def own_randomness():
    """Within, all generators are used; afterwards they are as before."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        for restore, state in zip((random.setstate, np.random.set_state, torch.set_rng_state), states, strict=True):
            restore(state)


@contextmanager
def _own_child_signal():
    """Keeps torch's handler for dead workers out of this process.

    It raises wherever the process happens to be, such as in the middle of writing a checkpoint; waiting for the next
    batch notices a dead worker as well.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        yield
        return
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)
