"""`export` on its own: a trained network in, a verified file for deployment out."""

import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from pocketformer.deploy import SUFFIXES, ExportReport, export, exporter_of, format_of
from pocketformer.devices.bench import Bench
from pocketformer.devices.measure import paired_ratios
from pocketformer.errors import UserError
from pocketformer.models import Network
from pocketformer.pipelines.calibration import calibration_images
from pocketformer.pipelines.images import open_images
from pocketformer.pipelines.networks import as_result
from pocketformer.pipelines.trained import load_trained
from pocketformer.progress import say, stage
from pocketformer.runtimes.sessions import Sessions
from pocketformer.training.batches import eval_batches, normalisation_of
from pocketformer.training.data import Data
from pocketformer.training.evaluation import evaluate

_IMAGES, _ROUNDS = 32, 30


@dataclass(frozen=True)
class ExportSettings:
    format: str = "onnx"
    precision: str = "float32"
    calibration: str | None = None  # a source of images; by default those of the data
    dynamic_batch: bool = False


def export_checkpoint(
    checkpoint: str, out: Path, settings: ExportSettings, architecture: str | None, source: str, seed: int, workers: int
) -> tuple[ExportReport, dict | None]:
    """Exports the network of a folder or of a file of weights; images of the source's search split verify the file.

    Also, for a precision below float32 and where a runtime here runs the format, what that costs and gains:
    {"accuracy": {"float32", precision} on the search split where the data's classes are the network's, "ratio" of
    its latency to the float32 file's}.
    """
    exporter_of(settings.format, settings.precision)  # refused before anything is read
    if out.is_dir() and out.suffix != SUFFIXES["coreml"]:
        raise UserError(f"--out {out} is a folder; give the path of the file")
    if settings.calibration is not None and settings.precision != "int8":
        raise UserError("--calibration belongs to --int8")
    model, config = load_trained(Path(checkpoint), architecture)
    size = tuple(config["data"].get("stored_size", model.resolution))
    images = open_images(source, size, seed, "skip", workers)
    batch = next(iter(eval_batches(images.search, _IMAGES, model.resolution, normalisation_of(model))))[0]
    calibration = None
    if settings.precision == "int8":
        calibration = calibration_images(model, settings.calibration, images, size, seed)
    if config["classes"] is None:
        mean, std = (", ".join(f"{value:g}" for value in values) for values in normalisation_of(model))
        say(f"note: the file takes images normalised by mean {mean} and std {std}")
    with stage("export and verify"):
        report = export(
            model,
            out,
            batch,
            settings.format,
            precision=settings.precision,
            calibration=calibration,
            dynamic_batch=settings.dynamic_batch,
        )
    if settings.precision == "float32" or report.verified is None:
        return report, None
    same_classes = config["classes"] == list(images.classes)
    with stage(f"compare {settings.precision} with float32"):
        return report, _compared(model, report, batch, images if same_classes else None)


def _compared(model: Network, report: ExportReport, batch: torch.Tensor, images: Data | None) -> dict:
    runtime_name = format_of(report.format).RUNTIME
    with tempfile.TemporaryDirectory(prefix="pocketformer-") as folder, Bench(runtime_name) as bench:
        full = Path(folder) / f"float32{SUFFIXES[report.format]}"
        export(model, full, batch, report.format, dynamic_batch=report.dynamic_batch)
        files = {"float32": full, report.precision: Path(report.path)}
        for name, path in files.items():
            bench.load(name, path)
        accuracy = {name: _accuracy(model, bench, name, images) for name in files} if images else None
        samples = bench.interleave(list(files), _ROUNDS)
    ratio = statistics.median(paired_ratios(samples[report.precision], samples["float32"]))
    return {"runtime": runtime_name, "accuracy": accuracy, "latency_ratio": ratio}


def _accuracy(model: Network, sessions: Sessions, name: str, images: Data) -> dict:
    """On the search split, through a loaded file."""
    run = lambda x: torch.from_numpy(sessions.run(name, x.numpy()))  # noqa: E731
    return as_result(evaluate(run, images.search, model.resolution, 64, normalisation_of(model)), "search")
