"""What each option of a supernet's training does, on real images.

    python benchmarks/ablation.py train --set cifar10 --data cifar10_mini_10k2k.npz
    python benchmarks/ablation.py train --set imagenette --data imagenette96.npz
    python benchmarks/ablation.py show --set cifar10
    python benchmarks/ablation.py train --set embedded --data embedded --variants 'in place alone' …

`train`: one supernet a variant and seed; a variant changes one thing of the first. After each epoch the accuracy on
search of the largest, the smallest and of random members, the same for all, with norms calibrated on images of fit; at
the end on test, with the switches' own statistics and with re-calibrated norms. `show`: the table and the curves
(docs/figures, by matplotlib) of what was trained. Results are kept in benchmarks/results/ablation.json, finished
trainings are skipped. Archives: archives.py.
"""

import argparse
import os
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from archives import read
from pocketformer import Supernet, files
from pocketformer.architecture import SearchSpace, Selection
from pocketformer.pipelines.images import open_images
from pocketformer.pipelines.networks import as_result
from pocketformer.pipelines.scoring import evaluator
from pocketformer.progress import say, stage
from pocketformer.runs import Ledger, alone, versions
from pocketformer.supernet.sampling import LatencyAware, Rule, Sandwich, Uniform
from pocketformer.training import checkpoint
from pocketformer.training.batches import train_batches
from pocketformer.training.compute import Compute
from pocketformer.training.engine import Job, planned_steps, train
from pocketformer.training.evaluation import evaluate, recalibrate
from pocketformer.training.recipe import Recipe
from pocketformer.training.targets import InPlace, Labels, Targets
from pocketformer.training.tasks import SandwichTask

RESULTS = Path(__file__).parent / "results" / "ablation.json"
RANDOM = 8  # members that all supernets of a set are asked for, besides the largest and the smallest


@dataclass(frozen=True)
class Set:
    space: str
    size: int
    batch: int
    epochs: float

    def recipe(self, epochs: float | None) -> Recipe:
        return Recipe.small_images(epochs=epochs or self.epochs, batch_size=self.batch, drop_path=0.0)


SPACES = Path(__file__).parent / "spaces"
SETS = {
    "cifar10": Set(str(SPACES / "small32.yaml"), 32, 128, 4),
    "imagenette": Set(str(SPACES / "small64.yaml"), 64, 64, 3),
    "embedded": Set("pocket28", 28, 128, 2.8),  # as quickstart trains it
}


@dataclass(frozen=True)
class Variant:
    """Of the first, which trains by the sandwich with in-place distillation alone, from the space's smallest member,
    and without stochastic depth."""

    rule: Callable[[SearchSpace, int], Rule] = lambda space, seed: Sandwich(space, seed=seed)
    targets: Callable[[Labels], Targets] = lambda labels: InPlace(labels, share=1)
    drop_path: float = 0.0
    minimum: bool = False

    def space(self, name: str) -> SearchSpace:
        space = SearchSpace.named(name)
        return replace(space, smallest=space.minimum.architecture) if self.minimum else space


def macs_aware(space: SearchSpace, seed: int) -> Rule:
    """Multiply-adds stand for latency: no device is needed."""
    return LatencyAware(space, lambda architecture: architecture.macs(), seed=seed)


FIRST = "in place alone"
VARIANTS = {
    FIRST: Variant(),
    "in place and labels, halves": Variant(targets=InPlace),
    "labels for all (the paper's rule)": Variant(targets=lambda labels: labels),
    "stochastic depth 0.1": Variant(drop_path=0.1),
    "uniform sampling, labels": Variant(rule=lambda s, seed: Uniform(s, seed=seed), targets=lambda labels: labels),
    "cost-aware sampling": Variant(rule=macs_aware),
    "smallest: the absolute minimum": Variant(minimum=True),
}


