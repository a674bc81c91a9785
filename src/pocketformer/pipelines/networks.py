"""The final training: a found network on fit + search, from the supernet's weights or from scratch."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from pocketformer.architecture import Architecture, Selection
from pocketformer.models import Network, create_model
from pocketformer.progress import stage
from pocketformer.runs import Ledger
from pocketformer.supernet import Supernet
from pocketformer.training import checkpoint
from pocketformer.training.batches import TrainBatches, normalisation_of
from pocketformer.training.data import Data
from pocketformer.training.engine import Job, planned_steps, train
from pocketformer.training.evaluation import Outcome, accuracy_interval, evaluate, recalibrate
from pocketformer.training.recipe import Recipe
from pocketformer.training.tasks import DistillationTask, SingleTask


@dataclass(frozen=True)
class FinalTraining:
    """The training that the shipped network and those it is compared with all get."""

    data: Data
    recipe: Recipe
    seed: int
    ledger: Ledger
    teacher: nn.Module | None = None

    def inherit(self, supernet: Supernet, selection: Selection) -> Network:
        """The subnet with the supernet's weights; with a teacher it gets a second head, a copy of the first."""
        source = supernet.extract(selection)
        if self.teacher is None and not self.recipe.drop_path:
            return source
        model = create_model(
            selection.architecture,
            supernet.num_classes,
            distilled=self.teacher is not None,
            drop_path=self.recipe.drop_path,
        )
        state = source.state_dict()
        if self.teacher is not None:
            state |= {f"head_dist.{name}": tensor for name, tensor in source.head.state_dict().items()}
        model.load_state_dict(state)
        return model

    def fresh(self, architecture: Architecture, **kwargs) -> Network:
        torch.manual_seed(self.seed)
        return create_model(
            architecture,
            len(self.data.classes),
            distilled=self.teacher is not None,
            drop_path=self.recipe.drop_path,
            layer_scale=self.recipe.layer_scale,
            **kwargs,
        )

    def run(self, folder: Path, name: str, model: Network) -> Network:
        """Trains on fit + search, re-calibrates the norms on the same images and saves the folder, if that is not
        done; returns the network of the folder. The test split is not read."""
        if (folder / "model.safetensors").exists():
            return checkpoint.load_model(folder)[0]
        model = model.to(memory_format=torch.channels_last)
        batches = TrainBatches(
            self.data.final,
            self.recipe.batch_size,
            model.resolution,
            self.recipe.augmentation,
            self.seed,
            normalisation_of(model),
        )
        if self.teacher is None:
            task = SingleTask(model, self.recipe.label_smoothing)
        else:
            task = DistillationTask(model, self.teacher, self.recipe.label_smoothing)
        with stage(f"train {name}", planned_steps(batches, self.recipe)) as progress:
            train(task, batches, self.recipe, Job(folder, f"train {name}", self.ledger, progress), self.seed)
        recalibrate(model, self.data.final, model.resolution, self.seed)
        about = {"source": self.data.source, "stored_size": list(self.data.fit.images.shape[-2:])}
        checkpoint.save_model(folder, model, self.data.classes, about)
        # Not `model`, whose memory is laid out otherwise: a resumed run gets the folder's, and sums in its order.
        return checkpoint.load_model(folder)[0]


def test_result(model: Network, data: Data) -> tuple[Outcome, dict]:
    """Accuracy on the test split, as an outcome and as plain data."""
    outcome = evaluate(model, data.test, model.resolution, normalisation=normalisation_of(model))
    return outcome, as_result(outcome)


def as_result(outcome: Outcome, split: str = "test") -> dict:
    """An outcome on a split as plain data, with Wilson's interval."""
    correct, count = int(outcome.correct.sum()), len(outcome.correct)
    return {
        "accuracy": correct / count,
        "interval95": list(accuracy_interval(correct, count)),
        "correct": correct,
        "images": count,
        "loss": outcome.loss,
        "split": split,
    }


def recalibrated_score(supernet: Supernet, selection: Selection, data: Data, seed: int) -> Outcome:
    """A subnet's accuracy on the search split with the supernet's weights, norms re-calibrated on fit."""
    model = supernet.extract(selection).to(memory_format=torch.channels_last)
    recalibrate(model, data.fit, model.resolution, seed)
    return evaluate(model.eval(), data.search, model.resolution)
