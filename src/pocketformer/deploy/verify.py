"""Whether an exported file computes what the network computes."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from pocketformer.errors import UserError, WorkError

TOLERANCE = 1e-3  # largest difference, as a share of the standard deviation of the network's logits
MAX_IMAGES = 32


@dataclass(frozen=True)
class Verification:
    images: int
    max_difference: float
    logits_std: float

    @property
    def tolerance(self) -> float:
        return TOLERANCE * self.logits_std


def check_images(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The images to verify on: at most `MAX_IMAGES`, float32, on the processor. Unfit ones: `UserError`."""
    want = (model.in_chans, *model.resolution)
    if not isinstance(images, torch.Tensor) or images.ndim != 4 or len(images) == 0:
        raise UserError("verification needs images as a tensor of shape (N, C, H, W) with N >= 1")
    if tuple(images.shape[1:]) != want or not images.is_floating_point():
        given = f"{images.dtype} of shape {tuple(images.shape)}"
        raise UserError(f"verification needs float images of shape (N, {want[0]}, {want[1]}, {want[2]}), not {given}")
    images = images[:MAX_IMAGES].detach().float().cpu()
    if not images.isfinite().all():
        raise UserError("verification images hold values that are not finite")
    return images


def verify(model: nn.Module, run: Callable[[np.ndarray], np.ndarray], images: torch.Tensor) -> Verification:
    """Compares `run` (one image (1, C, H, W) to logits (1, num_classes)) with `model` in evaluation mode.

    `model` is the network as trained, not its fused form, so that a wrong fusion is found as well; it is left
    as it was. Raises `WorkError` if they differ by more than `TOLERANCE` or anything is not finite.
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
    got = np.concatenate([np.asarray(run(image[None])) for image in images.numpy()])
    if got.shape != wanted.shape:
        raise WorkError(f"export refused: output has shape {got.shape[1:]} instead of {wanted.shape[1:]}")
    if not np.isfinite(got).all():
        raise WorkError("export refused: the exported file's output is not finite")
    result = Verification(len(images), float(np.abs(got - wanted).max()), std)
    if result.max_difference > result.tolerance:
        raise WorkError(
            f"export refused: logits differ from PyTorch by up to {result.max_difference:.3g}, "
            f"allowed are {result.tolerance:.3g} ({TOLERANCE:g} of their standard deviation {std:.3g})"
        )
    return result
