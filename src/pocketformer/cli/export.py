"""`export`: the deployed graph, verified before it is written."""

from pathlib import Path
from typing import Annotated

import typer

from pocketformer.cli import options


def export(
    checkpoint: Annotated[
        str,
        typer.Option(
            metavar="PATH",
            help="A folder of `design` or `train`, or a file of weights (official, timm's or ours) with its "
            "--architecture.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The file to write, such as model.onnx.")],
    format: Annotated[str, typer.Option(metavar="NAME", help="Format of the file: onnx.")] = "onnx",
    architecture: options.ArchitectureFile = None,
    data: Annotated[
        str, typer.Option(metavar="DATA", help="Images to verify on (32 of the search split are used).")
    ] = "embedded",
    seed: options.Seed = 0,
    workers: options.Workers = 2,
    json: options.Json = False,
) -> None:
    """Write a trained network as a file for deployment.

    The fused graph for one image at a time: input `image` (1, 3, height, width), float32, RGB in 0 to 1 and
    then normalised by `mean` and `std` of the folder's config.json (for a file of weights they are printed);
    output `logits`. The file is run on real
    images and compared with PyTorch first: on a mismatch nothing is written (exit code 1).

    \b
    Example:
      pocketformer export --checkpoint runs/mine --data photos --out model.onnx
    """
    from pocketformer.pipelines.exporting import export_checkpoint

    report = export_checkpoint(checkpoint, out, format, architecture, data, seed, workers)
    if json:
        options.print_json(report.to_dict())
        return
    print(f"{out}: {report.bytes / 1e6:.2f} MB, {report.details}, {report.precision}")
    found = report.verified
    print(
        f"verified on {found.images} images: logits differ from PyTorch's by at most {found.max_difference:.1e} "
        f"(their standard deviation is {found.logits_std:.2f})"
    )
