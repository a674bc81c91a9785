"""The final training: a found network on fit + search, from the supernet's weights or from scratch."""

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from pocketformer import ranks
from pocketformer.architecture import Architecture, Selection
from pocketformer.architecture.design import Grid
from pocketformer.models import Network, create_model
from pocketformer.pipelines.images import whereabouts_of
from pocketformer.progress import stage
from pocketformer.runs import Ledger
from pocketformer.supernet import Supernet
from pocketformer.training import checkpoint
from pocketformer.training.answers import Answers, Cache, CachedTeacher, Cycle, digest
from pocketformer.training.balance import loss_weights
from pocketformer.training.batches import Share, TrainingBatches, normalisation_of, train_batches
from pocketformer.training.compute import Compute
from pocketformer.training.confusion import balanced_accuracy, class_figures, confusion_matrix
from pocketformer.training.data import Data, Split
from pocketformer.training.engine import Job, Task, planned_steps, train
from pocketformer.training.evaluation import Outcome, accuracy_interval, evaluate, recalibrate
from pocketformer.training.mixing import Mixing
from pocketformer.training.recipe import Recipe
from pocketformer.training.state import freeze
from pocketformer.training.tasks import DistillationTask, SingleTask


@dataclass(frozen=True)
class FinalTraining:
    """The training that the shipped network and those it is compared with all get.

    With `validate` the search split is held out: the network is scored on it after each epoch, and the weights that
    did best are the result. `distillation` says what the teacher gives: "hard" answers or "soft" probabilities; with
    `cache`, the images of its first epochs come again and again, and the teacher's answers to them are kept.
    """

    data: Data
    recipe: Recipe
    seed: int
    ledger: Ledger
    teacher: nn.Module | None = None
    compute: Compute = field(default_factory=Compute)
    workers: int = 0
    validate: bool = False
    distillation: str = "hard"
    keep: int = 2
    cache: Cache | None = None

    def inherit(self, supernet: Supernet, selection: Selection, size: Grid | None = None) -> Network:
        """The subnet with the supernet's weights, for images of `size` (None: the supernet's); with a teacher it gets a
        second head, a copy of the first."""
        model = supernet.extract(selection)
        drop_path = self.recipe.drop_path_of(selection.architecture)
        if self.teacher is not None or drop_path:
            state = model.state_dict()
            if self.teacher is not None:
                state |= {f"head_dist.{name}": tensor for name, tensor in model.head.state_dict().items()}
            model = create_model(
                selection.architecture,
                supernet.num_classes,
                distilled=self.teacher is not None,
                drop_path=drop_path,
            )
            model.load_state_dict(state)
        if size is None or size == model.resolution:
            return model
        model.set_input_size(size)
        model.architecture = model.architecture.with_design(resolution=size)
        return model

    def fresh(self, architecture: Architecture, **kwargs) -> Network:
        torch.manual_seed(self.seed)
        return create_model(
            architecture,
            len(self.data.classes),
            distilled=self.teacher is not None,
            drop_path=self.recipe.drop_path_of(architecture),
            layer_scale=self.recipe.layer_scale,
            **kwargs,
        )

    def run(self, folder: Path, name: str, model: Network) -> Network:
        """Trains on fit + search, re-calibrates the norms on the same images and saves the folder, if that is not
        done; returns the network of the folder. The test split is not read."""
        if ranks.from_first((folder / "model.safetensors").exists()):
            return checkpoint.load_model(folder)[0]
        model.pretrained_cfg["label_names"] = list(self.data.classes)  # every file that this training writes has them
        result = copy.deepcopy(model).to(memory_format=torch.channels_last)  # `model` may be compiled or synchronised
        split = self.data.fit if self.validate else self.data.final
        batches = train_batches(
            split,
            self.recipe.batch_size,
            model.resolution,
            self.recipe.augmentation,
            self.seed,
            normalisation_of(model),
            Share(ranks.rank(), ranks.count()),
            self.workers,
            self.recipe.balance == "sampling",
        )
        mix = Mixing(self.recipe, model.num_classes, self.seed) if self.recipe.mixes else None
        if self.cache is not None:
            batches = Cycle(batches, self.cache.epochs)
            mix = batches.mixing(mix) if mix else None
        task = self._task(model.to(self.compute.where), split, batches, folder)
        with stage(f"train {name}", planned_steps(batches, self.recipe)) as progress:
            validate = self._accuracy if self.validate else None
            job = Job(folder, f"train {name}", self.ledger, progress, self.keep, validate, self._metric)
            state = train(task, batches, self.recipe, job, self.seed, self.compute, mix)
        if ranks.first():
            best = folder / "best.safetensors"
            result.load_state_dict(load_file(best) if self.validate else state.averaged.state_dict())
            freeze(result, self.recipe.freeze)
            recalibrate(result, split, result.resolution, self.seed, balanced=self.recipe.balance == "sampling")
            about = {"source": self.data.source, "stored_size": list(self.data.final.stored_size)}
            about |= whereabouts_of(self.data.source)
            about |= {"group_by": self.data.group_by} if self.data.group_by else {}
            about |= self.data.depth.recorded()
            checkpoint.save_model(folder, result, self.data.classes, about)
        ranks.wait()
        # Not `result`, whose memory is laid out otherwise: a resumed run gets the folder's, and sums in its order.
        return checkpoint.load_model(folder)[0]

    def _task(self, model: Network, split: Split, batches: TrainingBatches, folder: Path) -> Task:
        weights = loss_weights(self.recipe.balance, split, model.num_classes)
        if self.teacher is None:
            return SingleTask(model, self.recipe.label_smoothing, weights)
        teacher = self.teacher.to(self.compute.where)
        if isinstance(batches, Cycle):
            facts = self._facts(model, split, batches)
            kept = self.cache.folder or folder / "teacher"
            teacher = CachedTeacher(teacher, Answers(kept, facts, batches, model.num_classes, self.distillation))
        return DistillationTask(model, teacher, self.recipe.label_smoothing, self.distillation, weights)

    def _facts(self, model: Network, split: Split, batches: TrainingBatches) -> dict:
        """All that the teacher's answers depend on."""
        return {
            "teacher": digest(self.teacher),
            "data": self.data.fingerprint,
            "split": f"{split.name} of {self.data.split_fingerprint}",
            "stored_size": split.stored_size,
            "size": model.resolution,
            "normalisations": [normalisation_of(model), normalisation_of(self.teacher)],
            "augmentation": asdict(self.recipe.augmentation),
            "mixup": self.recipe.mixup,
            "cutmix": self.recipe.cutmix,
            "batch_size": batches.batch_size,
            "processes": ranks.count(),
            "seed": self.seed,
            "device": self.compute.device,
            "precision": self.compute.precision,
            **({"balance": "sampling"} if self.recipe.balance == "sampling" else {}),
        }

    @property
    def _metric(self) -> str:
        """What weights are chosen by: where classes are to count alike, they do so here too."""
        return "accuracy" if self.recipe.balance == "none" else "balanced_accuracy"

    def _accuracy(self, model: Network) -> float:
        """The metric on the search split."""
        model.eval()
        with self.compute.autocast():
            found = evaluate(
                model, self.data.search, model.resolution, normalisation=normalisation_of(model), workers=self.workers
            )
        if self._metric == "accuracy":
            return found.accuracy
        return balanced_accuracy(confusion_matrix(found.answers, found.labels, model.num_classes))


def test_result(model: Network, data: Data, workers: int) -> tuple[Outcome, dict]:
    """Accuracy on the test split, as an outcome and as plain data, with the figures of the classes."""
    normalisation = normalisation_of(model)
    outcome = evaluate(model, data.test, model.resolution, normalisation=normalisation, workers=workers)
    return outcome, {**as_result(outcome), **figures_of(outcome, data.classes)}


def figures_of(outcome: Outcome, classes: Sequence[str]) -> dict:
    """Of the network's `classes`, as `class_figures` gives them."""
    return class_figures(confusion_matrix(outcome.answers, outcome.labels, len(classes)), classes)


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
