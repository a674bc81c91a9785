"""What a subnet costs: parameters and memory in closed form, latency from the device's table."""

from dataclasses import dataclass, replace

from pocketformer.architecture import Architecture, SearchSpace, Selection
from pocketformer.devices import LatencyTable
from pocketformer.search import Objective
from pocketformer.search.objective import EXPONENTS


@dataclass(frozen=True)
class CostModel:
    """Costs of a selection: "size" (parameters), "latency" (ms), "memory" (bytes of peak activations).

    `correction` scales the table's latency once whole networks have been measured near the budget.
    """

    table: LatencyTable
    num_classes: int
    distilled: bool = False
    correction: float = 1.0

    def __call__(self, subnet: Selection | Architecture) -> dict[str, float]:
        architecture = subnet.architecture if isinstance(subnet, Selection) else subnet
        return {
            "size": architecture.parameters(self.num_classes, self.distilled),
            "latency": self.table.latency(architecture) * self.correction,
            "memory": architecture.peak_memory(num_classes=self.num_classes),
        }

    def largest(self, space: SearchSpace) -> dict[str, float]:
        """Costs of the largest subnet, which budgets in percent refer to. It is the reference network of our own
        tables: its latency is the measured one, not the sum of its blocks."""
        costs = self(space.largest)
        reference = self.table.reference
        return {**costs, "latency": reference.latency} if reference.name == "largest" else costs

    def corrected(self, factor: float) -> "CostModel":
        return replace(self, correction=factor)


def objective(budgets: dict[str, float], min_mes: float | None, latency_unit: float, memory_unit: float) -> Objective:
    """MES in this device's unit (contract 6.8). Memory enters when it has a budget; its unit, the largest
    subnet's, is a constant factor that no decision depends on."""
    exponents = {**EXPONENTS, **({"memory": 0.5} if "memory" in budgets else {})}
    units = {"size": 3e6, "latency": latency_unit, "memory": memory_unit}
    return Objective(budgets, min_mes, units, exponents)
