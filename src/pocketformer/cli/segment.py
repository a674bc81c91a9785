"""`segment`: semantic segmentation by Semantic FPN on the backbones."""

from pathlib import Path
from typing import Annotated

import typer

from pocketformer.cli import options, training


def _presets() -> tuple[str, ...]:
    from pocketformer.dense.segmentation.presets import PRESETS

    return tuple(PRESETS)


app = typer.Typer(
    name="segment",
    help="Label every pixel: train, evaluate, predict.\n\nSemantic FPN on a backbone.",
    rich_markup_mode=None,
    no_args_is_help=True,
)

Checkpoint = Annotated[str, typer.Option(metavar="FOLDER", help="Folder of a `segment train`.")]
Masks = Annotated[
    str,
    typer.Option(
        metavar="FOLDER",
        help="Images and masks: ADE20K's layout (images/training, annotations/training, and validation), CamVid's "
        "(train, trainannot; val, valannot; test, testannot), or one like them (docs/dense.md). A mask has one label a "
        "pixel, its image's size, and its name but for the suffix or one ending that all share.",
    ),
]


@app.command()
def train(
    architecture: training.Backbone,
    data: Masks,
    out: options.Out,
    init: training.BackboneInit = None,
    preset: Annotated[
        str,
        typer.Option(
            metavar="paper|small",
            callback=options.one_of(_presets),
            help="paper: 63.3 epochs of crops of 512x512 px, 32 a step; small: 60 epochs of 192x192 px, 8 a step, and "
            "higher rates, for a few hundred small images.",
        ),
    ] = "paper",
    set_: training.Set = None,
    classes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Names of the classes, one a line, in the order of their labels; or with the labels or colours that "
            "masks have for them (255 person; road 128 64 128). [default: classes.txt in the data; else the labels "
            "that occur]",
        ),
    ] = None,
    ignore_index: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="Label of the pixels that do not count; 11 in CamVid's masks. [default: 255, but for masks of 0 and "
            "255 alone, which are two classes]",
        ),
    ] = None,
    reduce_zero_label: Annotated[
        bool,
        typer.Option("--reduce-zero-label", help="Label 0 does not count, and 1 is the first class: ADE20K."),
    ] = False,
    exif: training.Exif = "auto",
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(
            metavar="H W",
            help="Of the crops, px; images are scaled around the size at which their short side is the smaller of the "
            "two. [default: the preset's]",
        ),
    ] = None,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    learning_rate: Annotated[
        float | None, typer.Option(metavar="X", callback=options.above_zero, help="Of the first step after warm-up.")
    ] = None,
    drop_path: options.DropPath = None,
    device: training.Device = "cpu",
    precision: training.Precision = "float32",
    compile: training.Compile = False,
    accumulate: training.Accumulate = 1,
    checkpointing: training.Checkpointing = False,
    deterministic: training.Deterministic = False,
    keep: training.Keep = 2,
    seed: options.Seed = 0,
    workers: options.Workers = 2,
    json: options.Json = False,
) -> None:
    """Train a segmenter, also under `torchrun`.

    All masks are looked at first. The weights that do best on val after an epoch are kept and judged on test
    (without test the last ones are, on val). FOLDER gets model.safetensors, architecture.json, config.json,
    results.json, metrics.jsonl and tensorboard/.

    \b
    Examples:
      pocketformer segment train --architecture efficientformerv2_s0 --init runs/s0 --data ADEChallengeData2016 \\
        --reduce-zero-label --device cuda --precision bfloat16 --out runs/ade
      pocketformer segment train --architecture efficientformerv2_s0 --data camvid --ignore-index 11 \\
        --preset small --size 180 240 --out runs/camvid
    """
    from pocketformer.dense.segmentation.labels import Coding
    from pocketformer.dense.segmentation.presets import PRESETS
    from pocketformer.pipelines.segmenting import SegmentSettings, train_segmenter

    recipe = options.changed(
        PRESETS[preset](),
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        drop_path=drop_path,
        size=size,
    ).with_text(set_ or [])
    settings = SegmentSettings(
        architecture=architecture,
        data=data,
        recipe=recipe,
        init=init,
        classes=None if classes is None else str(classes),
        coding=Coding(ignore_index, reduce_zero_label),
        exif=exif,
        seed=seed,
        compute=training.compute(device, precision, compile, accumulate, checkpointing, deterministic),
        workers=workers,
        keep=keep,
    )
    result = train_segmenter(settings, out)
    if json:
        options.print_json(result)
    else:
        print(f"{out}: {result['parameters']:,} parameters")
        _print_scores(result)


