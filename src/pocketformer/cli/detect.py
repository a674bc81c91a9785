"""`detect`: objects in images, by Mask R-CNN or Faster R-CNN on the backbones."""

from pathlib import Path
from typing import Annotated

import typer

from pocketformer.cli import options, training


def _presets() -> tuple[str, ...]:
    from pocketformer.dense.detection.presets import PRESETS

    return tuple(PRESETS)


app = typer.Typer(
    name="detect",
    help="Objects and their masks: train, evaluate, predict.\n\nMask R-CNN on a backbone, or Faster R-CNN.",
    rich_markup_mode=None,
    no_args_is_help=True,
)

Checkpoint = Annotated[str, typer.Option(metavar="FOLDER", help="Folder of a `detect train`.")]
Bad = Annotated[
    str,
    typer.Option(
        metavar="refuse|skip",
        callback=options.one_of(lambda: ("refuse", "skip")),
        help="What to do with images and annotations that cannot be used; they are counted and named first.",
    ),
]


@app.command()
def train(
    architecture: training.Backbone,
    data: Annotated[
        str,
        typer.Option(
            metavar="FOLDER",
            help="COCO's layout: annotations/instances_train*.json and instances_val*.json, images in folders of the "
            "same endings (train2017/, or train/); or those of Roboflow, CVAT and Label Studio. With --annotations: "
            "the images. Without masks in the file, boxes alone are learned.",
        ),
    ],
    out: options.Out,
    annotations: Annotated[
        str | None, typer.Option(metavar="FILE", help="COCO's JSON of train, whatever its name. [default: found]")
    ] = None,
    val_annotations: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="COCO's JSON of val. [default: found; with --annotations, and where there is none, a tenth of train "
            "is held out]",
        ),
    ] = None,
    val_images: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="The images of --val-annotations, if not in --data.")
    ] = None,
    exif: training.Exif = "auto",
    init: training.BackboneInit = None,
    preset: Annotated[
        str,
        typer.Option(
            metavar="paper|small",
            callback=options.one_of(_presets),
            help="paper: 12 epochs at 800x1333 px, 16 images a step; small: 24 epochs at 384x640 px, 4 a step, and "
            "lighter heads, for a few hundred or thousand images.",
        ),
    ] = "paper",
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Change an entry of the recipe, such as learning_rate=1e-4, or of the heads, such as "
            "detector.width=128; may be repeated.",
        ),
    ] = None,
    no_masks: Annotated[bool, typer.Option("--no-masks", help="Faster R-CNN: learn boxes alone.")] = False,
    validate: Annotated[
        bool,
        typer.Option(
            "--validate",
            help="Hold a tenth of train out, score the detector on it after each epoch (AP of the masks, or of the "
            "boxes where there are none), and keep the best weights.",
        ),
    ] = False,
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(
            metavar="SHORT LONG",
            help="Of the images, px: each is resized, its shape kept, to the larger size within both. [default: the "
            "preset's]",
        ),
    ] = None,
    epochs: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            callback=options.above_zero,
            help="Passes over the training images; the rate steps down at the same shares of them. [default: the "
            "preset's]",
        ),
    ] = None,
    batch_size: options.BatchSize = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(metavar="X", callback=options.above_zero, help="After warm-up; for the batch size as it is."),
    ] = None,
    drop_path: options.DropPath = None,
    bad_annotations: Bad = "refuse",
    device: training.Device = "cpu",
    precision: training.Precision = "float32",
    accumulate: training.Accumulate = 1,
    checkpointing: training.Checkpointing = False,
    keep: training.Keep = 2,
    seed: options.Seed = 0,
    workers: options.Workers = 2,
    json: options.Json = False,
) -> None:
    """Train a detector, also under `torchrun`.

    All images and annotations are looked at first. Learns from train; COCO's table on val is printed at the end.
    FOLDER gets model.safetensors, architecture.json, config.json, results.json, metrics.jsonl and tensorboard/.

    \b
    Examples:
      torchrun --nproc-per-node 8 -m pocketformer detect train --architecture efficientformerv2_s2 \\
        --init eformer_s2_450.pth --data coco --device cuda --precision bfloat16 --out runs/coco
      pocketformer detect train --architecture runs/mine --init runs/mine --data parts --preset small \\
        --out runs/parts
    """
    from dataclasses import replace

    from pocketformer.dense.detection.presets import PRESETS
    from pocketformer.pipelines.detecting import DetectSettings, train_detector

    recipe, heads = PRESETS[preset]()
    if epochs is not None:
        recipe = replace(recipe, epochs=epochs, milestones=[m * epochs / recipe.epochs for m in recipe.milestones])
    given = {"batch_size": batch_size, "learning_rate": learning_rate, "drop_path": drop_path, "size": size}
    own = [text.removeprefix("detector.") for text in set_ or [] if text.startswith("detector.")]
    recipe = options.changed(recipe, **given).with_text([t for t in set_ or [] if not t.startswith("detector.")])
    settings = DetectSettings(
        architecture=architecture,
        data=data,
        recipe=recipe,
        init=init,
        heads=heads.with_text(own),
        annotations=annotations,
        val_annotations=val_annotations,
        val_images=val_images,
        exif=exif,
        masks=not no_masks,
        validate=validate,
        bad_annotations=bad_annotations,
        seed=seed,
        compute=training.compute(device, precision, False, accumulate, checkpointing, False),
        workers=workers,
        keep=keep,
    )
    result = train_detector(settings, out)
    if json:
        options.print_json(result)
        return
    print(f"{out}: {result['parameters']:,} parameters")
    _print_tables(result["test"], result)


