"""One training loop for single networks and supernets: resumable at any step to the same result."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import save
from torch import nn

from pocketformer import files, ranks
from pocketformer.errors import UserError, WorkError
from pocketformer.progress import Stage
from pocketformer.runs import Ledger
from pocketformer.training import checkpoint
from pocketformer.training.compute import Compute
from pocketformer.training.log import open_log
from pocketformer.training.memory import keep_freed_memory
from pocketformer.training.recipe import Schedule
from pocketformer.training.state import TrainingState

Backward = Callable[[torch.Tensor], None]
Figures = dict[str, torch.Tensor]


class Annotations(Protocol):
    """Targets of a batch of images that no one tensor holds, such as their boxes."""

    def chunk(self, parts: int) -> "Sequence[Annotations]":
        """As `torch.chunk` of the images."""

    def to(self, device: torch.device, non_blocking: bool = False) -> "Annotations": ...

    def tensors(self) -> dict[str, torch.Tensor]:
        """All they hold, named, to be kept in a file."""


Targets = torch.Tensor | Annotations
Batch = tuple[torch.Tensor, Targets]


class Task(Protocol):
    """What one step computes. `run` calls `backward` with each loss of a batch, one after the other, and returns its
    figures as detached scalars, "loss" among them. `targets` are labels int64 (B,), or shares (B, classes) where images
    are mixed; of dense tasks, maps of labels or annotations."""

    model: nn.Module

    def run(self, images: torch.Tensor, targets: Targets, step: int, backward: Backward) -> Figures: ...


class Batches(Protocol):
    """This process's share of every batch; `batch_size` is that of all processes together."""

    batch_size: int
    steps_per_epoch: int

    def steps(self, first: int, last: int) -> Iterator[Batch]: ...


