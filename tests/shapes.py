"""Images of large convex shapes and their masks, in CamVid's layout, and segmenters of them. Shared by the tests of
segmentation."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from pocketformer import SearchSpace, create_model
from pocketformer.dense.backbone import Backbone
from pocketformer.dense.segmentation.segmenter import Segmenter
from pocketformer.pipelines.segmenting import SegmentSettings

CLASSES = ("ground", "disc", "box", "wedge")
VOID = 255
_COLOURS = ((90, 90, 90), (200, 60, 60), (60, 180, 70), (70, 80, 210))
SPACE = {
    "name": "tiny",
    "design": {
        "resolution": 64,
        "heads": 2,
        "key_dim": 8,
        "value_dim": 8,
        "downsampling_heads": 2,
        "downsampling_key_dim": 8,
        "downsampling_value_dim": 8,
    },
    "expansions": [1, 2],
    "stages": [
        {"depth": 1, "widths": [16]},
        {"depth": 1, "widths": [16, 24]},
        {"depth": 2, "widths": [24, 32], "attention": True},
        {"depth": 1, "widths": [32, 48], "attention": True},
    ],
}


def architecture():
    return SearchSpace.from_dict(SPACE).largest


def scene(seed: int, height: int = 64, width: int = 80) -> tuple[Image.Image, Image.Image]:
    """An image and its mask, whose first rows are void."""
    rng = np.random.default_rng(seed)
    image, mask = Image.new("RGB", (width, height), _COLOURS[0]), Image.new("L", (width, height), 0)
    third = width // 3
    for place, label in enumerate(rng.permutation([1, 2, 3])):
        left, top = third * place + int(rng.integers(0, 4)), int(rng.integers(4, height - third - 1))
        box = (left, top, left + third - 6, top + third - 2)
        points = [(box[0], box[3]), (box[2], box[3]), ((box[0] + box[2]) // 2, box[1])]
        for canvas, fill in ((ImageDraw.Draw(image), _COLOURS[label]), (ImageDraw.Draw(mask), int(label))):
            if label == 1:
                canvas.ellipse(box, fill=fill)
            elif label == 2:
                canvas.rectangle(box, fill=fill)
            else:
                canvas.polygon(points, fill=fill)
    noise = rng.normal(0, 6, (height, width, 3))
    image = Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))
    pixels = np.array(mask)
    pixels[:2] = VOID
    return image, Image.fromarray(pixels)


def write(folder: Path, counts: dict[str, int] | None = None, names: bool = True, **more) -> Path:
    """The folder with so many scenes a split, and classes.txt."""
    number = 0
    for split, count in (counts or {"train": 4, "val": 4}).items():
        for part in (split, f"{split}annot"):
            (folder / part).mkdir(parents=True)
        for _ in range(count):
            image, mask = scene(number, **more)
            image.save(folder / split / f"{number:02}.png")
            mask.save(folder / f"{split}annot" / f"{number:02}.png")
            number += 1
    if names:
        (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return folder


def segmenter(size=(64, 80), classes=4, described=None, **more) -> Segmenter:
    torch.manual_seed(0)
    network = create_model(described or architecture(), num_classes=0, distilled=False, layer_scale=0.5)
    return Segmenter(Backbone(network, size, **more), classes)


def asked(described, data, recipe, **rest) -> SegmentSettings:
    given = {"architecture": str(described), "data": str(data), "recipe": recipe, "workers": 0, **rest}
    return SegmentSettings(**given)
