"""V1's MetaPath supernet and its slimming on CIFAR-10: does alpha decide, do seeds agree, what is the choice worth?

    pocketformer profile --space metapath32 --classes 10 --out table.json
    python benchmarks/slimming.py train --data cifar10_mini_10k2k.npz
    python benchmarks/slimming.py slim --data cifar10_mini_10k2k.npz --latency table.json

`train`: a supernet of metapath32 a seed; the entropy of softmax(alpha) by epoch, the importance of every MetaPath, and
the rank correlation of the seeds'. `slim`: V1's slimming of each to two shares of the largest network's latency, beside
random V1 networks of 0.95 to 1.05 times the latency found, all on the search split with the supernet's weights and
norms re-calibrated on fit. Results are kept in benchmarks/results/slimming.json; what stands there is not done again,
trainings resume.
"""

import argparse
import itertools
import os
import platform
import random
import statistics
import time
from functools import cached_property
from pathlib import Path

import torch

from archives import read
from pocketformer import MetaPathSupernet, files
from pocketformer.architecture import SearchSpace, Selection
from pocketformer.devices.measure import spearman
from pocketformer.pipelines.costs import CostModel
from pocketformer.pipelines.networks import recalibrated_score
from pocketformer.pipelines.scoring import evaluator
from pocketformer.pipelines.supernets import load_supernet, train_supernet
from pocketformer.pipelines.tables import open_table
from pocketformer.progress import say, stage
from pocketformer.runs import Ledger, alone, versions
from pocketformer.search import Objective, Score
from pocketformer.search.alternatives.v1_slimming import V1Slimming
from pocketformer.search.alternatives.window import Window
from pocketformer.search.method import Begun
from pocketformer.search.trajectory import Point
from pocketformer.training.recipe import Recipe

RESULTS = Path(__file__).parent / "results" / "slimming.json"
SPACE = "metapath32"
SHARES = (0.7, 0.45)  # of the largest network's latency


