"""What `design` is asked for, as one frozen value."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from pocketformer.architecture import SearchSpace
from pocketformer.errors import UserError
from pocketformer.search.metrics import kind_of
from pocketformer.training.recipe import Recipe

_SCALES = {
    "size": {"": 1, "k": 1e3, "m": 1e6},
    "latency": {"": 1, "ms": 1, "us": 1e-3, "µs": 1e-3, "s": 1e3},
    "macs": {"": 1, "k": 1e3, "m": 1e6, "g": 1e9},
    "memory": {"": 1e6, "kb": 1e3, "mb": 1e6, "gb": 1e9},
    "energy": {"": 1, "mj": 1, "uj": 1e-3, "µj": 1e-3, "j": 1e3},
}
_EXAMPLES = {
    "size": "3.5M, 800k or 3500000",
    "latency": "0.9ms, 900us or 0.9",
    "macs": "300M, 0.4G or 300000000",
    "memory": "4MB, 500kB or 4",
    "energy": "2mJ, 500uJ or 2",
}
_NAMES = {"size": "--max-parameters", **{name: f"--max-{name}" for name in ("latency", "macs", "memory", "energy")}}


@dataclass(frozen=True)
class Budget:
    """A limit in the metric's unit (parameters, ms, MACs, bytes, mJ), or a share of the largest subnet's value."""

    value: float
    relative: bool = False

    def of(self, largest: float) -> float:
        return self.value * largest if self.relative else self.value


def parse_budget(metric: str, text: str | float) -> Budget:
    """A budget of a metric (`search.metrics`): a number with an optional unit, or a share such as 50%.

    Raises `UserError` for anything else, zero and negative numbers included.
    """
    kind = kind_of(metric)
    match = re.fullmatch(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)\s*([a-zµ%]*)\s*", str(text), re.IGNORECASE)
    unit = match[2].lower() if match else None
    if match is None or (unit != "%" and unit not in _SCALES[kind]):
        raise UserError(f"{_NAMES[kind]} {text!r} is not understood; give {_EXAMPLES[kind]}, or 50%")
    value = float(match[1])
    if not value > 0 or not math.isfinite(value):
        raise UserError(f"{_NAMES[kind]} must be above zero, not {text}")
    if unit == "%":
        return Budget(value / 100, relative=True)
    return Budget(value * _SCALES[kind][unit])


@dataclass(frozen=True)
class ProfileSettings:
    """How latency is measured: threads, images a call, rounds, whole networks to fit and to check with, and what
    the runtime runs on (cpu, cuda; None: the first that it knows)."""

    threads: int = 1
    batch: int = 1
    rounds: int = 30
    networks: int = 24
    checks: int = 8
    device: str | None = None


@dataclass(frozen=True)
class DesignSettings:
    """One job of `design`. Equal settings in the same folder resume it."""

    data: str
    space: SearchSpace
    runtime: str
    budgets: Mapping[str, Budget] = field(default_factory=dict)
    min_mes: float | None = None
    alphas: Mapping[str, float] = field(default_factory=dict)  # exponents of MES, where not the usual ones
    form: str = "budget"  # of MES (contract 6.8)
    seed: int = 0
    supernet: Recipe = field(default_factory=Recipe.small_images)
    final: Recipe = field(default_factory=Recipe.small_images)
    profile: ProfileSettings = field(default_factory=ProfileSettings)
    latency: str | None = None  # a table measured before
    teacher: str | None = None
    from_scratch: bool = False
    random: int = 20  # subnets that the found one is compared with
    calibration: int = 128  # images of fit that calibrate the norms in the search
    bad_images: str = "refuse"
    group_by: str | None = None  # how images are grouped that stay on one side of every split
    workers: int = 2
    class_order: str | None = None  # of a teacher's file that names no classes
    accept_table_error: bool = False  # of a table that its own check finds wrong
    command: str = "design"

    def to_dict(self) -> dict:
        """Everything that decides the result (not `workers`, which does not, nor what is accepted)."""
        chosen = {"alphas": dict(self.alphas), "form": self.form, "group_by": self.group_by}
        chosen["class_order"] = self.class_order
        # Left out, as in the runs of before there was a choice.
        usual = {"alphas": {}, "form": "budget", "group_by": None, "class_order": None}
        return {
            **{name: value for name, value in chosen.items() if value != usual[name]},
            "data": self.data,
            "space": self.space.to_dict(),
            "runtime": self.runtime,
            "budgets": {name: [b.value, b.relative] for name, b in self.budgets.items()},
            "min_mes": self.min_mes,
            "seed": self.seed,
            "supernet": self.supernet.to_dict(),
            "final": self.final.to_dict(),
            "profile": dict(self.profile.__dict__),
            "latency": self.latency,
            "teacher": self.teacher,
            "from_scratch": self.from_scratch,
            "random": self.random,
            "calibration": self.calibration,
            "bad_images": self.bad_images,
        }


def stored_size(space: SearchSpace) -> tuple[int, int]:
    """The size at which images are kept: photographs larger than 64 px are evaluated on the central 87.5 %."""
    height, width = space.resolution
    if max(height, width) <= 64:
        return height, width
    return round(height / 0.875), round(width / 0.875)
