"""`export` on its own: a trained folder in, a verified file for deployment out."""

from pathlib import Path

from pocketformer.deploy import ExportReport, export
from pocketformer.errors import UserError
from pocketformer.pipelines.images import open_images
from pocketformer.progress import stage
from pocketformer.training.batches import eval_batches
from pocketformer.training.checkpoint import load_model

_IMAGES = 32


def export_checkpoint(
    checkpoint: str, out: Path, format: str, architecture: str | None, source: str, seed: int, workers: int
) -> ExportReport:
    """Exports the network of a folder; images of the source's search split verify the file."""
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; give the path of the file")
    model, config = load_model(checkpoint, architecture)
    size = tuple(config["data"].get("stored_size", model.resolution))
    images = open_images(source, size, seed, "skip", workers)
    batch = next(iter(eval_batches(images.search, _IMAGES, model.resolution)))[0]
    with stage("export and verify"):
        return export(model, out, batch, format)
