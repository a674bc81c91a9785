"""The joint search and what it is compared with, on one supernet: the same evaluator, costs, budgets and evaluations.

    python benchmarks/alternatives.py run --set cifar10 --data cifar10_mini_10k2k.npz --latency table.json
    python benchmarks/alternatives.py plot --set cifar10

The supernet is one of `ablation.py train` (in place and labels, seed 0) unless another is given. For each budget, a
share of the largest subnet's latency and parameters, the joint search comes first; random, evolution and nsga2 then
score exactly as many subnets, in three seeds each, uniform at most as many; pruning and v1-scale end by themselves.
Accuracy on search is the search's own (norms calibrated on images of fit), which a method that scores many subnets has
chosen by; that on test was not chosen by anything. Results: benchmarks/results/alternatives.json; what it holds is not
run again. `plot` needs matplotlib.
"""

import argparse
import json
import os
import platform
import shutil
import time
from contextlib import closing
from pathlib import Path

import torch

from ablation import SETS
from archives import read
from pocketformer import Supernet, files
from pocketformer.architecture import SearchSpace
from pocketformer.errors import WorkError
from pocketformer.pipelines.costs import CostModel
from pocketformer.pipelines.methods import METHODS, PROPOSING, SEEDED, Asked
from pocketformer.pipelines.scoring import evaluator
from pocketformer.pipelines.searching import Trajectory
from pocketformer.pipelines.settings import Budget
from pocketformer.pipelines.tables import open_table
from pocketformer.progress import stage
from pocketformer.runs import Ledger, alone, versions
from pocketformer.search import Walk
from pocketformer.search.trajectory import evaluations
from pocketformer.training import checkpoint
from pocketformer.training.evaluation import evaluate, recalibrate

BENCHMARKS = Path(__file__).parent
RESULTS = BENCHMARKS / "results" / "alternatives.json"
SLIMMING = tuple(name for name in METHODS if name not in PROPOSING and name != "v1-slimming")


