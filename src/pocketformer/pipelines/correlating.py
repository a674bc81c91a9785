"""The stages of `correlate`: subnets are drawn, scored without training, and trained from scratch (V2 Fig. 5)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from pocketformer import files
from pocketformer.architecture import SearchSpace, Selection
from pocketformer.errors import UserError
from pocketformer.pipelines.networks import FinalTraining, as_result, recalibrated_score
from pocketformer.pipelines.shrinking import load_searched
from pocketformer.pipelines.supernets import recalibration
from pocketformer.pipelines.trained import load_architecture
from pocketformer.progress import stage
from pocketformer.runs import Run
from pocketformer.supernet import Supernet
from pocketformer.supernet.strata import even_strata, members_of
from pocketformer.training.compute import Compute
from pocketformer.training.data import Data
from pocketformer.training.evaluation import evaluate
from pocketformer.training.recipe import Recipe

NEAR = 0.15  # how far from one count the subnets of the second set are, as a share of it


def trained_range(space: SearchSpace, num_classes: int) -> tuple[int, int]:
    """Parameters of the smallest member that a sandwich trains, and of the largest."""
    smallest, largest = (member.parameters(num_classes, False) for member in (space.smallest, space.largest))
    return smallest, largest


def draw_subnets(space: SearchSpace, num_classes: int, count: int, target: float, seed: int) -> dict[str, Selection]:
    """{name: subnet}: "spread 1", … one from each of `count` strata of the space, and "near 1", … with a number of
    parameters within `NEAR` of the target."""
    strata = {
        "spread": (even_strata(*trained_range(space, num_classes), count), 1),
        "near": ([(target * (1 - NEAR), target * (1 + NEAR))], count),
    }
    subnets: dict[str, Selection] = {}
    for name, (ranges, each) in strata.items():
        rng = Random(f"correlate {name} {seed}")
        members = members_of(space, lambda member: member.parameters(num_classes, False), ranges, each, rng)
        subnets |= {f"{name} {i}": member for i, member in enumerate(members, 1)}
    return subnets


def found_subnets(space: SearchSpace, searches: Sequence[str]) -> dict[str, Selection]:
    """{"found 1": …}: what searches of the space found, with the blocks that they kept."""
    subnets = {}
    for i, folder in enumerate(searches, 1):
        searched = load_searched(Path(folder), load_architecture(folder))
        if searched.supernet.space != space:
            raise UserError(f"--found {folder} searched space {searched.supernet.space.name}, not this {space.name}")
        subnets[f"found {i}"] = searched.found
    return subnets


@dataclass(frozen=True)
class Stages:
    """Accuracies of the subnets on the search split, {subnet: {way: result}}; what is done is not done again."""

    run: Run
    subnets: Mapping[str, Selection]
    data: Data

    def scored(self, supernet: Supernet, alone: Supernet, seed: int) -> dict[str, dict]:
        """Without training: in the supernet with its own norms and with re-calibrated ones, and EagleEye's way, as
        slices of a network trained alone, norms re-calibrated too."""

        def score(key: str) -> dict:
            own = recalibration(supernet, self.subnets[key], self.data, seed)
            eagle = as_result(recalibrated_score(alone, self.subnets[key], self.data, seed), "search")
            return {"own": own["before"], "recalibrated": own["recalibrated"], "alone": eagle}

        with stage("score the subnets", len(self.subnets)) as progress:
            return self._each("score", score, progress.advance)

    def trained(self, recipe: Recipe, seed: int, compute: Compute, workers: int) -> dict[str, dict]:
        """After training from scratch on fit, all on the same batches in the same order."""
        on_fit = replace(self.data, final=self.data.fit)
        final = FinalTraining(on_fit, recipe, seed, self.run.ledger, None, compute, workers, keep=1)

        def train(key: str) -> dict:
            folder = self.run.path / "subnets" / key.replace(" ", "_")
            model = final.run(folder, key, final.fresh(self.subnets[key].architecture)).to(compute.where)
            found = evaluate(model, self.data.search, model.resolution, workers=workers)
            (folder / "last.ckpt").unlink(missing_ok=True)  # three times the network's size, of dozens of networks
            return {"trained": as_result(found, "search")}

        return self._each("evaluate", train)

    def _each(self, name: str, work: Callable[[str], dict], tell: Callable[[], None] = lambda: None) -> dict[str, dict]:
        """`work` of every subnet, kept line by line in a file."""
        file = self.run.path / f"{name}.jsonl"
        with files.Lines(file) as lines:
            found = {line["subnet"]: line["accuracy"] for line in lines.read(file)}
            for key in self.subnets:
                if key not in found:
                    found[key] = work(key)
                    lines.write({"subnet": key, "accuracy": found[key]})
                    self.run.ledger.did(name, key)
                tell()
        return found
