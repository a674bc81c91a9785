"""Maps of classes as pictures."""

import numpy as np
import torch
from PIL import Image
from torchvision.utils import draw_segmentation_masks

from pocketformer.dense.segmentation.labels import Coding

_COLOURS = 256


def palette() -> list[tuple[int, int, int]]:
    """256 colours, neighbours far apart: PASCAL VOC's, whose bits 0, 3, 6, … of a label are the highest of red."""
    found = []
    for label in range(1, _COLOURS + 1):  # black is not taken: it would look like nothing
        bits = [[label >> (3 * k + channel) & 1 for k in range(3)] for channel in range(3)]
        found.append(tuple(sum(bit << (7 - k) for k, bit in enumerate(channel)) for channel in bits))
    return found


def colour_of(label: int, coding: Coding | None = None) -> tuple[int, int, int]:
    if coding is not None and coding.colours:
        return label >> 16, label >> 8 & 255, label & 255
    return palette()[label % _COLOURS]


def overlay(image: Image.Image, labels: np.ndarray, alpha: float = 0.6, coding: Coding | None = None) -> Image.Image:
    """The image under the colours of its labels (H, W)."""
    there = np.unique(labels)
    masks = torch.from_numpy(labels[None] == there[:, None, None])
    pixels = torch.from_numpy(np.array(image).transpose(2, 0, 1))
    drawn = draw_segmentation_masks(pixels, masks, alpha=alpha, colors=[colour_of(int(c), coding) for c in there])
    return Image.fromarray(drawn.numpy().transpose(1, 2, 0))


def label_map(labels: np.ndarray, coding: Coding | None = None) -> Image.Image:
    """Labels (H, W) as an image whose pixels are the labels: with a palette, or 16 bit beyond 255; or colours, where
    the coding has them."""
    if coding is not None and coding.colours:
        return Image.fromarray(np.stack([labels >> 16, labels >> 8 & 255, labels & 255], 2).astype(np.uint8))
    if labels.max(initial=0) >= _COLOURS:
        return Image.fromarray(labels.astype(np.uint16))
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette([value for colour in palette() for value in colour])
    return image
