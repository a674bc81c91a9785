"""Images of large convex shapes with their annotations, in COCO's layout, and as they are read. Shared by the tests of
detection."""

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from pocketformer.dense.detection.batches import DetectionBatches
from pocketformer.dense.detection.coco import CocoSet
from pocketformer.dense.detection.folders import Reader
from pocketformer.dense.detection.places import locate
from pocketformer.training.pixels import OURS

CATEGORIES = {3: "disc", 7: "box", 9: "wedge"}
_COLOURS = {3: (200, 60, 60), 7: (60, 180, 70), 9: (70, 80, 210)}
_TURN = np.linspace(0, 2 * np.pi, 48, endpoint=False)


def polygon(category: int, left: float, top: float, side: float) -> np.ndarray:
    """Points (V, 2) of a shape in a square, px."""
    if category == 3:
        return np.stack([np.cos(_TURN), np.sin(_TURN)], 1) * side / 2 + [left + side / 2, top + side / 2]
    corners = [(0, 1), (1, 1), (1, 0), (0, 0)] if category == 7 else [(0, 1), (1, 1), (0.5, 0)]
    return np.array(corners) * side + [left, top]


def scene(seed: int, height: int, width: int, masks: bool = True) -> tuple[Image.Image, list[dict]]:
    """An image of two shapes side by side, and their annotations but for ids."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (width, height), tuple(int(v) for v in rng.integers(90, 140, 3)))
    canvas, found, half = ImageDraw.Draw(image), [], width / 2
    for place, category in enumerate(rng.permutation(list(CATEGORIES))[:2].tolist()):
        side = float(rng.uniform(0.55, 0.8)) * min(half, height)
        left = place * half + float(rng.uniform(2, half - side - 2))
        points = polygon(category, left, float(rng.uniform(2, height - side - 2)), side)
        canvas.polygon([tuple(p) for p in points.tolist()], fill=_COLOURS[category])
        low, high = points.min(0), points.max(0)
        x, y = points.T
        area = abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2
        entry = {"category_id": category, "bbox": [*low.tolist(), *(high - low).tolist()], "area": area, "iscrowd": 0}
        found.append({**entry, "segmentation": [points.ravel().tolist()]} if masks else entry)
    pixels = np.asarray(image) + rng.normal(0, 4, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), found


def write_set(folder: Path, train: int = 4, val: int | None = None, masks: bool = True) -> Path:
    """A data set of so many images; without `val`, val are the images of train. Sizes vary from image to image."""
    content = {split: _write(folder, split, count, masks) for split, count in (("train", train), ("val", val or train))}
    for split, value in content.items():
        write_json(folder, split, value)
    return folder


def write_json(folder: Path, split: str, content: dict) -> None:
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def read_json(folder: Path, split: str) -> dict:
    return json.loads((folder / "annotations" / f"instances_{split}.json").read_text())


def opened(folder: Path, split: str = "train", masks: bool | None = None, skip: bool = False) -> CocoSet:
    return Reader(masks, skip)(*locate(folder, split))


def batches(images: CocoSet, batch_size: int = 3, **more) -> DetectionBatches:
    return DetectionBatches(images, batch_size, (96, 128), 0, OURS, **more)


def _write(folder: Path, split: str, count: int, masks: bool) -> dict:
    (folder / split).mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number in range(1, count + 1):
        height, width = ((96, 128), (96, 120), (88, 128), (96, 112))[number % 4]
        image, found = scene(number, height, width, masks)
        image.save(folder / split / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
        annotations += [{"id": len(annotations) + i, "image_id": number, **each} for i, each in enumerate(found, 1)]
    categories = [{"id": number, "name": name} for number, name in CATEGORIES.items()]
    return {"images": images, "annotations": annotations, "categories": categories}
