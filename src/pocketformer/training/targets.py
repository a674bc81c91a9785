"""What the subnets of a supernet's step learn from: the labels, a teacher, or the largest of them."""

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

from pocketformer.training.pixels import OURS, Normalisation

Loss = Callable[[torch.Tensor], torch.Tensor]  # of logits (B, classes)


class LabelLoss(nn.Module):
    """Cross-entropy to labels; the targets of mixed images were smoothed where they were mixed.

    With `weights` (classes,) the mean over a batch of each image's loss times the weight of its class; of a mixed image
    times the weights of its classes, in their shares. Not divided by the weights' sum, which differs between batches
    and parts of them.
    """

    def __init__(self, label_smoothing: float, weights: torch.Tensor | None = None):
        super().__init__()
        self.label_smoothing, self.weights = label_smoothing, weights

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        mixed = targets.is_floating_point()
        smoothing = 0.0 if mixed else self.label_smoothing
        if self.weights is None:
            return F.cross_entropy(logits, targets, label_smoothing=smoothing)
        weights = self.weights.to(logits.device)
        losses = F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="none")
        if not mixed:
            return (losses * weights[targets]).mean()
        shares = (targets - self.label_smoothing / targets.shape[1]) / (1 - self.label_smoothing)  # unsmoothed
        return (losses * (shares @ weights.to(shares.dtype))).mean()


class Targets(Protocol):
    """`of` a batch is the loss of its subnets' logits, which is called once for each subnet, in the rule's order.
    `needs_largest`: the largest must be the first of them."""

    needs_largest: bool

    def of(self, images: torch.Tensor, labels: torch.Tensor) -> Loss: ...


class Labels:
    """As printed in the paper's Alg. 1: all subnets learn from the labels."""

    needs_largest = False

    def __init__(self, label_smoothing: float = 0.0, weights: torch.Tensor | None = None):
        self._loss = LabelLoss(label_smoothing, weights)

    def of(self, images: torch.Tensor, labels: torch.Tensor) -> Loss:
        return lambda logits: self._loss(logits, labels)


class Taught:
    """An external teacher: half the loss is the labels', half the cross-entropy to the teacher's answers, its classes
    (`hard`) or its probabilities (`soft`). It is the loss of a single network's two heads (contract 6.15) on the one
    head that a supernet has.

    The teacher sees the subnets' images under its own normalisation; it must be in eval mode and on their device.
    """

    needs_largest = False

    def __init__(self, labels: Labels, teacher: nn.Module, kind: str = "hard", normalisation: Normalisation = OURS):
        from timm.task import DistillationTeacher

        self._labels, self._kind = labels, kind
        where = next((weight.device for weight in teacher.parameters()), None)
        self._teacher = DistillationTeacher(teacher, device=where)
        self._mean, self._std = (torch.tensor(values, device=where).view(1, -1, 1, 1) for values in normalisation)

    def of(self, images: torch.Tensor, labels: torch.Tensor) -> Loss:
        with torch.no_grad():
            logits = self._teacher(self._teacher.normalize_input(images, self._mean, self._std))
            answers = logits.softmax(1) if self._kind == "soft" else logits.argmax(1)
        given = self._labels.of(images, labels)
        return lambda logits: 0.5 * given(logits) + 0.5 * F.cross_entropy(logits, answers)


class InPlace:
    """In-place distillation (contract 6.6): the largest subnet learns from `first`, the others half from it too and
    half from the largest's detached output.

    From that output alone (`share` 1) a short training loses up to eleven points, of the largest subnet too
    (docs/departures.md): at first it says next to nothing, and the others' gradients are three quarters of a step's.
    """

    needs_largest = True

    def __init__(self, first: Labels | Taught, share: float = 0.5):
        self._first, self._share = first, share

    def of(self, images: torch.Tensor, labels: torch.Tensor) -> Loss:
        first, answers = self._first.of(images, labels), None

        def loss(logits: torch.Tensor) -> torch.Tensor:
            nonlocal answers
            if answers is None:
                answers = logits.detach().softmax(1)
                return first(logits)
            return (1 - self._share) * first(logits) + self._share * F.cross_entropy(logits, answers)

        return loss
