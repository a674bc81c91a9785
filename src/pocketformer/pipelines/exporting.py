"""`export` on its own: a trained network in, a verified file for deployment out."""

from pathlib import Path

from pocketformer.deploy import ExportReport, export
from pocketformer.errors import UserError
from pocketformer.pipelines.images import open_images
from pocketformer.pipelines.trained import load_trained
from pocketformer.progress import say, stage
from pocketformer.training.batches import eval_batches, normalisation_of

_IMAGES = 32


def export_checkpoint(
    checkpoint: str, out: Path, format: str, architecture: str | None, source: str, seed: int, workers: int
) -> ExportReport:
    """Exports the network of a folder or of a file of weights; images of the source's search split verify the file."""
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; give the path of the file")
    model, config = load_trained(Path(checkpoint), architecture)
    size = tuple(config["data"].get("stored_size", model.resolution))
    images = open_images(source, size, seed, "skip", workers)
    batch = next(iter(eval_batches(images.search, _IMAGES, model.resolution, normalisation_of(model))))[0]
    if config["classes"] is None:
        mean, std = (", ".join(f"{value:g}" for value in values) for values in normalisation_of(model))
        say(f"note: the file takes images normalised by mean {mean} and std {std}")
    with stage("export and verify"):
        return export(model, out, batch, format)
