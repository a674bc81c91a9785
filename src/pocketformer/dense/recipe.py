"""How a dense task is trained, as one frozen value."""

import difflib
import math
from bisect import bisect_right
from dataclasses import asdict, dataclass, fields
from typing import Any

import yaml

from pocketformer.errors import UserError

_POSITIVE = (lambda x: 0 < x < math.inf, "above zero")
_NOT_NEGATIVE = (lambda x: 0 <= x < math.inf, "at least zero")
_SHARE = (lambda x: 0 <= x < 1, "at least 0 and below 1")
_RANGES = {
    **dict.fromkeys(("epochs", "batch_size", "learning_rate", "layer_scale", "checkpoint_every"), _POSITIVE),
    **dict.fromkeys(("min_lr", "warmup_steps", "weight_decay", "clip", "power"), _NOT_NEGATIVE),
    **dict.fromkeys(("drop_path", "ema"), _SHARE),
}
_WHOLE = ("batch_size", "warmup_steps", "checkpoint_every")


@dataclass(frozen=True)
class DenseRecipe:
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

    def __post_init__(self) -> None:
        for name, (test, wanted) in _RANGES.items():
            value = getattr(self, name)
            if not _is_number(value) or not test(value):
                raise UserError(f"recipe: {name} must be {wanted}, not {value!r}")
            if name in _WHOLE:
                if value != int(value):
                    raise UserError(f"recipe: {name} must be a whole number, not {value}")
                object.__setattr__(self, name, int(value))
        for name in ("size", "milestones"):
            values = getattr(self, name)
            if not isinstance(values, list | tuple) or not all(_is_number(v) and v > 0 for v in values):
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
        """Of both papers on COCO (V2 Sec. 5.2): 12 epochs, steps after 8 and 11, 500 steps of warm-up, 800 x 1333 px,
        16 images a step."""
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

    @classmethod
    def from_dict(cls, values: dict, where: str = "recipe") -> "DenseRecipe":
        """Of plain data. Raises `UserError`, in one line that begins with `where`."""
        known = [f.name for f in fields(cls)]
        if unknown := [name for name in values if name not in known]:
            near = difflib.get_close_matches(str(unknown[0]), known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise UserError(f"{where}: unknown entry {unknown[0]!r}; {hint}")
        try:
            return cls(**{name: _as_number(value) for name, value in values.items()})
        except UserError as error:
            raise UserError(f"{where}: {str(error).removeprefix('recipe: ')}") from None

    def to_dict(self) -> dict:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def with_text(self, settings: list[str]) -> "DenseRecipe":
        """The recipe with entries given as `NAME=VALUE`, the values in YAML."""
        changes: dict[str, Any] = {}
        for text in settings:
            name, equals, value = text.partition("=")
            if not equals:
                raise UserError(f"--set {text}: write it as NAME=VALUE")
            try:
                changes[name.strip()] = yaml.safe_load(value)
            except yaml.YAMLError:
                raise UserError(f"--set {text}: {value!r} is not a value") from None
        return self.from_dict({**self.to_dict(), **changes}, "--set")

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


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _as_number(value: Any) -> Any:
    """YAML takes 1e-3, without a point, for a text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
