"""`export`: a network as a file that another runtime executes, verified before it is there."""

import copy
import errno
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import nn

from pocketformer import files
from pocketformer.deploy.facts import Facts, companion, facts_of, write_facts
from pocketformer.deploy.formats import SUFFIXES, check_name, format_of, runtime_of
from pocketformer.deploy.fuse import fuse
from pocketformer.deploy.plain import by_itself, plain_network
from pocketformer.deploy.verify import Verification, check_images, fit_images, verify
from pocketformer.errors import UserError, WorkError
from pocketformer.runtimes.sessions import Sessions
from pocketformer.runtimes.worker import Worker

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


@dataclass(frozen=True)
class ExportReport:
    """What was written and how well it agrees with PyTorch; differences are in units of the logits.

    `verified` is None where no runtime here can run the format.
    """

    path: str
    format: str
    details: str
    precision: str
    dynamic_batch: bool
    verified: Verification | None
    bytes: int
    seconds: float

    def to_dict(self) -> dict:
        return asdict(self)


@by_itself()
def export(
    model: nn.Module,
    path: str | os.PathLike,
    images: torch.Tensor,
    format: str = "onnx",
    *,
    precision: str = "float32",
    calibration: torch.Tensor | None = None,
    dynamic_batch: bool = False,
    float32: str | os.PathLike | None = None,
    facts: Facts | None = None,
    accept: Callable[[Path], None] | None = None,
) -> ExportReport:
    """Writes the deployed graph of `model` to `path`: for single images, or with `dynamic_batch` any number; and
    beside it as JSON what a user of it must know: `facts`, without them what the network itself tells.

    `images`: (N, in_chans, H, W), normalised as in training; the first 32 are run through the file on its own
    runtime and compared with `model` in evaluation mode. The file appears under its name only if all logits
    agree within 1e-3 of their standard deviation; else `WorkError`, and `path` is untouched. For a lower
    `precision`, a float32 file has to pass that, which stays at `float32` if given; the file itself then differs
    by rounding alone and has to be within `verify.ROUNDING`. int8 is calibrated on the images `calibration`. A
    path that cannot be written, or does not end as the format's do, is a `UserError`. `model` is left as it was.
    Files are run in a process of their own: a crash there is a `WorkError` as well.
    """
    chosen = exporter_of(format, precision)
    check_name(path, format)
    if (precision == "int8") != (calibration is not None):
        raise UserError("calibration images belong to int8, and int8 needs them")
    start = time.perf_counter()
    about = {"format": format, "precision": precision, "dynamic_batch": dynamic_batch}
    facts = replace(facts or facts_of(model), **about)
    # Folding in a lower precision would lose some of it.
    fused = plain_network(fuse(plain_network(copy.deepcopy(model).cpu())))
    images = check_images(model, images)
    if calibration is not None:
        calibration = fit_images(model, calibration, "calibration")
    try:
        with (
            tempfile.TemporaryDirectory(prefix="pocketformer-") as folder,
            files.whole(path, chosen.COMPANION, companion(path)) as temporary,
            Worker() as worker,
        ):
            temporary.touch()  # a folder that cannot be written shows before the work is done
            temporary.unlink()  # some formats are folders
            if precision != "float32" and runtime_of(format) is not None:
                full = Path(float32 or Path(folder) / f"float32{SUFFIXES[format]}")
                chosen.write(fused, images[:1], full, "float32", None, dynamic_batch)
                _verify(worker, format, model, full, images, "float32", dynamic_batch)
            chosen.write(fused, images[:1], temporary, precision, calibration, dynamic_batch)
            found = _verify(worker, format, model, temporary, images, precision, dynamic_batch)
            if accept is not None:
                accept(temporary)
            write_facts(temporary, facts)
            details, size = chosen.describe(temporary), _bytes(temporary, chosen.COMPANION)
    except OSError as error:
        kind = WorkError if error.errno in _DISK else UserError
        raise kind(f"cannot write {path}: {error.strerror or error}") from None
    seconds = time.perf_counter() - start
    return ExportReport(str(Path(path)), format, details, precision, dynamic_batch, found, size, seconds)


def exporter_of(format: str, precision: str) -> ModuleType:
    """The module of a format. Raises `UserError` if it cannot be had here, or not in that precision."""
    chosen = format_of(format)
    if precision not in chosen.PRECISIONS:
        raise UserError(f"format {format} has no precision {precision!r}; it has {', '.join(chosen.PRECISIONS)}")
    return chosen


def _verify(
    worker: Worker,
    format: str,
    model: nn.Module,
    path: Path,
    images: torch.Tensor,
    precision: str,
    dynamic_batch: bool,
) -> Verification | None:
    runtime_name = runtime_of(format)
    if runtime_name is None:
        return None

    def run(x: np.ndarray) -> np.ndarray:
        sessions = Sessions(runtime_name, worker=worker)
        try:
            sessions.load("the file", path)
            return sessions.run("the file", x, (1, 3) if dynamic_batch else (1,))
        except (UserError, WorkError) as error:  # a file that cannot be loaded is ours here, not the user's
            raise WorkError(f"export refused: {error}") from None

    return verify(model, run, images, precision)


def _bytes(path: Path, companion: str | None) -> int:
    parts = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    parts += [path.with_suffix(companion)] if companion else []
    return sum(part.stat().st_size for part in parts)
