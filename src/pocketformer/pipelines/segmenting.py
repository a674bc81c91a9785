"""`segment train` and `segment evaluate`: Semantic FPN on a user's images and masks."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from pocketformer import files, ranks
from pocketformer.dense.recipe import DenseRecipe
from pocketformer.dense.segmentation.census import Census, read_census, take_census, write_census
from pocketformer.dense.segmentation.crops import CropBatches
from pocketformer.dense.segmentation.evaluation import Scores, evaluate
from pocketformer.dense.segmentation.folders import Folder, Pairs, find_masks
from pocketformer.dense.segmentation.labels import Coding
from pocketformer.dense.segmentation.segmenter import Segmenter
from pocketformer.dense.segmentation.task import SegmentationTask
from pocketformer.errors import UserError
from pocketformer.pipelines.backbones import open_backbone
from pocketformer.pipelines.dense_training import DenseSettings, fit, warn_of_copies
from pocketformer.pipelines.images import few
from pocketformer.pipelines.segment_folders import Trained, load_segmenter, save_segmenter
from pocketformer.pipelines.trained import load_architecture
from pocketformer.progress import say, stage
from pocketformer.runs import Inputs, Run, check_folder, held
from pocketformer.training.colours import UNKNOWN
from pocketformer.training.compute import Compute
from pocketformer.training.depths import Depth
from pocketformer.training.orders import Share
from pocketformer.training.pixels import normalisation_of

_COMMAND = "segment train"


@dataclass(frozen=True, kw_only=True)
class SegmentSettings(DenseSettings):
    """What `segment train` is asked for."""

    classes: str | None = None  # a file of their names
    coding: Coding = field(default_factory=Coding)  # as asked for; the masks may tell more
    exif: str = "auto"

    decisive: ClassVar = (*DenseSettings.decisive, "classes")

    def to_dict(self) -> dict:
        asked = {"ignore_index": self.coding.ignored, "reduce_zero_label": self.coding.reduce_zero_label}
        return {**super().to_dict(), **asked, **({} if self.exif == "auto" else {"exif": self.exif})}

    def inputs(self) -> Inputs:
        return {**super().inputs(), **held(classes=self.classes)}


def train_segmenter(settings: SegmentSettings, out: Path) -> dict:
    """Trains a segmenter, keeps the weights that do best on val and evaluates them on test; without test, what is
    evaluated chooses nothing: the last weights, on val. Resumes in the same folder."""
    described, recipe = load_architecture(settings.architecture), settings.recipe
    inputs = settings.inputs()
    check_folder(out, _COMMAND, settings.to_dict(), inputs)
    data = find_masks(settings.data, settings.coding, settings.classes)
    data.refuse_without_training()
    for note in data.notes:
        say(f"note: {note}")
    census = checked(data, tuple(data.splits), settings.workers, out / "census.json", exif=settings.exif)
    data = census.applied(data)
    classes = data.classes or _numbered(census.num_classes(data.coding), data.coding)
    if len(classes) < 2:
        raise UserError(
            f"{data.source}: there is but one class to tell apart; label {data.coding.ignored} is ignored "
            "(--ignore-index), and a list of classes must name the background too"
        )
    _say_absent(census, data, classes)
    if not {"val", "test"} & set(data.splits):
        say("note: there is no val or test: the scores are of images that it has learned from")
    for name in ("val", "test"):
        if name in data.splits:
            warn_of_copies(data.splits["train"].paths, data.splits[name].paths, name)
    torch.manual_seed(settings.seed)
    model = Segmenter(open_backbone(described, settings.init, recipe), len(classes))
    with Run(out, _COMMAND, settings.to_dict(), inputs) as run:
        run.record(data_fingerprint=census.fingerprint)
        if ranks.first():
            write_census(run.path / "census.json", _stamp(data, settings.exif), census)
        if not ranks.from_first((run.path / "model.safetensors").exists()):
            ignored = any(data.coding.ignored in split for split in census.labels.values())
            _train(model, data, classes, settings, run, ignored or settings.coding.ignore_index is not None)
        ranks.wait()
        trained = load_segmenter(run.path)
        judged = data.judged if {"val", "test"} & set(data.splits) else data.splits["train"]
        scores = judge(trained, judged, settings.compute, settings.workers)
        parameters = sum(p.numel() for p in trained.model.parameters())
        result = {"parameters": parameters, "split": judged.name, **scores.to_dict(classes), "folder": str(run.path)}
        if ranks.first():
            files.write_json(run.path / "results.json", {"command": _COMMAND, "seed": settings.seed, **result})
    return result


def _train(
    model: Segmenter, data: Folder, classes: tuple[str, ...], settings: SegmentSettings, run: Run, ignores: bool
) -> None:
    size = crop_size(settings.recipe)
    normalisation = normalisation_of(model.backbone.network)
    batches = CropBatches(
        data.splits["train"],
        data.coding,
        settings.recipe.batch_size,
        size,
        settings.seed,
        normalisation,
        Share(ranks.rank(), ranks.count()),
        settings.workers,
    )
    val = data.splits.get("val") if "test" in data.splits else None

    def score(network: Segmenter) -> float:
        network.eval()
        with settings.compute.autocast():
            return evaluate(network, val, data.coding, size, normalisation, settings.workers).miou

    found = fit(model, SegmentationTask(model), batches, settings, run, "segmenter", score if val else None, "mIoU")
    if ranks.first():
        depth = data.splits["train"].depth
        save_segmenter(run.path, found, classes, size, data.coding, data.source, depth, ignores)


def evaluate_segmenter(checkpoint: str, source: str, compute: Compute, workers: int, exif: str = "auto") -> dict:
    """Scores of a trained folder on test (without test on val) of the source, whose masks are coded as those of the
    training. `exif`: see `census.take_census`."""
    trained = load_segmenter(checkpoint)
    data = find_masks(source, trained.coding)
    if data.classes is not None and data.classes != trained.classes:
        raise UserError(
            f"{checkpoint} knows {len(trained.classes)} classes ({', '.join(trained.classes[:3])}, …), but {source} "
            f"has {len(data.classes)} ({', '.join(data.classes[:3])}, …)"
        )
    data = looked_through(data, trained, workers, exif)
    judged = data.judged
    if judged.name == "train":
        say(f"note: {source} has no splits: all of its images are judged, also those of a training on this folder")
    scores = judge(replace(trained, coding=data.coding), judged, compute, workers)
    return {"split": judged.name, **scores.to_dict(trained.classes)}


def looked_through(data: Folder, trained: Trained, workers: int, exif: str = "auto") -> Folder:
    """The folder, once the masks of what is judged have been looked at; they are coded as the training's, but that 255
    may be a shade where no mask of the training had it."""
    coding = trained.coding if trained.ignores else replace(trained.coding, ignore_index=None)
    data = replace(data, coding=coding)
    known = {"classes": len(trained.classes), "exif": exif, "depth": trained.depth}
    census = checked(data, (data.judged.name,), workers, **known)
    data = census.applied(data)
    labels = np.array(sorted(census.labels[data.judged.name]), np.int32)
    there = {number for number in data.coding.classes(labels).tolist() if number >= 0}
    if len(there) == 1 and data.coding.ignored in labels:
        name = trained.classes[there.pop()]
        say(f"note: on these masks {name} alone counts: label {data.coding.ignored} is ignored, as in the training")
    return data


def judge(trained: Trained, pairs: Pairs, compute: Compute, workers: int) -> Scores:
    model = trained.model.to(compute.where, memory_format=torch.channels_last)
    with stage(f"evaluate on {pairs.name}", len(pairs)) as progress, compute.autocast():
        return evaluate(model, pairs, trained.coding, trained.size, trained.normalisation, workers, progress.update)


def crop_size(recipe: DenseRecipe) -> tuple[int, int]:
    height, width = recipe.size
    return int(height), int(width)


def checked(
    data: Folder,
    splits: tuple[str, ...],
    workers: int,
    kept: Path | None = None,
    classes: int | None = None,
    exif: str = "auto",
    depth: Depth = UNKNOWN,
) -> Census:
    """What the masks hold, once all of them have been looked at, by the first of several processes; `kept`: where an
    earlier run has written it down. Says what was taken for what. Raises `UserError` in one line for bad ones."""
    census = None
    if ranks.first():
        census = None if kept is None else read_census(kept, _stamp(data, exif))
        if census is None:
            known = classes or (None if data.classes is None else len(data.classes))
            with stage("check the masks", sum(len(data.splits[name]) for name in splits)) as progress:
                census = take_census(data, splits, known, workers, progress.update, exif, depth)
        for note in census.notes:
            say(f"note: {note}")
    return ranks.from_first(census)


def _stamp(data: Folder, exif: str) -> str:
    return data.stamp if exif == "auto" else f"{data.stamp} {exif}"


def _numbered(count: int, coding: Coding) -> tuple[str, ...]:
    say(f"note: no names of classes (classes.txt, or --classes): by their masks there are {count}")
    if coding.values:
        return tuple(f"label {value}" for value in coding.values)
    return tuple(f"class {number}" for number in range(count))


def _say_absent(census: Census, data: Folder, classes: tuple[str, ...]) -> None:
    labels = np.array(sorted(census.labels["train"]), np.int32)
    there = set(data.coding.classes(labels).tolist())
    if absent := [name for number, name in enumerate(classes) if number not in there]:
        say(f"note: {len(absent)} of {len(classes)} classes are on no mask of train: {few(absent)}")
