"""`evaluate`: how good a network is, as a whole and class by class."""

from pathlib import Path
from typing import Annotated

import typer

from pocketformer.cli import options


def evaluate(
    checkpoint: options.Classifier,
    data: Annotated[
        str,
        typer.Option(
            metavar="DATA",
            help="Labelled images: a folder with one sub-folder a class, all of which is taken, or with splits, of "
            "which test/ (else val/) is; 'embedded' (Fashion-MNIST); or a dataset name of timm.",
        ),
    ],
    architecture: options.ArchitectureFile = None,
    runtime: options.FileRuntime = None,
    file: options.ExportedFile = None,
    device: options.Device = None,
    class_order: options.ClassOrder = None,
    seed: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="Seed of the split, where DATA are the images of the training and no folders split them. [default: "
            "the training's]",
        ),
    ] = None,
    workers: options.Workers = 2,
    bad_images: options.BadImages = "refuse",
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write all figures (.json), or a table of the classes (.csv)."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Measure how good a network is, as a whole and class by class.

    In PyTorch, or through an exported file (of .pt2 files run only your own: they can run code). Of a folder of
    classes all images are judged, matched by the names of the classes, of which some may be missing. Where they are
    the images of the training, those that it set aside for the test are, and what the network has learned from is
    told. Prints accuracy, balanced accuracy, the worst classes and the pairs that are confused most; --json and
    --out give all of it, with the confusion matrix.

    A file of official or timm's weights gets images normalised as on ImageNet, and the data's classes in sorted
    order, unless the file names them; where timm would order them otherwise, say how: --class-order.

    \b
    Examples:
      pocketformer evaluate --checkpoint runs/mine --data photos
      pocketformer evaluate --checkpoint model.onnx --data new-photos --out figures.json
      pocketformer evaluate --checkpoint runs/mine --data photos --runtime openvino --file model.xml
      pocketformer evaluate --checkpoint s0.pth --architecture efficientformerv2_s0 --data imagenet
    """
    from pocketformer.cli import class_text
    from pocketformer.cli.summary import percent
    from pocketformer.pipelines.evaluations import evaluate_checkpoint
    from pocketformer.training.class_order import ClassOrder

    class_text.check(out)
    found = evaluate_checkpoint(
        *(checkpoint, architecture, data, runtime, seed, bad_images, workers, file and str(file), device),
        order=ClassOrder.parse(class_order),
    )
    if out is not None:
        class_text.write(found, out)
    if json:
        options.print_json(found)
        return
    print(
        f"accuracy {percent(found)} on {found['source']} ({found['correct']:,} of {found['images']:,} images, "
        f"95 % interval), {found['runtime']}"
    )
    print(class_text.told(found))
