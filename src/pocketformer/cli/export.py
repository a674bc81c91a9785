"""`export`: the deployed graph, verified before it is written."""

from pathlib import Path
from typing import Annotated

import typer

from pocketformer.cli import options


def export(
    checkpoint: Annotated[str, typer.Option(help="A trained run's folder.")],
    out: Annotated[Path, typer.Option(help="The file to write.")],
    format: Annotated[str, typer.Option(help="onnx.")] = "onnx",
    architecture: Annotated[
        str | None, typer.Option(help="architecture.json, if not the checkpoint's own.")
    ] = None,
    data: Annotated[
        str, typer.Option(help="Images to verify on; the embedded ones by default.")
    ] = "embedded",
    seed: options.Seed = 0,
    workers: options.Workers = 2,
    json: options.Json = False,
) -> None:
    """Export a trained network; the file is run against PyTorch on real images, and refused on a mismatch."""
    from pocketformer.deploy import export as write
    from pocketformer.errors import UserError
    from pocketformer.pipelines.images import open_images
    from pocketformer.training.batches import eval_batches
    from pocketformer.training.checkpoint import load_model

    if out.is_dir():
        raise UserError(f"--out {out} is a folder; give the path of the file")
    model, config = load_model(checkpoint, architecture)
    size = tuple(config["data"].get("stored_size", model.resolution))
    images = open_images(data, size, seed, "skip", workers)
    batch = next(iter(eval_batches(images.search, 32, model.resolution)))[0]
    report = write(model, out, batch, format)
    if json:
        options.print_json(report.to_dict())
        return
    print(f"{out}: {report.bytes / 1e6:.2f} MB, ONNX opset {report.opset}")
    print(
        f"verified on {report.images} images: largest difference to PyTorch {report.max_difference:.1e}, the logits' "
        f"standard deviation is {report.logits_std:.2f}"
    )
