"""How a dense task is trained, as one frozen value."""

import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import Any, ClassVar

from pocketformer.errors import UserError
from pocketformer.training.entries import NOT_NEGATIVE, POSITIVE, SHARE, Entries, is_number


@dataclass(frozen=True)
class DenseRecipe(Entries):
    """AdamW with one rate for all weights; steps down at `milestones`, or poly decay with `power` (0: none).

    `batch_size` is that of all processes together, and `learning_rate` is for it as it is: unlike in `Recipe`, nothing
    scales. `milestones` are epochs after which the rate is a tenth of what it was; `warmup_steps` of linear warm-up.
    `weight_decay` is on every weight, norms and tables of attention biases too, as published. `size` (height, width)
    in px: of detection the box that images are resized into, short side and long side; of segmentation the crop.
    """

    epochs: float
    batch_size: int
    size: tuple[int, int]
    learning_rate: float = 2e-4
    min_lr: float = 0.0
    milestones: tuple[float, ...] = ()
    power: float = 0.0
    warmup_steps: int = 0
    weight_decay: float = 1e-4
    clip: float = 0.0
    ema: float = 0.0
    drop_path: float = 0.0
    layer_scale: float = 1e-5  # where weights start; a short training from scratch wants more
    checkpoint_every: int = 100
    layer_decay: float = 1.0
    freeze: int = 0

    ranges: ClassVar = {
        **dict.fromkeys(("epochs", "batch_size", "learning_rate", "layer_scale", "checkpoint_every"), POSITIVE),
        **dict.fromkeys(("min_lr", "warmup_steps", "weight_decay", "clip", "power"), NOT_NEGATIVE),
        **dict.fromkeys(("drop_path", "ema"), SHARE),
    }
    whole: ClassVar = ("batch_size", "warmup_steps", "checkpoint_every")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("size", "milestones"):
            values = getattr(self, name)
            if not isinstance(values, list | tuple) or not all(is_number(v) and 0 < v < math.inf for v in values):
                raise UserError(f"recipe: {name} must be a list of numbers above zero, not {values!r}")
            object.__setattr__(self, name, tuple(values))
        if len(self.size) != 2 or any(side != int(side) for side in self.size):
            raise UserError(f"recipe: size must be two whole numbers of px, not {list(self.size)!r}")
        if (self.layer_decay, self.freeze) != (1.0, 0):
            raise UserError("recipe: layer_decay and freeze are of classification")
        if list(self.milestones) != sorted(self.milestones):
            raise UserError(f"recipe: milestones must ascend, not {list(self.milestones)!r}")

    @classmethod
    def detection(cls, **changes: Any) -> "DenseRecipe":
        """Of V2 on COCO (Sec. 5.2; V1 decays by 1e-4): 12 epochs, steps after 8 and 11, 500 steps of warm-up, 800 x
        1333 px, 16 images a step."""
        values = {
            "epochs": 12,
            "batch_size": 16,
            "size": (800, 1333),
            "milestones": (8, 11),
            "warmup_steps": 500,
            "weight_decay": 0.05,
        }
        return cls(**{**values, **changes})

    @classmethod
    def segmentation(cls, **changes: Any) -> "DenseRecipe":
        """Of both papers on ADE20K: 40,000 steps of 32 images (63.3 epochs of its 20,210), poly 0.9, crops of
        512 x 512 px."""
        values = {"epochs": 63.3, "batch_size": 32, "size": (512, 512), "min_lr": 1e-6, "power": 0.9}
        return cls(**{**values, **changes})

    def steps(self, steps_per_epoch: int) -> int:
        return max(1, round(self.epochs * steps_per_epoch))

    def rate(self, step: int, steps: int, steps_per_epoch: int, batch_size: int) -> float:
        """Learning rate of a step; the warm-up multiplies what the schedule says."""
        low = min(self.min_lr, self.learning_rate)
        rate = self.learning_rate * 0.1 ** bisect_right(self.milestones, step / steps_per_epoch)
        if self.power:
            rate = low + (rate - low) * (1 - step / steps) ** self.power
        warmup = min(self.warmup_steps, steps - 1)
        return max(rate, low) * min(1.0, (step + 1) / max(warmup, 1))
