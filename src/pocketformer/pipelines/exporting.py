"""`export` on its own: a trained network in, a verified file for deployment out."""

import statistics
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from pocketformer.architecture.design import Grid
from pocketformer.deploy import SUFFIXES, ExportReport, check_target, export, exporter_of, runtime_of
from pocketformer.deploy.raw import to_bytes
from pocketformer.deploy.verify import MAX_IMAGES
from pocketformer.devices.bench import Bench
from pocketformer.devices.measure import paired_ratios
from pocketformer.errors import UserError, WorkError
from pocketformer.models import Network
from pocketformer.pipelines.calibration import calibration_images
from pocketformer.pipelines.export_images import Images, images_of
from pocketformer.pipelines.facts import classifier_facts, data_facts
from pocketformer.pipelines.images import say_unreadable
from pocketformer.pipelines.networks import as_result
from pocketformer.pipelines.samples import sample
from pocketformer.pipelines.trained import load_trained, size_to_store
from pocketformer.progress import say, stage
from pocketformer.runtimes.sessions import Sessions
from pocketformer.training.batches import normalisation_of
from pocketformer.training.class_order import ClassOrder
from pocketformer.training.data import Split
from pocketformer.training.evaluation import evaluate

MAX_LOSS = 2.0  # points of accuracy that a precision below float32 may cost
_SESSIONS, _ROUNDS = 4, 10  # of equal files the one loaded last is 2 to 5 % faster: several, in either order


@dataclass(frozen=True)
class ExportSettings:
    format: str = "onnx"
    precision: str = "float32"
    calibration: str | None = None  # a source of images; by default those of the data
    dynamic_batch: bool = False
    licence: str | None = None  # of the weights, as the person states it
    size: Grid | None = None  # of the images; None: the network's
    max_loss: float = MAX_LOSS
    order: ClassOrder | None = None  # in which a network that names no classes knows them
    raw: bool = False  # takes the bytes of images
    opset: int | None = None


def export_checkpoint(
    checkpoint: str,
    out: Path,
    settings: ExportSettings,
    architecture: str | None,
    source: str | None,
    seed: int | None,
    workers: int,
) -> tuple[ExportReport, dict | None]:
    """Exports the network of a folder or of a file of weights; images of the source's search split verify the file.

    Without `source`, the images are those that the network was trained on, where they are still to be found, else
    embedded ones (never for int8). Of images in files, only those that are used are decoded.

    Also, for a precision below float32 and where a runtime here runs the format, what that costs and gains:
    {"accuracy": {"float32", precision} on the search split where the data's classes are the network's,
    "latency_ratio" to the float32 file}. A file that loses more than `max_loss` points is not put in its place:
    `WorkError`. If the comparison itself fails, it is said, and the file stays.
    """
    check_target(out, settings.format)  # refused before anything is read
    exporter_of(settings.format, settings.precision, settings.raw, settings.opset)
    if settings.calibration is not None and settings.precision != "int8":
        raise UserError("--calibration belongs to --int8")
    model, config = load_trained(Path(checkpoint), architecture)
    if config["classes"] is None and settings.order is not None and settings.order.names is not None:
        config = {**config, "classes": list(settings.order.listed(model.num_classes, checkpoint))}
    if settings.size is not None and settings.size != model.resolution:
        was, now = (f"{height}x{width}" for height, width in (model.resolution, settings.size))
        model.set_input_size(settings.size)
        config = {**config, "data": {**config["data"], "stored_size": list(size_to_store(settings.size))}}
        say(f"note: trained at {was} px, exported for {now}: its accuracy there is another")
    found = images_of(
        *(checkpoint, config, model, source, settings.precision, settings.calibration is not None, seed, workers),
        order=settings.order,
    )
    normalisation = normalisation_of(model)
    images, _ = sample(found.data.search, MAX_IMAGES, model.resolution, normalisation, found.seed)
    calibration = None
    if settings.precision == "int8":
        calibration = calibration_images(model, settings.calibration, found.data, found.stored, found.seed)
    say_unreadable(found.data)
    if config["classes"] is None:
        mean, std = (", ".join(f"{value:g}" for value in values) for values in normalisation)
        say(f"note: the file takes images normalised by mean {mean} and std {std}")
    compared = None
    with tempfile.TemporaryDirectory(prefix="pocketformer-") as folder, ExitStack() as shown:
        float32 = Path(folder) / f"float32{SUFFIXES[settings.format]}"

        def accept(file: Path) -> None:
            nonlocal compared
            shown.close()
            compared = _accepted(model, settings, {"float32": float32, settings.precision: file}, found)

        lower = settings.precision != "float32" and runtime_of(settings.format) is not None
        shown.enter_context(stage("export and verify"))
        report = export(
            model,
            out,
            images,
            settings.format,
            precision=settings.precision,
            calibration=calibration,
            dynamic_batch=settings.dynamic_batch,
            float32=float32,
            facts=classifier_facts(model, config, data_facts(checkpoint), settings.licence),
            raw=settings.raw,
            opset=settings.opset,
            accept=accept if lower else None,
        )
    if settings.precision != "float32" and not lower:
        say(f"note: accuracy in {settings.precision} is not known: no runtime here runs {settings.format} files")
    return report, compared


def _accepted(model: Network, settings: ExportSettings, files: dict[str, Path], found: Images) -> dict | None:
    """What the lower precision costs and gains, if it could be found out. `WorkError` if it costs too much."""
    precision = settings.precision
    if found.not_judged:
        say(f"note: accuracy before and after {precision} is not known: {found.not_judged}")
    with stage(f"compare {precision} with float32"):
        try:
            compared = _compared(model, runtime_of(settings.format), files, found.judged)
        except (UserError, WorkError) as error:  # the file is verified
            say(f"note: {precision} could not be compared with float32: {error}")
            return None
    if compared["accuracy"]:
        before, after = compared["accuracy"]["float32"], compared["accuracy"][precision]
        lost = before["correct"] - after["correct"]
        if 100 * lost > settings.max_loss * before["images"]:
            raise WorkError(
                f"export refused: {precision} loses {100 * lost / before['images']:.1f} points of accuracy on search "
                f"({before['correct']} to {after['correct']} of {before['images']} images right), allowed are "
                f"{settings.max_loss:g} (--max-loss); nothing was written"
            )
    return compared


def _compared(model: Network, runtime_name: str, files: dict[str, Path], images: Split | None) -> dict:
    """`files`: of float32 and of the lower precision, by name; `images`: None if accuracy cannot be judged."""
    accuracy, ratios, (float32, lower) = None, [], files
    with Bench(runtime_name) as bench:
        for seed in range(_SESSIONS):
            bench.close()  # the next call starts a fresh process
            for name in list(files)[:: 1 if seed % 2 else -1]:
                bench.load(name, files[name])
            if images and accuracy is None:
                accuracy = {name: _accuracy(model, bench, name, images) for name in files}
            samples = bench.interleave(list(files), _ROUNDS, seed=seed)
            ratios.append(statistics.median(paired_ratios(samples[lower], samples[float32])))
    return {"runtime": runtime_name, "accuracy": accuracy, "latency_ratio": statistics.median(ratios)}


def _accuracy(model: Network, sessions: Sessions, name: str, images: Split) -> dict:
    """On the search split, through a loaded file."""
    normalisation, raw = normalisation_of(model), sessions.dtype(name) == "uint8"

    def run(x: torch.Tensor) -> torch.Tensor:
        given = to_bytes(x, *normalisation) if raw else x
        return torch.from_numpy(sessions.run(name, given.numpy()))

    return as_result(evaluate(run, images, model.resolution, 64, normalisation), "search")
