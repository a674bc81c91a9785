"""Accuracy of a network on a split, and norms re-calibrated to it."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from pocketformer.training.batches import OURS, Normalisation, TrainBatches, eval_batches, normalisation_of
from pocketformer.training.data import Split

_BATCH = 256


@dataclass(frozen=True)
class Outcome:
    """A network's answers on a split: `correct` (N,) bool in the split's order, and the mean loss."""

    correct: torch.Tensor
    loss: float

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
) -> Outcome:
    """Runs every image of the split once. `forward` maps (B, 3, H, W) to logits (B, classes)."""
    correct, loss = [], 0.0
    for images, labels in eval_batches(split, batch_size, size, normalisation):
        logits = forward(images)
        correct.append(logits.argmax(1) == labels)
        loss += float(F.cross_entropy(logits.double(), labels, reduction="sum"))
    return Outcome(torch.cat(correct), loss / len(split))


def accuracy_interval(correct: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of an accuracy measured on `count` images."""
    share, spread = correct / count, z * z / count
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return centre - half, centre + half


def paired_difference(a: Outcome, b: Outcome, z: float = 1.96) -> tuple[float, float]:
    """Accuracy of a minus that of b on the same images, and the half width of its 95 % interval."""
    gained = int((a.correct & ~b.correct).sum())
    lost = int((~a.correct & b.correct).sum())
    count = len(a.correct)
    mean = (gained - lost) / count
    return mean, z * math.sqrt(max((gained + lost) / count - mean * mean, 0) / count)


@torch.no_grad()
def recalibrate(model: nn.Module, split: Split, size: tuple[int, int], seed: int, images: int = 1024) -> None:
    """Replaces the norms' running statistics by the plain average over `images` random images of a split (fit).

    A subnet's statistics were averaged while the weights still moved; this is what they are now.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
    training = model.training
    model.train()
    # Random rows: folders list their images by class, and a class is no sample of the set.
    batches = TrainBatches(split, min(_BATCH, images), size, None, seed, normalisation_of(model))
    for step in range(min(max(1, images // batches.batch_size), batches.steps_per_epoch)):
        model(batches.batch(step)[0])
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.train(training)
