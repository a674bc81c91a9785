"""Which norms should score a subnet during the search? Measured on a trained supernet.

For random subnets, and for the states and frontier of a search: accuracy on the search split with (a) the
switches' own running statistics, as in the paper, and (b) statistics from 128 images of fit taken along in each
batch (our default), against (c) norms fully re-calibrated on 1,024 images of fit.

    python benchmarks/norm_calibration.py runs/quickstart --out benchmarks/results/norm_calibration.json
"""

import argparse
import json
import os
import platform
import random
from pathlib import Path

import numpy as np

from pocketformer.architecture import Selection
from pocketformer.pipelines.images import open_images
from pocketformer.pipelines.networks import recalibrated_score
from pocketformer.pipelines.scoring import evaluator
from pocketformer.pipelines.settings import stored_size
from pocketformer.pipelines.supernets import load_supernet
from pocketformer.runs import versions


def ranks(values: list[float]) -> np.ndarray:
    """Average ranks, as Spearman's coefficient takes them."""
    values = np.asarray(values)
    return np.array([(values < v).sum() + ((values == v).sum() - 1) / 2 for v in values])


def agreement(scores: list[float], wanted: list[float]) -> dict:
    gaps = np.abs(np.subtract(scores, wanted))
    return {
        "mean_gap_points": round(100 * float(gaps.mean()), 2),
        "worst_gap_points": round(100 * float(gaps.max()), 2),
        "spearman": round(float(np.corrcoef(ranks(scores), ranks(wanted))[0, 1]), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a finished design or quickstart run")
    parser.add_argument("--subnets", type=int, default=60)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    supernet, config = load_supernet(args.run)
    space, seed = supernet.space, config["seed"]
    data = open_images(config["data"], stored_size(space), seed, config["bad_images"], 2)
    rng = random.Random(0)
    lines = [json.loads(line) for line in (args.run / "search.jsonl").read_text().splitlines()]
    executed = [Selection.from_dict(space, x["selection"]) for x in lines if x["type"] == "executed"]
    evaluated = [Selection.from_dict(space, x["selection"]) for x in lines if x["type"] == "evaluated"]
    groups = {
        "random subnets": [space.sample_selection(rng) for _ in range(args.subnets)],
        "trajectory and frontier": executed + rng.sample(evaluated, args.subnets - len(executed)),
    }
    result = {"command": f"python benchmarks/norm_calibration.py {args.run}", "groups": {}}
    result |= {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count(), "versions": versions()}
    for name, selections in groups.items():
        wanted = [recalibrated_score(supernet, s, data, seed).accuracy for s in selections]
        rows = {}
        for label, calibration in (("the switches' own", 0), ("128 images of fit", 128)):
            with evaluator(supernet, data, seed, calibration) as evaluate:
                scores = [s.accuracy for s in evaluate(selections[0], selections)[1:]]
            rows[label] = agreement(scores, wanted)
            print(f"{name}, {label}: {rows[label]}")
        result["groups"][name] = rows
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
