"""How a network is trained, as one frozen value."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol

import yaml

from pocketformer import files
from pocketformer.architecture import Architecture
from pocketformer.architecture.published import published_drop_path
from pocketformer.errors import UserError
from pocketformer.training.balance import CHOICES
from pocketformer.training.batches import Augmentation
from pocketformer.training.entries import NOT_NEGATIVE, POSITIVE, SHARE, Entries, is_number


class Schedule(Protocol):
    """What the engine asks of a recipe, of whatever task; the entries are `Recipe`'s."""

    weight_decay: float
    clip: float
    ema: float
    layer_decay: float
    freeze: int
    checkpoint_every: int

    def steps(self, steps_per_epoch: int) -> int:
        """Of the whole training, at least one."""

    def rate(self, step: int, steps: int, steps_per_epoch: int, batch_size: int) -> float:
        """The learning rate of a step."""


@dataclass(frozen=True)
class Recipe(Entries):
    """AdamW, cosine per step, linear warm-up (V2 Table 5 and Sec. 5.1).

    `batch_size` is that of all processes together. `learning_rate` is for a batch of 1024 and scales with the batch;
    epochs may be fractions of a pass. `clip` is the factor of adaptive gradient clipping, 0: none (Table 5's "gradient
    clip 0.01" is that one). `ema` is the decay of the weights' moving average, which is then what is evaluated and
    saved, 0: none. `drop_path` None: what the paper has for the published network, 0 for others. `repeats`: copies of
    an image in an epoch (repeated augmentation). `layer_decay` multiplies the rate from one layer to the one below;
    `freeze` stages, and the stem with the first, do not learn. `balance`, where some classes have many more images than
    others: "sampling" draws all classes equally often, "weights" weighs the loss of the labels by class.
    """

    epochs: float = 30
    batch_size: int = 128
    learning_rate: float = 1e-3
    min_lr: float = 1e-5
    warmup_epochs: float = 5
    weight_decay: float = 0.025
    clip: float = 0.0
    label_smoothing: float = 0.1
    drop_path: float | None = 0.0
    layer_scale: float = 1e-5
    flip: bool = True
    crop_scale: tuple[float, float] = (0.35, 1.0)
    randaugment: str = ""
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    repeats: int = 1
    ema: float = 0.0
    layer_decay: float = 1.0
    freeze: int = 0
    balance: str = "none"
    checkpoint_every: int = 50  # steps

    ranges: ClassVar = {
        **dict.fromkeys(("epochs", "batch_size", "learning_rate", "layer_scale", "checkpoint_every"), POSITIVE),
        **dict.fromkeys(("min_lr", "warmup_epochs", "weight_decay", "clip", "mixup", "cutmix", "freeze"), NOT_NEGATIVE),
        **dict.fromkeys(("label_smoothing", "drop_path", "ema"), SHARE),
        "layer_decay": (lambda x: 0 < x <= 1, "above 0 and at most 1"),
        "erase": (lambda x: 0 <= x <= 1, "from 0 to 1"),
        "repeats": (lambda x: 1 <= x < math.inf, "at least 1"),
    }
    whole: ClassVar = ("batch_size", "checkpoint_every", "repeats", "freeze")
    optional: ClassVar = ("drop_path",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.flip, bool):
            raise UserError(f"recipe: flip must be true or false, not {self.flip!r}")
        if self.balance not in CHOICES:
            raise UserError(f"recipe: balance must be {', '.join(CHOICES[:-1])} or {CHOICES[-1]}, not {self.balance!r}")
        low_high = self.crop_scale
        if not isinstance(low_high, list | tuple) or len(low_high) != 2 or not all(map(is_number, low_high)):
            raise UserError(
                f"recipe: crop_scale must be two shares of the image, smallest and largest, not {low_high!r}"
            )
        object.__setattr__(self, "crop_scale", tuple(low_high))
        if self.mixes and self.batch_size % 2:
            raise UserError(f"recipe: mixup and cutmix need an even batch_size, not {self.batch_size}")
        self.augmentation  # noqa: B018 (refuses what it cannot be)

    @classmethod
    def imagenet(cls, epochs: float = 300, **changes) -> "Recipe":
        """V2 Table 5, with what the table leaves out from the published code (docs/training.md); the paper's longer
        schedules are 450 and 1000 epochs."""
        values = {
            "epochs": epochs,
            "batch_size": 1024,
            "clip": 0.01,
            "drop_path": None,
            "crop_scale": (0.08, 1.0),
            "randaugment": "rand-m9-mstd0.5-inc1",
            "erase": 0.25,
            "mixup": 0.8,
            "cutmix": 1.0,
            "repeats": 3,
            "ema": 0.99996,
            "checkpoint_every": 200,
        }
        return cls(**{**values, **changes})

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
    def finetune(cls, **changes) -> "Recipe":
        """From weights that know images already: short, a low rate that falls towards the stem."""
        values = {
            "epochs": 20,
            "learning_rate": 4e-3,
            "warmup_epochs": 1,
            "layer_decay": 0.9,
            "crop_scale": (0.35, 1.0),
            "erase": 0.1,
            "checkpoint_every": 50,
        }
        return cls(**{**values, **changes})

    @classmethod
    def named(cls, name: str, **changes) -> "Recipe":
        """One of `RECIPES`, or a YAML file of one's entries (`base` names the recipe that they change)."""
        if name in RECIPES:
            return getattr(cls, RECIPES[name])(**changes)
        if Path(name).suffix in (".yaml", ".yml"):
            return replace(cls.load(name), **changes)
        raise UserError(f"no recipe {name!r}; known: {', '.join(RECIPES)}, or a .yaml file")

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Recipe":
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"recipe {path} cannot be read: {error.strerror}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"recipe {path} is not YAML: {' '.join(str(error).split())}") from None
        if not isinstance(values, dict):
            raise UserError(f"recipe {path} holds no entries (name: value)")
        return cls.from_dict(values, str(path))

    def save(self, path: str | os.PathLike) -> None:
        files.write_text(path, yaml.safe_dump(self.to_dict(), sort_keys=False))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "recipe") -> "Recipe":
        """The recipe of entries as YAML gives them, `base` among them. Raises `UserError`, in one line that begins with
        `where`."""
        values = dict(values)
        base = values.pop("base", None)
        if base is not None and (not isinstance(base, str) or base not in RECIPES):
            raise UserError(f"{where}: base {base!r} is no recipe; known: {', '.join(RECIPES)}")
        return cls.made(partial(cls.named, base) if base else cls, values, where)

    def to_dict(self) -> dict:
        values = super().to_dict()
        if self.balance == "none":  # left out, as in the runs of before there was a choice
            del values["balance"]
        return values

    @property
    def augmentation(self) -> Augmentation:
        return Augmentation(
            flip=self.flip,
            scale=self.crop_scale,
            erase=self.erase,
            randaugment=self.randaugment,
            repeats=self.repeats,
        )

    @property
    def mixes(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0

    def drop_path_of(self, architecture: Architecture) -> float:
        """Stochastic depth of a network: what the recipe says, else what Table 5 does."""
        return published_drop_path(architecture) if self.drop_path is None else self.drop_path

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


# What the command line calls them -> the class method.
RECIPES = {"imagenet": "imagenet", "small-images": "small_images", "finetune": "finetune"}
