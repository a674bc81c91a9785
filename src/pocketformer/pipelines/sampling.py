"""Which subnets a supernet's training runs, as a command line says it, and the rule that it becomes; of V1's supernet,
how it chooses between blocks."""

import math
from dataclasses import asdict, dataclass

from pocketformer.architecture import SearchSpace
from pocketformer.errors import UserError
from pocketformer.pipelines.costs import CostModel
from pocketformer.pipelines.refusals import check_table
from pocketformer.pipelines.settings import parse_budget
from pocketformer.pipelines.tables import open_table
from pocketformer.supernet.gumbel import NOISES
from pocketformer.supernet.metapath import ALPHA_RATE
from pocketformer.supernet.sampling import LatencyAware, Rule, Sandwich, Uniform

SAMPLINGS = ("sandwich", "uniform", "latency")


@dataclass(frozen=True)
class Choice:
    """Of a MetaPath supernet (V1): the `noise` of its Gumbel softmax, and how fast alpha learns beside the weights."""

    noise: str = "gumbel"
    alpha_rate: float = ALPHA_RATE

    def __post_init__(self) -> None:
        if self.noise not in NOISES:
            raise UserError(f"noise {self.noise!r} is unknown; known: {', '.join(NOISES)}")
        if not 0 < self.alpha_rate < math.inf:
            raise UserError(f"alpha's rate must be above zero, not {self.alpha_rate:g}")

    def to_dict(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class Sampling:
    """One of `SAMPLINGS`. `random`: subnets that are drawn a step (None: as many as make four in all); `latency`: the
    table's file, and `max_latency` a budget as text, of latency-aware sampling alone."""

    name: str = "sandwich"
    random: int | None = None
    latency: str | None = None
    max_latency: str | None = None

    def __post_init__(self) -> None:
        if self.name not in SAMPLINGS:
            raise UserError(f"sampling {self.name!r} is unknown; known: {', '.join(SAMPLINGS)}")
        if self.name == "latency" and self.latency is None:
            raise UserError("--sampling latency needs the device's latency table (--latency)")
        if self.name != "latency" and (self.latency or self.max_latency):
            raise UserError("--latency and --max-latency are for --sampling latency")
        if self.max_latency is not None:
            parse_budget("latency", self.max_latency)
        if self.random is None:
            object.__setattr__(self, "random", 4 if self.name == "uniform" else 2)

    def to_dict(self) -> dict:
        return asdict(self)

    def rule(self, space: SearchSpace, num_classes: int, seed: int) -> Rule:
        """Raises `UserError` for a table of another space, or a budget that no member is near."""
        if self.name != "latency":
            return (Uniform if self.name == "uniform" else Sandwich)(space, self.random, seed)
        table = open_table(self.latency, space)
        check_table(table, self.latency, space, num_classes)
        largest = CostModel(table, num_classes).largest(space)["latency"]
        budget = self.max_latency and parse_budget("latency", self.max_latency).of(largest)
        rule = LatencyAware(space, table.latency, self.random, seed, budget)
        rule.range  # noqa: B018 (refuses the budget now)
        return rule
