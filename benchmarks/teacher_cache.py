"""What `--teacher-cache` saves: training steps with a teacher that is asked, and with its answers kept, in turn.

    python benchmarks/teacher_cache.py --data imagenette96.npz --teacher-weights efficientnet-lite0-57934424.pth

Seconds of processor time, so that other work on the machine counts less; the medians of a step, and their ratio. Files
as in `learning.py`; the teacher is EfficientNet-Lite0, whole steps (both passes and the optimiser's) are timed.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

import learning
from pocketformer.architecture import Architecture
from pocketformer.models import create_model
from pocketformer.runs import versions
from pocketformer.training.answers import Answers, CachedTeacher, Cycle
from pocketformer.training.batches import train_batches
from pocketformer.training.recipe import Recipe
from pocketformer.training.tasks import DistillationTask
from pocketformer.training.teachers import load_teacher


def measure(architecture: Architecture, teacher: torch.nn.Module, batches: list, answers: Answers) -> dict:
    kept = CachedTeacher(teacher, answers)
    sides, times = {}, {"asked": [], "kept": []}
    for key, guide in (("asked", teacher), ("kept", kept)):
        torch.manual_seed(0)
        model = create_model(architecture, answers.classes, layer_scale=0.5, distilled=True)
        model = model.to(memory_format=torch.channels_last).train()
        sides[key] = DistillationTask(model, guide), torch.optim.AdamW(model.parameters(), fused=True)
    for round_ in range(2):
        for step, batch in enumerate(batches):
            for key, (task, optimiser) in sides.items():
                begin = time.process_time()
                task.run(*batch, step, torch.Tensor.backward)
                optimiser.step()
                optimiser.zero_grad()
                if round_:  # the first asks for all answers
                    times[key].append(time.process_time() - begin)
    found = {key: statistics.median(values) for key, values in times.items()}
    images = len(batches[0][0])
    return {
        "parameters": architecture.parameters(answers.classes),
        "macs": architecture.macs(),
        "images_per_cpu_second": {key: round(images / value, 1) for key, value in found.items()},
        "ratio": round(found["asked"] / found["kept"], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--teacher-weights", type=Path, required=True)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--out", type=Path, default=learning.HERE / "results/teacher_cache.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data, size = learning.read(args.data, args.size), (args.size, args.size)
    networks = {"0.71 M": learning.narrow(), "efficientformerv2_s0": Architecture.named("efficientformerv2_s0")}
    with tempfile.TemporaryDirectory() as folder:
        weights = learning.convert(args.teacher_weights, Path(folder) / "teacher.safetensors")
        teacher = load_teacher(f"tf_efficientnet_lite0={weights}", data.classes, size)
        cycle = Cycle(train_batches(data.fit, args.batch_size, size, Recipe.small_images().augmentation, 0), 1)
        batches = list(cycle.steps(0, args.steps))
        rows = {}
        for name, found in networks.items():
            architecture = replace(found, design=replace(found.design, resolution=size))
            answers = Answers(Path(folder) / name, {}, cycle, len(data.classes), "hard")
            rows[name] = measure(architecture, teacher, batches, answers)
            print(name, rows[name])
    about = {
        "command": f"python benchmarks/teacher_cache.py --data {args.data.name} "
        f"--teacher-weights {args.teacher_weights.name}",
        "machine": f"{platform.machine()}, {os.cpu_count()} processors, 1 thread",
        "size": args.size,
        "batch_size": args.batch_size,
        "versions": versions(),
        "networks": rows,
    }
    args.out.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
