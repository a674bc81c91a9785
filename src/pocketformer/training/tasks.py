"""What one training step computes: a single network, with or without a teacher, or the sandwich of a supernet."""

import torch
import torch.nn.functional as F
from torch import nn

from pocketformer.models import Network
from pocketformer.supernet import Supernet
from pocketformer.supernet.sampling import Sandwich
from pocketformer.training.answers import CachedTeacher
from pocketformer.training.engine import Backward, Figures


class SingleTask:
    """Cross-entropy of one network."""

    def __init__(self, model: nn.Module, label_smoothing: float = 0.0):
        self.model = model
        self._loss = _LabelLoss(label_smoothing)

    def run(self, images: torch.Tensor, targets: torch.Tensor, step: int, backward: Backward) -> Figures:
        logits = self.model(images)
        loss = self._loss(logits, targets)
        backward(loss)
        return {"loss": loss.detach(), **_accuracy(logits, targets)}


class DistillationTask:
    """Distillation of the second head (V2 Sec. 5.1; contract 6.15), by timm's task: half the loss of the labels on the
    first head, half that of the teacher's answers on the second: its classes (`hard`, the paper's) or its
    probabilities (`soft`).

    The teacher sees the student's images, mixed or not, under its own normalisation (`pretrained_cfg`). It must be in
    eval mode and on the model's device.
    """

    def __init__(
        self, model: Network, teacher: nn.Module | CachedTeacher, label_smoothing: float = 0.0, kind: str = "hard"
    ):
        from timm.task import TokenDistillationTask

        self.model, self._teacher = model, teacher
        self._task = TokenDistillationTask(
            model,
            teacher,
            criterion=_LabelLoss(label_smoothing),
            distill_type=kind,
            task_loss_weight=0.5,
            device=next(model.parameters()).device,
            verbose=False,
        )

    def run(self, images: torch.Tensor, targets: torch.Tensor, step: int, backward: Backward) -> Figures:
        if isinstance(self._teacher, CachedTeacher):
            self._teacher.at(step)
        result = self._task(images, targets)
        backward(result["loss"])
        losses = {name: result[name].detach() for name in ("loss", "task_loss", "distill_loss")}
        return {**losses, **_accuracy(result["output"], targets)}


class SandwichTask:
    """The sandwich rule (paper Alg. 1): the sampled subnets' gradients add up, then one optimiser step.

    With `in_place` the largest subnet learns from the labels and the others from its detached output (our default
    departure, contract 6.6); without it, all learn from the labels, as printed in the paper.
    """

    def __init__(self, supernet: Supernet, rule: Sandwich, label_smoothing: float = 0.0, in_place: bool = True):
        self.model, self.rule = supernet, rule
        self.in_place, self._loss = in_place, _LabelLoss(label_smoothing)

    def run(self, images: torch.Tensor, targets: torch.Tensor, step: int, backward: Backward) -> Figures:
        answers, figures = None, {}
        for index, subnet in enumerate(self.rule.subnets(step)):
            logits = self.model(images, subnet)
            loss = self._loss(logits, targets) if answers is None else F.cross_entropy(logits, answers)
            backward(loss)
            if index == 0:
                answers = logits.detach().softmax(1) if self.in_place else None
                figures |= _accuracy(logits, targets)
            names = ("loss", "loss_smallest")
            figures[names[index] if index < 2 else f"loss_random_{index - 1}"] = loss.detach()
        return figures


class _LabelLoss(nn.Module):
    """Cross-entropy to labels; the targets of mixed images were smoothed where they were mixed."""

    def __init__(self, label_smoothing: float):
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        smoothing = 0.0 if targets.is_floating_point() else self.label_smoothing
        return F.cross_entropy(logits, targets, label_smoothing=smoothing)


def _accuracy(logits: torch.Tensor, targets: torch.Tensor) -> Figures:
    """Of mixed images there is none."""
    if targets.is_floating_point():
        return {}
    return {"accuracy": (logits.argmax(1) == targets).float().mean()}