@app.command()
def evaluate(
    checkpoint: Checkpoint,
    data: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="COCO's layout, of which val is taken (see `detect train`).")
    ] = None,
    annotations: Annotated[
        str | None, typer.Option(metavar="FILE", help="COCO's JSON, instead of --data; with --images.")
    ] = None,
    images: Annotated[str | None, typer.Option(metavar="FOLDER", help="The images that FILE describes.")] = None,
    bad_annotations: Bad = "refuse",
    exif: training.Exif = "auto",
    device: training.Device = "cpu",
    precision: training.Precision = "float32",
    workers: options.Workers = 2,
    json: options.Json = False,
) -> None:
    """Measure COCO's twelve figures, also under `torchrun`.

    Of boxes, and of masks where there are any. Writes no files.

    \b
    Examples:
      pocketformer detect evaluate --checkpoint runs/parts --data parts
      pocketformer detect evaluate --checkpoint runs/parts --annotations new.json --images photos
    """
    from pocketformer.pipelines.detecting import evaluate_detector
    from pocketformer.training.compute import Compute

    compute = Compute(device, precision)
    found = evaluate_detector(checkpoint, data, annotations, images, compute, workers, bad_annotations, exif)
    if json:
        options.print_json(found)
    else:
        _print_tables({name: table for name, table in found.items() if name not in ("split", "images")}, found)


@app.command()
def predict(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE…", help="Images, or folders of them.")],
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the pictures and results.json go.")],
    threshold: Annotated[
        float, typer.Option(metavar="X", min=0, max=1, help="Lowest score of what is drawn and listed.")
    ] = 0.5,
    device: training.Device = "cpu",
    precision: training.Precision = "float32",
    json: options.Json = False,
) -> None:
    """Draw the objects of images.

    Writes for each IMAGE its NAME.png with boxes, names and masks, and results.json: of each object its image,
    category, score, box (left, top, width, height, px) and mask (COCO's run lengths).

    \b
    Example:
      pocketformer detect predict --checkpoint runs/parts --out drawn table.jpg
    """
    from collections import Counter

    from pocketformer.pipelines.detect_predictions import predict_folder
    from pocketformer.training.compute import Compute

    found = predict_folder(checkpoint, images, out, threshold, Compute(device, precision))
    if json:
        options.print_json(found)
        return
    for image in found["images"]:
        counts = Counter(entry["category"] for entry in found["results"] if entry["image_id"] == image["id"])
        print(f"{image['file_name']}: {', '.join(f'{n} {name}' for name, n in counts.most_common()) or 'nothing'}")
    print(f"pictures and results.json: {out}")


@app.command()
def export(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The file to write, .onnx.")],
    data: Annotated[
        str, typer.Option(metavar="FOLDER", help="Images to verify on: COCO's layout, or any folder of images.")
    ],
    format: Annotated[
        str,
        typer.Option(metavar="onnx", callback=options.one_of(lambda: ("onnx",)), help="Format of the file."),
    ] = "onnx",
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(
            metavar="H W", help="Of the images that the file takes, px. [default: the training's, in multiples of 32]"
        ),
    ] = None,
    opset: options.Opset = None,
    licence: options.Licence = None,
    json: options.Json = False,
) -> None:
    """Write the detector as one file for deployment.

    The whole of it, its backbone fused, float32.

    For one image at a time. Input `image` (1, 3, H, W): RGB in 0 to 1, normalised by `mean` and `std` of the
    folder's config.json, zeros where it is padded (below, on the right). Outputs, of N objects: `boxes` (N, 4) left,
    top, right, bottom in px of the input, `labels` from 1 on in the order of config.json, `scores`, and `masks`
    (N, 1, 28, 28), probabilities within the boxes. The file is run on the images and compared with PyTorch first:
    on a mismatch nothing is written (exit code 1).

    \b
    Example:
      pocketformer detect export --checkpoint runs/parts --data parts --out detector.onnx
    """
    from pocketformer.pipelines.detect_exports import export_detector

    report = export_detector(checkpoint, out, size, data, licence, opset)
    if json:
        options.print_json(report)
        return
    found = report["verified"]
    print(f"{out}: {report['bytes'] / 1e6:.2f} MB, {report['details']}, float32")
    print(
        f"verified on {found['images']} images: {found['agreement']:.1%} of {found['objects']} objects are the same as "
        f"PyTorch's, boxes within {found['box']:.1e} px, scores within {found['score']:.1e}; maps and heads differ "
        f"by at most {found['inner']:.1e} of their standard deviation"
    )


def _print_tables(tables: dict, of: dict) -> None:
    from pocketformer.cli.summary import aligned

    names = list(tables)
    rows = [(f"{of['split']}, {of['images']} images", *names)]
    for figure in tables[names[0]]:
        rows.append((figure, *(_percent(tables[name][figure]) for name in names)))
    print(aligned(rows))


def _percent(value: float) -> str:
    return "-" if value < 0 else f"{value:.1%}"  # COCO's -1: there are no such objects
