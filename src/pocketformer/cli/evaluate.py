"""`evaluate`: accuracy on the test split."""

from typing import Annotated

import typer

from pocketformer.cli import options


def evaluate(
    checkpoint: Annotated[
        str,
        typer.Option(
            metavar="PATH",
            help="Folder of `design` or `train`, an exported file inside one, or a file of weights (official, timm's "
            "or ours) with its --architecture.",
        ),
    ],
    data: options.Data,
    architecture: options.ArchitectureFile = None,
    runtime: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            callback=options.check_runtime,
            help="Run the exported file on this runtime, such as onnxruntime. [default: PyTorch]",
        ),
    ] = None,
    seed: options.Seed = 0,
    workers: options.Workers = 2,
    bad_images: options.BadImages = "refuse",
    json: options.Json = False,
) -> None:
    """Measure accuracy on the test split.

    In PyTorch, or through an exported file: of the folder's exported/, unless PATH is a file (of .pt2 files run
    only your own: they can run code). The test split is val/ of the data; without val/, give the --seed of the
    training, so that the same tenth is set aside. A file of official or timm's weights gets images normalised as
    on ImageNet, and the data's classes in sorted order. Writes no files.

    \b
    Examples:
      pocketformer evaluate --checkpoint runs/mine --data photos
      pocketformer evaluate --checkpoint runs/mine --data photos --runtime onnxruntime
      pocketformer evaluate --checkpoint s0.pth --architecture efficientformerv2_s0 --data imagenet
    """
    from pocketformer.cli.summary import percent
    from pocketformer.pipelines.evaluations import evaluate_checkpoint

    found = evaluate_checkpoint(checkpoint, architecture, data, runtime, seed, bad_images, workers)
    if json:
        options.print_json(found)
        return
    print(
        f"accuracy {percent(found)} on test ({found['correct']} of {found['images']} images, "
        f"95 % interval), {found['runtime']}"
    )
