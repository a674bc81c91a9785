"""What one training step computes: a single network, with or without a teacher, or the sandwich of a supernet."""

import difflib
import logging
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from pocketformer.errors import UserError
from pocketformer.models import Network
from pocketformer.progress import stage
from pocketformer.supernet import Supernet
from pocketformer.supernet.sampling import Sandwich


class SingleTask:
    """Cross-entropy of one network."""

    def __init__(self, model: nn.Module, label_smoothing: float = 0.0):
        self.model, self.label_smoothing = model, label_smoothing

    def backward(self, images: torch.Tensor, labels: torch.Tensor, step: int) -> dict[str, float]:
        logits = self.model(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        loss.backward()
        return {"loss": loss.item(), "accuracy": (logits.argmax(1) == labels).float().mean().item()}


class DistillationTask:
    """Hard distillation of the second head (paper Sec. 5.1; contract 6.15), by timm's task."""

    def __init__(self, model: Network, teacher: nn.Module, label_smoothing: float = 0.0):
        from timm.task import TokenDistillationTask

        self.model = model
        self._task = TokenDistillationTask(
            model,
            teacher,
            criterion=nn.CrossEntropyLoss(label_smoothing=label_smoothing),
            distill_type="hard",
            task_loss_weight=0.5,
            device=torch.device("cpu"),
            verbose=False,
        )

    def backward(self, images: torch.Tensor, labels: torch.Tensor, step: int) -> dict[str, float]:
        result = self._task(images, labels)
        result["loss"].backward()
        accuracy = (result["output"].argmax(1) == labels).float().mean().item()
        losses = {name: result[name].item() for name in ("loss", "task_loss", "distill_loss")}
        return {**losses, "accuracy": accuracy}


class SandwichTask:
    """The sandwich rule (paper Alg. 1): the sampled subnets' gradients add up, then one optimiser step.

    With `in_place` the largest subnet learns from the labels and the others from its detached output (our default
    departure, contract 6.6); without it, all learn from the labels, as printed in the paper.
    """

    def __init__(self, supernet: Supernet, rule: Sandwich, label_smoothing: float = 0.0, in_place: bool = True):
        self.model, self.rule = supernet, rule
        self.label_smoothing, self.in_place = label_smoothing, in_place

    def backward(self, images: torch.Tensor, labels: torch.Tensor, step: int) -> dict[str, float]:
        target, figures = None, {}
        for index, subnet in enumerate(self.rule.subnets(step)):
            logits = self.model(images, subnet)
            if target is None:
                loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
            else:
                loss = F.cross_entropy(logits, target)
            loss.backward()
            if index == 0:
                target = logits.detach().softmax(1) if self.in_place else None
                figures["accuracy"] = (logits.argmax(1) == labels).float().mean().item()
            names = ("loss", "loss_smallest")
            figures[names[index] if index < 2 else f"loss_random_{index - 1}"] = loss.item()
        return figures


def load_teacher(text: str, num_classes: int) -> nn.Module:
    """A teacher from `NAME` (timm's pretrained weights) or `NAME=FILE`; frozen, in eval mode.

    Raises `UserError` unless it is there and answers for exactly the data's classes.
    """
    import timm

    name, _, file = text.partition("=")
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), 3)
        hint = f"; near: {', '.join(near)}" if near else ""
        raise UserError(f"teacher {name!r} is not a timm model{hint}")
    if file:
        if not Path(file).is_file():
            raise UserError(f"teacher weights not found: {file}")
    else:
        published = timm.get_pretrained_cfg(name, allow_unregistered=True)
        if published is None or not published.has_weights:
            raise UserError(f"teacher {name}: timm has no weights of it; give {name}=FILE")
        if published.num_classes != num_classes:  # timm would give it a new head, which knows nothing
            raise UserError(
                f"teacher {name}: knows {published.num_classes} classes, the data has {num_classes}; give weights "
                f"trained on them as {name}=FILE"
            )
    try:
        with stage("load the teacher"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # no line for each attempt
            teacher = timm.create_model(name, num_classes=num_classes, pretrained=not file)
            if file:
                timm.models.load_checkpoint(teacher, file, weights_only=True)
    except Exception as error:  # whatever a library raises, the user sees one line
        if file:
            reason = f"{file} holds no weights of {name} with {num_classes} classes"
        else:
            reason = "its weights cannot be had"
        raise UserError(f"teacher {name}: {reason} ({_reason(error)})") from None
    return teacher.eval().requires_grad_(False)


def _reason(error: Exception) -> str:
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    said = lines[1] if len(lines) > 1 and lines[0].endswith(":") else (lines or [type(error).__name__])[0]
    return said if len(said) <= 160 else said[:157] + "..."
