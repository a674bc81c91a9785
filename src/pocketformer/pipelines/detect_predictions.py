"""`detect predict`: objects of any images, drawn and listed."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from pocketformer import files
from pocketformer.dense.detection.checkpoint import Trained, load_detector
from pocketformer.dense.detection.drawing import drawn
from pocketformer.dense.detection.evaluation import need_coco, to_results
from pocketformer.dense.detection.pictures import fitted, padded, to_input
from pocketformer.pipelines.images import check_readable, check_results, find_images, read_image
from pocketformer.progress import stage
from pocketformer.training.compute import Compute


def predict_folder(checkpoint: str, images: Sequence[str], out: Path, threshold: float, compute: Compute) -> dict:
    """Writes NAME.png for each image, with what was found at a score of `threshold` or more, then `results.json`, which
    it returns: {"images", "results"}, the latter as COCO's results and "image" and "category" by name. A folder stands
    for the images in it. Raises `UserError` in one line."""
    need_coco()
    trained = load_detector(Path(checkpoint))
    paths = find_images(images)
    check_results(paths.values(), [f"{name}.png" for name in paths], images, out)
    depth = check_readable(paths.values(), trained.depth)
    trained.model.to(compute.where, memory_format=torch.channels_last)
    shown, results = [], []
    with stage("predict", len(paths)) as progress, compute.autocast():
        for number, (name, path) in enumerate(paths.items(), 1):
            image = read_image(path, depth)
            found = _found(trained, image, {"image_id": number, "image": str(path)}, threshold)
            with files.whole(out / f"{name}.png") as temporary:
                labels = list(trained.classes)
                drawn(image, found, [labels.index(entry["category_id"]) for entry in found]).save(temporary)
            size = {"height": image.height, "width": image.width}
            shown.append({"id": number, "file_name": str(path), **size, "drawn": f"{name}.png"})
            results += found
            progress.advance()
    result = {"checkpoint": str(checkpoint), "threshold": threshold, "images": shown, "results": results}
    files.write_json(out / "results.json", result)
    return result


@torch.inference_mode()
def _found(trained: Trained, image: Image.Image, about: dict, threshold: float) -> list[dict]:
    stored = image.height, image.width
    size = fitted(stored, trained.size)
    batch = padded([to_input(image, size, trained.normalisation)])
    device = next(trained.model.parameters()).device
    found = trained.model(batch.to(device), (size,))[0]
    numbers = list(trained.classes)
    named = []
    for label, entry in to_results(found, size, stored, trained.model.heads.mask_threshold):
        if entry["score"] >= threshold:
            category = numbers[label - 1]
            named.append({**about, "category_id": category, "category": trained.classes[category], **entry})
    return named
