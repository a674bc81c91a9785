"""The processes that `torchrun` started for one job: which of them this is, and what they tell each other.

Without torchrun there is one process, and every function here does the obvious thing at no cost. Only the first
process writes files and speaks.
"""

import datetime
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

from pocketformer.errors import UserError, WorkError, first_line

_PATIENCE = datetime.timedelta(minutes=60)  # one rank may decode or export alone for long
_BUCKET = 32 << 20  # bytes of gradients in one message: fewer messages, no second copy of the whole model
_NOTHING = object()
_teller: bool | None = None


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def count() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def local_rank() -> int:
    """The number of this process on its machine: its accelerator."""
    return int(os.environ.get("LOCAL_RANK", 0))


def first() -> bool:
    """Whether this process writes the files and speaks to the person."""
    return rank() == 0


def tells() -> bool:
    """Whether this process tells the person why the job ends: the one that knew first, if it ended while joined."""
    return first() if _teller is None else _teller


@contextmanager
def joined() -> Iterator[None]:
    """Within, the processes can exchange: by NCCL where each has an accelerator, else by gloo.

    Raises `UserError` if nobody has arranged for that, and `WorkError` in all others when one of them is gone.
    """
    if count() == 1:
        yield
        return
    import torch
    from torch import distributed

    global _teller
    own_devices = torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", count()))
    try:
        store, _, _ = next(distributed.rendezvous("env://", timeout=_PATIENCE))
    except ValueError as error:
        raise UserError(f"WORLD_SIZE is {count()}, but this is not torchrun: {first_line(error)}") from None
    backend = "cpu:gloo,cuda:nccl" if own_devices else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank(), world_size=count(), timeout=_PATIENCE)
    try:
        yield
    except BaseException:
        _teller = _is_first_to_tell(store)  # before the others see that this one is gone
        raise
    finally:
        # Not a barrier: a process that leaves with an error must not wait for those that still work.
        distributed.destroy_process_group()


def _is_first_to_tell(store: Any) -> bool:
    try:
        return store.add("told", 1) == 1
    except RuntimeError:  # whoever kept the store ended before, and has told why
        return False


@contextmanager
def _exchange() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # what gloo and NCCL raise
        raise WorkError(f"another process of this job is gone ({first_line(error)})") from None


def gather(value: Any) -> list[Any]:
    """Everybody's value, in the order of the ranks. Plain data and tensors."""
    if count() == 1:
        return [value]
    from torch import distributed

    found: list[Any] = [None] * count()
    with _exchange():
        distributed.all_gather_object(found, value)
    return found


def dealt(values: list[Any]) -> list[Any]:
    """What the processes found for the items rank, rank + count, ... of a list: of all items, in their order."""
    rounds = zip_longest(*gather(values), fillvalue=_NOTHING)
    return [value for found in rounds for value in found if value is not _NOTHING]


def from_first(value: Any) -> Any:
    """The first process's value; what the others gave is not looked at."""
    if count() == 1:
        return value
    from torch import distributed

    box = [value]
    with _exchange():
        distributed.broadcast_object_list(box, src=0)
    return box[0]


def wait() -> None:
    """Until all processes are here: what the first has written may then be read."""
    gather(None)


def average(tensors: Iterable[Any]) -> None:
    """Replaces each tensor by its mean over the processes, in place; all give tensors of the same shapes.

    Once a step, after all backward passes: `DistributedDataParallel` would send the sandwich's gradients with each
    of its four passes, and give every unused switch a gradient of zeros, which AdamW decays.
    """
    if count() == 1:
        return
    from torch import distributed

    for bucket in _buckets(tensors):
        flat = _flat(bucket)
        with _exchange():
            distributed.all_reduce(flat)
        flat /= count()
        for tensor, part in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
            tensor.copy_(part.view_as(tensor))


def _flat(tensors: list[Any]) -> Any:
    import torch

    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _buckets(tensors: Iterable[Any]) -> Iterator[list[Any]]:
    bucket: list[Any] = []
    size = 0
    for tensor in tensors:
        if bucket and (size >= _BUCKET or tensor.dtype != bucket[0].dtype or tensor.device != bucket[0].device):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel() * tensor.element_size()
    if bucket:
        yield bucket
