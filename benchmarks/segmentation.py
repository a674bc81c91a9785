"""Semantic segmentation on CamVid: our S0 against timm's MobileNetV2 under the same head, pretrained by us and not.

    python benchmarks/segmentation.py --data camvid_240x180.zip --pretraining imagenette96.npz

Each backbone learns Imagenette at 96 px first, or starts from random weights; then Semantic FPN on CamVid's train, the
same recipe, crops and number of steps for all, weights kept that do best on val (mIoU), and test read once. Pretrained
backbones keep their norms frozen. With several `--rates`, each backbone gets the one that is best on val with seed 0.
Results, curves and predicted label maps (without the photographs, which are not ours to pass on) go to
benchmarks/results/segmentation.json, .svg and .png, the same over the photographs to drawn.png in --work; finished
trainings are kept there and skipped, one that was cut is resumed. CamVid comes as a zip or a folder, an `.npz` as in
archives.py.

On one core an epoch of CamVid takes about 2 minutes at 180x240 px and 1 at 120x160.
"""

import argparse
import os
import platform
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from archives import read
from learning import spread
from pocketformer import create_model, files
from pocketformer.architecture import Architecture
from pocketformer.dense.backbone import Backbone
from pocketformer.dense.recipe import DenseRecipe
from pocketformer.dense.segmentation.crops import CropBatches, read_pair
from pocketformer.dense.segmentation.drawing import label_map, overlay
from pocketformer.dense.segmentation.evaluation import Scores, evaluate, prepared, segment
from pocketformer.dense.segmentation.folders import Folder, Pairs, find_masks
from pocketformer.dense.segmentation.labels import Coding
from pocketformer.dense.segmentation.presets import small
from pocketformer.dense.segmentation.segmenter import Segmenter
from pocketformer.dense.segmentation.task import SegmentationTask
from pocketformer.models import checkpoints, weights
from pocketformer.progress import say, stage
from pocketformer.runs import Ledger, alone, versions
from pocketformer.training import evaluation
from pocketformer.training.batches import train_batches
from pocketformer.training.compute import Compute
from pocketformer.training.engine import Job, planned_steps, train
from pocketformer.training.pixels import OURS
from pocketformer.training.recipe import Recipe
from pocketformer.training.tasks import SingleTask

HERE = Path(__file__).parent
CLASSES = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"]
CODING = Coding(ignore_index=len(CLASSES))  # void
PIXELS = 96  # of the images for pretraining
OURS_NAME, PEER = "efficientformerv2_s0", "mobilenetv2_100"
SHOWN = 4  # images


class Features(nn.Module):
    """A network of timm's as a backbone: its maps of strides 4 to 32."""

    def __init__(self, name: str, frozen_norms: bool):
        super().__init__()
        self.network = timm.create_model(name, features_only=True, pretrained=False, out_indices=(1, 2, 3, 4))
        self.widths, self.reductions = self.network.feature_info.channels(), self.network.feature_info.reduction()
        self.frozen_norms = frozen_norms
        for norm in self._frozen():
            norm.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return self.network(x)

    def train(self, mode: bool = True) -> "Features":
        super().train(mode)
        for norm in self._frozen():
            norm.eval()
        return self

    def _frozen(self) -> list[nn.Module]:
        return [m for m in self.network.modules() if self.frozen_norms and isinstance(m, nn.BatchNorm2d)]


def classifier(name: str, classes: int, layer_scale: float) -> nn.Module:
    if name == PEER:
        return timm.create_model(name, num_classes=classes, pretrained=False)
    described = Architecture.named(name)
    return create_model(described, classes, resolution=PIXELS, distilled=False, layer_scale=layer_scale)


def backbone(name: str, init: Path | None, recipe: DenseRecipe) -> nn.Module:
    if name == PEER:
        found = Features(name, init is not None)
        if init is not None:
            state = load_file(init)
            missing, _ = found.network.load_state_dict(state, strict=False)  # the classifier is left over
            assert not missing, missing
        return found
    network = create_model(name, num_classes=0, distilled=False, layer_scale=recipe.layer_scale)
    if init is not None:
        checkpoints.fit(network, weights.read(init), init)
    return Backbone(network, recipe.size, frozen_norms=init is not None)


