"""What was found, drawn on its image."""

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

_TURN = 0.618  # of the circle of hues: neighbours differ


def colour_of(label: int) -> tuple[int, int, int]:
    """RGB of a class, by its number."""
    return tuple(round(255 * v) for v in colorsys.hsv_to_rgb(label * _TURN % 1, 0.85, 0.95))


def drawn(image: Image.Image, found: Sequence[dict[str, Any]], labels: Sequence[int]) -> Image.Image:
    """The image with boxes, names and scores, and masks where there are any. `found`: results with "category"."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    if not found:
        return image.copy()
    colours = [colour_of(label) for label in labels]
    if all("segmentation" in entry for entry in found):
        from faster_coco_eval.core import mask as coco

        for entry, colour in reversed(list(zip(found, colours, strict=True))):  # at once, overlaps would be black
            mask = torch.from_numpy(coco.decode(entry["segmentation"]).astype(bool))
            pixels = draw_segmentation_masks(pixels, mask, 0.5, colour)
    boxes = torch.tensor([entry["bbox"] for entry in found])
    boxes[:, 2:] += boxes[:, :2]
    names = [f"{entry['category']} {entry['score']:.2f}" for entry in found]
    width = max(1, round(max(image.size) / 320))
    pixels = draw_bounding_boxes(pixels, boxes, names, colours, width=width)
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())