Mix = Callable[[torch.Tensor, torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Job:
    """Where a training lives and what is told about it. `validate` scores a model (0 to 1, the higher the better) on
    the search split after each epoch, by the `metric`; the best weights are then kept in `best.safetensors`."""

    folder: Path
    name: str  # of its units in the ledger
    ledger: Ledger
    progress: Stage | None = None
    keep: int = 2  # checkpoints
    validate: Callable[[nn.Module], float] | None = None
    metric: str = "accuracy"


def planned_steps(batches: Batches, recipe: Schedule) -> int:
    return recipe.steps(batches.steps_per_epoch)


def train(
    task: Task,
    batches: Batches,
    recipe: Schedule,
    job: Job,
    seed: int,
    compute: Compute | None = None,
    mix: Mix | None = None,
) -> TrainingState:
    """Trains `task.model` in place for the recipe's epochs; `TrainingState.averaged` is the result.

    Each step is a function of the weights, the optimiser's state and (seed, step) alone: batches, subnets, mixing and
    drop path are drawn anew from the step's number. So a run killed anywhere and started again from `last.ckpt` takes
    the same steps. Raises `WorkError` when the loss is no longer finite.
    """
    keep_freed_memory()
    compute = compute or Compute()
    steps = planned_steps(batches, recipe)
    if mix is not None and batches.batch_size // ranks.count() % 2:
        share = batches.batch_size // ranks.count()
        raise UserError(f"mixup and cutmix need an even number of images a batch and process, not {share}")
    state = TrainingState(compute.prepare(task.model), recipe, compute, steps)
    state.resume(job.folder)
    if compute.compile:
        task.model.compile()  # in place: the names of the weights stay
    if job.progress:
        job.progress.update(state.step)
    state.train_mode()
    start, epochs = state.step, _epoch_ends(batches, steps)
    with compute.determinism(), open_log(job.folder, job.name, job.ledger, job.progress, start) as log:
        began = time.monotonic()
        for step, batch in enumerate(batches.steps(start, steps), start):
            rate = recipe.rate(step, steps, batches.steps_per_epoch, batches.batch_size)
            figures = _step(task, state, batch, compute, mix, seed)
            if not math.isfinite(figures["loss"]):
                raise WorkError(_not_finite(f"loss of step {step} is {figures['loss']}", job, step, batch))
            state.update(rate)
            done = step + 1
            log.step(step, {"lr": rate, **figures}, (done - start) * batches.batch_size / (time.monotonic() - began))
            validating = job.validate is not None and done in epochs
            if validating or done % recipe.checkpoint_every == 0 or done == steps:
                if not state.finite():  # else the next step's loss would tell, after the checkpoint
                    raise WorkError(_not_finite(f"gradient of step {step} is not finite", job, step, batch))
                state.average_norms()
                if validating:
                    log.epoch(step, _validate(state, job))
                log.flush()
                if ranks.first():
                    state.save(job.folder, job.keep)
    return state


def _step(
    task: Task,
    state: TrainingState,
    batch: Batch,
    compute: Compute,
    mix: Mix | None,
    seed: int,
) -> dict[str, float]:
    """Leaves the gradients of one step, everything random in it drawn from (seed, step, rank); its figures."""
    # The rank, so that no two processes drop the same paths.
    torch.manual_seed(hash_seed(seed + 7919 * ranks.rank(), state.step))
    images, targets = batch if mix is None else mix(*batch, state.step)
    images, targets = compute.to_device(images, targets)
    figures: Figures = {}
    for part, wanted in zip(images.chunk(compute.accumulate), targets.chunk(compute.accumulate), strict=True):
        share = len(part) / len(images)

        def backward(loss: torch.Tensor, share: float = share) -> None:
            with torch.autocast(compute.device, enabled=False):
                state.scaler.scale(loss.float() * share).backward()

        with compute.autocast():
            found = task.run(part, wanted, state.step, backward)
        figures = {name: figures.get(name, 0) + share * value.float() for name, value in found.items()}
    ranks.average(p.grad for p in task.model.parameters() if p.grad is not None)
    state.clip()
    values = torch.stack(list(figures.values()))
    ranks.average([values])  # each process's are of its share of the batch
    return dict(zip(figures, values.tolist(), strict=True))


def hash_seed(seed: int, step: int) -> int:
    """A well-mixed 63-bit seed of a step."""
    return (seed * 0x9E3779B97F4A7C15 + (step + 1) * 0xBF58476D1CE4E5B9) % (1 << 63)


def _epoch_ends(batches: Batches, steps: int) -> set[int]:
    return {*range(batches.steps_per_epoch, steps, batches.steps_per_epoch), steps}


def _validate(state: TrainingState, job: Job) -> dict[str, float]:
    """Scores on the search split of the weights as they are and of their average; keeps the best."""
    found = {f"{job.metric}_search": job.validate(state.model)}
    if state.ema is not None:
        found[f"{job.metric}_search_ema"] = job.validate(state.averaged)
    state.train_mode()
    score = list(found.values())[-1]
    if not state.best or score > state.best:  # of zeros the last: an AP may be 0 for many epochs
        state.best = score
        if ranks.first():
            checkpoint.save_tensors(job.folder / "best.safetensors", state.averaged)
    return found


def _not_finite(what: str, job: Job, step: int, batch: Batch) -> str:
    """Keeps the batch of all processes; says what happened and where the batch is."""
    parts = ranks.gather(batch)
    path = job.folder / f"step_{step}.safetensors"
    if ranks.first():
        if isinstance(batch[1], torch.Tensor):
            images, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
            kept = {"images": images.contiguous(), "labels": labels}
        else:  # of each process, as their images may differ in size
            named = [{"images": images.contiguous(), **found.tensors()} for images, found in parts]
            kept = {f"{rank}.{name}": tensor for rank, values in enumerate(named) for name, tensor in values.items()}
        with files.whole(path) as temporary:
            temporary.write_bytes(save(kept))
    return f"training {job.name} stopped: the {what}; its images and labels are in {path}"
