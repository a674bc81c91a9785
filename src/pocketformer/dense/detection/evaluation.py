"""What a detector finds in images, in COCO's format, and COCO's figures of it."""

import importlib.util
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import numpy as np
import torch
from torchvision.models.detection.roi_heads import paste_masks_in_image

from pocketformer import ranks
from pocketformer.dense.detection.batches import Single
from pocketformer.dense.detection.coco import CocoSet
from pocketformer.dense.detection.detector import Detector
from pocketformer.dense.detection.pictures import Size
from pocketformer.errors import UserError
from pocketformer.training.pixels import Normalisation

FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
_KINDS = {"boxes": "bbox", "masks": "segm"}


def need_coco() -> None:
    """Raises `UserError` where the package that counts is not there."""
    if importlib.util.find_spec("faster_coco_eval") is None:
        raise UserError("detection needs faster-coco-eval: pip install 'pocketformer[detection]'")


@torch.inference_mode()
def detect(
    model: Detector,
    images: CocoSet,
    size: Size,
    normalisation: Normalisation,
    workers: int = 0,
    progress: Callable[[int], None] | None = None,
) -> list[dict[str, Any]]:
    """All that is found, as COCO's results, `segmentation` in run lengths where the detector has masks. The processes
    of a job deal out the images, and each gets what all found."""
    device = next(model.parameters()).device
    own: list[list[dict]] = []
    rows = range(ranks.rank(), len(images), ranks.count())
    numbers = list(images.classes)
    for row, batch, shown in Single(images, size, normalisation).of(rows, workers):
        picture = images.pictures[row]
        found = model(batch.to(device, non_blocking=True), (shown,))[0]
        named = to_results(found, shown, picture.size, model.heads.mask_threshold)
        own.append([{"image_id": picture.number, "category_id": numbers[label - 1], **entry} for label, entry in named])
        if progress:
            progress(len(own) * ranks.count())
    return [entry for found in ranks.dealt(own) for entry in found]


def to_results(
    found: dict[str, torch.Tensor], shown: Size, stored: Size, threshold: float
) -> list[tuple[int, dict[str, Any]]]:
    """What a detector found in an image shown at a size: of each object its label, and its box (left, top, width,
    height), score and mask in px of the image as it is stored."""
    scale = torch.tensor([stored[1] / shown[1], stored[0] / shown[0]] * 2, device=found["boxes"].device)
    boxes = found["boxes"] * scale
    labels, scores = found["labels"].tolist(), found["scores"].tolist()
    encoded: Sequence[dict | None] = [None] * len(labels)
    if "masks" in found:
        encoded = [_encoded(mask, box, stored, threshold) for mask, box in zip(found["masks"], boxes, strict=True)]
    results = []
    for label, score, box, mask in zip(labels, scores, boxes.double().tolist(), encoded, strict=True):
        left, top, right, bottom = box
        entry = {"bbox": [left, top, right - left, bottom - top], "score": score}
        results.append((label, entry if mask is None else {**entry, "segmentation": mask}))
    return results


def _encoded(mask: torch.Tensor, box: torch.Tensor, size: Size, threshold: float) -> dict[str, Any]:
    """One at a time: a hundred whole images of probabilities would take memory."""
    from faster_coco_eval.core import mask as coco

    whole = paste_masks_in_image(mask[None], box[None], size)[0, 0] > threshold
    runs = coco.encode(np.asfortranarray(whole.cpu().numpy().astype(np.uint8)))
    counts = runs["counts"]
    return {"size": list(size), "counts": counts.decode() if isinstance(counts, bytes) else counts}


def table(images: CocoSet, results: Sequence[dict[str, Any]], kind: str) -> dict[str, float]:
    """COCO's twelve figures, shares of 1, of "boxes" or "masks"; -1 where no object counts, as COCO has it."""
    from faster_coco_eval.core import COCO, COCOeval_faster

    with redirect_stdout(StringIO()):
        truth = COCO(images.to_coco())
        found = truth.loadRes([dict(entry) for entry in results])
        counted = COCOeval_faster(truth, found, _KINDS[kind], print_function=_silent)
        counted.evaluate()
        counted.accumulate()
        counted.summarize()
    return {name: float(value) for name, value in zip(FIGURES, counted.stats[:12], strict=True)}


def tables(images: CocoSet, results: Sequence[dict[str, Any]], masks: bool) -> dict[str, dict[str, float]]:
    """Of boxes, and of masks where the detector has them and the annotations too."""
    kinds = ("boxes", "masks") if masks and images.masks else ("boxes",)
    return {kind: table(images, results, kind) for kind in kinds}


def precision(found: dict[str, dict[str, float]]) -> float:
    """The figure that a training keeps its best weights by: AP of the masks where there are any, else of the boxes."""
    return max(0.0, list(found.values())[-1]["AP"])


def _silent(*_: object, **__: object) -> None: ...
