"""What one training step computes: a single network, with or without a teacher, or subnets of a supernet."""

import torch
from torch import nn

from pocketformer.errors import UserError
from pocketformer.models import Network
from pocketformer.supernet import MetaPathSupernet, Supernet
from pocketformer.supernet.gumbel import Exploration
from pocketformer.supernet.sampling import Rule
from pocketformer.training.answers import CachedTeacher
from pocketformer.training.engine import Backward, Figures
from pocketformer.training.targets import InPlace, LabelLoss, Labels, Targets, Taught

NEEDS_LARGEST = (
    "in-place distillation needs the largest subnet in every step, which uniform sampling does not train: "
    "learn from the labels, or a teacher, alone (--plain)"
)


class SingleTask:
    """Cross-entropy of one network; `weights` of the classes (`LabelLoss`)."""

    def __init__(self, model: nn.Module, label_smoothing: float = 0.0, weights: torch.Tensor | None = None):
        self.model = model
        self._loss = LabelLoss(label_smoothing, weights)

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
    eval mode and on the model's device. `weights` of the classes are for the labels' half (`LabelLoss`).
    """

    def __init__(
        self,
        model: Network,
        teacher: nn.Module | CachedTeacher,
        label_smoothing: float = 0.0,
        kind: str = "hard",
        weights: torch.Tensor | None = None,
    ):
        from timm.task import TokenDistillationTask

        self.model, self._teacher = model, teacher
        self._task = TokenDistillationTask(
            model,
            teacher,
            criterion=LabelLoss(label_smoothing, weights),
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
    """Several subnets of a supernet in one step (paper Alg. 1): those of `rule`, learning from `targets`; their
    gradients add up, then one optimiser step.

    By default the largest subnet learns from the labels and the others from these and from its detached output, our
    departure (contract 6.6); `Labels()` is the rule as printed. "loss" is the largest subnet's (without it, the mean
    of all), "accuracy" that of the first. Raises `UserError` for targets that need the largest of a rule without it.
    """

    def __init__(self, supernet: Supernet, rule: Rule, targets: Targets | None = None):
        self.model, self.rule = supernet, rule
        self.targets = InPlace(Labels()) if targets is None else targets
        if self.targets.needs_largest and rule.roles[0] != "largest":
            raise UserError(NEEDS_LARGEST)

    def run(self, images: torch.Tensor, targets: torch.Tensor, step: int, backward: Backward) -> Figures:
        criterion, losses, figures = self.targets.of(images, targets), {}, {}
        for role, subnet in zip(self.rule.roles, self.rule.subnets(step), strict=True):
            logits = self.model(images, subnet)
            loss = criterion(logits)
            backward(loss)
            figures = figures or _accuracy(logits.detach(), targets)
            losses[role] = loss.detach()
        mean = torch.stack(list(losses.values())).mean()
        return {"loss": losses.pop("largest", mean), **figures, **{f"loss_{role}": x for role, x in losses.items()}}


class MetaPathTask:
    """One step of a MetaPath supernet (V1 App. A, Alg. 1): weights and alpha learn from the loss of eq. 8's mixture.

    "entropy" is that of softmax(alpha) before the step, mean over the MetaPaths in nats; "temperature" is tau.
    """

    def __init__(self, supernet: MetaPathSupernet, exploration: Exploration, targets: Labels | Taught | None = None):
        self.model, self.exploration = supernet, exploration
        self.targets = Labels() if targets is None else targets

    def run(self, images: torch.Tensor, targets: torch.Tensor, step: int, backward: Backward) -> Figures:
        draw = self.exploration.draw(self.model.choices, step)
        logits = self.model(images, draw)
        loss = self.targets.of(images, targets)(logits)
        backward(loss)
        entropy = self.model.entropy()
        temperature = entropy.new_tensor(draw.temperature)
        return {"loss": loss.detach(), **_accuracy(logits, targets), "entropy": entropy, "temperature": temperature}


def _accuracy(logits: torch.Tensor, targets: torch.Tensor) -> Figures:
    """Of mixed images there is none."""
    if targets.is_floating_point():
        return {}
    return {"accuracy": (logits.argmax(1) == targets).float().mean()}
