"""What the attention bias costs at the sizes of detection and segmentation: our way against the published one.

    python benchmarks/bias.py            # writes benchmarks/results/bias.json

For one image of each size, all attention blocks of a network: our tables, sampled at the image's grids (once for a size
that stays, in each forward for one that changes), then gathered; against the official code for detection and
segmentation, which gathers the matrix of its built grid (25 for 800 px, 16 for 512 px) and resizes it bicubically, as
an image of 8 channels, in each forward (in evaluation the gathered matrix is kept, resized each time all the same).
"biases": these alone, one after another; "gradients": these with their backward passes, as in a training; "backbone":
the whole forward pass. The sides are run in turn, in an order drawn anew for each round; figures are medians of the
rounds' ratios to ours where sizes change, with bootstrapped 95 % intervals. "peak_bytes": the most that one call has in
tensors of its own at a time, by torch's profiler.
"""

import argparse
import os
import platform
import random
import statistics
import time
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from pocketformer import create_model, files
from pocketformer.dense.backbone import Backbone
from pocketformer.models.bias import AttentionBias
from pocketformer.runs import versions

RESULTS = Path(__file__).parent / "results" / "bias.json"
# Of a task, the size that its network is built for, and images that it meets.
TASKS = {
    "segmentation": (512, ((512, 512), (512, 704), (512, 768))),
    "detection": (800, ((800, 800), (800, 1088), (800, 1344))),
}


class Resized:
    """The published way for one table: the matrix of the built grid, resized to another."""

    def __init__(self, bias: AttentionBias, keep: bool):
        self.bias = bias
        self.kept = bias.table[:, bias.index].detach() if keep else None

    def __call__(self, grid):
        matrix = self.bias.table[:, self.bias.index] if self.kept is None else self.kept
        queries, keys = (-(-grid[0] // s) * -(-grid[1] // s) for s in (self.bias.query_stride, self.bias.key_stride))
        return F.interpolate(matrix[None], size=(queries, keys), mode="bicubic", align_corners=False)[0]


def grids(backbone: Backbone, size: tuple[int, int]) -> list[tuple[AttentionBias, tuple[int, int]]]:
    """The tables and the grids at which they are wanted for an image of that size."""
    found, forward = [], AttentionBias.forward

    def watched(self, grid):
        found.append((self, tuple(grid)))
        return forward(self, grid)

    AttentionBias.forward = watched
    try:
        with torch.no_grad():
            backbone(torch.zeros(1, 3, *size))
    finally:
        AttentionBias.forward = forward
    return found


def ways(name: str, built: int, size: tuple[int, int]) -> dict[str, dict]:
    """Calls by part and way."""

    def fresh(side) -> Backbone:
        torch.manual_seed(0)
        return Backbone(create_model(name, num_classes=0, distilled=False), side).eval()

    x = torch.randn(1, 3, *size)
    backbones = {"ours, size changes": fresh(built), "ours, size set": fresh(size)}
    backbones |= {"matrix resized": fresh(built), "matrix kept, resized": fresh(built)}
    calls = {"biases": {}, "gradients": {}, "backbone": {}}
    for way, backbone in backbones.items():
        wanted = grids(backbone, size)
        if way.startswith("matrix"):
            for bias, _ in wanted:
                bias.forward = Resized(bias, "kept" in way)
        calls["biases"][way] = partial(_biases, wanted)
        if "kept" not in way:  # not in a training
            calls["gradients"][way] = partial(_gradients, wanted)
        calls["backbone"][way] = partial(_inferred, backbone, x)
    return calls


@torch.inference_mode()
def _biases(wanted: list) -> None:
    for bias, grid in wanted:
        bias(grid)


def _gradients(wanted: list) -> None:
    for bias, grid in wanted:
        found = bias(grid)
        found.backward(found.detach())


@torch.inference_mode()
def _inferred(backbone: Backbone, x: torch.Tensor) -> None:
    backbone(x)


def compared(calls: dict, rounds: int, seed: int) -> dict:
    """Seconds and peak bytes of each, and ratios to the first, round by round."""
    rng, seconds = random.Random(seed), {name: [] for name in calls}
    peaks = {name: peak(call) for name, call in calls.items()}
    for _ in range(rounds):
        for name in rng.sample(list(calls), len(calls)):
            start = time.perf_counter()
            calls[name]()
            seconds[name].append(time.perf_counter() - start)
    first = next(iter(calls))
    result = {}
    for name, taken in seconds.items():
        ratios = [a / b for a, b in zip(taken, seconds[first], strict=True)]
        low, high = interval(ratios, rng)
        result[name] = {
            "milliseconds": round(1e3 * statistics.median(taken), 3),
            "peak_bytes": peaks[name],
            "ratio": round(statistics.median(ratios), 3),
            "interval95": [round(low, 3), round(high, 3)],
        }
    return result


def interval(ratios: list[float], rng: random.Random) -> tuple[float, float]:
    medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(1000))
    return medians[25], medians[974]


def peak(call) -> int:
    """The most that is allocated at once in a call, its results among it."""
    from torch.profiler import ProfilerActivity, profile

    call()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    now = most = 0
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=["efficientformerv2_s0"])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for name in args.networks:
        for task in args.tasks:
            built, sizes = TASKS[task]
            for size in sizes:
                row = {"network": name, "task": task, "built_for": built, "image": list(size)}
                for part, calls in ways(name, built, size).items():
                    row[part] = compared(calls, max(3, args.rounds // 3) if part == "backbone" else args.rounds, 0)
                    told = {n: (v["milliseconds"], v["ratio"], v["peak_bytes"]) for n, v in row[part].items()}
                    print(name, size, part, told, flush=True)
                rows.append(row)
    about = {
        "command": f"python benchmarks/bias.py --rounds {args.rounds} --threads {args.threads}",
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "versions": versions(),
        "rows": rows,
    }
    files.write_json(args.out, about)


if __name__ == "__main__":
    main()
