"""Speed of the seven published models against timm's: training step and inference, as ratios ours / timm.

    python benchmarks/models.py            # writes benchmarks/results/models.json

Both have the same weights and do the same work. A row's two sides are run in turn, in an order drawn anew for
each pair, so that a noisy moment of the machine hits both; its figure is the median of the pairs' ratios with a
bootstrapped 95 % interval. Inference is a forward pass in evaluation mode, a training step forward with both
heads, backward and AdamW. Each in torch's default memory format and in channels_last.
"""

import argparse
import json
import os
import platform
import random
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import timm
import torch
import torch.nn.functional as F

from pocketformer import create_model
from pocketformer.architecture import NAMES

RESULTS = Path(__file__).parent / "results" / "models.json"
FORMATS = {"default": torch.contiguous_format, "channels_last": torch.channels_last}
BATCH = {"inference": 1, "training": 4}
_WIDE, _LONGEST = 0.04, 5


def inference(model, x):
    model.eval()

    def run():
        with torch.inference_mode():
            model(x)

    return run


def training(model, x):
    model.train().set_distilled_training(True)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5)
    labels = torch.arange(len(x))

    def run():
        optimiser.zero_grad()
        head, distilled = model(x)
        (F.cross_entropy(head, labels) / 2 + F.cross_entropy(distilled, labels) / 2).backward()
        optimiser.step()

    return run


MODES = {"inference": inference, "training": training}


def seconds(run):
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def interval(ratios, rng, draws=2000):
    """95 % interval of the median, by the bootstrap."""
    medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(draws))
    return medians[round(0.025 * draws)], medians[round(0.975 * draws) - 1]


def row(name, mode, fmt, budget, rng):
    """One row: pairs of runs for `budget` seconds, and on until the interval is at most `_WIDE` wide (whatever the
    ratio), at most `_LONGEST` times as long."""
    torch.manual_seed(0)
    sides = {"ours": create_model(name), "timm": timm.create_model(name)}
    sides["timm"].load_state_dict(sides["ours"].export_checkpoint("timm"))
    x = torch.randn(BATCH[mode], 3, 224, 224).to(memory_format=FORMATS[fmt])
    runs = {key: MODES[mode](model.to(memory_format=FORMATS[fmt]), x) for key, model in sides.items()}
    for run in runs.values():
        for _ in range(3):
            run()
    times, ratios, begin = {"ours": [], "timm": []}, [], time.monotonic()
    low, high = 0.0, 1.0
    while (
        len(ratios) < 12
        or (elapsed := time.monotonic() - begin) < budget
        or (high - low > _WIDE and elapsed < _LONGEST * budget)
    ):
        for key in rng.sample(("ours", "timm"), 2):
            times[key].append(seconds(runs[key]))
        ratios.append(times["ours"][-1] / times["timm"][-1])
        if len(ratios) >= 12 and time.monotonic() - begin >= budget:
            low, high = interval(ratios, rng)
    return {
        "model": name,
        "mode": mode,
        "format": fmt,
        "batch": BATCH[mode],
        "pairs": len(ratios),
        "ratio": round(statistics.median(ratios), 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "ours_ms": round(statistics.median(times["ours"]) * 1e3, 2),
        "timm_ms": round(statistics.median(times["timm"]) * 1e3, 2),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=NAMES)
    parser.add_argument("--modes", nargs="*", default=list(MODES))
    parser.add_argument("--seconds", type=float, default=15, help="of pairs, a row; more where they scatter")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rng, rows = random.Random(0), []
    print(f"{'model':22}{'mode':11}{'format':15}{'ours / timm':>12}  95 % interval    ours       timm     pairs")
    for name in args.models:
        for mode in args.modes:
            for fmt in FORMATS:
                r = row(name, mode, fmt, args.seconds, rng)
                rows.append(r)
                span = f"{r['low']:.3f} to {r['high']:.3f}"
                times = f"{r['ours_ms']:8.1f} ms {r['timm_ms']:8.1f} ms {r['pairs']:5}"
                print(f"{name:22}{mode:11}{fmt:15}{r['ratio']:12.3f}  {span} {times}", flush=True)
    worst = max(r["high"] for r in rows)
    print(f"largest upper bound: {worst:.3f}")
    about = {
        "command": "python benchmarks/models.py",
        "machine": f"{platform.machine()}, {os.cpu_count()} processors, {torch.backends.cpu.get_cpu_capability()}",
        "threads": args.threads,
        "versions": {name: version(name) for name in ("torch", "timm")},
        "largest_upper_bound": worst,
        "rows": rows,
    }
    args.out.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
