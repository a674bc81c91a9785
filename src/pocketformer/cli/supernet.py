"""`supernet`: trains the supernet of a space."""

from typing import Annotated

import typer

from pocketformer.cli import options, training


def supernet(
    data: options.Data,
    out: options.Out,
    space: options.Space = None,
    recipe: training.RecipeName = "small-images",
    set_: training.Set = None,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    plain: Annotated[
        bool,
        typer.Option("--plain", help="All subnets learn from the labels, as in the paper; no in-place distillation."),
    ] = False,
    drop_path: options.DropPath = None,
    device: training.Device = "cpu",
    precision: training.Precision = "float32",
    accumulate: training.Accumulate = 1,
    deterministic: training.Deterministic = False,
    seed: options.Seed = 0,
    workers: options.Workers = 2,
    bad_images: options.BadImages = "refuse",
    json: options.Json = False,
) -> None:
    """Train the supernet of a space by the sandwich rule.

    Also under `torchrun`.

    FOLDER can then be searched again and again, for other devices and budgets. It gets model.safetensors,
    config.json, metrics.jsonl, tensorboard/ and config.yaml.

    \b
    Example:
      pocketformer supernet --data photos --space pocket64 --epochs 60 --out runs/supernet
    """
    from pocketformer.pipelines.supernets import supernet_run

    found = supernet_run(
        options.pick_space(space, data),
        data,
        training.recipe(recipe, set_, epochs=epochs, batch_size=batch_size, drop_path=drop_path),
        out,
        plain,
        seed,
        bad_images,
        workers,
        training.compute(device, precision, False, accumulate, False, deterministic),
    )
    if json:
        options.print_json(found)
        return
    print(
        f"{out}: supernet of {found['space']}, {found['shared_parameters']:,} parameters "
        "(shared weights, and the norms of every switch)"
    )
