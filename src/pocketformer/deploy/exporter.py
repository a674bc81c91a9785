"""`export`: a network as a file that another runtime executes, verified before it is there."""

import copy
import errno
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from pocketformer import files
from pocketformer.deploy import onnx as onnx_format
from pocketformer.deploy.fuse import fuse
from pocketformer.deploy.verify import check_images, verify
from pocketformer.errors import UserError, WorkError

FORMATS = ("onnx",)
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


@dataclass(frozen=True)
class ExportReport:
    """What was written and how well it agrees with PyTorch; differences are in units of the logits."""

    path: str
    format: str
    opset: int
    images: int
    max_difference: float
    logits_std: float
    bytes: int
    seconds: float

    def to_dict(self) -> dict:
        return asdict(self)


def export(model: nn.Module, path: str | os.PathLike, images: torch.Tensor, format: str = "onnx") -> ExportReport:
    """Writes the deployed graph of `model` for single images, float32, to `path`.

    `images`: (N, in_chans, H, W), normalised as in training; the first 32 are run through the file on its own
    runtime and compared with `model` in evaluation mode. The file appears under its name only if all logits
    agree within 1e-3 of their standard deviation; else `WorkError`, and `path` is untouched. A path
    that cannot be written is a `UserError`. `model` is left as it was.
    """
    if format not in FORMATS:
        raise UserError(f"no export format {format!r}; known: {', '.join(FORMATS)}")
    start = time.perf_counter()
    fused = fuse(copy.deepcopy(model).float().cpu())  # folding in a lower precision would lose some of it
    images = check_images(model, images)
    try:
        with files.whole(path) as temporary:
            temporary.touch()  # a folder that cannot be written shows before the work is done
            onnx_format.write_onnx(fused, images[:1], temporary)
            onnx_format.check_onnx(temporary)
            found = verify(model, _runner(temporary), images)
            size = temporary.stat().st_size
    except OSError as error:
        kind = WorkError if error.errno in _DISK else UserError
        raise kind(f"cannot write {path}: {error.strerror or error}") from None
    return ExportReport(
        path=str(Path(path)),
        format=format,
        opset=onnx_format.OPSET,
        images=found.images,
        max_difference=found.max_difference,
        logits_std=found.logits_std,
        bytes=size,
        seconds=time.perf_counter() - start,
    )


def _runner(path: Path):
    try:
        return onnx_format.run_onnx(path)
    except UserError as error:  # here the file is ours, not the user's
        raise WorkError(f"export refused: {error}") from None
