"""Classes that count alike though their images are not equally many: drawn equally often, or weighed in the loss."""

import numpy as np
import torch

from pocketformer.training.data import Split
from pocketformer.training.splitting import random_words

CHOICES = ("none", "sampling", "weights")
UNEVEN = 5  # times the images of the smallest class that the largest has, above which a person is told
_DRAW = 3  # key of the stream of random numbers


def labels_of(split: Split) -> np.ndarray:
    """int64 (N,), in the split's order."""
    return (split.labels if split.indices is None else split.labels[split.indices]).numpy()


def loss_weights(balance: str, split: Split, num_classes: int) -> torch.Tensor | None:
    """What the classes of a training on the split weigh in its loss, by a recipe's `balance`; None: all the same."""
    return class_weights(labels_of(split), num_classes) if balance == "weights" else None


def class_weights(labels: np.ndarray, num_classes: int) -> torch.Tensor:
    """float32 (classes,): N / (classes with images x images of the class), so that an image weighs 1 on average and
    every class as much as another. 0 for a class without images."""
    counts = np.bincount(labels, minlength=num_classes)
    present = counts > 0
    weights = np.where(present, len(labels) / (present.sum() * np.maximum(counts, 1)), 0.0)
    return torch.from_numpy(weights).float()


def equal_shares(labels: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Positions int64 (N,) of one epoch's images, shuffled: every class has N / classes of them, give or take one.

    A class with fewer images is gone through again and again, each image as often as the others, give or take one; of
    a class with more, each epoch shows a part drawn anew. A function of its arguments alone.
    """
    count = len(labels)
    words = random_words(3 * count, seed, epoch, _DRAW)
    within, over, order = words[:count], words[count : 2 * count], words[2 * count :]
    classes = np.unique(labels)
    quotas = np.full(len(classes), count // len(classes))
    quotas[np.argsort(over[: len(classes)], kind="stable")[: count % len(classes)]] += 1
    drawn = []
    for label, quota in zip(classes.tolist(), quotas.tolist(), strict=True):
        mine = np.flatnonzero(labels == label)
        drawn.append(np.resize(mine[np.argsort(within[mine], kind="stable")], quota))  # repeats it to that length
    return np.concatenate(drawn)[np.argsort(order, kind="stable")]


def uneven(counts: np.ndarray) -> bool:
    """Whether images a class (classes,) differ so much that accuracy alone misleads."""
    present = counts[counts > 0]
    return len(present) > 1 and present.max() > UNEVEN * present.min()
