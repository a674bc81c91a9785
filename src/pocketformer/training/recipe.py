"""How a network is trained, as one frozen value."""

import math
from dataclasses import asdict, dataclass, fields

from pocketformer.errors import UserError
from pocketformer.training.batches import Augmentation


@dataclass(frozen=True)
class Recipe:
    """AdamW, cosine per step, linear warm-up (paper Table 5). `learning_rate` is for a batch of 1024 and scales
    with the batch; epochs may be fractions of a pass."""

    epochs: float = 30
    batch_size: int = 128
    learning_rate: float = 1e-3
    min_lr: float = 1e-5
    warmup_epochs: float = 5
    weight_decay: float = 0.025
    label_smoothing: float = 0.1
    drop_path: float = 0.0
    layer_scale: float = 1e-5
    flip: bool = True
    crop_scale: tuple[float, float] = (0.35, 1.0)
    erase: float = 0.0
    checkpoint_every: int = 50  # steps

    def __post_init__(self) -> None:
        object.__setattr__(self, "crop_scale", tuple(self.crop_scale))
        for name in ("epochs", "batch_size", "learning_rate", "layer_scale", "checkpoint_every"):
            if not (value := getattr(self, name)) > 0 or not math.isfinite(value):
                raise UserError(f"recipe: {name} must be positive, not {value}")
        for name in ("min_lr", "warmup_epochs", "weight_decay", "label_smoothing", "drop_path", "erase"):
            if not (value := getattr(self, name)) >= 0 or not math.isfinite(value):
                raise UserError(f"recipe: {name} must not be negative, not {value}")

    @classmethod
    def small_images(cls, **changes) -> "Recipe":
        """Short trainings on small images: a higher rate, a layer scale that learns at once, mild crops."""
        values = {
            "epochs": 30,
            "learning_rate": 2e-2,
            "warmup_epochs": 0.5,
            "label_smoothing": 0.1,
            "layer_scale": 0.5,
            "crop_scale": (0.6, 1.0),
            "checkpoint_every": 20,
        }
        return cls(**{**values, **changes})

    @classmethod
    def from_dict(cls, values: dict) -> "Recipe":
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise UserError(f"recipe: unknown entry {unknown[0]!r}; known: {', '.join(sorted(known))}")
        return cls(**values)

    def to_dict(self) -> dict:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @property
    def augmentation(self) -> Augmentation:
        return Augmentation(flip=self.flip, scale=self.crop_scale, erase=self.erase)

    def steps(self, steps_per_epoch: int) -> int:
        return max(1, round(self.epochs * steps_per_epoch))

    def rate(self, step: int, steps: int, steps_per_epoch: int, batch_size: int) -> float:
        """Learning rate of a step: linear warm-up to the peak, then half a cosine down to `min_lr`."""
        peak = self.learning_rate * batch_size / 1024
        warmup = min(round(self.warmup_epochs * steps_per_epoch), steps - 1)
        if step < warmup:
            return peak * (step + 1) / warmup
        progress = (step - warmup) / max(1, steps - warmup)
        low = min(self.min_lr, peak)
        return low + (peak - low) * (1 + math.cos(math.pi * progress)) / 2
