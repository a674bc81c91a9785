"""What `detect train` and `segment train` have in common: their settings, and a training that ends in one network."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from safetensors.torch import load_file
from torch import nn

from pocketformer import ranks
from pocketformer.dense.recipe import DenseRecipe
from pocketformer.pipelines.trained import load_architecture
from pocketformer.progress import say, stage
from pocketformer.runs import Inputs, Run, held
from pocketformer.training.compute import Compute
from pocketformer.training.copies import repeated
from pocketformer.training.engine import Batches, Job, Task, planned_steps, train
from pocketformer.training.sources import shown


@dataclass(frozen=True, kw_only=True)
class DenseSettings:
    """`workers` and `keep` may change when a run is resumed."""

    architecture: str
    data: str
    recipe: DenseRecipe
    init: str | None = None
    seed: int = 0
    compute: Compute = field(default_factory=Compute)
    workers: int = 2
    keep: int = 2

    decisive: ClassVar[tuple[str, ...]] = ("data", "init", "seed")

    def to_dict(self) -> dict:
        """What the result depends on."""
        return {
            "architecture": load_architecture(self.architecture).to_dict(),
            "recipe": self.recipe.to_dict(),
            "compute": self.compute.to_dict(),
            **{name: getattr(self, name) for name in self.decisive},
        }

    def inputs(self) -> Inputs:
        return {"data": None, **held(init=self.init)}


def warn_of_copies(learned: Sequence[Path], judged: Sequence[Path], split: str) -> None:
    """Says how many of the images that results are told of are copies of images that are learned from."""
    same = repeated(judged, learned) if ranks.first() else []
    if same:
        example = f"{shown(str(same[0][0]))} of {shown(str(same[0][1]))}" + (", …" if len(same) > 1 else "")
        say(
            f"warning: copies of training images in {split}: {len(same)} of {len(judged)} ({example}); the scores tell "
            "what was learned by heart there"
        )


def fit(
    model: nn.Module,
    task: Task,
    batches: Batches,
    settings: DenseSettings,
    run: Run,
    name: str,
    score: Callable[[nn.Module], float] | None = None,
    metric: str = "accuracy",
) -> nn.Module:
    """A copy of `model` with the weights that `score` found best after an epoch; without it with the last ones (of
    their average, where the recipe asks for one). To be saved by the first of several processes; `model` itself, which
    `task` runs, may end up compiled or synchronised."""
    result = copy.deepcopy(model)
    with stage(f"train the {name}", planned_steps(batches, settings.recipe)) as progress:
        job = Job(run.path, name, run.ledger, progress, settings.keep, score, metric)
        state = train(task, batches, settings.recipe, job, settings.seed, settings.compute)
    if ranks.first():
        best = run.path / "best.safetensors"
        result.load_state_dict(load_file(best) if score else state.averaged.state_dict())
    return result
