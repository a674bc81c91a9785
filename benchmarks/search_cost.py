"""How much of a search's work prefix sharing saves (contract 6.12), in block executions and in wall time.

    python benchmarks/search_cost.py            # writes benchmarks/results/search_cost.json

Two parts. (1) Whole joint searches, from the largest subnet to several budgets, on a supernet with random weights
and images: block executions are counted as they happen, with the current network's own pass, and compared with
the closed formula; the same searches run again candidate by candidate and must take the same decisions; one
frontier is timed both ways. (2) Whole searches on the paper's 224 px space with a made-up evaluator, counted by the
formulas alone. Accuracies mean nothing here; the counts depend on the trajectory only through its states.
"""

import argparse
import json
import os
import platform
import random
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch

from pocketformer import SearchSpace, Supernet
from pocketformer.search import Objective, Score, frontier, joint_search
from pocketformer.search.evaluation import NaiveEvaluator, PrefixEvaluator, block_executions

BUDGETS = (0.7, 0.5, 0.3)  # latency, as a share of the largest subnet's
RESULTS = Path(__file__).parent / "results" / "search_cost.json"


def costs(selection):
    """Real parameters and a made-up additive latency: a fixed part per block and one per multiply-add."""
    blocks = selection.architecture.blocks()
    return {"size": selection.architecture.parameters(), "latency": sum(0.005 + b.macs() / 1e9 for b in blocks)}


def perturb(supernet, seed):
    """Away from initialisation, where layer scales of 1e-5 would make all subnets alike."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in supernet.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(0.7 + 0.2 * noise if name.endswith("gamma") else p + 0.1 * p.std(correction=0) * noise)
    return supernet.eval()


def naive_executions(move):
    return sum(len(s.steps) for s in (move.state.selection, *(e.selection for e in move.evaluated)))


def shared_executions(move):
    return block_executions(move.state.selection, [e.selection for e in move.evaluated])


def searched(space, evaluator, share):
    """The moves of one whole search, which must reach its budget."""
    objective = Objective({"latency": share * costs(space.whole)["latency"]})
    moves = list(joint_search(space.whole, costs, evaluator, objective))
    if not objective.met(moves[-1].chosen.costs):
        raise SystemExit(f"no member of {space.name} meets {share:g} of the largest subnet's latency")
    return moves


def executed(args):
    """Part 1: searches that run."""
    space = SearchSpace.named(args.space)
    supernet = perturb(Supernet(space, 10), args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    images = torch.randn(args.batches, args.images, 3, *space.resolution, generator=generator)
    labels = torch.randint(10, (args.batches, args.images - args.calibration), generator=generator)

    def batches():
        return zip(images, labels, strict=True)

    rows = []
    with supernet.calibrated(args.calibration):
        evaluators = [kind(supernet.run, batches, args.calibration) for kind in (PrefixEvaluator, NaiveEvaluator)]
        for share in args.budgets:
            counts, seconds, trajectories = [], [], []
            for evaluator in evaluators:
                before = evaluator.executed
                start = time.perf_counter()
                trajectories.append(searched(space, evaluator, share))
                seconds.append(time.perf_counter() - start)
                counts.append(evaluator.executed - before)
            formula = args.batches * sum(map(shared_executions, trajectories[0]))
            if counts != [formula, args.batches * sum(map(naive_executions, trajectories[0]))]:
                raise SystemExit(f"counted {counts[0]} block executions; the closed formula says {formula}")
            if trajectories[0] != trajectories[1]:
                raise SystemExit("the two evaluators took different decisions")
            rows.append(row(space, share, trajectories[0], *counts, seconds=seconds))
        steps = [space.whole, *(m.state.selection for m in trajectories[0])]
        timed = [timing(evaluators, steps[i], where) for where, i in (("first", 0), ("middle", len(steps) // 2))]
    return rows, timed


def timing(evaluators, state, where, repeats=3):
    """One frontier evaluated both ways, in turn; the best of each."""
    candidates = [selection for _, selection in frontier(state)]
    seconds = [[], []]
    for _ in range(repeats):
        for found, evaluator in zip(seconds, evaluators, strict=True):
            start = time.perf_counter()
            evaluator(state, candidates)
            found.append(time.perf_counter() - start)
    shared, naive = map(min, seconds)
    blocks = block_executions(state, candidates) / sum(len(s.steps) for s in (state, *candidates))
    return {
        "state": where,
        "candidates": len(candidates),
        "seconds": shared,
        "naive_seconds": naive,
        "time_ratio": shared / naive,
        "execution_ratio": blocks,
    }


def counted(args):
    """Part 2: the paper's space, with accuracy that falls with every action by a random amount."""
    space = SearchSpace.named("efficientformerv2")
    worth = random.Random(args.seed)
    table: dict[tuple, float] = {}

    def accuracy(selection):
        total = 0.0
        for step in selection.steps:
            amount = step.width * (step.expansion or 2)
            total += amount * table.setdefault((step.kind, step.stage, step.slot), worth.random())
        return total / 1e6

    def evaluator(current, candidates):
        return [Score(accuracy(s), 1 - accuracy(s)) for s in (current, *candidates)]

    rows = []
    for share in args.budgets:
        moves = searched(space, evaluator, share)
        counts = sum(map(shared_executions, moves)), sum(map(naive_executions, moves))
        rows.append(row(space, share, moves, *counts))
    return rows


