"""`detect train` and `detect evaluate`: Mask R-CNN or Faster R-CNN on a user's annotated images."""

import io
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import torch

from pocketformer import files, ranks
from pocketformer.dense.detection.batches import DetectionBatches
from pocketformer.dense.detection.checkpoint import Trained, load_detector, save_detector
from pocketformer.dense.detection.coco import TEST, CocoSet
from pocketformer.dense.detection.detector import DetectionTask, Detector
from pocketformer.dense.detection.evaluation import detect, need_coco, precision, tables
from pocketformer.dense.detection.folders import Reader, matched
from pocketformer.dense.detection.heads import Heads
from pocketformer.dense.detection.places import Place, chosen, find, locate
from pocketformer.errors import UserError
from pocketformer.pipelines.backbones import open_backbone
from pocketformer.pipelines.dense_training import DenseSettings, fit, warn_of_copies
from pocketformer.pipelines.images import few
from pocketformer.pipelines.trained import load_architecture
from pocketformer.progress import say, stage
from pocketformer.runs import Inputs, Run, check_folder
from pocketformer.training.colours import UNKNOWN
from pocketformer.training.compute import Compute
from pocketformer.training.depths import Depth
from pocketformer.training.opening import open_image
from pocketformer.training.orders import Share
from pocketformer.training.pixels import normalisation_of
from pocketformer.training.sources import Found, Sample
from pocketformer.training.streaming import preflight

_COMMAND = "detect train"
_LOOKS = 200  # images that tell of what depth all are
_NAMED = ("annotations", "val_annotations", "val_images")


@dataclass(frozen=True, kw_only=True)
class DetectSettings(DenseSettings):
    """What `detect train` is asked for. `data`: a folder, whose annotations are found; or of `annotations` (of train)
    and `val_annotations` that of images, of val if others in `val_images`."""

    annotations: str | None = None
    val_annotations: str | None = None
    val_images: str | None = None
    exif: str = "auto"

    heads: Heads = field(default_factory=Heads)
    masks: bool = True  # where the data have any
    validate: bool = False
    bad_annotations: str = "refuse"

    decisive: ClassVar = (*DenseSettings.decisive, "masks", "validate", "bad_annotations")

    def to_dict(self) -> dict:
        asked = {name: value for name in _NAMED if (value := getattr(self, name)) is not None}
        exif = {} if self.exif == "auto" else {"exif": self.exif}
        return {**super().to_dict(), "heads": self.heads.to_dict(), **asked, **exif}

    def inputs(self) -> Inputs:
        return {**super().inputs(), **dict.fromkeys(_NAMED)}

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
    warn_of_copies(images.paths, val.paths, "val")
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
        train, other = _places(settings)
        reader = Reader(None if settings.masks else False, settings.bad_annotations == "skip", settings.workers)
        reader = replace(reader, exif=settings.exif)
        found = reader(*train)
        if other is None:
            found, val = found.held_out(settings.seed, TEST)
            say(f"note: {settings.data} has no val: {len(val)} of {len(found) + len(val)} images are held out for it")
        else:
            val = matched(found, replace(reader, masks=None if found.masks else False)(*other))
        _say_unused(found)
        if not any(picture.things for picture in val.pictures):
            raise UserError(f"{val.source}: no image has an object, so that nothing could be judged")
        if found.masks and not val.masks:
            raise UserError(f"{val.source} has no masks, but train has: give some, or learn boxes alone (--no-masks)")
        found = with_depth(found, UNKNOWN, settings.workers)
        both = found, with_depth(val, found.depth, settings.workers)
    return ranks.from_first(both)


def with_depth(images: CocoSet, depth: Depth, workers: int) -> CocoSet:
    """The set with its rule for images of more than 8 bits: `depth`, completed by up to 200 of the images. Says what
    there is to say of these."""

    def load(row: int) -> Sample:
        raw = images.path(row).read_bytes()
        return Sample(open_image(io.BytesIO(raw)), raw, 0)

    name = [picture.file for picture in images.pictures].__getitem__
    look = preflight(Found(images.source, (), 0, len(images), "", name, load=load), workers, None, depth, _LOOKS)
    for note in look.remarks.notes(name, look.depth):
        say(f"note: of {look.remarks.looked} images looked at, {note}")
    return replace(images, depth=look.depth)


def _places(settings: DetectSettings) -> tuple[Place, Place | None]:
    """Those of train and val; None: val is a part of train."""
    data = Path(settings.data)
    if settings.annotations is not None:
        train = chosen(Path(settings.annotations), data)
    else:
        train = find(data, "train") or (None if settings.val_annotations else find(data, None)) or locate(data, "train")
    if settings.val_annotations is not None:
        return train, chosen(Path(settings.val_annotations), Path(settings.val_images or settings.data))
    if settings.annotations is not None:
        return train, None
    val = find(data, "val")
    if val is None and (val := find(data, "test")) is not None:
        say(f"note: {data} has no val: {val[0].relative_to(data)} is judged")
    return train, val


def _say_unused(found: CocoSet) -> None:
    used = {thing.category for picture in found.pictures for thing in picture.things}
    if unused := [name for number, name in found.classes.items() if number not in used]:
        say(f"note: {found.source}: no object is of {len(unused)} of {len(found.classes)} categories: {few(unused)}")


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
        save_detector(run.path, Trained(found, images.classes, settings.size, images.depth))


def evaluate_detector(
    checkpoint: str,
    data: str | None,
    annotations: str | None,
    folder: str | None,
    compute: Compute,
    workers: int,
    bad_annotations: str = "refuse",
    exif: str = "auto",
) -> dict:
    """COCO's tables of a trained folder on val of `data` (else test, else all of it), or on a file of annotations and
    its folder of images; "split" says which."""
    need_coco()
    if (data is None) == (annotations is None) or (annotations is None) != (folder is None):
        raise UserError("name what to evaluate on: --data, or --annotations with --images")
    trained = load_detector(Path(checkpoint))
    images = None
    if ranks.first():
        place = _judged(Path(data)) if data is not None else (Path(annotations), Path(folder))
        masks = None if trained.model.heads.masks else False
        images = Reader(masks, bad_annotations == "skip", workers, exif)(*place)
        images = matched(replace(images, source=checkpoint, classes=trained.classes), images)
        images = with_depth(images, trained.depth, workers)
    images = ranks.from_first(images)
    split = "val" if data is not None else Path(annotations).name
    return {"split": split, "images": len(images), **judge(trained, images, compute, workers)}


def _judged(data: Path) -> Place:
    for split in ("val", "test", None):
        if (found := find(data, split)) is not None:
            if split != "val":
                more = ", also those of a training on this folder" if split is None else ""
                say(f"note: {data} has no val: the images of {found[0].relative_to(data)} are judged{more}")
            return found
    return locate(data, "val")


def judge(trained: Trained, images: CocoSet, compute: Compute, workers: int) -> dict[str, dict[str, float]]:
    """COCO's twelve figures of "boxes", and of "masks" where there are any."""
    model = trained.model.to(compute.where, memory_format=torch.channels_last)
    with stage(f"evaluate on {Path(images.source).name}", len(images)) as progress, compute.autocast():
        found = detect(model, images, trained.size, trained.normalisation, workers, progress.update)
    return tables(images, found, model.heads.masks)