class Benchmark:
    def __init__(self, args: argparse.Namespace):
        self.args, self.folder = args, args.work
        self.compute = Compute(args.device, args.precision)
        epochs = {"epochs": args.epochs, "size": tuple(args.size), "batch_size": args.batch_size}
        self.recipe = replace(small(), **epochs)
        self.pretraining = Recipe.small_images(epochs=args.pretraining_epochs)
        self.result = files.read_json(args.out) if args.out.is_file() else {"trainings": {}}
        self.runs = self.result["trainings"]
        settings = {
            "recipe": self.recipe.to_dict(),
            "pretraining": self.pretraining.to_dict(),
            "rates": args.rates,
            "precision": args.precision,
        }
        was = self.result.setdefault("settings", files.as_json(settings))
        if was != files.as_json(settings):
            raise SystemExit(f"{args.out} is of other settings: give another --out")

    def save(self) -> None:
        args = self.args
        size = " ".join(map(str, args.size))
        command = f"python benchmarks/segmentation.py --data {args.data.name} --pretraining {args.pretraining.name}"
        command += f" --epochs {args.epochs:g} --pretraining-epochs {args.pretraining_epochs:g} --size {size}"
        command += f" --batch-size {args.batch_size} --rates {' '.join(map(str, args.rates))} --seeds {args.seeds}"
        command += f" --device {args.device} --precision {args.precision} --threads {args.threads}"
        machine = f"{platform.machine()}, {os.cpu_count()} processors"
        files.write_json(self.args.out, {"command": command, "machine": machine, "versions": versions(), **self.result})

    def camvid(self) -> Folder:
        place = self.args.data
        if place.suffix == ".zip":
            place = self.folder / "camvid"
            if not (place / "testannot").is_dir():
                with files.whole(place) as temporary, zipfile.ZipFile(self.args.data) as archive:
                    archive.extractall(temporary)
        found = find_masks(str(place), CODING)
        few = self.args.images
        splits = {n: replace(p, images=p.images[:few], masks=p.masks[:few]) for n, p in found.splits.items()}
        return replace(found, splits=splits)

    def pretrained(self, name: str) -> Path:
        """Weights of a classifier of Imagenette, kept by accuracy on search."""
        folder = self.folder / f"pretrained-{name}"
        if name in self.runs and (folder / "best.safetensors").is_file():
            return folder / "best.safetensors"
        data, recipe, began = read(self.args.pretraining, PIXELS), self.pretraining, time.process_time()
        torch.manual_seed(0)
        model = classifier(name, len(data.classes), recipe.layer_scale).to(self.compute.where)
        size = data.fit.stored_size
        batches = train_batches(data.fit, recipe.batch_size, size, recipe.augmentation, 0, OURS)

        def validate(model: nn.Module) -> float:
            with self.compute.autocast():
                return evaluation.evaluate(model.eval(), data.search, size, normalisation=OURS).accuracy

        with (
            Ledger(folder / "work.jsonl") as ledger,
            stage(f"pretrain {name}", planned_steps(batches, recipe)) as progress,
        ):
            job = Job(folder, name, ledger, progress, validate=validate)
            state = train(SingleTask(model, recipe.label_smoothing), batches, recipe, job, 0, self.compute)
        self.runs[name] = {"accuracy on search": state.best, "core_seconds": round(time.process_time() - began)}
        self.save()
        return folder / "best.safetensors"

    def segmenter(self, name: str, init: Path | None, recipe: DenseRecipe, seed: int) -> Segmenter:
        torch.manual_seed(seed)
        return Segmenter(backbone(name, init, recipe), len(CLASSES))

    def learned(self, key: str, name: str, init: Path | None, recipe: DenseRecipe, seed: int, test: bool) -> dict:
        """One training on CamVid, if it is not done; scores on test if asked for."""
        if key in self.runs:
            return self.runs[key]
        data, folder, began = self.camvid(), self.folder / key.replace(" ", "-"), time.process_time()
        model = self.segmenter(name, init, recipe, seed).to(self.compute.where)
        batches = CropBatches(
            data.splits["train"], CODING, recipe.batch_size, recipe.size, seed, OURS, workers=self.args.workers
        )

        def validate(model: Segmenter) -> float:
            return self.scores(model, data.splits["val"], recipe).miou

        with Ledger(folder / "work.jsonl") as ledger, stage(key, planned_steps(batches, recipe)) as progress:
            job = Job(folder, key, ledger, progress, validate=validate, metric="mIoU")
            train(SegmentationTask(model), batches, recipe, job, seed, self.compute)
        lines = files.Lines.read(folder / "metrics.jsonl")
        found = {
            "val_by_epoch": [round(line["mIoU_search"], 4) for line in lines if "mIoU_search" in line],
            "loss_by_epoch": _by_epoch([line["loss"] for line in lines if "loss" in line], batches.steps_per_epoch),
            "parameters": sum(p.numel() for p in model.parameters()),
            "core_seconds": round(time.process_time() - began),  # of the last sitting
        }
        if test:
            model.load_state_dict(load_file(folder / "best.safetensors"))
            found["test"] = self.scores(model, data.splits["test"], recipe).to_dict(CLASSES)
            say(f"{key}: mIoU {found['test']['mIoU']:.2%} on test")
        self.runs[key] = found
        self.save()
        return found

    def scores(self, model: Segmenter, pairs: Pairs, recipe: DenseRecipe) -> Scores:
        with self.compute.autocast():
            return evaluate(model.eval(), pairs, CODING, recipe.size, OURS, self.args.workers)

    def run(self) -> None:
        groups, kept = {}, {}
        for name in (OURS_NAME, PEER):
            for way, init in (("pretrained", self.pretrained(name)), ("random", None)):
                group = f"{name} {way}"
                rate = self.rate(group, name, init)
                recipe = replace(self.recipe, learning_rate=rate)
                keys = [f"{group} {seed}" for seed in range(self.args.seeds)]
                groups[group] = [self.learned(k, name, init, recipe, seed, True) for seed, k in enumerate(keys)]
                kept[group] = lambda name=name, init=init, recipe=recipe: self.segmenter(name, init, recipe, 0)
        self.summarise(groups)
        if self.args.pictures:
            self.pictures(kept)
            curves(groups, self.args.out.with_suffix(".svg"))

    def rate(self, group: str, name: str, init: Path | None) -> float:
        if len(self.args.rates) == 1:
            return self.args.rates[0]
        scores = {}
        for rate in self.args.rates:
            recipe = replace(self.recipe, learning_rate=rate)
            found = self.learned(f"{group} rate {rate:g}", name, init, recipe, 0, test=False)
            scores[rate] = max(found["val_by_epoch"])
        return max(scores, key=scores.get)

    def summarise(self, groups: dict[str, list[dict]]) -> None:
        summary = {}
        for part in ("mIoU", "pixel_accuracy"):
            values = {group: [run["test"][part] for run in runs] for group, runs in groups.items()}
            pairs = {"ours pretrained above": (f"{OURS_NAME} pretrained", f"{OURS_NAME} random")}
            for way in ("pretrained", "random"):
                pairs[f"ours above {PEER}, {way}"] = (f"{OURS_NAME} {way}", f"{PEER} {way}")
            values |= {n: [a - b for a, b in zip(values[x], values[y], strict=True)] for n, (x, y) in pairs.items()}
            summary[part] = {n: spread(v) if len(v) > 1 else {"mean": round(v[0], 4)} for n, v in values.items()}
        self.result["summary"] = summary
        self.save()
        for name, found in summary["mIoU"].items():
            low, high = found.get("interval95", (float("nan"),) * 2)  # none of one seed
            print(f"{name:40} {found['mean']:7.2%}  (95 % interval {low:.2%} to {high:.2%})")

    def pictures(self, kept: dict[str, Callable[[], Segmenter]]) -> None:
        """Rows: images of test; columns: image, truth, each group's first seed; of the maps alone: each group's."""
        pairs, columns, maps = self.camvid().splits["test"], [], []
        rows = np.linspace(0, len(pairs) - 1, SHOWN).astype(int).tolist()
        seen = [read_pair(pairs, row, CODING) for row in rows]
        columns.append([image for image, _ in seen])
        columns.append([overlay(image, CODING.labels(np.where(c < 0, len(CLASSES), c))) for image, c in seen])
        for group, make in kept.items():
            model = make()
            model.load_state_dict(load_file(self.folder / f"{group} 0".replace(" ", "-") / "best.safetensors"))
            model.eval()
            least = max(model.backbone.reductions)
            found = [segment(model, prepared(i, self.recipe.size, OURS, least), c.shape) for i, c in seen]
            columns.append([overlay(image, CODING.labels(c)) for (image, _), c in zip(seen, found, strict=True)])
            maps.append([label_map(CODING.labels(classes)).convert("RGB") for classes in found])
        for path, pictures in ((self.args.work / "drawn.png", columns), (self.args.out.with_suffix(".png"), maps)):
            pixels = np.concatenate([np.concatenate([np.asarray(i) for i in column]) for column in pictures], axis=1)
            with files.whole(path) as temporary:
                Image.fromarray(pixels).save(temporary, format="PNG", optimize=True)


