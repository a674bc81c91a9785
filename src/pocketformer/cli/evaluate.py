"""`evaluate`: accuracy on the test split."""

from typing import Annotated

import typer

from pocketformer.cli import options


def evaluate(
    checkpoint: Annotated[str, typer.Option(help="A run's folder, or an exported file inside one.")],
    data: options.Data,
    architecture: Annotated[
        str | None, typer.Option(help="architecture.json, if not the checkpoint's own.")
    ] = None,
    runtime: Annotated[
        str | None, typer.Option(help="Evaluate the exported file on this runtime instead of PyTorch.")
    ] = None,
    seed: options.Seed = 0,
    workers: options.Workers = 2,
    bad_images: options.BadImages = "refuse",
    json: options.Json = False,
) -> None:
    """Accuracy on the test split, in PyTorch or through an exported file."""
    from pocketformer.cli.summary import percent
    from pocketformer.pipelines.trainings import evaluate_checkpoint

    options.check_bad_images(bad_images)
    found = evaluate_checkpoint(checkpoint, architecture, data, runtime, seed, bad_images, workers)
    if json:
        options.print_json(found)
    else:
        print(f"accuracy {percent(found)} on test ({found['correct']} of {found['images']}), {found['runtime']}")
