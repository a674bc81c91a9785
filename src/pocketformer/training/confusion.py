"""Which classes a network takes for which: the confusion matrix, and the figures of each class."""

from collections.abc import Sequence

import numpy as np
import torch


def confusion_matrix(answers: torch.Tensor, labels: torch.Tensor, num_classes: int) -> np.ndarray:
    """Images int64 (classes, classes) by what they are (rows) and what they were taken for (columns)."""
    pairs = labels.numpy() * num_classes + answers.numpy()
    return np.bincount(pairs, minlength=num_classes * num_classes).reshape(num_classes, num_classes)


def balanced_accuracy(matrix: np.ndarray) -> float:
    """The mean over the classes that have images of the share of them that is right."""
    images = matrix.sum(axis=1)
    return float((matrix.diagonal()[images > 0] / images[images > 0]).mean())


def class_figures(matrix: np.ndarray, classes: Sequence[str]) -> dict:
    """As plain data: "balanced_accuracy"; the "largest_class" ("share" is what always answering it would have right);
    "per_class", a row each, in their order: "images", "recall" (the share of them that is right; None without images)
    and "precision" (the share of the answers of this class that is right; None without answers); and the "confusion",
    {what it is: {what it was taken for: images}}, without zeros."""
    images, answers, right = matrix.sum(axis=1), matrix.sum(axis=0), matrix.diagonal()
    largest = int(images.argmax())
    return {
        "balanced_accuracy": balanced_accuracy(matrix),
        "largest_class": {"name": classes[largest], "share": float(images[largest] / images.sum())},
        "per_class": [
            {
                "name": name,
                "images": int(images[c]),
                "recall": float(right[c] / images[c]) if images[c] else None,
                "precision": float(right[c] / answers[c]) if answers[c] else None,
            }
            for c, name in enumerate(classes)
        ],
        "confusion": {
            classes[c]: {classes[other]: int(matrix[c, other]) for other in np.flatnonzero(matrix[c]).tolist()}
            for c in np.flatnonzero(images).tolist()
        },
    }


def confused(confusion: dict[str, dict[str, int]]) -> list[tuple[str, str, int]]:
    """(what it is, what it was taken for, images) of each wrong pair of a "confusion", the most frequent first."""
    pairs = [(one, other, n) for one, row in confusion.items() for other, n in row.items() if other != one]
    return sorted(pairs, key=lambda pair: -pair[2])
