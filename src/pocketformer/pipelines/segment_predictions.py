"""`segment predict`: overlays, label maps and shares of classes of any images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pocketformer import files
from pocketformer.dense.segmentation.drawing import colour_of, label_map, overlay
from pocketformer.dense.segmentation.evaluation import prepared, segment
from pocketformer.errors import UserError
from pocketformer.pipelines.segment_folders import Trained, load_segmenter
from pocketformer.progress import stage
from pocketformer.training.compute import Compute
from pocketformer.training.decoding import upright, why_unreadable


def predict_folder(checkpoint: str, images: Sequence[str], out: Path, compute: Compute) -> dict:
    """Writes NAME_overlay.png and NAME_labels.png (labels as masks of the training have them) for each image, then
    `results.json`, which it returns. A folder stands for the images in it. Raises `UserError` in one line."""
    trained = load_segmenter(checkpoint)
    paths = _images(images)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; give a folder")
    trained.model.to(compute.where)
    found = []
    with stage("predict", len(paths)) as progress, compute.autocast():
        for name, path in paths.items():
            found.append(_predict(trained, name, path, out))
            progress.advance()
    labels = trained.coding.labels(np.arange(len(trained.classes))).tolist()
    classes = [
        {"name": name, "label": label, "colour": list(colour_of(label))}
        for name, label in zip(trained.classes, labels, strict=True)
    ]
    result = {"checkpoint": str(checkpoint), "classes": classes, "images": found}
    files.write_json(out / "results.json", result)
    return result


def _predict(trained: Trained, name: str, path: Path, out: Path) -> dict:
    image = _read(path)
    least = max(trained.model.backbone.reductions)
    classes = segment(
        trained.model, prepared(image, trained.size, trained.normalisation, least), (image.height, image.width)
    )
    labels = trained.coding.labels(classes)
    written = {"overlay": f"{name}_overlay.png", "labels": f"{name}_labels.png"}
    for what, picture in (("overlay", overlay(image, labels)), ("labels", label_map(labels))):
        with files.whole(out / written[what]) as temporary:
            picture.save(temporary)
    counts = np.bincount(classes.ravel(), minlength=len(trained.classes)) / classes.size
    shares = {trained.classes[c]: float(counts[c]) for c in np.argsort(-counts, kind="stable") if counts[c] > 0}
    return {"image": str(path), "size": [image.height, image.width], **written, "shares": shares}


def _read(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return upright(image)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise whatever they like
        raise UserError(f"{path} cannot be read as an image ({why_unreadable(error)})") from None


def _images(names: Sequence[str]) -> dict[str, Path]:
    """The images by the names of their results."""
    suffixes, paths = Image.registered_extensions(), []
    for name in names:
        path = Path(name)
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in suffixes and not p.name.startswith("."))
            if not inside:
                raise UserError(f"{path} holds no images")
            paths += inside
        elif path.is_file():
            paths.append(path)
        else:
            raise UserError(f"no such image: {path}")
    found: dict[str, Path] = {}
    for path in paths:
        if path.stem in found and found[path.stem] != path:
            raise UserError(f"{found[path.stem]} and {path} would be written under the same name: predict them apart")
        found[path.stem] = path
    return found
