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
from pocketformer.deploy.facts import FLOAT, RAW, Facts, companion, facts_of, facts_path, write_facts
from pocketformer.deploy.formats import SUFFIXES, WITHOUT_RAW, check_name, format_of, runtime_of
from pocketformer.deploy.fuse import fuse
from pocketformer.deploy.plain import by_itself, plain, plain_network
from pocketformer.deploy.raw import Raw, as_input, from_bytes, to_bytes
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
    raw: bool = False,
    opset: int | None = None,
) -> ExportReport:
    """Writes the deployed graph of `model` to `path`: for single images, or with `dynamic_batch` any number; and
    beside it as JSON what a user of it must know: `facts`, without them what the network itself tells. With `raw`, the
    file takes uint8 (B, H, W, C) and normalises them itself. `opset`: of an ONNX file, by default the oldest that
    costs no time.

    `images`: (N, in_chans, H, W), normalised as in training; the first 32 are run through the file on its own
    runtime and compared with `model` in evaluation mode. The file appears under its name only if all logits
    agree within 1e-3 of their standard deviation; else `WorkError`, and `path` is untouched. For a lower
    `precision`, a float32 file has to pass that, which stays at `float32` if given; the file itself then differs
    by rounding alone and has to be within `verify.ROUNDING`. int8 is calibrated on the images `calibration`. A
    path that cannot be written, or does not end as the format's do, is a `UserError`. `model` is left as it was.
    Files are run in a process of their own: a crash there is a `WorkError` as well.
    """
    chosen = exporter_of(format, precision, raw, opset)
    check_target(path, format)
    if (precision == "int8") != (calibration is not None):
        raise UserError("calibration images belong to int8, and int8 needs them")
    start = time.perf_counter()
    about = {"format": format, "precision": precision, "dynamic_batch": dynamic_batch}
    layout, dtype = RAW if raw else FLOAT
    facts = replace(facts or facts_of(model), **about, layout=layout, dtype=dtype)
    # Folding in a lower precision would lose some of it.
    fused = plain_network(fuse(plain_network(copy.deepcopy(model).cpu())))
    images = check_images(model, images)
    if calibration is not None:
        calibration = fit_images(model, calibration, "calibration")
    if raw:  # of images that were no bytes, the nearest ones
        scales = facts.mean, facts.std
        fused, images = Raw(fused, *scales).eval(), from_bytes(to_bytes(images, *scales), *scales)
        calibration = None if calibration is None else plain(to_bytes(calibration, *scales), torch.uint8)
    given = as_input(facts, images[:1])
    example, more = plain(given, given.dtype), {} if opset is None else {"opset": opset}
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
                before = replace(facts, precision="float32")
                chosen.write(fused, example, full, "float32", None, dynamic_batch, before, **more)
                _verify(worker, before, model, full, images)
            chosen.write(fused, example, temporary, precision, calibration, dynamic_batch, facts, **more)
            found = _verify(worker, facts, model, temporary, images)
            write_facts(temporary, facts)
            if accept is not None:
                accept(temporary)
            details, size = chosen.describe(temporary), _bytes(temporary, chosen.COMPANION)
    except OSError as error:
        kind = WorkError if error.errno in _DISK else UserError
        raise kind(f"cannot write {path}: {error.strerror or error}") from None
    seconds = time.perf_counter() - start
    return ExportReport(str(Path(path)), format, details, precision, dynamic_batch, found, size, seconds)


def exporter_of(format: str, precision: str, raw: bool = False, opset: int | None = None) -> ModuleType:
    """The module of a format. Raises `UserError` if it cannot be had here, or not in that form."""
    chosen = format_of(format)
    if precision not in chosen.PRECISIONS:
        raise UserError(f"format {format} has no precision {precision!r}; it has {', '.join(chosen.PRECISIONS)}")
    if raw and format in WITHOUT_RAW:
        raise UserError(f"format {format} has no --raw: {WITHOUT_RAW[format]}")
    if opset is not None and format != "onnx":
        raise UserError(f"--opset belongs to format onnx, not to {format}")
    if opset is not None and opset not in chosen.OPSETS:
        raise UserError(f"--opset {opset} cannot be written; known: {', '.join(map(str, chosen.OPSETS))}")
    return chosen


def check_target(path: str | os.PathLike, format: str) -> None:
    """Raises `UserError` where `export` cannot write a file of the format, or would write over what is none: the files
    that it writes beside it have names that nobody gave."""
    path, beside = Path(path), facts_path(path)
    if path.is_dir() and (format != "coreml" or not (path / "Manifest.json").is_file()):
        raise UserError(f"cannot write {path}: it is a folder; give the path of the file")
    check_name(path, format)
    if not path.is_dir():
        files.check_target(path)
    weights = path.with_suffix(".bin")
    if format == "openvino" and weights.exists() and not path.exists():
        raise UserError(f"{weights} is there, where the weights of {path.name} would be written: give another name")
    if beside.exists():
        try:
            Facts.from_dict(files.read_json(beside, "list of facts"))
        except UserError:
            raise UserError(
                f"{beside} is there and not ours, and the facts of {path.name} would be written over it: give another "
                "name"
            ) from None


def _verify(worker: Worker, facts: Facts, model: nn.Module, path: Path, images: torch.Tensor) -> Verification | None:
    runtime_name = runtime_of(facts.format)
    if runtime_name is None:
        return None

    def run(x: np.ndarray) -> np.ndarray:
        sessions = Sessions(runtime_name, worker=worker)
        try:
            sessions.load("the file", path)
            given = as_input(facts, torch.from_numpy(x)).numpy()
            return sessions.run("the file", given, (1, 3) if facts.dynamic_batch else (1,))
        except (UserError, WorkError) as error:  # a file that cannot be loaded is ours here, not the user's
            raise WorkError(f"export refused: {error}") from None

    return verify(model, run, images, facts.precision)


def _bytes(path: Path, companion: str | None) -> int:
    parts = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    parts += [path.with_suffix(companion)] if companion else []
    return sum(part.stat().st_size for part in parts)
