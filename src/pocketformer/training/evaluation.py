"""Accuracy of a network on a split, and norms re-calibrated to it."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from pocketformer import ranks
from pocketformer.training.batches import OURS, Normalisation, eval_batches, normalisation_of, train_batches
from pocketformer.training.data import Split

_BATCH = 256


@dataclass(frozen=True)
class Outcome:
    """A network's answers on a split, and what is right: classes int64 (N,) in the split's order; and the mean loss."""

    answers: torch.Tensor
    labels: torch.Tensor
    loss: float

    @property
    def correct(self) -> torch.Tensor:
        """Bool (N,)."""
        return self.answers == self.labels

    @property
    def accuracy(self) -> float:
        return int(self.correct.sum()) / len(self.correct)


@torch.inference_mode()
def evaluate(
    forward: Callable[[torch.Tensor], torch.Tensor],
    split: Split,
    size: tuple[int, int],
    batch_size: int = _BATCH,
    normalisation: Normalisation = OURS,
    workers: int = 0,
) -> Outcome:
    """Runs every readable image of the split once. `forward` maps (B, 3, H, W) to logits (B, classes).

    The processes of a job deal out the batches and all get the whole outcome, no image counted twice.
    """
    batches = eval_batches(split, batch_size, size, normalisation, workers=workers)
    device = _device_of(forward)
    answers, losses = [], []
    for images, labels in batches.at(range(ranks.rank(), len(batches), ranks.count())):
        logits = forward(images.to(device, non_blocking=True)).cpu()
        answers.append(torch.stack([logits.argmax(1), labels], dim=1))
        losses.append(float(F.cross_entropy(logits.double(), labels, reduction="sum")))
    answers, losses = torch.cat(ranks.dealt(answers)), ranks.dealt(losses)
    return Outcome(*answers.unbind(1), sum(losses) / len(answers))


def _device_of(forward: Callable) -> torch.device:
    weights = forward.parameters() if isinstance(forward, nn.Module) else iter(())
    return next((weight.device for weight in weights), torch.device("cpu"))


def accuracy_interval(correct: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of an accuracy measured on `count` images."""
    share, spread = correct / count, z * z / count
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return max(centre - half, 0.0), min(centre + half, 1.0)


def paired_difference(a: Outcome, b: Outcome, z: float = 1.96) -> tuple[float, float]:
    """Accuracy of a minus that of b on the same images, and the half width of its 95 % interval."""
    gained = int((a.correct & ~b.correct).sum())
    lost = int((~a.correct & b.correct).sum())
    count = len(a.correct)
    mean = (gained - lost) / count
    return mean, z * math.sqrt(max((gained + lost) / count - mean * mean, 0) / count)


@torch.no_grad()
def recalibrate(
    model: nn.Module, split: Split, size: tuple[int, int], seed: int, images: int = 1024, balanced: bool = False
) -> None:
    """Replaces the norms' running statistics by the plain average over `images` random images of a split (fit).

    A subnet's statistics were averaged while the weights still moved; this is what they are now. Norms that do not
    learn keep theirs. `balanced`: the images are drawn as those of a training were that drew all classes equally often.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.weight.requires_grad]
    momenta = [norm.momentum for norm in norms]
    training = model.training
    model.eval()  # no paths are dropped
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
    # Random rows: folders list their images by class, and a class is no sample of the set.
    batches = train_batches(split, min(_BATCH, images), size, None, seed, normalisation_of(model), balanced=balanced)
    device = _device_of(model)
    for found, _ in batches.steps(0, min(max(1, images // batches.batch_size), batches.steps_per_epoch)):
        model(found.to(device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.train(training)
