"""`train`: trains or fine-tunes one network."""

from typing import Annotated

import typer

from pocketformer.cli import options


def train(
    architecture: Annotated[
        str, typer.Option(help="A published name, an architecture.json, or a folder that holds one.")
    ],
    data: options.Data,
    out: options.Out,
    init: Annotated[
        str | None, typer.Option(help="Start from a trained folder or from a supernet's weights.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Hard distillation from a timm model: NAME, or NAME=FILE.")
    ] = None,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak rate for a batch of 1024.")] = None,
    drop_path: Annotated[float, typer.Option(min=0, max=0.9, help="Stochastic depth of the last block.")] = 0.0,
    seed: options.Seed = 0,
    workers: options.Workers = 2,
    bad_images: options.BadImages = "refuse",
    json: options.Json = False,
) -> None:
    """Train one network on fit + search; its accuracy on the test split is printed at the end."""
    from dataclasses import replace

    from pocketformer.cli.summary import percent
    from pocketformer.pipelines.trainings import train_network
    from pocketformer.training.recipe import Recipe

    recipe = options.changed(Recipe.small_images(drop_path=drop_path), epochs, batch_size)
    if learning_rate is not None:
        recipe = replace(recipe, learning_rate=learning_rate)
    result = train_network(
        architecture,
        data,
        recipe,
        out,
        init=init,
        teacher=teacher,
        seed=seed,
        bad_images=options.check_bad_images(bad_images),
        workers=workers,
    )
    if json:
        options.print_json(result)
    else:
        print(f"{out}: {result['parameters']:,} parameters, accuracy {percent(result['test'])} on test")
