"""Whether an exported detector computes what the detector computes: its inner values, its proposals, its objects.

Objects alone would not tell: where two boxes overlap by just the threshold of NMS, rounding decides which one stays,
and everything behind is another. So the detector is run on what the file has computed: each part is given the file's
values of the part before, and what it makes of them is compared with what the file has made of them.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from pocketformer.dense.detection.detector import Detector
from pocketformer.deploy.verify import TOLERANCE
from pocketformer.errors import WorkError

_BOX, _SCORE, _MASK = 1e-3, 1e-3, 1e-2  # how far the same object may be off: share of the long side, and shares of 1
_AGREEMENT = 0.98  # of proposals and of objects: of equal values, two runtimes may still sort differently

Found = dict[str, np.ndarray]  # of one image: `results` and inner values by name


@dataclass(frozen=True)
class Agreement:
    """What the file has in common with PyTorch. `inner`: largest difference of maps, proposal head and box head, in
    standard deviations of each; `proposals` and `agreement`: shares of proposals and of objects that have their like;
    `box`, `score`: how far those objects are apart at most (px, shares of 1)."""

    images: int
    objects: int
    inner: float
    proposals: float
    agreement: float
    box: float
    score: float


def results(detector: Detector) -> list[str]:
    """Names of what a detector finds."""
    return ["boxes", "labels", "scores", *(["masks"] if detector.heads.masks else [])]


def inner(detector: Detector) -> list[str]:
    """Names of the values between its parts, as `watched` gives them."""
    levels = range(len(detector.pyramid.strides))
    heads = ("class_logits", "box_deltas")
    return [*(f"{kind}_{i}" for kind in ("map", "objectness", "deltas") for i in levels), "proposals", *heads]


Exchange = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]


@contextmanager
def watched(detector: Detector, exchange: Exchange) -> Iterator[None]:
    """Within it, what each part of the detector gives passes through `exchange`, by name; single images only."""

    def levels(kind: str, values: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        return {f"{kind}_{i}": value for i, value in enumerate(values)}

    def pyramid(module, given, maps):
        return dict(zip(maps, exchange(levels("map", list(maps.values()))).values(), strict=True))

    def proposal_head(module, given, found):
        own = list(exchange(levels("objectness", found[0]) | levels("deltas", found[1])).values())
        return own[: len(found[0])], own[len(found[0]) :]

    def proposals(module, given, found):
        return [exchange({"proposals": found[0][0]})["proposals"]], found[1]

    def box_head(module, given, found):
        return tuple(exchange({"class_logits": found[0], "box_deltas": found[1]}).values())

    parts = {
        detector.pyramid: pyramid,
        detector.rpn.head: proposal_head,
        detector.rpn: proposals,
        detector.roi_heads.box_predictor: box_head,
    }
    with ExitStack() as hooks:
        for part, hook in parts.items():
            hooks.callback(part.register_forward_hook(hook).remove)
        yield


def verify(detector: Detector, images: torch.Tensor, got: list[Found]) -> Agreement:
    """Compares what a file has computed of `images` (N, 3, H, W) with what the detector makes of the same values.

    `WorkError` where something inside is off by more than 1e-3 of its standard deviation, where fewer than 98 % of the
    proposals or of the objects have their like, or where there are none.
    """
    size = tuple(images.shape[2:])
    worst, proposals, wanted = 0.0, [], []

    def follow(theirs: Found, own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        nonlocal worst
        for name, value in own.items():
            if name == "proposals":
                proposals.extend(_alike(value.numpy(), theirs[name], _BOX * max(size)))
            else:
                worst = max(worst, _difference(name, theirs[name], value.numpy()))
        return {name: torch.from_numpy(theirs[name]) for name in own}

    with torch.no_grad():
        for image, theirs in zip(images, got, strict=True):
            with watched(detector, lambda own, theirs=theirs: follow(theirs, own)):
                found = detector(image[None], (size,))[0]
            wanted.append({name: found[name].numpy() for name in results(detector)})
    objects, agreement, box, score = compare(wanted, got, max(size), detector.heads.score)
    if not objects:
        raise WorkError("export refused: nothing is found in the images, so that nothing can be verified; give others")
    shares = {"proposals": sum(proposals) / max(len(proposals), 1), "objects": agreement}
    for name, share in shares.items():
        if share < _AGREEMENT:
            count = objects if name == "objects" else len(proposals)
            raise WorkError(
                f"export refused: {share:.1%} of {count} {name} are the same as PyTorch's, wanted are {_AGREEMENT:.0%}"
            )
    return Agreement(len(images), objects, worst, shares["proposals"], agreement, box, score)


def _difference(name: str, got: np.ndarray, wanted: np.ndarray) -> float:
    """Largest difference, in standard deviations of what is wanted."""
    if got.shape != wanted.shape:
        raise WorkError(f"export refused: {name} has shape {got.shape} instead of {wanted.shape}")
    if not got.size:
        return 0.0
    off, std = float(np.abs(got - wanted).max()), float(wanted.std())
    if not off <= TOLERANCE * std:  # also where it is not finite
        raise WorkError(
            f"export refused: {name} differs from PyTorch's by up to {off:.3g}, "
            f"allowed are {TOLERANCE * std:.3g} ({TOLERANCE:g} of its standard deviation {std:.3g})"
        )
    return off / std if std else 0.0


def _alike(some: np.ndarray, others: np.ndarray, allowed: float) -> list[bool]:
    """Of each box (N, 4) of either list, whether the other list has its like."""
    if not len(some) or not len(others):
        return [False] * (len(some) + len(others))
    near = np.abs(some[:, None] - others[None]).max(2) <= allowed
    return [*near.any(1).tolist(), *near.any(0).tolist()]


def compare(wanted: list[Found], got: list[Found], side: int, threshold: float) -> tuple[int, float, float, float]:
    """Objects of both, the share that has its like, and how far such are apart at most in boxes (px) and scores.

    Of each object the nearest of its class in the other list; those whose score is just the `threshold` are not
    counted. `side`: long one of the images, px."""
    objects = same = 0
    box = score = 0.0
    for pair in zip(wanted, got, strict=True):
        for mine, others in (pair, pair[::-1]):
            for row in np.flatnonzero(mine["scores"] > threshold + _SCORE):
                objects += 1
                like = np.flatnonzero(others["labels"] == mine["labels"][row])
                if not len(like):
                    continue
                apart = np.abs(others["boxes"][like] - mine["boxes"][row]).max(1)
                nearest = like[np.argmin(apart)]
                off = abs(float(others["scores"][nearest] - mine["scores"][row]))
                masks = np.abs(others["masks"][nearest] - mine["masks"][row]).max() if "masks" in mine else 0.0
                if apart.min() <= _BOX * side and off <= _SCORE and masks <= _MASK:
                    same, box, score = same + 1, max(box, float(apart.min())), max(score, off)
    return objects, same / max(objects, 1), box, score