def row(space, share, moves, shared, naive, seconds=None):
    timed = {} if seconds is None else {"seconds": seconds[0], "naive_seconds": seconds[1]}
    return {
        "space": space.name,
        "latency_budget_share": share,
        "moves": len(moves),
        "candidates": sum(len(m.evaluated) for m in moves),
        "block_executions": shared,
        "naive_block_executions": naive,
        "ratio": shared / naive,
        "ratio_first_frontier": shared_executions(moves[0]) / naive_executions(moves[0]),
        "ratio_last_frontier": shared_executions(moves[-1]) / naive_executions(moves[-1]),
        **timed,
    }


def machine():
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", default="pocket32")
    parser.add_argument("--budgets", type=float, nargs="+", default=BUDGETS)
    parser.add_argument("--batches", type=int, default=1)
    parser.add_argument("--images", type=int, default=6, help="per batch")
    parser.add_argument("--calibration", type=int, default=2, help="images of each batch that calibrate the norms")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    rows, timed = executed(args)
    found = {
        "what": "block executions of whole joint searches, prefix sharing against candidate by candidate",
        "command": " ".join(["python", "benchmarks/search_cost.py", *sys.argv[1:]]),
        "machine": machine(),
        "versions": {"python": platform.python_version(), **{p: version(p) for p in ("pocketformer", "torch")}},
        "settings": {
            **{k: getattr(args, k) for k in ("batches", "images", "calibration", "seed")},
            "batches_note": "counts of executed searches are those of all batches",
        },
        "executed_searches": rows,
        "one_frontier": timed,
        "counted_searches": counted(args),
        "checks": {"executions_equal_closed_formula": True, "decisions_equal": True},  # main ends here otherwise
    }
    print("space              budget  moves  candidates  executions       naive  ratio  seconds   naive")
    for r in (*found["executed_searches"], *found["counted_searches"]):
        times = f"{r['seconds']:8.1f}{r['naive_seconds']:8.1f}" if "seconds" in r else ""
        print(
            f"{r['space']:<18}{r['latency_budget_share']:7.2f}{r['moves']:7}{r['candidates']:12}"
            f"{r['block_executions']:12}{r['naive_block_executions']:12}{r['ratio']:7.3f}{times}"
        )
    for t in timed:
        print(
            f"one frontier ({t['state']}, {t['candidates']} candidates): {t['seconds']:.2f} s against "
            f"{t['naive_seconds']:.2f} s, {t['time_ratio']:.3f}; blocks {t['execution_ratio']:.3f}"
        )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
