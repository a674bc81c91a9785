"""What a training tells: `metrics.jsonl`, TensorBoard, the ledger, and a line for the person."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pocketformer import files, ranks
from pocketformer.progress import Stage
from pocketformer.runs import Ledger


class Log:
    """Of a process that does not write: the first one has `_Written`."""

    def step(self, step: int, figures: dict[str, float], speed: float) -> None:
        """`figures` of a training step; `speed` in images a second."""

    def epoch(self, step: int, figures: dict[str, float]) -> None:
        """`figures` of a validation after that step."""

    def flush(self) -> None:
        """Before a checkpoint: what it holds has then been told."""


class _Written(Log):
    def __init__(self, name: str, ledger: Ledger, progress: Stage | None, metrics: files.Lines, board: Any):
        self.name, self.ledger, self.progress = name, ledger, progress
        self.metrics, self.board = metrics, board

    def step(self, step: int, figures: dict[str, float], speed: float) -> None:
        self.ledger.did(self.name, step)
        self.epoch(step, figures)
        if self.progress:
            self.progress.advance(note=f"loss {figures['loss']:.3f}, {speed:,.0f} img/s")

    def epoch(self, step: int, figures: dict[str, float]) -> None:
        self.metrics.write({"step": step, **figures})
        for name, value in figures.items():
            if name != "lr":
                self.board.add_scalar(name, value, step)

    def flush(self) -> None:
        self.board.flush()


@contextmanager
def open_log(folder: Path, name: str, ledger: Ledger, progress: Stage | None, start: int) -> Iterator[Log]:
    """The log of a training in `folder` that begins at step `start`: what was told of later steps is dropped."""
    if not ranks.first():
        yield Log()
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (
        files.Lines(folder / "metrics.jsonl", keep=lambda line: line["step"] < start) as metrics,
        _tensorboard(folder / "tensorboard", start) as board,
    ):
        yield _Written(name, ledger, progress, metrics, board)


@contextmanager
def _tensorboard(folder: Path, start: int):
    from torch.utils.tensorboard import SummaryWriter

    board = SummaryWriter(str(folder), purge_step=start, flush_secs=30)
    try:
        yield board
    except KeyboardInterrupt:
        # Not closed: if its queue was interrupted, that would wait for half a minute. What is lost comes after the
        # last checkpoint, and is done and written again.
        raise
    except BaseException:
        board.close()
        raise
    board.close()