class Ablation:
    def __init__(self, args: argparse.Namespace):
        self.args, self.set = args, SETS[args.set]
        self.compute = Compute(args.device, args.precision)
        self.recipe = self.set.recipe(args.epochs)
        self.space = SearchSpace.named(self.set.space)
        size = (self.set.size, self.set.size)
        embedded = args.set == "embedded"
        self.data = open_images("embedded", size, 0, "refuse", 0) if embedded else read(args.data, self.set.size)
        self.members = {"largest": self.space.whole, "smallest": self.space.select(self.space.smallest)}
        self.members |= {f"random {i}": self.space.sample_selection(1000 + i) for i in range(RANDOM)}
        self.result = files.read_json(args.out) if args.out.exists() else {}
        self.name = f"{args.set}, {args.epochs:g} epochs" if args.epochs else args.set
        self.own = self.result.setdefault(self.name, {"supernets": {}})

    def save(self) -> None:
        args = self.args
        about = {
            "command": " ".join(["python benchmarks/ablation.py", *args.words]),
            "device": args.device,
            "precision": args.precision,
            "threads": args.threads,
            "machine": f"{platform.machine()}, {os.cpu_count()} processors",
            "versions": versions(),
            "recipe": self.recipe.to_dict(),
            "images": {name: len(getattr(self.data, name)) for name in ("fit", "search", "test")},
        }
        self.own[f"about {args.what}"] = about
        files.write_json(args.out, self.result)

    def train(self) -> None:
        for seed in range(self.args.seeds):
            for name, variant in VARIANTS.items():
                if self.args.variants and name not in self.args.variants:
                    continue
                key = f"{name}, seed {seed}"
                if key not in self.own["supernets"]:
                    self.own["supernets"][key] = self.trained(key, variant, seed)
                    self.save()
        self.own["effects"] = self.effects()
        self.save()

    def trained(self, key: str, variant: Variant, seed: int) -> dict:
        folder, recipe = self.folder(key), replace(self.recipe, drop_path=variant.drop_path)
        shutil.rmtree(folder, ignore_errors=True)  # half a curve is none
        space, curves = variant.space(self.set.space), []
        torch.manual_seed(seed)
        net = Supernet(
            space,
            len(self.data.classes),
            distilled=False,
            drop_path=variant.drop_path,
            layer_scale=recipe.layer_scale,
        )
        task = SandwichTask(net, variant.rule(space, seed), variant.targets(Labels(recipe.label_smoothing)))
        size, augmentation = space.resolution, recipe.augmentation
        batches = train_batches(self.data.fit, recipe.batch_size, size, augmentation, seed)

        def validate(model: Supernet) -> float:
            curves.append(self.searched(model, seed))
            return statistics.mean(curves[-1].values())

        began = time.monotonic()
        with Ledger(folder / "work.jsonl") as ledger, stage(key, planned_steps(batches, recipe)) as progress:
            job = Job(folder, key, ledger, progress, validate=validate)
            state = train(task, batches, recipe, job, seed, self.compute)
        net.load_state_dict(state.averaged.state_dict())
        checkpoint.save_tensors(folder / "model.safetensors", net)
        curve = curves if state.ema is None else curves[1::2]  # each epoch: the weights as they are, their average
        tested = {name: self.tested(net, member, seed) for name, member in self.members.items()}
        for kind in ("switches", "recalibrated"):
            say(f"{key}: {kind} {statistics.mean(t[kind]['accuracy'] for t in tested.values()):.2%} on test")
        return {"seconds": round(time.monotonic() - began), "search_by_epoch": curve, "test": tested}

    def folder(self, key: str) -> Path:
        return self.args.work / self.name.replace(", ", "_").replace(" ", "_") / key.replace(" ", "_").replace(",", "")

    def searched(self, model: Supernet, seed: int) -> dict[str, float]:
        with evaluator(model, self.data, seed) as evaluate_all:
            scores = evaluate_all(self.space.whole, list(self.members.values()))[1:]
        return {name: round(score.accuracy, 4) for name, score in zip(self.members, scores, strict=True)}

    def tested(self, net: Supernet, member: Selection, seed: int) -> dict:
        model = net.extract(member).to(memory_format=torch.channels_last).eval()
        found = {"switches": as_result(evaluate(model, self.data.test, model.resolution))}
        recalibrate(model, self.data.fit, model.resolution, seed)
        return found | {"recalibrated": as_result(evaluate(model.eval(), self.data.test, model.resolution))}

    def effects(self) -> dict:
        """Each variant's accuracy above that of the first with the same seed, re-calibrated, on test."""
        rows = {}
        for name in VARIANTS:
            keys = [(f"{name}, seed {seed}", f"{FIRST}, seed {seed}") for seed in range(self.args.seeds)]
            if not all(key in self.own["supernets"] for pair in keys for key in pair):
                continue
            groups = {"largest": ["largest"], "smallest": ["smallest"], "random": [*self.members][2:]}
            rows[name] = {}
            for group, names in groups.items():
                own, first = ([self.accuracy(key, names) for key in column] for column in zip(*keys, strict=True))
                above = [a - b for a, b in zip(own, first, strict=True)]
                rows[name][group] = {"accuracy": round(statistics.mean(own), 4), "above": [round(x, 4) for x in above]}
            plain = [self.accuracy(key, [*self.members][2:], "switches") for key, _ in keys]
            rows[name]["random, switches' own norms"] = {"accuracy": round(statistics.mean(plain), 4)}
            print(name, rows[name], flush=True)
        return rows

    def accuracy(self, key: str, names: list[str], kind: str = "recalibrated") -> float:
        tested = self.own["supernets"][key]["test"]
        return statistics.mean(tested[name][kind]["accuracy"] for name in names)


