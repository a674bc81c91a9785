"""`detect train` and `detect evaluate`: Mask R-CNN or Faster R-CNN on a user's annotated images."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import torch

from pocketformer import files, ranks
from pocketformer.dense.detection.batches import DetectionBatches
from pocketformer.dense.detection.checkpoint import Trained, load_detector, save_detector
from pocketformer.dense.detection.coco import CocoSet
from pocketformer.dense.detection.detector import DetectionTask, Detector
from pocketformer.dense.detection.evaluation import detect, need_coco, precision, tables
from pocketformer.dense.detection.folders import Reader, check_classes, locate
from pocketformer.dense.detection.heads import Heads
from pocketformer.errors import UserError
from pocketformer.pipelines.backbones import open_backbone
from pocketformer.pipelines.dense_training import DenseSettings, fit
from pocketformer.pipelines.trained import load_architecture
from pocketformer.progress import say, stage
from pocketformer.runs import Run, check_folder
from pocketformer.training.compute import Compute
from pocketformer.training.orders import Share
from pocketformer.training.pixels import normalisation_of

_COMMAND = "detect train"


@dataclass(frozen=True, kw_only=True)
class DetectSettings(DenseSettings):
    """What `detect train` is asked for."""

    heads: Heads = field(default_factory=Heads)
    masks: bool = True  # where the data have any
    validate: bool = False
    bad_annotations: str = "refuse"

    decisive: ClassVar = (*DenseSettings.decisive, "masks", "validate", "bad_annotations")

    def to_dict(self) -> dict:
        return {**super().to_dict(), "heads": self.heads.to_dict()}

    @property
    def size(self) -> tuple[int, int]:
        """Short and long side of the images, px."""
        return int(min(self.recipe.size)), int(max(self.recipe.size))


def train_detector(settings: DetectSettings, out: Path) -> dict:
    """Trains a detector on train (with `validate`: but a tenth, the search split, by which the best weights are kept)
    and evaluates it on val; resumes in the same folder."""
    need_coco()
    described = load_architecture(settings.architecture)
    inputs = settings.inputs()
    check_folder(out, _COMMAND, settings.to_dict(), inputs)
    found, val = _open(settings)
    images = found.for_training()
    if len(images) < len(found):
        say(f"note: {len(found) - len(images)} of {len(found)} training images show no object; they are left out")
    heads = replace(settings.heads, masks=found.masks)
    torch.manual_seed(settings.seed)
    backbone = open_backbone(described, settings.init, replace(settings.recipe, size=settings.size))
    model = Detector(backbone, len(found.classes), heads)
    with Run(out, _COMMAND, settings.to_dict(), inputs) as run:
        run.record(data_fingerprint=f"{found.fingerprint} {val.fingerprint}")
        if not ranks.from_first((run.path / "model.safetensors").exists()):
            _train(model, images, settings, run)
        ranks.wait()
        trained = load_detector(run.path)
        test = judge(trained, val, settings.compute, settings.workers)
        parameters = sum(p.numel() for p in trained.model.parameters())
        result = {"parameters": parameters, "split": "val", "images": len(val), "test": test, "folder": str(run.path)}
        if ranks.first():
            files.write_json(run.path / "results.json", {"command": _COMMAND, "seed": settings.seed, **result})
    return result


def _open(settings: DetectSettings) -> tuple[CocoSet, CocoSet]:
    """Both splits, looked through by the first of several processes."""
    both = None
    if ranks.first():
        data = Path(settings.data)
        places = [locate(data, split) for split in ("train", "val")]
        skip = settings.bad_annotations == "skip"
        found = Reader(None if settings.masks else False, skip, settings.workers)(*places[0])
        val = Reader(None if found.masks else False, skip, settings.workers)(*places[1])
        check_classes(found, val)
        if not any(picture.things for picture in val.pictures):
            raise UserError(f"{val.source}: no image has an object, so that nothing could be judged")
        if found.masks and not val.masks:
            raise UserError(f"{val.source} has no masks, but train has: give some, or learn boxes alone (--no-masks)")
        both = found, val
    return ranks.from_first(both)


def _train(model: Detector, images: CocoSet, settings: DetectSettings, run: Run) -> None:
    normalisation = normalisation_of(model.pyramid.backbone.network)
    learned, search = images.held_out(settings.seed) if settings.validate else (images, None)
    batches = DetectionBatches(
        learned,
        settings.recipe.batch_size,
        settings.size,
        settings.seed,
        normalisation,
        Share(ranks.rank(), ranks.count()),
        settings.workers,
    )

    def score(network: Detector) -> float:
        network.eval()
        with settings.compute.autocast():
            found = detect(network, search, settings.size, normalisation, settings.workers)
        return precision(tables(search, found, network.heads.masks))

    found = fit(model, DetectionTask(model), batches, settings, run, "detector", score if search else None, "AP")
    if ranks.first():
        save_detector(run.path, Trained(found, images.classes, settings.size))


def evaluate_detector(
    checkpoint: str,
    data: str | None,
    annotations: str | None,
    folder: str | None,
    compute: Compute,
    workers: int,
    bad_annotations: str = "refuse",
) -> dict:
    """COCO's tables of a trained folder on val of `data`, or on a file of annotations and its folder of images; "split"
    says which."""
    need_coco()
    if (data is None) == (annotations is None) or (annotations is None) != (folder is None):
        raise UserError("name what to evaluate on: --data, or --annotations with --images")
    trained = load_detector(Path(checkpoint))
    images = None
    if ranks.first():
        places = locate(Path(data), "val") if data is not None else (Path(annotations), Path(folder))
        masks = None if trained.model.heads.masks else False
        images = Reader(masks, bad_annotations == "skip", workers)(*places)
        known = replace(images, source=checkpoint, classes=trained.classes)
        check_classes(known, images)
    images = ranks.from_first(images)
    split = "val" if data is not None else Path(annotations).name
    return {"split": split, "images": len(images), **judge(trained, images, compute, workers)}


def judge(trained: Trained, images: CocoSet, compute: Compute, workers: int) -> dict[str, dict[str, float]]:
    """COCO's twelve figures of "boxes", and of "masks" where there are any."""
    model = trained.model.to(compute.where, memory_format=torch.channels_last)
    with stage(f"evaluate on {Path(images.source).name}", len(images)) as progress, compute.autocast():
        found = detect(model, images, trained.size, trained.normalisation, workers, progress.update)
    return tables(images, found, model.heads.masks)
