"""A teacher's answers, kept: a training that goes over the images of its first K epochs again and again asks its
teacher once for each, and a later training on the same images never.

Augmentation and mixing are functions of the seed and the step, so step s of such a training shows the same images as
step s modulo K epochs.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from pocketformer import files, ranks
from pocketformer.errors import UserError
from pocketformer.runs import differences
from pocketformer.training.batches import TrainingBatches

Batch = tuple[torch.Tensor, torch.Tensor]
Mix = Callable[[torch.Tensor, torch.Tensor, int], Batch]
_FORMAT = "pocketformer.answers/1"


@dataclass(frozen=True)
class Cache:
    """What is kept: the answers of the first `epochs` epochs, in `folder` (None: in that of the training)."""

    epochs: int
    folder: Path | None = None

    @classmethod
    def parse(cls, text: str) -> "Cache":
        """`K` or `K=FOLDER`."""
        epochs, _, folder = text.partition("=")
        if not epochs.isdecimal() or int(epochs) < 1:
            raise UserError(f"teacher cache {text!r}: write K or K=FOLDER, K a whole number of epochs from 1")
        return cls(int(epochs), Path(folder) if folder else None)


@dataclass(frozen=True)
class Cycle:
    """Training batches that begin anew with the first after `epochs` epochs, shuffled and augmented as those were."""

    batches: TrainingBatches
    epochs: int

    @property
    def batch_size(self) -> int:
        return self.batches.batch_size

    @property
    def steps_per_epoch(self) -> int:
        return self.batches.steps_per_epoch

    def at(self, step: int) -> int:
        """The step below K epochs whose images that step has."""
        return step % (self.epochs * self.steps_per_epoch)

    def steps(self, first: int, last: int) -> Iterator[Batch]:
        while first < last:
            start = self.at(first)
            count = min(last - first, self.epochs * self.steps_per_epoch - start)
            yield from self.batches.steps(start, start + count)
            first += count

    def mixing(self, mix: Mix) -> Mix:
        """As `mix`, the same again for the same images."""
        return lambda images, labels, step: mix(images, labels, self.at(step))


class Answers:
    """The answers of one process's share of each batch, on disk: classes (`hard`) or float16 logits (`soft`).

    One file an epoch, whole from its first moment, in which every answer is unknown until it is written: a kill at any
    time leaves answers that are unknown or right.
    """

    def __init__(self, folder: Path, facts: dict[str, Any], cycle: Cycle, classes: int, kind: str):
        """`facts` is all that the answers depend on: plain data. Raises `UserError` if the folder holds answers to
        others."""
        self.images, self.cycle, self.classes, self.kind = cycle.batch_size // ranks.count(), cycle, classes, kind
        self.folder = folder / f"process_{ranks.rank()}_of_{ranks.count()}" if ranks.count() > 1 else folder
        self._dtype = np.dtype("<f2" if kind == "soft" else "<i2" if classes <= 2**15 else "<i4")
        self._shape = (cycle.steps_per_epoch, self.images, *((classes,) if kind == "soft" else ()))
        self._unknown = np.nan if kind == "soft" else -1
        self._open: tuple[int, np.ndarray] | None = None  # the epoch in use
        self._check(files.as_json({"format": _FORMAT, "kind": kind, **facts}))

    def find(self, step: int, first: int, count: int) -> torch.Tensor | None:
        """As logits (count, classes) float32, for the images first ... of this process's share; None: unknown."""
        stored = self._of(step)[first : first + count]
        unknown = np.isnan(stored) if self.kind == "soft" else stored < 0
        return None if unknown.any() else self._as_logits(stored)

    def keep(self, step: int, first: int, logits: torch.Tensor) -> torch.Tensor:
        """Writes the answers in logits (B, classes); returns them as `find` will."""
        logits = logits.detach().float().cpu()
        found = (logits if self.kind == "soft" else logits.argmax(1)).numpy().astype(self._dtype)
        self._of(step)[first : first + len(found)] = found
        return self._as_logits(found)

    def _as_logits(self, stored: np.ndarray) -> torch.Tensor:
        if self.kind == "soft":
            return torch.from_numpy(stored.astype(np.float32))
        return F.one_hot(torch.from_numpy(stored.astype(np.int64)), self.classes).float()

    def _of(self, step: int) -> np.ndarray:
        """The answers of a step, mapped into memory."""
        epoch, row = divmod(self.cycle.at(step), self.cycle.steps_per_epoch)
        if self._open is None or self._open[0] != epoch:
            path = self.folder / f"epoch_{epoch:04}.npy"
            if not path.exists():
                self._create(path)
            try:
                found = np.load(path, mmap_mode="r+")
            except (ValueError, EOFError):
                found = None
            if found is None or found.shape != self._shape or found.dtype != self._dtype:
                raise UserError(f"the teacher's answers in {path} are damaged: delete this file")
            self._open = epoch, found
        return self._open[1][row]

    def _create(self, path: Path) -> None:
        # Written, not only made long: a disk that is full must say so now, where it can.
        step = np.full(self._shape[1:], self._unknown, self._dtype).tobytes()
        header = {"shape": self._shape, "fortran_order": False, "descr": self._dtype.str}
        with files.whole(path) as temporary, open(temporary, "wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for _ in range(self.cycle.steps_per_epoch):
                file.write(step)

    def _check(self, facts: dict[str, Any]) -> None:
        path = self.folder / "answers.json"
        if not path.exists():
            if self.folder.is_dir() and any(self.folder.glob("epoch_*.npy")):
                raise UserError(f"{self.folder} holds a teacher's answers, not to what: delete them")
            files.write_json(path, facts)
        elif (was := files.read_json(path, "answers of a teacher")) != facts:
            what = differences(was, facts)[0] if isinstance(was, dict) else "it is not ours"
            raise UserError(
                f"{self.folder} holds a teacher's answers to other images ({what}): choose another folder, or delete it"
            )


class CachedTeacher(nn.Module):
    """Stands for a teacher: answers from what was kept, and asks the teacher only for what is unknown.

    `at(step)` comes before the images of a step, which may come in parts, in order. `asked`: images that the teacher
    itself has answered. Logits (B, classes) of hard answers are 1 for the class and 0 for the others.
    """

    def __init__(self, teacher: nn.Module, answers: Answers):
        super().__init__()
        self.teacher, self.answers, self.asked = teacher, answers, 0
        if hasattr(teacher, "pretrained_cfg"):
            self.pretrained_cfg = teacher.pretrained_cfg
        self._step, self._next = -1, 0

    def at(self, step: int) -> None:
        if step != self._step or self._next >= self.answers.images:
            self._step, self._next = step, 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        first, self._next = self._next, self._next + len(images)
        found = self.answers.find(self._step, first, len(images))
        if found is None:
            self.asked += len(images)
            found = self.answers.keep(self._step, first, self.teacher(images))
        return found.to(images.device)


def digest(module: nn.Module) -> str:
    """16 hex digits of the names and values of its weights and buffers."""
    found = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()[:16]
