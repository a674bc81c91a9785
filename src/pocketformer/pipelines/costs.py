"""What a subnet costs: parameters, MACs and memory in closed form, latency and energy from the devices' tables."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from pocketformer.architecture import Architecture, SearchSpace, Selection
from pocketformer.devices import LatencyTable
from pocketformer.pipelines.settings import Budget
from pocketformer.search import Objective
from pocketformer.search.metrics import kind_of, spread

_UNIT_SIZE = 3e6  # paper Sec. 4.2.1
_WEIGHT = 0.5  # of a metric that the paper does not weigh, once it has a budget: that of size


class Energy(Protocol):
    def energy(self, architecture: Architecture) -> float:
        """mJ per batch."""
        ...


def closed_form(architecture: Architecture, num_classes: int) -> dict[str, int]:
    """What needs no device to be known, of the network as it is deployed: of two heads that a teacher had it learn
    with, one is left."""
    return {
        "size": architecture.parameters(num_classes, distilled=False),
        "macs": architecture.macs(num_classes=num_classes, distilled=False),
        "memory": architecture.peak_memory(num_classes=num_classes),
    }


@dataclass(frozen=True)
class CostModel:
    """Costs of a selection: "size" (parameters), "latency" (ms), "macs", "memory" (bytes of peak activations), and
    "energy" (mJ) if it is known. Of several devices, `tables` are by name, and the costs "latency:NAME".

    `correction` scales the latencies once whole networks have been measured near the budget.
    """

    tables: LatencyTable | Mapping[str, LatencyTable]
    num_classes: int
    correction: float = 1.0
    energy: Energy | None = None

    @property
    def latencies(self) -> dict[str, LatencyTable]:
        """The table of each latency metric."""
        if isinstance(self.tables, Mapping):
            return {f"latency:{name}": table for name, table in self.tables.items()}
        return {"latency": self.tables}

    def __call__(self, subnet: Selection | Architecture) -> dict[str, float]:
        architecture = subnet.architecture if isinstance(subnet, Selection) else subnet
        closed = closed_form(architecture, self.num_classes)
        latencies = {name: table.latency(architecture) for name, table in self.latencies.items()}
        costs = {"size": closed.pop("size"), **{k: v * self.correction for k, v in latencies.items()}, **closed}
        if self.energy is not None:
            costs["energy"] = self.energy.energy(architecture)
        return costs

    def largest(self, space: SearchSpace) -> dict[str, float]:
        """Costs of the largest subnet, which budgets in percent refer to: what a table says of it, as of all others
        that are compared with the budget, not the time that was measured."""
        return self(space.largest)

    def corrected(self, factor: float) -> "CostModel":
        return replace(self, correction=factor)

    def objective(
        self,
        space: SearchSpace,
        limits: Mapping[str, Budget],
        min_mes: float | None = None,
        alphas: Mapping[str, float] | None = None,
        form: str = "budget",
    ) -> Objective:
        """MES in these devices' units (contract 6.8), with budgets in the metrics' units. The unit of a metric that
        the paper has none for is the largest subnet's value: a constant factor, that no decision depends on."""
        largest = self.largest(space)
        units = {**largest, "size": _UNIT_SIZE, **{name: table.unit for name, table in self.latencies.items()}}
        budgets = {name: b.of(largest[name]) for name, b in spread(limits, largest, "a budget on").items()}
        chosen = exponents(largest, budgets, spread(alphas or {}, largest, "an exponent of"))
        return Objective(budgets, min_mes, units, chosen, form)


def exponents(metrics: Mapping[str, float], budgets: Mapping[str, float], given: Mapping[str, float]) -> dict:
    """The paper's weights of size (0.5) and latency (1, shared by the devices), 0.5 for another metric that has a
    budget, and those given instead; without the zeros."""
    devices = sum(kind_of(name) == "latency" for name in metrics)
    found = {}
    for name in metrics:
        weight = _WEIGHT if name == "size" or name in budgets else 0.0
        found[name] = given.get(name, 1.0 / devices if kind_of(name) == "latency" else weight)
    return {name: alpha for name, alpha in found.items() if alpha != 0}
