"""One training loop for single networks and supernets: resumable at any step to the same result."""

import math
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from timm.optim import create_optimizer_v2
from torch import nn

from pocketformer import files
from pocketformer.errors import UserError, WorkError
from pocketformer.progress import Stage
from pocketformer.runs import Ledger
from pocketformer.training import checkpoint
from pocketformer.training.batches import TrainBatches
from pocketformer.training.memory import keep_freed_memory
from pocketformer.training.recipe import Recipe


class Task(Protocol):
    """What one step computes. `backward` runs forward and backward of one batch and returns its figures
    ("loss" among them); gradients are left on `model`'s parameters."""

    model: nn.Module

    def backward(self, images: torch.Tensor, labels: torch.Tensor, step: int) -> dict[str, float]: ...


@dataclass(frozen=True)
class Job:
    """Where a training lives and what is told about it."""

    folder: Path
    name: str  # of its units in the ledger
    ledger: Ledger
    progress: Stage | None = None


def planned_steps(batches: TrainBatches, recipe: Recipe) -> int:
    return recipe.steps(batches.steps_per_epoch)


def train(task: Task, batches: TrainBatches, recipe: Recipe, job: Job, seed: int) -> None:
    """Trains `task.model` in place for the recipe's epochs.

    Each step is a function of the weights, the optimiser's state and (seed, step) alone: batches, subnets and
    drop path are drawn anew from the step's number. So a run killed anywhere and started again from `last.ckpt`
    takes the same steps. Raises `WorkError` when the loss is no longer finite.
    """
    keep_freed_memory()
    steps = planned_steps(batches, recipe)
    optimiser = create_optimizer_v2(task.model, "adamw", lr=0.0, weight_decay=recipe.weight_decay)
    job.folder.mkdir(parents=True, exist_ok=True)
    start = _resume(task.model, optimiser, job.folder / "last.ckpt", steps)
    if job.progress:
        job.progress.update(start)
    task.model.train()
    with (
        files.Lines(job.folder / "metrics.jsonl", keep=lambda line: line["step"] < start) as metrics,
        _tensorboard(job.folder / "tensorboard", start) as board,
    ):
        for step in range(start, steps):
            rate = recipe.rate(step, steps, batches.steps_per_epoch, batches.batch_size)
            figures = _step(task, optimiser, batches, rate, seed, step)
            if not math.isfinite(figures["loss"]):
                raise WorkError(f"training {job.name} stopped: the loss of step {step} is {figures['loss']}")
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            job.ledger.did(job.name, step)
            metrics.write({"step": step, "lr": rate, **figures})
            for name, value in figures.items():
                board.add_scalar(name, value, step)
            if job.progress:
                job.progress.advance(note=f"loss {figures['loss']:.3f}")
            if (step + 1) % recipe.checkpoint_every == 0 or step + 1 == steps:
                board.flush()
                state = {"model": task.model.state_dict(), "optimiser": optimiser.state_dict()}
                checkpoint.save_last(job.folder / "last.ckpt", {**state, "step": step + 1, "steps": steps})


def _step(
    task: Task, optimiser: torch.optim.Optimizer, batches: TrainBatches, rate: float, seed: int, step: int
) -> dict[str, float]:
    """The gradients of one step, everything random in it drawn from (seed, step)."""
    torch.manual_seed(hash_seed(seed, step))
    for group in optimiser.param_groups:
        group["lr"] = rate
    images, labels = batches.batch(step)
    return task.backward(images, labels, step)


def hash_seed(seed: int, step: int) -> int:
    """A well-mixed 63-bit seed of a step."""
    return (seed * 0x9E3779B97F4A7C15 + (step + 1) * 0xBF58476D1CE4E5B9) % (1 << 63)


def _resume(model: nn.Module, optimiser: torch.optim.Optimizer, path: Path, steps: int) -> int:
    if not path.exists():
        return 0
    state = checkpoint.load_last(path)
    if state["steps"] != steps:
        raise UserError(f"{path} is of a training of {state['steps']} steps, not {steps}")
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    return state["step"]


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