class Comparison:
    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.result = files.read_json(RESULTS) if RESULTS.exists() else {}
        self.own = self.result.setdefault(args.set, {"runs": {}})
        self.data = read(args.data, SETS[args.set].size)
        space = SearchSpace.named(SETS[args.set].space)
        self.net = Supernet(space, len(self.data.classes), distilled=False).to(memory_format=torch.channels_last)
        checkpoint.load_weights(self.net, args.supernet)
        self.costs = CostModel(open_table(args.latency), len(self.data.classes))
        given = {"supernet": files.digest(args.supernet), "latency table": files.digest(args.latency)}
        if self.own.setdefault("digests", given) != given:
            raise SystemExit(f"{RESULTS}: its runs of {args.set} are on another supernet, or with another table")

    def run(self) -> None:
        for share in self.args.budgets:
            joint = self.once(share, "joint", None, 0)
            for name in METHODS:
                seeds = range(self.args.seeds) if name in SEEDED else (0,)
                for seed in seeds if name not in ("joint", "v1-slimming") else ():
                    self.once(share, name, str(joint["evaluations"]) if name in PROPOSING else None, seed)

    def once(self, share: float, name: str, count: str | None, seed: int) -> dict:
        key = f"{share:.0%}, {name}" + (f", seed {seed}" if name in SEEDED else "")
        if key not in self.own["runs"]:
            self.own["runs"][key] = self.searched(key, share, Asked(name, count, seed))
            self.save()
        found = self.own["runs"][key]
        print(key, {k: v for k, v in found.items() if k not in ("selection", "states")}, flush=True)
        return found

    def searched(self, key: str, share: float, asked: Asked) -> dict:
        space, folder = self.net.space, self.args.work / self.args.set / key.replace(" ", "_").replace(",", "")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        limits = {name: Budget(share, relative=True) for name in ("latency", "size")}
        target = self.costs.objective(space, limits)
        method = asked.of(self.net, target)
        began = time.monotonic()
        with (
            stage(key) as progress,
            evaluator(self.net, self.data, 0, progress=progress) as scored,
            Ledger(folder / "work.jsonl") as ledger,
            closing(
                Trajectory(folder / "search.jsonl", space.whole, self.costs, target, scored, ledger, progress, method)
            ) as trajectory,
        ):
            try:
                status = trajectory.slim()
            except WorkError as error:
                return {"status": str(error), "evaluations": evaluations(trajectory.lines)}
            if isinstance(method, Walk):
                trajectory.regrow()
        found, seconds = trajectory.here(), time.monotonic() - began
        model = self.net.extract(found.selection).to(memory_format=torch.channels_last).eval()
        recalibrate(model, self.data.fit, model.resolution, 0)
        return {
            "status": status,
            "holds": target.met(found.costs),
            "used": round(max(target.usage(found.costs).values()), 3),
            "search": found.score.accuracy,
            "test": evaluate(model.eval(), self.data.test, model.resolution).accuracy,
            "latency": found.costs["latency"],
            "parameters": found.costs["size"],
            "mes": found.mes,
            "evaluations": evaluations(trajectory.lines),
            "scored": scored.scored,
            "block_executions": scored.executed_images,
            "seconds": round(seconds, 1),
            "selection": found.selection.to_dict(),
            "states": [
                {"mes": p.mes, "latency": p.costs["latency"], "parameters": p.costs["size"], "search": p.score.accuracy}
                for p in trajectory.points()
            ],
        }

    def save(self) -> None:
        args = self.args
        self.own["about"] = {
            "command": f"python benchmarks/alternatives.py run --set {args.set} --data {args.data.name} "
            f"--latency {args.latency.name} --supernet SUPERNET --budgets {' '.join(f'{b:g}' for b in args.budgets)}",
            "machine": f"{platform.machine()}, {os.cpu_count()} processors",
            "threads": args.threads,
            "versions": versions(),
            "images": {name: len(getattr(self.data, name)) for name in ("fit", "search", "test")},
        }
        files.write_json(RESULTS, self.result)


def plot(name: str) -> None:
    """As V2's Fig. 3 and 4: accuracy on search over MES and over latency."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    runs = json.loads(RESULTS.read_text())[name]["runs"]
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, (metric, title) in zip(axes, (("mes", "MES"), ("latency", "latency by the table, ms")), strict=True):
        for method, colour in zip(METHODS, pyplot.cm.tab10.colors, strict=False):
            ends = [run for key, run in runs.items() if key.split(", ")[1] == method and run.get("holds")]
            if not ends:
                continue
            for run in ends if method in SLIMMING else ():
                states = run["states"]
                axis.plot([s[metric] for s in states], [s["search"] for s in states], color=colour, alpha=0.5, lw=1)
            axis.scatter([r[metric] for r in ends], [r["search"] for r in ends], color=colour, s=22, label=method)
        axis.set(xlabel=title, ylabel="accuracy on search, norms of 128 images", xscale="log")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    target = BENCHMARKS.parent / "docs" / "figures" / f"methods_{name}.svg"
    target.parent.mkdir(exist_ok=True)
    figure.savefig(target, metadata={"Date": None})
    print(target.relative_to(BENCHMARKS.parent))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run", "plot"))
    parser.add_argument("--set", choices=SETS, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--latency", type=Path, help="of `profile --space …`")
    parser.add_argument("--supernet", type=Path, help="weights. [default: the first of ablation.py train]")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.6, 0.4])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/alternatives"))
    args = parser.parse_args()
    if args.what == "plot":
        plot(args.set)
        return
    if args.data is None or args.latency is None:
        parser.error("run needs --data and --latency")
    args.supernet = (
        args.supernet or Path("runs/ablation") / args.set / "in_place_and_labels_halves_seed_0" / "model.safetensors"
    )
    torch.set_num_threads(args.threads)
    with alone(args.work / args.set):
        Comparison(args).run()


if __name__ == "__main__":
    main()
