"""What a training step costs: ours and timm's, memory formats, precisions, the sandwich, loading, two processes.

    python benchmarks/training.py [--threads 2] [--batch 32] [--device cuda]

Writes benchmarks/results/training.json. Steps that are compared take turns in one process, in a new order each round;
a figure is the median of the ratios within rounds, with its 95 % interval by the bootstrap over rounds. What belongs to
a whole process (`keep_freed_memory`, two processes) is compared between processes that run one after another, in turn.
"""

import argparse
import io
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image

from deployed import versions
from pocketformer import SearchSpace, Supernet, create_model, ranks
from pocketformer.devices.host import host
from pocketformer.files import read_json, write_json
from pocketformer.supernet.sampling import Sandwich
from pocketformer.training.batches import train_batches
from pocketformer.training.compute import Compute
from pocketformer.training.data import open_data
from pocketformer.training.memory import keep_freed_memory
from pocketformer.training.recipe import Recipe
from pocketformer.training.state import TrainingState
from pocketformer.training.tasks import SandwichTask, SingleTask

RESULTS = Path(__file__).parent / "results" / "training.json"
MODEL, SIZE = "efficientformerv2_s0", 224
PHOTOS, PHOTO = 512, (375, 500)  # made-up JPEGs of ImageNet's usual size
Step = Callable[[], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", default=[], help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--process", choices=("plain", "keep"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.process:
        return one_process(args)
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    results = read_json(args.out) if args.out.exists() else {}
    about = {"threads": args.threads, "batch": args.batch, "size": SIZE, "machine": host(), "versions": versions()}
    for name in args.what or PARTS:
        results[name] = PARTS[name](args) | {"about": about | {"machine_type": platform.machine()}}
        write_json(args.out, results)
        print(name, {k: v for k, v in results[name].items() if k != "about"}, flush=True)


def training_step(model: torch.nn.Module, x: torch.Tensor, compute: Compute, task_of: Callable = SingleTask) -> Step:
    """One whole step: forward, backward, AdamW."""
    state = TrainingState(compute.prepare(model), Recipe(), compute, 1)
    task, y = task_of(model), torch.randint(10, (len(x),), device=x.device)
    state.train_mode()

    def step() -> None:
        with compute.autocast():
            loss = task.run(x, y, 0, lambda loss: loss.float().backward())["loss"]
        state.update(1e-6)
        float(loss)  # waits for an accelerator

    return step


def ours(num_classes: int = 10) -> torch.nn.Module:
    return create_model(MODEL, num_classes=num_classes, distilled=False)


def images(args: argparse.Namespace, compute: Compute) -> torch.Tensor:
    x = torch.randn(args.batch, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    return x.to(compute.where)


def against_timm(args: argparse.Namespace) -> dict:
    compute = Compute(args.device)
    x = images(args, compute)
    theirs = timm.create_model(MODEL, num_classes=10)
    theirs.set_distilled_training(False)
    steps = {"ours": training_step(ours_with_two_heads(), x, compute), "timm": training_step(theirs, x, compute)}
    return compared(steps, args.rounds, "ours", "timm")


def ours_with_two_heads() -> torch.nn.Module:
    return create_model(MODEL, num_classes=10)  # as timm's


def channels_last(args: argparse.Namespace) -> dict:
    compute = Compute(args.device)
    x = images(args, compute)
    first = ours()
    steps = {"channels_last": training_step(first, x, compute)}
    other = ours()
    steps["contiguous"] = training_step(other, x.contiguous(memory_format=torch.contiguous_format), compute)
    other.to(memory_format=torch.contiguous_format)
    return compared(steps, args.rounds, "channels_last", "contiguous")


def bfloat16(args: argparse.Namespace) -> dict:
    low, full = Compute(args.device, "bfloat16"), Compute(args.device)
    x = images(args, full)
    steps = {"bfloat16": training_step(ours(), x, low), "float32": training_step(ours(), x, full)}
    return compared(steps, args.rounds, "bfloat16", "float32")


def sandwich(args: argparse.Namespace) -> dict:
    """Four subnets against the largest alone, at 28 px (batch 128) and at 224 px (batch of 8 at most on a CPU)."""
    found = {}
    for name, batch in (("pocket28", 128), ("efficientformerv2", args.batch if args.device == "cuda" else 8)):
        space, compute = SearchSpace.named(name), Compute(args.device)
        x = torch.randn(batch, 3, *space.resolution).contiguous(memory_format=torch.channels_last).to(compute.where)
        whole = lambda net, space=space: SandwichTask(net, OnlyLargest(space))  # noqa: E731
        rule = lambda net, space=space: SandwichTask(net, Cycle(space))  # noqa: E731
        steps = {
            "sandwich": training_step(Supernet(space, 10, distilled=False), x, compute, rule),
            "largest": training_step(Supernet(space, 10, distilled=False), x, compute, whole),
        }
        found[name] = compared(steps, args.rounds, "sandwich", "largest") | {"batch": batch}
    return found


class OnlyLargest:
    roles = ("largest",)

    def __init__(self, space: SearchSpace):
        self.space = space

    def subnets(self, step: int) -> tuple:
        return (self.space.whole,)


class Cycle(Sandwich):
    """Other random subnets at each call."""

    def __init__(self, space: SearchSpace):
        super().__init__(space)
        object.__setattr__(self, "calls", iter(range(10**9)))

    def subnets(self, step: int) -> tuple:
        return super().subnets(next(self.calls))


def loading(args: argparse.Namespace) -> dict:
    """Images a second that two workers decode and augment by the ImageNet recipe, and that a training step takes."""
    recipe, compute = Recipe.imagenet(batch_size=args.batch), Compute(args.device)
    step = training_step(ours(), images(args, compute), compute)
    with tempfile.TemporaryDirectory() as folder:
        photos(Path(folder))
        split = open_data(folder, size=(256, 256), stream=True).final
        batches = train_batches(split, args.batch, (SIZE, SIZE), recipe.augmentation, 0, workers=2)
        count, took = 0, []
        stream = batches.steps(0, 24)
        next(stream)  # the workers start
        began = time.perf_counter()
        for found, _ in stream:
            count += len(found)
        took = time.perf_counter() - began
    alone = [timed(step) for _ in range(args.rounds)]
    speeds = {"loaded_img_s": count / took, "trained_img_s": args.batch / statistics.median(alone)}
    return {name: round(value, 1) for name, value in speeds.items()} | {"photo": list(PHOTO), "workers": 2}


def photos(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(PHOTOS):
        rough = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        grain = rng.normal(0, 8, (*PHOTO, 3))
        pixels = np.asarray(rough.resize(PHOTO[::-1], Image.Resampling.BICUBIC)) + grain
        buffer = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
        path = folder / "train" / f"class{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(buffer.getvalue())


def freed_memory(args: argparse.Namespace) -> dict:
    """Steps of processes that keep freed memory, and of others that give it back, in turn."""
    pairs = [(run(args, ["--process", "keep"]), run(args, ["--process", "plain"])) for _ in range(4)]
    return spread([kept / plain for kept, plain in pairs])


def two_processes(args: argparse.Namespace) -> dict:
    """Images a second of two processes of one thread under torchrun, over twice those of one such process."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ratios = []
    for _ in range(3):
        alone = run(args, ["--process", "keep"], threads=1)
        ratios.append(alone / run(args, ["--process", "keep"], threads=1, launcher=torchrun))
    return spread(ratios)


def run(args: argparse.Namespace, more: list[str], threads: int | None = None, launcher: list[str] | None = None):
    """Median seconds of a step in a process of its own."""
    threads = threads or args.threads
    command = [sys.executable, *(launcher or []), __file__, *more, "--threads", str(threads)]
    command += ["--batch", str(args.batch), "--device", args.device, "--rounds", str(args.rounds)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return float(done.stdout.split()[-1])


def one_process(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    if args.process == "keep":
        keep_freed_memory()
    with ranks.joined():
        compute = Compute(args.device)
        model = ours()
        state = TrainingState(compute.prepare(model), Recipe(), compute, 1)
        task, x, y = SingleTask(model), images(args, compute), torch.randint(10, (args.batch,), device=compute.where)

        def step() -> None:
            task.run(x, y, 0, lambda loss: loss.backward())
            ranks.average(p.grad for p in model.parameters() if p.grad is not None)
            state.update(1e-6)

        step()
        took = [timed(step) for _ in range(args.rounds)]
        if ranks.first():
            print(statistics.median(took))


def timed(step: Step) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def compared(steps: dict[str, Step], rounds: int, first: str, second: str) -> dict:
    """Median ratio of two steps that take turns, its interval, and the median seconds of each."""
    rng, took = random.Random(0), {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(rounds):
        for name in rng.sample(list(steps), len(steps)):
            took[name].append(timed(steps[name]))
    ratios = [a / b for a, b in zip(took[first], took[second], strict=True)]
    return spread(ratios) | {f"{name}_s": round(statistics.median(times), 4) for name, times in took.items()}


def spread(ratios: list[float]) -> dict:
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(2000))
    return {"ratio": round(statistics.median(ratios), 4), "low": round(medians[50], 4), "high": round(medians[1949], 4)}


PARTS = {
    "against_timm": against_timm,
    "channels_last": channels_last,
    "bfloat16": bfloat16,
    "sandwich": sandwich,
    "loading": loading,
    "freed_memory": freed_memory,
    "two_processes": two_processes,
}

if __name__ == "__main__":
    main()
