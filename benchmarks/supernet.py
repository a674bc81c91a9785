"""What a step of a supernet's training takes: memory and time of the largest subnet alone, of the sandwich, and of the
sandwich with gradient checkpointing.

    python benchmarks/supernet.py [--space efficientformerv2] [--batch 16] [--threads 1] [--rounds 5]

Writes benchmarks/results/supernet.json. Each kind of step runs in a process of its own, whose peak resident memory is
that kind's; the processes take turns, in a new order each round, and a round's random subnets are the same for all.
`step_s` are median seconds of a step (forward, backward, AdamW), `processor_s` what of them the process really had on a
machine that does other work as well; `ratio` is the median over rounds of the processor time against the largest
subnet's in the same round, with its 95 % interval by the bootstrap over rounds; `macs` is the same ratio in
multiply-adds.
"""

import argparse
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from deployed import versions
from pocketformer import SearchSpace, Supernet
from pocketformer.devices.host import host
from pocketformer.files import write_json
from pocketformer.supernet.sampling import Sandwich
from pocketformer.training.compute import Compute
from pocketformer.training.memory import keep_freed_memory
from pocketformer.training.recipe import Recipe
from pocketformer.training.state import TrainingState
from pocketformer.training.tasks import SandwichTask
from training import OnlyLargest, spread

RESULTS = Path(__file__).parent / "results" / "supernet.json"
KINDS = ("largest", "sandwich", "sandwich_checkpointing")
CLASSES = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=" ".join(__doc__.split("\n\n")[0].split()))
    parser.add_argument("--space", default="efficientformerv2")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="timed steps of a process, after one that is not")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--process", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.process:
        print(json.dumps(one_process(args)))
        return
    rng, found = random.Random(0), {kind: [] for kind in KINDS}
    for number in range(args.rounds):
        for kind in rng.sample(KINDS, len(KINDS)):
            found[kind].append(run(args, kind, 1 + number * args.steps))
            print(number, kind, found[kind][-1], file=sys.stderr, flush=True)
        write_json(args.out, {"about": about(args) | {"rounds": number + 1}, **summary(found, args.steps, args.space)})


def run(args: argparse.Namespace, kind: str, first: int) -> dict:
    """Times and memory of a process that takes steps `first` … after one more."""
    command = [sys.executable, __file__, "--process", kind, "--first", str(first)]
    for name in ("space", "batch", "threads", "steps"):
        command += [f"--{name}", str(getattr(args, name))]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout)


def one_process(args: argparse.Namespace) -> dict:
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    torch.manual_seed(0)
    space = SearchSpace.named(args.space)
    compute = Compute(checkpointing=args.process == "sandwich_checkpointing")
    net = compute.prepare(Supernet(space, CLASSES, distilled=False))
    state = TrainingState(net, Recipe(), compute, 1)
    state.train_mode()
    task = SandwichTask(net, OnlyLargest(space) if args.process == "largest" else Sandwich(space))
    x = torch.randn(args.batch, 3, *space.resolution).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(CLASSES, (args.batch,))
    took = []
    for step in range(args.first - 1, args.first + args.steps):
        began = time.perf_counter(), time.process_time()
        task.run(x, labels, step, torch.Tensor.backward)
        state.update(1e-6)
        took.append((time.perf_counter() - began[0], time.process_time() - began[1]))
    seconds, processor = zip(*took[1:], strict=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "processor": processor, "peak_gb": round(peak / 1e9, 3)}


def summary(found: dict[str, list[dict]], steps: int, name: str) -> dict:
    totals = {kind: [sum(process["processor"]) for process in rows] for kind, rows in found.items()}
    result = {}
    for kind, rows in found.items():
        seconds = [s for process in rows for s in process["seconds"]]
        result[kind] = {
            "step_s": round(statistics.median(seconds), 3),
            "processor_s": round(statistics.median(totals[kind]) / steps, 3),
            "peak_gb": max(process["peak_gb"] for process in rows),
        }
        if kind != "largest":
            result[kind] |= spread([a / b for a, b in zip(totals[kind], totals["largest"], strict=True)])
    space, rounds = SearchSpace.named(name), len(found["largest"])
    macs = lambda subnet: subnet.architecture.macs()  # noqa: E731
    drawn = [Sandwich(space).subnets(step) for step in range(1, 1 + rounds * steps)]
    shares = [sum(map(macs, subnets)) / macs(space.whole) for subnets in drawn]
    result["sandwich"]["macs"] = round(statistics.mean(shares), 4)
    return result


def about(args: argparse.Namespace) -> dict:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    machine = host() | {"machine_type": platform.machine(), "memory_gb": round(memory / 1e9, 1)}
    settings = {name: getattr(args, name) for name in ("space", "batch", "threads", "rounds", "steps")}
    return {"command": " ".join(["python benchmarks/supernet.py", *sys.argv[1:]]), **settings} | {
        "machine": machine,
        "versions": versions(),
    }


if __name__ == "__main__":
    main()
