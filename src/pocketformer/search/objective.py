"""Mobile Efficiency Score (paper eq. 7) and the budgets that a search has to meet (contract 6.8)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pocketformer.errors import UserError

# Paper Sec. 4.2.1: the size of MobileNetV2, and its latency on the paper's phone (contract 6.8).
UNITS = {"size": 3e6, "latency": 1.0}
EXPONENTS = {"size": 0.5, "latency": 1.0}
SCORE = 100.0
FORMS = ("budget", "paper")


def mes(
    metrics: Mapping[str, float],
    units: Mapping[str, float] | None = None,
    exponents: Mapping[str, float] | None = None,
    score: float = SCORE,
) -> float:
    """Eq. 7: Score * prod_i (M_i / U_i) ** -alpha_i, over the metrics that have an exponent.

    `metrics` in the units' units: size in parameters, latency in ms; others as the caller defines them.

    >>> round(mes({"size": 3.5e6, "latency": 0.9}), 1)
    102.9
    """
    units = {**UNITS, **(units or {})}
    exponents = EXPONENTS if exponents is None else exponents
    for name, exponent in exponents.items():
        if name not in metrics:
            raise UserError(f"MES needs the metric {name!r}; given: {', '.join(metrics) or 'none'}")
        if name not in units:
            raise UserError(f"MES needs a unit for {name!r}; known: {', '.join(units)}")
        if not metrics[name] > 0 or not units[name] > 0:
            raise UserError(f"MES needs a positive {name} and unit, not {metrics[name]} and {units[name]}")
        score *= (metrics[name] / units[name]) ** -exponent
    return score


@dataclass(frozen=True)
class Objective:
    """What a search climbs (MES) and where it stops (budgets; all must hold).

    `form` "budget": a metric that has met its budget stops rewarding, prod (max(M_i, B_i) / U_i) ** -alpha_i;
    "paper": eq. 7 as printed. A smallest score asks for more than the budgets do, so that with one every metric
    goes on rewarding.
    """

    budgets: Mapping[str, float] = field(default_factory=dict)
    min_mes: float | None = None
    units: Mapping[str, float] = field(default_factory=lambda: dict(UNITS))
    exponents: Mapping[str, float] = field(default_factory=lambda: dict(EXPONENTS))
    form: Literal["budget", "paper"] = "budget"

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise UserError(f"the form of MES is one of {', '.join(FORMS)}, not {self.form!r}")
        for name, exponent in self.exponents.items():
            if not (exponent >= 0 and math.isfinite(exponent)):
                raise UserError(f"the exponent of {name} must be zero or above, not {exponent:g}")
        if not any(self.exponents.values()):
            raise UserError("every metric's exponent is zero: no action would raise MES")

    def mes(self, costs: Mapping[str, float]) -> float:
        """Eq. 7 as printed: the figure that is shown."""
        return mes(costs, self.units, self.exponents)

    def compass(self, costs: Mapping[str, float]) -> float:
        """The score whose gain decides between actions."""
        if self.form == "budget" and self.min_mes is None:
            costs = {name: max(cost, self.budgets.get(name, 0.0)) for name, cost in costs.items()}
        return mes(costs, self.units, self.exponents)

    def usage(self, costs: Mapping[str, float]) -> dict[str, float]:
        """Each budget's used share; above 1 it does not hold."""
        return {name: costs[name] / budget for name, budget in self.budgets.items()}

    def held(self, costs: Mapping[str, float]) -> frozenset[str]:
        """The budgets that hold, "mes" among them if the smallest score is reached."""
        names = {name for name, share in self.usage(costs).items() if share <= 1}
        reached = self.min_mes is not None and self.mes(costs) >= self.min_mes
        return frozenset(names | {"mes"} if reached else names)

    def met(self, costs: Mapping[str, float]) -> bool:
        return len(self.held(costs)) == len(self.budgets) + (self.min_mes is not None)
