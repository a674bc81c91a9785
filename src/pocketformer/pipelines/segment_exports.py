"""`segment export`: a trained segmenter in, a verified file for deployment out."""

from pathlib import Path

import torch

import pocketformer.dense.segmentation.fused  # noqa: F401  (registers what is exported)
from pocketformer.dense.segmentation.crops import CropBatches
from pocketformer.dense.segmentation.folders import find_masks
from pocketformer.deploy import ExportReport, check_target, export, exporter_of
from pocketformer.deploy.facts import Facts, architecture_name
from pocketformer.pipelines.facts import channels, data_fingerprint
from pocketformer.pipelines.segment_folders import TASK, Trained, load_segmenter
from pocketformer.pipelines.segmenting import looked_through
from pocketformer.progress import stage

_IMAGES = 4  # to verify on: each gives as many logits as it has pixels and classes


def export_segmenter(
    checkpoint: str,
    out: Path,
    format: str,
    size: tuple[int, int] | None,
    source: str | None,
    seed: int,
    licence: str | None = None,
    raw: bool = False,
    opset: int | None = None,
) -> ExportReport:
    """Writes backbone, neck and head, fused, for single images of `size` (that of the training's crops by default):
    input `image`, output `logits` (1, classes, H, W).

    Verified on crops of the source's images, or on random pixels; on a mismatch `WorkError`, and no file.
    """
    exporter_of(format, "float32", raw, opset)  # refused before anything is read
    check_target(out, format)
    trained = load_segmenter(checkpoint)
    model, size = trained.model, size or trained.size
    model.backbone.network.set_input_size(size)
    images = _pixels(size, seed) if source is None else _crops(trained, size, source, seed)
    with stage("export and verify"):
        facts = _facts(trained, size, checkpoint, licence)
        return export(model, out, images, format, facts=facts, raw=raw, opset=opset)


def _facts(trained: Trained, size: tuple[int, int], checkpoint: str, licence: str | None) -> Facts:
    """Of a file for images of `size`."""
    return Facts(
        task=TASK,
        architecture=architecture_name(trained.model.backbone.network.architecture),
        size=size,
        classes=trained.classes,
        framing="any",
        interpolation="bilinear",
        **channels(trained.normalisation, 3),
        licence=licence,
        fingerprint=data_fingerprint(checkpoint),
        depth=trained.depth.recorded().get("depth"),
    )


def _pixels(size: tuple[int, int], seed: int) -> torch.Tensor:
    return torch.randn(_IMAGES, 3, *size, generator=torch.Generator().manual_seed(seed))


def _crops(trained: Trained, size: tuple[int, int], source: str, seed: int) -> torch.Tensor:
    data = find_masks(source, trained.coding)
    pairs = looked_through(data, trained, 0).judged
    batches = CropBatches(pairs, trained.coding, _IMAGES, size, seed, trained.normalisation)
    return next(iter(batches.steps(0, 1)))[0]
