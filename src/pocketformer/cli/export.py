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
    out: Annotated[Path, typer.Option(metavar="FILE", help="The file to write; its name ends as the format's do.")],
    format: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            callback=options.check_format,
            help="Format of the file, and how its name ends: onnx (.onnx), openvino (.xml), executorch (.pte), "
            "litert (.tflite), coreml (.mlpackage), tensorrt (.engine), torch (.pt2) or aotinductor (.aoti.pt2).",
        ),
    ] = "onnx",
    precision: Annotated[
        str,
        typer.Option(metavar="NAME", help="float32; where the format has it, float16, bfloat16 or int8."),
    ] = "float32",
    int8: Annotated[bool, typer.Option("--int8", help="Short for --precision int8.")] = False,
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Images that int8 is calibrated on (128 are used): any folder of images, or a data set, of which "
            "none of the test split are taken. [default: those of --data, if its classes are the network's]",
        ),
    ] = None,
    dynamic_batch: Annotated[
        bool, typer.Option("--dynamic-batch", help="A file for any number of images at a time.")
    ] = False,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="N|HxW",
            help="Of the images that the file takes, px; attention biases are re-sampled. [default: the training's]",
        ),
    ] = None,
    architecture: options.ArchitectureFile = None,
    class_order: options.ClassOrder = None,
    max_loss: Annotated[
        float,
        typer.Option(
            metavar="POINTS",
            callback=options.not_negative,
            help="Points of accuracy on the search split that a precision below float32 may cost: a file that loses "
            "more is not written (exit code 1).",
        ),
    ] = 2.0,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Images to verify on (32 of the search split, of all classes alike), to calibrate int8 on (128) and "
            "to judge lower precisions by. [default: those that the run was trained on; if they are gone, embedded "
            "pictures of clothing, never for int8]",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Seed of the splits. [default: that of the training, else 0]"),
    ] = None,
    workers: options.Workers = 2,
    raw: options.Raw = False,
    opset: options.Opset = None,
    licence: options.Licence = None,
    json: options.Json = False,
) -> None:
    """Write a trained network as a file for deployment.

    The fused graph for one image at a time: input `image` (1, 3, height, width), float32, RGB in 0 to 1 and
    then normalised by `mean` and `std`, or bytes with --raw; output `logits`. Classes, mean, std, size and crop are
    in the file and in a JSON beside it (docs/deployment.md). The file is run on real images and compared with PyTorch
    first: on a mismatch nothing is written (exit code 1). For a lower precision, a float32 file is checked first;
    accuracy and latency are then compared with that file's, and a file that loses more than --max-loss points is not
    written.

    \b
    Examples:
      pocketformer export --checkpoint runs/mine --data photos --out model.onnx
      pocketformer export --checkpoint runs/mine --data photos --format openvino --int8 --out my.xml
    """
    from pocketformer.cli.summary import exported
    from pocketformer.pipelines.exporting import ExportSettings, export_checkpoint
    from pocketformer.training.class_order import ClassOrder

    if int8 and precision not in ("float32", "int8"):
        raise typer.BadParameter(f"--int8 and --precision {precision} exclude each other")
    settings = ExportSettings(
        *(format, "int8" if int8 else precision, calibration, dynamic_batch, licence, options.size_of(size), max_loss),
        order=ClassOrder.parse(class_order),
        raw=raw,
        opset=opset,
    )
    report, compared = export_checkpoint(checkpoint, out, settings, architecture, data, seed, workers)
    if json:
        options.print_json({**report.to_dict(), "compared": compared})
        return
    print(exported(report, out))
    if compared:
        _print_compared(compared, report.precision)


def _print_compared(compared: dict, precision: str) -> None:
    from pocketformer.cli.summary import percent

    if compared["accuracy"]:
        before, after = compared["accuracy"]["float32"], compared["accuracy"][precision]
        print(f"accuracy on search ({before['images']} images, which the training may have seen):")
        print(f"  float32 {percent(before)}, {precision} {percent(after)}")
    ratio = compared["latency_ratio"]
    verdict = f"{ratio:.2f} times the latency of float32 on {compared['runtime']} here"
    print(f"{precision} is SLOWER: {verdict}" if ratio > 1 else verdict)
