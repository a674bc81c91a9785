"""What a training is made of between two steps, and how it is kept: `last.ckpt` and the ones before it."""

from pathlib import Path

from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import nn

from pocketformer import ranks
from pocketformer.errors import UserError
from pocketformer.models import Network
from pocketformer.progress import say
from pocketformer.training import checkpoint
from pocketformer.training.clipping import Clipping
from pocketformer.training.compute import Compute
from pocketformer.training.recipe import Schedule

_MOST = 10  # checkpoints that may be kept


class TrainingState:
    """Weights, their moving average, optimiser and loss scaler of one training, and the steps done."""

    def __init__(self, model: nn.Module, recipe: Schedule, compute: Compute, steps: int):
        if recipe.layer_decay < 1 and not hasattr(model, "group_matcher"):
            raise UserError(f"recipe: layer_decay is {recipe.layer_decay}; only single networks have ordered layers")
        self.model, self.recipe, self.steps = model, recipe, steps
        self.step = 0
        self.best: float | None = None  # accuracy of the best weights so far, on the search split
        self.scaler = compute.scaler()
        self.ema = ModelEmaV3(model, decay=recipe.ema, use_warmup=True) if recipe.ema else None
        self._frozen = freeze(model, recipe.freeze)
        self._clipping = Clipping(model, recipe.clip) if recipe.clip else None
        groups = getattr(model, "parameter_groups", None)
        self.optimiser = create_optimizer_v2(
            model,
            "adamw",
            lr=0.0,
            weight_decay=recipe.weight_decay,
            layer_decay=recipe.layer_decay if recipe.layer_decay < 1 else None,
            param_group_fn=groups and (lambda _: groups(recipe.weight_decay)),
            fused=True,  # a third of the time of the loop over tensors, on a CPU too
        )

    @property
    def averaged(self) -> nn.Module:
        """What is evaluated and saved: the moving average where there is one."""
        return self.model if self.ema is None else self.ema.module

    def train_mode(self) -> None:
        """What learns is in training mode; frozen norms keep their statistics."""
        self.model.train()
        for part in self._frozen:
            part.eval()

    def clip(self) -> None:
        """Clips the gradients that are there, if the recipe says so."""
        if self._clipping is not None:
            self.scaler.unscale_(self.optimiser)
            self._clipping()

    def update(self, rate: float) -> None:
        """One step of the optimiser by the gradients that are there, which are then gone."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)  # timm's, of layer_decay; alpha's
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.model, self.step)

    def average_norms(self) -> None:
        """Each process has statistics of its own share: from here on all go on with the mean, resumed or not."""
        models = [self.model] if self.ema is None else [self.model, self.ema.module]
        ranks.average(b for model in models for b in model.buffers() if b.is_floating_point())

    def finite(self) -> bool:
        return all(bool(tensor.isfinite().all()) for tensor in self.model.parameters())

    def save(self, folder: Path, keep: int = 2) -> None:
        """Writes `last.ckpt` and keeps the ones before it, `keep` in all."""
        state = {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "step": self.step,
            "steps": self.steps,
            "best": self.best,
            "classes": checkpoint.class_names(self.model),
            **(checkpoint.facts_of(self.model) or {}),
        }
        checkpoint.save_last(folder / "last.ckpt", state, keep)

    def resume(self, folder: Path) -> None:
        """Takes up the newest checkpoint of the folder that is whole; none: nothing happens.

        All processes of a job take the first's: the others need not see its disk.
        """
        state = ranks.from_first(_newest(folder) if ranks.first() else None)
        if state is None:
            return
        if state["steps"] != self.steps:
            raise UserError(f"{folder / 'last.ckpt'} is of a training of {state['steps']} steps, not {self.steps}")
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        self.step, self.best = state["step"], state["best"]


def _newest(folder: Path) -> dict | None:
    """The newest checkpoint that can be read; damaged ones before it are removed, so that no later one pushes it out.
    Raises `UserError` if there are only damaged ones."""
    damaged: list[Path] = []
    first_error = None
    for path in checkpoint.kept_names(folder / "last.ckpt", _MOST):
        if not path.exists():  # a kill between two renames leaves a gap
            continue
        try:
            state = checkpoint.load_last(path)
        except UserError as error:
            damaged.append(path)
            first_error = first_error or error
            continue
        if damaged:
            say(f"note: {damaged[0]} is damaged: going on from {path.name}, of step {state['step']}")
        for each in damaged:
            each.unlink()
        return state
    if first_error is not None:
        raise first_error
    return None


def freeze(model: nn.Module, stages: int) -> tuple[nn.Module, ...]:
    """Takes the first `stages` stages, and with them the stem, out of training; returns them."""
    if not stages:
        return ()
    if not isinstance(model, Network):
        raise UserError(f"recipe: freeze is {stages}; only single networks can be trained with frozen stages")
    if stages > len(model.stages):
        raise UserError(f"recipe: freeze is {stages}; the network has {len(model.stages)} stages")
    parts = (model.stem, *model.stages[:stages])
    for part in parts:
        part.requires_grad_(False)
    return parts