class Slimming:
    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.space = SearchSpace.named(SPACE)
        self.data = read(args.data, self.space.resolution[0])
        self.result = files.read_json(args.out) if args.out.exists() else {}

    def recipe(self, epochs: float) -> Recipe:
        return Recipe.small_images(epochs=epochs, batch_size=128)

    def save(self, epochs: float) -> None:
        args = self.args
        self.result[f"about {args.what}"] = {
            "command": f"python benchmarks/slimming.py {args.what} --data {args.data.name}",
            "threads": args.threads,
            "machine": f"{platform.machine()}, {os.cpu_count()} processors",
            "versions": versions(),
            "recipe": self.recipe(epochs).to_dict(),
            "images": {name: len(getattr(self.data, name)) for name in ("fit", "search")},
        }
        files.write_json(args.out, self.result)

    # --- the supernets

    def train(self) -> None:
        own = self.result.setdefault("supernets", {})
        for seed in range(self.args.seeds):
            if (key := f"seed {seed}") not in own:
                own[key] = self.supernet(seed)
                self.save(self.args.epochs)
                say(f"{key}: entropy {own[key]['entropy_by_epoch']}")
        if len(own) > 1:
            self.result["agreement"] = self.agreement(list(own.values()))
            self.save(self.args.epochs)
            print(self.result["agreement"])

    def folder(self, seed: int) -> Path:
        return self.args.work / f"seed_{seed}"

    def supernet(self, seed: int) -> dict:
        folder, began = self.folder(seed), time.monotonic()
        recipe = self.recipe(self.args.epochs)
        with Ledger(folder / "work.jsonl") as ledger:
            net = train_supernet(folder, self.space, self.data, recipe, seed, ledger)
        lines = files.Lines.read(folder / "metrics.jsonl")
        entropies = [line["entropy"] for line in lines[:: len(self.data.fit) // recipe.batch_size]]
        scored = recalibrated_score(net, self.space.whole, self.data, seed)
        return {
            "seconds": round(time.monotonic() - began),
            "entropy_by_epoch": [round(value, 4) for value in (*entropies, net.entropy().item())],
            "importances": [[round(value, 4) for value in stage] for stage in net.importances()],
            "shares": [[[round(p, 4) for p in path.alpha.softmax(0).tolist()] for path in s] for s in net.stages],
            "largest_on_search": scored.accuracy,
        }

    @staticmethod
    def agreement(supernets: list[dict]) -> dict:
        """Spearman's rank correlation between the importances of each two seeds: of MetaPaths, and of stages."""
        blocks = [[value for stage in s["importances"] for value in stage] for s in supernets]
        stages = [[sum(stage) for stage in s["importances"]] for s in supernets]
        pairs = {"metapaths": blocks, "stages": stages}
        return {name: [spearman(a, b) for a, b in itertools.combinations(x, 2)] for name, x in pairs.items()}

    # --- slimming

    @cached_property
    def costs(self) -> CostModel:
        return CostModel(open_table(self.args.latency), len(self.data.classes))

    def slim(self) -> None:
        own = self.result.setdefault("slimmed", {})
        for seed, share in itertools.product(range(self.args.seeds), SHARES):
            if (key := f"seed {seed}, {share:.0%}") not in own:
                own[key] = self.slimmed(seed, share, key)
                self.save(self.args.epochs)
                found, mean, best = own[key]["found"]["accuracy"], own[key]["random_mean"], own[key]["random_best"]
                say(f"{key}: {found:.1%}; random: mean {mean:.1%}, best {best:.1%}")

    def slimmed(self, seed: int, share: float, key: str) -> dict:
        net: MetaPathSupernet = load_supernet(self.folder(seed))[0]
        costs, began = self.costs, time.monotonic()
        whole = costs(self.space.whole)
        objective = Objective({"latency": share * whole["latency"]})
        start = Point(0, self.space.whole, Score(float("nan"), float("nan")), whole, objective.mes(whole), "slim")
        moves = []
        with stage(f"slim {key}") as progress, evaluator(net, self.data, seed, progress=progress) as scored:
            for move in V1Slimming(net.importances()).moves(Begun([], [start], costs, scored, objective)):
                moves.append(move)
                progress.update(move.step, f"{move.chosen.action}")
        seconds, found = time.monotonic() - began, moves[-1].chosen.selection
        rng = random.Random(f"random {key}")
        window = Window(Objective({"latency": 1.05 * costs(found)["latency"]}), 0.95 / 1.05)
        draws = window.draws(self.space, costs, rng)
        others = [self.described(net, s, seed) for s in itertools.islice(draws, self.args.random)]
        own = self.described(net, found, seed)
        accuracies = [other["accuracy"] for other in others]
        return {
            "seconds": round(seconds),
            "holds": objective.met(costs(found)),
            "actions": [str(move.chosen.action) for move in moves],
            "found": own,
            "random": others,
            "random_mean": round(statistics.mean(accuracies), 4),
            "random_best": max(accuracies),
            "beats": sum(own["accuracy"] > accuracy for accuracy in accuracies),
        }

    def described(self, net: MetaPathSupernet, selection: Selection, seed: int) -> dict:
        """A member with the supernet's weights, on the search split."""
        costs, outcome = self.costs(selection), recalibrated_score(net, selection, self.data, seed)
        about = {"selection": selection.to_dict(), "latency": costs["latency"], "parameters": costs["size"]}
        return {**about, "accuracy": round(outcome.accuracy, 4), "loss": round(outcome.loss, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("train", "slim"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--latency", type=Path, help="of `profile --space metapath32 --classes 10`, for slim")
    parser.add_argument("--epochs", type=float, default=12)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--random", type=int, default=20, help="random networks a budget")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/slimming"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with alone(args.work):
        getattr(Slimming(args), args.what)()


if __name__ == "__main__":
    main()
