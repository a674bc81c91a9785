"""What a supernet and a search cost against training random candidates: the ledger of V2's App. B, as measured time.

    python benchmarks/archives.py cifar10_mini_10k2k.npz photos
    pocketformer supernet --data photos --space pocket32 … --out runs/supernet
    pocketformer search --supernet runs/supernet --latency table.json --max-parameters 50% --out runs/search
    pocketformer correlate --supernet runs/supernet --found runs/search --parameters P --out runs/correlation
    python benchmarks/ledger.py --supernet runs/supernet --search runs/search --correlation runs/correlation

P: the parameters of what the search found, so that the run's second set are random candidates of its budget (within
15 %). Times are those of the runs' `work.jsonl`, of one machine; a candidate's and the found network's training are of
the same recipe, images and machine. With n candidates trained, the best of k is that of k random ones among them: its
mean over all choices of k, in closed form.
"""

import argparse
import math
import os
import platform
import statistics
from pathlib import Path

from pocketformer import files
from pocketformer.progress import duration
from pocketformer.runs import seconds_by_stage, versions

RESULTS = Path(__file__).parent / "results" / "ledger.json"
PAPER = {  # App. B: GPU days of an A100
    "supernet": 37,
    "training of the largest": 8,
    "supernet / training of the largest": 4.6,
    "random candidates": 10,
    "random search": 80,
    "random search / supernet": 80 / 37,
    "networks searched": 4,
}


def best_of(values: list[float], k: int) -> float:
    """Mean of the largest of k values, over all choices of k of them."""
    ranked = sorted(values)
    choices = math.comb(len(ranked), k)
    return sum(value * math.comb(i, k - 1) / choices for i, value in enumerate(ranked))


def total(folder: Path, stages: tuple[str, ...]) -> float:
    """Seconds of these stages of a run."""
    spent = seconds_by_stage(folder)
    if not any(stage in spent for stage in stages):
        raise SystemExit(f"{folder}: its work.jsonl has no times of {' or '.join(stages)}")
    return sum(spent.get(stage, 0.0) for stage in stages)


def ledger(args: argparse.Namespace) -> dict:
    run = files.read_json(args.correlation / "correlation.json", "correlation")
    candidates, found = run["sets"]["near"]["subnets"], run["sets"].get("found", {}).get("subnets", [])
    if not found or len(candidates) < args.candidates:
        raise SystemExit(f"{args.correlation}: needs --found and at least {args.candidates} subnets")
    if not all(row["seconds"] for row in (*candidates, *found)):
        raise SystemExit(f"{args.correlation}: its work.jsonl has no times of the trainings")
    after = [row["accuracy"]["trained"]["accuracy"] for row in candidates]
    supernet, search = total(args.supernet, ("supernet",)), total(args.search, ("search",))
    alone = total(args.alone or args.correlation, ("supernet",))
    one, network = statistics.mean(row["seconds"] for row in candidates), found[0]
    reached, k = network["accuracy"]["trained"]["accuracy"], args.candidates
    enough = [n for n in range(1, len(after) + 1) if best_of(after, n) >= reached]
    several, least = PAPER["networks searched"], (enough or [len(after)])[0]
    seconds = {
        "supernet": supernet,
        "search": search,
        "training of the found network": network["seconds"],
        "training of the largest as long as the supernet": alone,
        "training of a candidate, mean": one,
        f"random search, {k} candidates": k * one,
    }
    ours = supernet + search + network["seconds"]
    ratios = {
        "supernet / training of the largest": supernet / alone,
        f"{k} candidates / (supernet + search + training of the found)": k * one / ours,
        f"the same for {several} networks": several * k * one / (supernet + several * (search + network["seconds"])),
        "candidates that cost as much as ours": ours / one,
        "candidates as good as ours (at least, if no mean best is) / ours": least * one / ours,
        f"that for {several} networks": several * least * one / (supernet + several * (search + network["seconds"])),
    }
    return {
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "ratios": {name: round(value, 3) for name, value in ratios.items()},
        "outcome": {
            "split": run["split"],
            "images": run["images"],
            "found": {"parameters": network["parameters"], "accuracy": reached},
            "candidates": len(after),
            "their parameters": run["sets"]["near"]["parameters"],
            "their mean accuracy": round(statistics.mean(after), 4),
            f"mean best of {k}": round(best_of(after, k), 4),
            f"mean best of {len(after)}": round(max(after), 4),
            "candidates whose mean best is as good as the found": enough[0] if enough else f"more than {len(after)}",
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("supernet", "search", "correlation"):
        parser.add_argument(f"--{name}", type=Path, required=True, help=f"a run of that name, finished ({name})")
    parser.add_argument("--alone", type=Path, help="the run of correlate that trained the largest, if another")
    parser.add_argument("--candidates", type=int, default=PAPER["random candidates"])
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    own = ledger(args)
    given = ("supernet", "search", "correlation", *(["alone"] if args.alone else []))
    shown = " ".join(f"--{name} {getattr(args, name)}" for name in given)
    about = {
        "command": f"python benchmarks/ledger.py {shown}",
        "machine": f"{platform.machine()}, {os.cpu_count()} processors",
        "versions": versions(),
    }
    files.write_json(args.out, {**about, **own, "paper, GPU days of an A100": PAPER})
    for name, value in own["seconds"].items():
        print(f"{name:<50} {duration(value):>14}")
    for name, value in {**own["ratios"], **own["outcome"]}.items():
        print(f"{name:<62} {value}")


if __name__ == "__main__":
    main()
