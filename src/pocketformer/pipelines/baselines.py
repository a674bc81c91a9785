"""What the search is held against: random subnets of the same cost, chosen on the search split."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pocketformer import files
from pocketformer.architecture import SearchSpace, Selection
from pocketformer.pipelines.networks import recalibrated_score
from pocketformer.progress import stage
from pocketformer.runs import Ledger
from pocketformer.supernet import Supernet
from pocketformer.training.data import Data

_IDLE_DRAWS = 20_000  # give up after so many without a find: a narrow window may hold few members


@dataclass(frozen=True)
class Window:
    """Subnets as costly as the found one: latency in 0.9 to 1.0 times its own, parameters at most its own, and the
    budgets on anything else held."""

    latency: float
    size: int
    others: Mapping[str, float] = field(default_factory=dict)

    def holds(self, costs: dict[str, float]) -> bool:
        inside = 0.9 * self.latency <= costs["latency"] <= self.latency and costs["size"] <= self.size
        return inside and all(costs[name] <= budget for name, budget in self.others.items())


def random_subnets(
    space: SearchSpace,
    costs: Callable[[Selection], dict[str, float]],
    window: Window,
    count: int,
    seed: int,
    besides: Selection,
) -> list[Selection]:
    """Up to `count` different members inside the window, by rejection from the contract's sampling law (6.6);
    not `besides`, the found one itself."""
    rng = random.Random(f"random subnets {seed}")
    found: dict[Selection, None] = {}
    idle = 0
    while len(found) < count and idle < _IDLE_DRAWS:
        selection = space.sample_selection(rng)
        idle += 1
        if selection not in found and selection != besides and window.holds(costs(selection)):
            found[selection] = None
            idle = 0
    return list(found)


def score_subnets(
    path: Path, supernet: Supernet, selections: list[Selection], data: Data, seed: int, ledger: Ledger, name: str
) -> list[dict]:
    """Accuracy of each on the search split, norms re-calibrated; appended to `path` one by one, so that none
    is scored twice."""
    lines = files.Lines(path)
    scored = {str(line["selection"]): line for line in lines.read(path)}
    results = []
    with stage(name, len(selections), sum(str(s.to_dict()) in scored for s in selections)) as progress:
        for i, selection in enumerate(selections):
            line = scored.get(str(selection.to_dict()))
            if line is None:
                outcome = recalibrated_score(supernet, selection, data, seed)
                line = {"selection": selection.to_dict(), "accuracy": outcome.accuracy, "loss": outcome.loss}
                lines.write(line)
                ledger.did(name, i)
                progress.advance()
            results.append(line)
    lines.close()
    return results
