"""What the exponents of MES do to a search (V2 Table 10): the latency of what it finds at one size.

    python benchmarks/archives.py cifar10_mini_10k2k.npz photos
    pocketformer profile --space benchmarks/spaces/small32.yaml --classes 10 --out table.json
    pocketformer supernet --data photos --space benchmarks/spaces/small32.yaml --epochs 12 --batch-size 128 \\
      --seed 0 --out runs/supernet0          # and with other seeds
    python benchmarks/exponents.py --latency table.json runs/supernet0 runs/supernet1 runs/supernet2

On each supernet the joint search goes down to `--share` of the largest subnet's parameters, MES in the paper's plain
form, with each of the table's exponents. A search's latency at a size is taken between the two states around it, so
that one which ends a little below the size is not called faster. Ratios are to the search with both exponents 1 on the
same supernet; intervals are over the supernets (Student's t). Searches are kept in --work and skipped once finished.
"""

import argparse
import os
import platform
import statistics
from itertools import pairwise
from pathlib import Path

import torch

from learning import spread
from pocketformer import files
from pocketformer.architecture import SearchSpace
from pocketformer.pipelines import searches
from pocketformer.pipelines.methods import Asked
from pocketformer.pipelines.settings import Budget
from pocketformer.runs import read_config, versions
from pocketformer.search import Walk
from pocketformer.search.trajectory import Point, points

RESULTS = Path(__file__).parent / "results" / "exponents.json"
EXPONENTS = {  # of latency and of size, as in Table 10: parameters (M), latency (ms), top-1 (%)
    (1.0, 1.0): (3.5, 1.1, 77.0),
    (0.5, 1.0): (3.5, 1.3, 77.3),
    (1.0, 0.5): (3.5, 0.9, 75.7),
}
SIZES = (0.8, 0.7, 0.6, 0.5, 0.4, 0.3)  # shares of the largest subnet's parameters


def name_of(latency: float, size: float) -> str:
    return f"latency {latency:g}, size {size:g}"


def searched(supernet: Path, table: Path, latency: float, size: float, share: float, work: Path) -> Path:
    """Folder of the search on this supernet with these exponents."""
    folder = work / f"{supernet.name}-{latency:g}-{size:g}"
    alphas = {"latency": latency, "size": size}
    goal = searches.Goal({"": table}, {"size": Budget(share, relative=True)}, alphas=alphas, form="paper")
    # The race decides as full evaluation does (tests/test_race.py), in a fifth of the time.
    searches.search(supernet, goal, Asked("joint", None, 0, Walk(), race=True), 128, folder)
    return folder


def at_size(states: list[Point], size: float) -> float | None:
    """Latency at so many parameters, between the states before and after; None below the last one."""
    for above, below in pairwise(states):
        if below.costs["size"] <= size <= above.costs["size"]:
            there = (above.costs["size"] - size) / (above.costs["size"] - below.costs["size"] or 1)
            return above.costs["latency"] + there * (below.costs["latency"] - above.costs["latency"])
    return None


def row(folder: Path) -> dict:
    """Of one search: where it ended, how many of its steps cost accuracy, and its latencies by size."""
    lines = files.Lines.read(folder / "search.jsonl")
    states = points(SearchSpace.from_dict(read_config(folder)["facts"]["space"], str(folder)), lines)
    steps = [line for line in lines if line["type"] == "executed" and line["phase"] == "slim"]
    plain = states[0].costs
    latencies = {f"{share:g}": at_size(states, share * plain["size"]) for share in SIZES}
    return {
        "steps": len(steps),
        "steps that cost accuracy": sum(line["delta_accuracy"] < 0 for line in steps),
        "parameters": states[-1].costs["size"],
        "latency": states[-1].costs["latency"],
        "accuracy on search": states[-1].score.accuracy,
        "latency by share of the parameters": {k: round(v, 5) for k, v in latencies.items() if v is not None},
    }


def summary(rows: dict[str, dict[str, dict]]) -> dict:
    """Means over the supernets: where the searches ended, and the latency at each size as a ratio to exponents 1, 1."""
    first, found = name_of(1, 1), {}
    for latency, size in EXPONENTS:
        name = name_of(latency, size)
        runs = [(own[name], own[first]) for own in rows.values() if name in own and first in own]
        key = "latency by share of the parameters"
        ratios = {s: [a[key][s] / b[key][s] for a, b in runs if s in a[key] and s in b[key]] for s in map(str, SIZES)}
        common = {s: values for s, values in ratios.items() if len(values) == len(runs)}
        means = [statistics.mean(values) for values in zip(*common.values(), strict=True)]
        found[name] = {
            "parameters": round(statistics.mean(own["parameters"] for own, _ in runs)),
            "latency": round(statistics.mean(own["latency"] for own, _ in runs), 4),
            "accuracy on search": round(statistics.mean(own["accuracy on search"] for own, _ in runs), 4),
            "latency ratio by size": {s: round(statistics.mean(values), 4) for s, values in common.items()},
            "latency ratio, mean over sizes": spread(means) if len(means) > 1 else {"mean": round(means[0], 4)},
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("supernets", type=Path, nargs="+", metavar="SUPERNET", help="folders of `supernet`")
    parser.add_argument("--latency", type=Path, required=True, help="the latency table of `profile`")
    parser.add_argument("--share", type=float, default=0.3, help="of the parameters, where a search ends")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/exponents"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = {}
    for supernet in args.supernets:
        for exponents in EXPONENTS:
            folder = searched(supernet, args.latency, *exponents, args.share, args.work)
            rows.setdefault(supernet.name, {})[name_of(*exponents)] = row(folder)
        print(supernet.name, rows[supernet.name], flush=True)
    names = " ".join(supernet.name for supernet in args.supernets)
    result = {
        "command": f"python benchmarks/exponents.py --latency {args.latency.name} --share {args.share:g} {names}",
        "machine": f"{platform.machine()}, {os.cpu_count()} processors",
        "versions": versions(),
        "supernets": rows,
        "mean": summary(rows),
        "paper, M parameters, ms, %": {name_of(*exponents): found for exponents, found in EXPONENTS.items()},
    }
    files.write_json(args.out, result)
    for name, found in result["mean"].items():
        print(name, found)


if __name__ == "__main__":
    main()
