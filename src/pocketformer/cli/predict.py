"""`predict`: the classes of any images."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from pocketformer.cli import options


def predict(
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE…", help="Images, or folders of them (with their sub-folders).")
    ],
    checkpoint: options.Classifier,
    architecture: options.ArchitectureFile = None,
    class_order: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Names of the classes of weights that name none: one a line, or JSON."),
    ] = None,
    runtime: options.FileRuntime = None,
    file: options.ExportedFile = None,
    device: options.Device = None,
    top: Annotated[int, typer.Option(metavar="K", min=1, help="Classes of each image, the likeliest first.")] = 5,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE|FOLDER", help="Write a .csv or .json; in a folder, predictions.csv and .json."),
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html", help="Also write a page of thumbnails, by class, the surest first."),
    ] = None,
    workers: options.Workers = 2,
    bad_images: options.BadImages = "refuse",
    json: options.Json = False,
) -> None:
    """Tell the classes of images.

    Prepares them as `evaluate` does, in PyTorch or through an exported file, and prints the likeliest classes with
    their probabilities: a line an image, or with --out how many images went to which class. Takes any number of
    images; hidden and other files of folders are passed over, with a note.

    \b
    Examples:
      pocketformer predict --checkpoint runs/mine cat.jpg holiday/
      pocketformer predict --checkpoint model.onnx --top 1 --out found.csv --page found.html photos
    """
    from pocketformer.pipelines.classifiers import open_classifier
    from pocketformer.pipelines.predictions import Outputs, as_dict, counted, list_images
    from pocketformer.pipelines.predictions import predict as run
    from pocketformer.training.class_order import ClassOrder
    from pocketformer.training.sources import shown

    outputs, order = Outputs.named(out, page), ClassOrder.parse(class_order)
    with open_classifier(checkpoint, architecture, runtime, file and str(file), device) as network:
        if order is not None:
            network = replace(network, classes=order.listed(network.num_classes, checkpoint))
        found = run(network, list_images(images), top, bad_images, workers)
        about = {"checkpoint": checkpoint, "runtime": network.runtime}
    outputs.write(found, about)
    if json:
        options.print_json(as_dict(found, about))
        return
    if not outputs.tables:
        for place in range(len(found)):
            row = found.of(place)
            answers = ", ".join(f"{shown(answer['class'])} {answer['probability']:.1%}" for answer in row["top"])
            print(f"{shown(row['image'])}: {answers}")
    else:
        for name, count in counted(found):
            print(f"{shown(name)}: {count:,} images")
    for path in outputs.paths:
        print(path)
