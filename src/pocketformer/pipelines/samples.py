"""A few images of a split that stand for all its classes: what files are verified and calibrated on."""

import numpy as np
import torch

from pocketformer.errors import UserError
from pocketformer.training.batches import Normalisation, eval_batches
from pocketformer.training.data import Split, random_words

_PURPOSE = 7  # of the random numbers


def sample(
    split: Split, count: int, size: tuple[int, int], normalisation: Normalisation, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Up to `count` images (N, 3, H, W), normalised, and their labels (N,); of a streamed split no others are decoded.

    Each class as often as any other, as far as it has images; of more classes than `count`, one image each of as many.
    A function of the seed and the split. Images that cannot be read are passed over. Raises `UserError` if none can.
    """
    rows = torch.arange(len(split)) if split.indices is None else split.indices
    order = torch.from_numpy(in_turn(split.labels[rows].numpy(), seed))
    chosen = Split(split.name, split.images, split.labels, rows[order])
    images, labels, missing = [], [], count
    for x, y in eval_batches(chosen, count, size, normalisation):
        images.append(x[:missing])
        labels.append(y[:missing])
        missing -= len(images[-1])
        if not missing:
            break
    if not images:
        raise UserError(f"none of the {len(split)} images of {split.name} can be read")
    return torch.cat(images), torch.cat(labels)


def in_turn(labels: np.ndarray, seed: int) -> np.ndarray:
    """The places of the labels (N,), class by class in turn, at random within each: the first n of them are spread."""
    draws = random_words(len(labels), seed, _PURPOSE)
    order = np.lexsort((draws, labels))
    ordered = labels[order]
    turns = np.arange(len(labels)) - np.searchsorted(ordered, ordered)  # how many of its class come before
    return order[np.lexsort((draws[order], turns))]
