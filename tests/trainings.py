"""Tiny networks and images that are learnable at once, and a training that can be looked into. Shared by the tests of
trainings."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pocketformer.architecture import SearchSpace
from pocketformer.models import create_model
from pocketformer.runs import Ledger
from pocketformer.training import engine
from pocketformer.training.batches import TrainBatches
from pocketformer.training.compute import Compute
from pocketformer.training.data import Split
from pocketformer.training.engine import Job, Task
from pocketformer.training.recipe import Recipe
from pocketformer.training.state import TrainingState

SPACE = SearchSpace.from_dict(
    {
        "name": "tiny",
        "design": {
            "resolution": 16,
            "stem_strides": [2, 1],
            "stage_strides": [1, 2, 2],
            "heads": 2,
            "key_dim": 4,
            "value_dim": 4,
            "downsampling_heads": 2,
            "downsampling_key_dim": 4,
            "downsampling_value_dim": 4,
        },
        "expansions": [1, 2],
        "stages": [
            {"depth": 1, "widths": [4, 6]},
            {"depth": 1, "widths": [6, 8]},
            {"depth": 2, "widths": [8, 12], "attention": True},
            {"depth": 1, "widths": [8, 16], "attention": True},
        ],
    }
)
# 96 images in batches of 32: three steps an epoch.
SHORT = Recipe.small_images(epochs=4, batch_size=32, checkpoint_every=5)


def noisy_brightness(name: str = "fit", images: int = 96) -> Split:
    """Three classes."""
    rng = np.random.default_rng(0)
    labels = np.arange(images) % 3
    pixels = 40 + 80 * labels[:, None, None, None] + rng.integers(0, 40, (images, 3, 16, 16))
    return Split(name, torch.from_numpy(pixels.astype(np.uint8)), torch.from_numpy(labels))


def model(distilled: bool = False, drop_path: float = 0.2) -> nn.Module:
    torch.manual_seed(0)
    return create_model(SPACE.largest, 3, distilled=distilled, layer_scale=0.5, drop_path=drop_path)


class Steps:
    """Given batches, one after another and again."""

    def __init__(self, *batches: tuple[torch.Tensor, torch.Tensor]):
        self.batches, self.steps_per_epoch, self.batch_size = batches, len(batches), len(batches[0][0])

    def steps(self, first: int, last: int):
        return (self.batches[step % len(self.batches)] for step in range(first, last))


def go(
    folder: Path, task: Task, recipe: Recipe = SHORT, batches: object = None, compute: Compute | None = None, **more
) -> TrainingState:
    """A training in `folder` with seed 3; `more`: of the job, or `mix`."""
    batches = batches or TrainBatches(noisy_brightness(), recipe.batch_size, (16, 16), recipe.augmentation, 3)
    mix = more.pop("mix", None)
    with Ledger(folder / "work.jsonl") as ledger:
        return engine.train(task, batches, recipe, Job(folder, "t", ledger, **more), 3, compute, mix)


def watch(patch: pytest.MonkeyPatch, look: Callable[[TrainingState, float], None], after: bool = False) -> None:
    """Calls `look(state, rate)` before (or after) the optimiser moves the weights, in each step."""
    update = TrainingState.update

    def watched(state: TrainingState, rate: float) -> None:
        if not after:
            look(state, rate)
        update(state, rate)
        if after:
            look(state, rate)

    patch.setattr(TrainingState, "update", watched)


def gradients(patch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor | None]]:
    """A list that will hold the gradients of each step, as the optimiser gets them."""
    found = []

    def look(state: TrainingState, rate: float) -> None:
        found.append({n: None if p.grad is None else p.grad.clone() for n, p in state.model.named_parameters()})

    watch(patch, look)
    return found


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    """Bit for bit."""
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