def _by_epoch(losses: list[float], steps: int) -> list[float]:
    return [round(float(np.mean(losses[i : i + steps])), 4) for i in range(0, len(losses), steps)]


def curves(groups: dict[str, list[dict]], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for i, (group, runs) in enumerate(groups.items()):
        for axis, part in zip(axes, ("loss_by_epoch", "val_by_epoch"), strict=True):
            for run in runs:
                label = group if run is runs[0] else None
                axis.plot(range(1, len(run[part]) + 1), run[part], color=f"C{i}", lw=1, label=label)
    axes[0].set(title="loss on train", xlabel="epoch")
    axes[1].set(title="mIoU on val", xlabel="epoch")
    axes[1].legend(fontsize=7)
    with files.whole(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="CamVid at 240x180: the zip, or a folder of it")
    parser.add_argument("--pretraining", type=Path, required=True, help="Imagenette at 96 px, .npz")
    parser.add_argument("--epochs", type=float, default=40)
    parser.add_argument("--pretraining-epochs", type=float, default=10)
    parser.add_argument("--size", type=int, nargs=2, default=(180, 240))
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, help="of each split; for a trial")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--no-pictures", dest="pictures", action="store_false")
    parser.add_argument("--work", type=Path, default=Path("runs/segmentation"), help="folder of the trainings")
    parser.add_argument("--out", type=Path, default=HERE / "results/segmentation.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with alone(args.work):
        Benchmark(args).run()


if __name__ == "__main__":
    main()
