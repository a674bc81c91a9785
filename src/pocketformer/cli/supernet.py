"""`supernet`: trains the supernet of a space."""

from typing import Annotated

import typer

from pocketformer.cli import options


def supernet(
    data: options.Data,
    out: options.Out,
    space: options.Space = None,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    plain: Annotated[
        bool, typer.Option(help="All subnets learn from the labels, as in the paper; no in-place distillation.")
    ] = False,
    drop_path: Annotated[float, typer.Option(min=0, max=0.9, help="Stochastic depth of the last block.")] = 0.0,
    seed: options.Seed = 0,
    workers: options.Workers = 2,
    bad_images: options.BadImages = "refuse",
    json: options.Json = False,
) -> None:
    """Train a supernet by the sandwich rule; OUT can then be searched again and again."""
    from pocketformer.pipelines.images import open_images
    from pocketformer.pipelines.settings import stored_size
    from pocketformer.pipelines.supernets import train_supernet
    from pocketformer.runs import Run
    from pocketformer.training.recipe import Recipe

    chosen = options.pick_space(space, data)
    recipe = options.changed(Recipe.small_images(drop_path=drop_path), epochs, batch_size)
    about = {"data": data, "seed": seed, "bad_images": options.check_bad_images(bad_images)}
    images = open_images(data, stored_size(chosen), seed, bad_images, workers)
    settings = {**about, "space": chosen.to_dict(), "recipe": recipe.to_dict(), "plain": plain}
    with Run(out, "supernet", settings) as run:
        run.record(data_fingerprint=images.fingerprint, split_fingerprint=images.split_fingerprint)
        net = train_supernet(
            run.path, chosen, images, recipe, seed, run.ledger, in_place=not plain, about=about
        )
    numbers = sum(p.numel() for p in net.parameters())
    found = {"supernet": str(out), "space": chosen.name, "shared_parameters": numbers}
    if json:
        options.print_json(found)
    else:
        print(f"{out}: supernet of {chosen.name}, {numbers:,} numbers (weights and the norms of every switch)")