def show(name: str, results: Path) -> None:
    """The table in Markdown: accuracy, and in brackets how far above the first variant, by seed, in points; and the
    curves, means over the seeds."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    own = files.read_json(results)[name]
    print("| variant | largest | smallest | 8 random | 8 random, switches' own norms |\n|---|---|---|---|---|")
    for variant, row in own["effects"].items():
        cells = []
        for group in ("largest", "smallest", "random"):
            above = ", ".join(f"{100 * x:+.1f}" for x in row[group]["above"]) if any(row[group]["above"]) else ""
            cells.append(f"{row[group]['accuracy']:.1%}" + (f" ({above})" if above else ""))
        plain = row["random, switches' own norms"]["accuracy"]
        print(f"| {variant} | {' | '.join(cells)} | {plain:.1%} |")
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.6), layout="constrained", sharey=True)
    for axis, group in zip(axes, ("largest", "smallest", "random"), strict=True):
        for variant in own["effects"]:
            curves = [
                run["search_by_epoch"] for key, run in own["supernets"].items() if key.startswith(f"{variant}, seed")
            ]
            means = [
                [statistics.mean(v for k, v in e.items() if k.startswith(group)) for e in curve] for curve in curves
            ]
            mean = [statistics.mean(values) for values in zip(*means, strict=True)]
            axis.plot(range(1, len(mean) + 1), mean, marker="o", ms=3, label=variant)
        axis.set(title=group, xlabel="epoch")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy on search")
    axes[-1].legend(fontsize=7)
    target = Path(__file__).parents[1] / "docs" / "figures" / f"ablation_{name}.svg"
    target.parent.mkdir(exist_ok=True)
    figure.savefig(target, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("train", "show"))
    parser.add_argument("--set", choices=SETS, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--epochs", type=float)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.what == "show":
        show(args.set, args.out)
        return
    if args.data is None:
        parser.error(f"{args.what} needs --data (for --set embedded: embedded)")
    args.words = [Path(word).name if word.startswith("/") else word for word in sys.argv[1:]]
    torch.set_num_threads(args.threads)
    with alone(args.work / args.set):
        getattr(Ablation(args), args.what)()


if __name__ == "__main__":
    main()
