"""`segment predict`: overlays, label maps and shares of classes of any images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pocketformer import files
from pocketformer.dense.segmentation.drawing import colour_of, label_map, overlay
from pocketformer.dense.segmentation.evaluation import prepared, segment
from pocketformer.pipelines.images import check_readable, check_results, find_images, read_image
from pocketformer.pipelines.segment_folders import Trained, load_segmenter
from pocketformer.progress import stage
from pocketformer.training.compute import Compute
from pocketformer.training.depths import Depth


def predict_folder(checkpoint: str, images: Sequence[str], out: Path, compute: Compute) -> dict:
    """Writes NAME_overlay.png and NAME_labels.png (labels as masks of the training have them) for each image, then
    `results.json`, which it returns. A folder stands for the images in it. Raises `UserError` in one line."""
    trained = load_segmenter(checkpoint)
    paths = find_images(images)
    check_results(paths.values(), [file for name in paths for file in _written(name).values()], images, out)
    depth = check_readable(paths.values(), trained.depth)
    trained.model.to(compute.where)
    found = []
    with stage("predict", len(paths)) as progress, compute.autocast():
        for name, path in paths.items():
            found.append(_predict(trained, name, path, out, depth))
            progress.advance()
    labels = trained.coding.labels(np.arange(len(trained.classes))).tolist()
    classes = [
        {"name": name, "label": label, "colour": list(colour_of(label, trained.coding))}
        for name, label in zip(trained.classes, labels, strict=True)
    ]
    result = {"checkpoint": str(checkpoint), "classes": classes, "images": found}
    files.write_json(out / "results.json", result)
    return result


def _written(name: str) -> dict[str, str]:
    return {"overlay": f"{name}_overlay.png", "labels": f"{name}_labels.png"}


def _predict(trained: Trained, name: str, path: Path, out: Path, depth: Depth) -> dict:
    image = read_image(path, depth)
    least = max(trained.model.backbone.reductions)
    classes = segment(
        trained.model, prepared(image, trained.size, trained.normalisation, least), (image.height, image.width)
    )
    labels = trained.coding.labels(classes)
    written = _written(name)
    for what, picture in (
        ("overlay", overlay(image, labels, coding=trained.coding)),
        ("labels", label_map(labels, trained.coding)),
    ):
        with files.whole(out / written[what]) as temporary:
            picture.save(temporary)
    counts = np.bincount(classes.ravel(), minlength=len(trained.classes)) / classes.size
    shares = {trained.classes[c]: float(counts[c]) for c in np.argsort(-counts, kind="stable") if counts[c] > 0}
    return {"image": str(path), "size": [image.height, image.width], **written, "shares": shares}
