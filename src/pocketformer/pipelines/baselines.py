"""What the search is held against: random subnets of the same cost, chosen on the search split."""

import random
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path

from pocketformer import files
from pocketformer.architecture import SearchSpace, Selection
from pocketformer.pipelines.networks import recalibrated_score
from pocketformer.progress import stage
from pocketformer.runs import Ledger
from pocketformer.search import Objective
from pocketformer.search.alternatives import Window
from pocketformer.supernet import Supernet
from pocketformer.training.data import Data


def random_subnets(
    space: SearchSpace,
    costs: Callable[[Selection], dict[str, float]],
    budgets: Mapping[str, float],
    count: int,
    seed: int,
    besides: Selection,
) -> list[Selection]:
    """Up to `count` different members as costly as a found one, whose latency and size are the `budgets`: latency in
    0.9 to 1.0 times its own, the others held. Not `besides`, the found one itself."""
    draws = Window(Objective(budgets)).draws(space, costs, random.Random(f"random subnets {seed}"))
    return list(islice((s for s in draws if s != besides), count))


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
