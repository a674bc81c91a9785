"""Whether an exported file computes what the network computes."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from pocketformer.deploy.plain import plain
from pocketformer.errors import UserError, WorkError

MAX_IMAGES = 32
TOLERANCE = 1e-3  # float32: largest difference, as a share of the standard deviation of the network's logits
# Below float32 rounding adds up over the layers, and the largest of many differences says little: the root mean
# square of all differences, as a share of the same. A wrong operator gives about 1.
ROUNDING = {"float16": 0.05, "bfloat16": 0.15, "int8": 0.5}


@dataclass(frozen=True)
class Verification:
    """Differences in units of the logits; `agreement` is the share of images with the same first class."""

    images: int
    max_difference: float
    rms_difference: float
    logits_std: float
    agreement: float


def check_images(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The images to verify on: at most `MAX_IMAGES`, float32, on the processor. Unfit ones: `UserError`."""
    return fit_images(model, images, "verification")[:MAX_IMAGES]


def fit_images(model: nn.Module, images: torch.Tensor, purpose: str) -> torch.Tensor:
    """The images as `model` takes them, and as converters do (`plain`). Unfit ones: `UserError`."""
    want = (model.in_chans, *model.resolution)
    if not isinstance(images, torch.Tensor) or images.ndim != 4 or len(images) == 0:
        raise UserError(f"{purpose} needs images as a tensor of shape (N, C, H, W) with N >= 1")
    if tuple(images.shape[1:]) != want or not images.is_floating_point():
        given = f"{images.dtype} of shape {tuple(images.shape)}"
        raise UserError(f"{purpose} needs float images of shape (N, {want[0]}, {want[1]}, {want[2]}), not {given}")
    images = plain(images)
    if not images.isfinite().all():
        raise UserError(f"{purpose} images hold values that are not finite")
    return images


def verify(
    model: nn.Module,
    run: Callable[[np.ndarray], np.ndarray],
    images: torch.Tensor,
    precision: str = "float32",
) -> Verification:
    """Compares `run` (images (N, C, H, W) to logits (N, num_classes)) with `model` in evaluation mode.

    `model` is the network as trained, not its fused form, so that a wrong fusion is found as well; it is left
    as it was. Raises `WorkError` if they differ by more than the precision allows or anything is not finite.
    """
    images = check_images(model, images)
    reference = copy.deepcopy(model).eval().float().cpu()
    with torch.no_grad():
        wanted = reference(images).numpy()
    std = float(wanted.std())
    if not np.isfinite(wanted).all():
        raise WorkError("export refused: the network's own output is not finite")
    if std == 0:
        raise WorkError("export refused: the network's output is constant, so that nothing can be verified")
    got = np.asarray(run(images.numpy()))
    if got.shape != wanted.shape:
        raise WorkError(f"export refused: output has shape {got.shape[1:]} instead of {wanted.shape[1:]}")
    if not np.isfinite(got).all():
        raise WorkError("export refused: the exported file's output is not finite")
    difference = np.abs(got - wanted)
    result = Verification(
        images=len(images),
        max_difference=float(difference.max()),
        rms_difference=float(np.sqrt((difference.astype(np.float64) ** 2).mean())),
        logits_std=std,
        agreement=float((got.argmax(1) == wanted.argmax(1)).mean()),
    )
    _refuse(result, precision)
    return result


def _refuse(found: Verification, precision: str) -> None:
    std = found.logits_std
    if precision == "float32":
        kind, value, share = "up to", found.max_difference, TOLERANCE
    else:
        kind, value, share = "root mean square", found.rms_difference, ROUNDING[precision]
    if value > share * std:
        raise WorkError(
            f"export refused: in {precision}, logits differ from PyTorch by {kind} {value:.3g}, "
            f"allowed are {share * std:.3g} ({share:g} of their standard deviation {std:.3g})"
        )