@app.command()
def evaluate(
    checkpoint: Checkpoint,
    data: Masks,
    exif: training.Exif = "auto",
    device: training.Device = "cpu",
    precision: training.Precision = "float32",
    workers: options.Workers = 2,
    json: options.Json = False,
) -> None:
    """Measure mIoU on test, also under `torchrun`.

    And pixel accuracy, and the IoU of each class; without test, on val. Images are scaled as for the training, whole,
    and judged at their own size. Writes no files.

    \b
    Example:
      pocketformer segment evaluate --checkpoint runs/camvid --data camvid
    """
    from pocketformer.pipelines.segmenting import evaluate_segmenter
    from pocketformer.training.compute import Compute

    found = evaluate_segmenter(checkpoint, data, Compute(device, precision), workers, exif)
    if json:
        options.print_json(found)
    else:
        _print_scores(found)


@app.command()
def predict(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE…", help="Images, or folders of them.")],
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the pictures and results.json go.")],
    device: training.Device = "cpu",
    precision: training.Precision = "float32",
    json: options.Json = False,
) -> None:
    """Draw the classes of images.

    Writes for each IMAGE its NAME_overlay.png and NAME_labels.png (with the labels of the training's masks), and
    results.json: each class's colour, and its share of each image's pixels.

    \b
    Example:
      pocketformer segment predict --checkpoint runs/camvid --out drawn street.jpg
    """
    from pocketformer.pipelines.segment_predictions import predict_folder
    from pocketformer.training.compute import Compute

    found = predict_folder(checkpoint, images, out, Compute(device, precision))
    if json:
        options.print_json(found)
        return
    for image in found["images"]:
        shares = ", ".join(f"{name} {share:.1%}" for name, share in image["shares"].items())
        print(f"{image['image']}: {shares}")
    print(f"pictures and results.json: {out}")


@app.command()
def export(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The file to write; its name ends as the format's do.")],
    format: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            callback=options.check_format,
            help="onnx (.onnx), openvino (.xml), or another of `pocketformer export`.",
        ),
    ] = "onnx",
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="H W", help="Of the images that the file takes, px. [default: the crops' size]"),
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Images to verify on. [default: random pixels]")
    ] = None,
    seed: options.Seed = 0,
    raw: options.Raw = False,
    opset: options.Opset = None,
    licence: options.Licence = None,
    json: options.Json = False,
) -> None:
    """Write the segmenter as one file for deployment.

    Backbone, neck and head, float32: the fused graph for one image at a time. Input `image` (1, 3, H, W), RGB in 0 to
    1 and then normalised by `mean` and `std` of the folder's config.json; output `logits` (1, classes, H, W). The file
    is run and compared with PyTorch first: on a mismatch nothing is written (exit code 1).

    \b
    Example:
      pocketformer segment export --checkpoint runs/camvid --size 180 240 --out model.onnx
    """
    from pocketformer.cli.summary import exported
    from pocketformer.pipelines.segment_exports import export_segmenter

    report = export_segmenter(checkpoint, out, format, size, data, seed, licence, raw, opset)
    if json:
        options.print_json(report.to_dict())
        return
    print(exported(report, out))


def _print_scores(found: dict) -> None:
    from pocketformer.cli.summary import aligned

    print(
        f"mIoU {found['mIoU']:.2%}, pixel accuracy {found['pixel_accuracy']:.2%} on {found['split']} "
        f"({found['images']} images)"
    )
    total = max(sum(found["pixels"].values()), 1)
    rows = [("class", "IoU", "share of pixels")]
    for name, iou in found["iou"].items():
        rows.append((name, "-" if iou is None else f"{iou:.2%}", f"{found['pixels'][name] / total:.2%}"))
    print(aligned(rows))
