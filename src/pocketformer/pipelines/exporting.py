"""`export` on its own: a trained network in, a verified file for deployment out."""

import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from pocketformer.architecture.design import Grid
from pocketformer.deploy import SUFFIXES, ExportReport, check_name, export, exporter_of, runtime_of
from pocketformer.devices.bench import Bench
from pocketformer.devices.measure import paired_ratios
from pocketformer.errors import UserError, WorkError
from pocketformer.models import Network
from pocketformer.pipelines.calibration import calibration_images
from pocketformer.pipelines.facts import classifier_facts, data_fingerprint
from pocketformer.pipelines.images import open_images, split_otherwise
from pocketformer.pipelines.networks import as_result
from pocketformer.pipelines.trained import learned_from, load_trained, size_to_store
from pocketformer.progress import say, stage
from pocketformer.runtimes.sessions import Sessions
from pocketformer.training.batches import eval_batches, normalisation_of
from pocketformer.training.data import Data
from pocketformer.training.depths import Depth
from pocketformer.training.evaluation import evaluate

_IMAGES = 32
_SESSIONS, _ROUNDS = 4, 10  # of equal files the one loaded last is 2 to 5 % faster: several, in either order


@dataclass(frozen=True)
class ExportSettings:
    format: str = "onnx"
    precision: str = "float32"
    calibration: str | None = None  # a source of images; by default those of the data
    dynamic_batch: bool = False
    licence: str | None = None  # of the weights, as the person states it
    size: Grid | None = None  # of the images; None: the network's


def export_checkpoint(
    checkpoint: str, out: Path, settings: ExportSettings, architecture: str | None, source: str, seed: int, workers: int
) -> tuple[ExportReport, dict | None]:
    """Exports the network of a folder or of a file of weights; images of the source's search split verify the file.

    Also, for a precision below float32 and where a runtime here runs the format, what that costs and gains:
    {"accuracy": {"float32", precision} on the search split where the data's classes are the network's,
    "latency_ratio" to the float32 file}. If that fails, it is said, and the file stays.
    """
    exporter_of(settings.format, settings.precision)  # refused before anything is read
    if out.is_dir() and out.suffix != SUFFIXES["coreml"]:
        raise UserError(f"--out {out} is a folder; give the path of the file")
    check_name(out, settings.format)
    if settings.calibration is not None and settings.precision != "int8":
        raise UserError("--calibration belongs to --int8")
    model, config = load_trained(Path(checkpoint), architecture)
    size = tuple(config["data"].get("stored_size", model.resolution))
    if settings.size is not None and settings.size != model.resolution:
        was, now = (f"{height}x{width}" for height, width in (model.resolution, settings.size))
        model.set_input_size(settings.size)
        size = size_to_store(model.resolution)
        config = {**config, "data": {**config["data"], "stored_size": list(size)}}
        say(f"note: trained at {was} px, exported for {now}: its accuracy there is another")
    known = {"group_by": config["data"].get("group_by"), "depth": Depth.of_record(config["data"])}
    images = open_images(source, size, seed, "skip", workers, uses_search=False, **known)
    batch = next(iter(eval_batches(images.search, _IMAGES, model.resolution, normalisation_of(model))))[0]
    calibration, known = None, learned_from(checkpoint)
    if settings.precision != "float32" and known is not None and split_otherwise(known[0], images)[0]:
        raise UserError(
            f"{checkpoint} was trained with --seed {known[1]}, which splits these images otherwise: give --seed "
            f"{known[1]}, so that none of its test images calibrates the file, and none that it learned from judges it"
        )
    if settings.precision == "int8":
        calibration = calibration_images(model, settings.calibration, images, size, seed)
    if config["classes"] is None:
        mean, std = (", ".join(f"{value:g}" for value in values) for values in normalisation_of(model))
        say(f"note: the file takes images normalised by mean {mean} and std {std}")
    with tempfile.TemporaryDirectory(prefix="pocketformer-") as folder:
        float32 = Path(folder) / f"float32{SUFFIXES[settings.format]}"
        with stage("export and verify"):
            report = export(
                model,
                out,
                batch,
                settings.format,
                precision=settings.precision,
                calibration=calibration,
                dynamic_batch=settings.dynamic_batch,
                float32=float32,
                facts=classifier_facts(model, config, data_fingerprint(checkpoint), settings.licence),
            )
        if settings.precision == "float32" or report.verified is None:
            return report, None
        same_classes = config["classes"] == list(images.classes)
        with stage(f"compare {settings.precision} with float32"):
            try:
                return report, _compared(model, report, float32, images if same_classes else None)
            except (UserError, WorkError) as error:  # the file is verified and in place
                say(f"note: {settings.precision} could not be compared with float32: {error}")
                return report, None


def _compared(model: Network, report: ExportReport, float32: Path, images: Data | None) -> dict:
    runtime_name, accuracy, ratios = runtime_of(report.format), None, []
    files = {"float32": float32, report.precision: Path(report.path)}
    with Bench(runtime_name) as bench:
        for seed in range(_SESSIONS):
            bench.close()  # the next call starts a fresh process
            for name in list(files)[:: 1 if seed % 2 else -1]:
                bench.load(name, files[name])
            if images and accuracy is None:
                accuracy = {name: _accuracy(model, bench, name, images) for name in files}
            samples = bench.interleave(list(files), _ROUNDS, seed=seed)
            ratios.append(statistics.median(paired_ratios(samples[report.precision], samples["float32"])))
    return {"runtime": runtime_name, "accuracy": accuracy, "latency_ratio": statistics.median(ratios)}


def _accuracy(model: Network, sessions: Sessions, name: str, images: Data) -> dict:
    """On the search split, through a loaded file."""
    run = lambda x: torch.from_numpy(sessions.run(name, x.numpy()))  # noqa: E731
    return as_result(evaluate(run, images.search, model.resolution, 64, normalisation_of(model)), "search")
