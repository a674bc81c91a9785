"""`train`: trains or fine-tunes one network."""

from typing import Annotated

import typer

from pocketformer.cli import options


def train(
    architecture: Annotated[
        str,
        typer.Option(
            metavar="NAME|FILE",
            help="A published name (see `pocketformer models`), an architecture.json, or a folder with one.",
        ),
    ],
    data: options.Data,
    out: options.Out,
    init: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER|FILE",
            help="Start from the weights of a supernet, or of a trained network of the same architecture; or from a "
            "file of weights: official, timm's or ours.",
        ),
    ] = None,
    teacher: options.Teacher = None,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(metavar="X", callback=options.above_zero, help="Peak rate for a batch of 1024. [default: 0.02]"),
    ] = None,
    drop_path: options.DropPath = 0.0,
    seed: options.Seed = 0,
    workers: options.Workers = 2,
    bad_images: options.BadImages = "refuse",
    json: options.Json = False,
) -> None:
    """Train or fine-tune one network.

    Learns from all images but the test split; accuracy on that one is printed at the end. FOLDER gets
    model.safetensors, architecture.json, config.json, results.json, metrics.jsonl and tensorboard/.

    \b
    Examples:
      pocketformer train --architecture runs/search/architecture.json --init runs/supernet \\
        --data photos --epochs 20 --out runs/final
      pocketformer train --architecture efficientformerv2_s0 --data photos --out runs/s0
    """
    from pocketformer.cli.summary import percent
    from pocketformer.pipelines.trainings import train_network
    from pocketformer.training.recipe import Recipe

    recipe = options.changed(
        Recipe.small_images(drop_path=drop_path),
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
    )
    result = train_network(
        architecture,
        data,
        recipe,
        out,
        init=init,
        teacher=teacher,
        seed=seed,
        bad_images=bad_images,
        workers=workers,
    )
    if json:
        options.print_json(result)
    else:
        print(
            f"{out}: {result['parameters']:,} parameters, accuracy {percent(result['test'])} on test "
            f"({result['test']['images']} images, 95 % interval)"
        )
