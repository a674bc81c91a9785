"""`supernet`: trains the supernet of a space."""

from pathlib import Path
from typing import Annotated

import typer

from pocketformer.cli import options, training


def _samplings() -> tuple[str, ...]:
    from pocketformer.pipelines.sampling import SAMPLINGS

    return SAMPLINGS


def _noises() -> tuple[str, ...]:
    from pocketformer.supernet.gumbel import NOISES

    return NOISES


def supernet(
    data: options.Data,
    out: options.Out,
    space: options.Space = None,
    recipe: training.RecipeName = "small-images",
    set_: training.Set = None,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    sampling: Annotated[
        str,
        typer.Option(
            metavar="sandwich|uniform|latency",
            callback=options.one_of(_samplings),
            help="Which subnets a step trains: the largest, the smallest and random ones (the paper's); random ones "
            "alone; or as the paper's, the random ones spread evenly over --latency.",
        ),
    ] = "sandwich",
    random: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Random subnets a step. [default: 2; uniform: 4]")
    ] = None,
    latency: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Latency table of the device, for --sampling latency.")
    ] = None,
    max_latency: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="With it, the random subnets are within a fifth of this budget: 0.9ms, 50%."),
    ] = None,
    plain: Annotated[
        bool,
        typer.Option(
            "--plain",
            help="All subnets learn from the labels alone, as in the paper (or all from the teacher); no in-place "
            "distillation, in which all but the largest learn half from the largest.",
        ),
    ] = False,
    noise: Annotated[
        str,
        typer.Option(
            metavar="gumbel|paper",
            callback=options.one_of(_noises),
            help="What explores the blocks of a V1 supernet: Gumbel noise, or U(0, 1) as its paper prints.",
        ),
    ] = "gumbel",
    alpha_rate: Annotated[
        float,
        typer.Option(
            metavar="X",
            callback=options.above_zero,
            help="Learning rate of a V1 supernet's choices, as a multiple of the weights'.",
        ),
    ] = 10.0,
    teacher: options.Teacher = None,
    class_order: options.ClassOrder = None,
    distillation: training.Distillation = "hard",
    drop_path: options.DropPath = None,
    balance: options.Balance = None,
    device: training.Device = "cpu",
    precision: training.Precision = "float32",
    accumulate: training.Accumulate = 1,
    checkpointing: training.Checkpointing = False,
    deterministic: training.Deterministic = False,
    seed: options.Seed = 0,
    workers: options.Workers = 2,
    bad_images: options.BadImages = "refuse",
    group_by: options.GroupBy = None,
    json: options.Json = False,
) -> None:
    """Train the supernet of a space.

    By the sandwich rule; that of V1's spaces (efficientformer, metapath32) by Gumbel softmax, all blocks at once.

    Also under `torchrun`.

    FOLDER can then be searched again and again, for other devices and budgets. It gets model.safetensors,
    config.json, metrics.jsonl, tensorboard/, config.yaml and recalibration.json (what re-calibrated norms do to
    the accuracy of the largest, the smallest and a random subnet).

    \b
    Examples:
      pocketformer supernet --data photos --space pocket64 --epochs 60 --out runs/supernet
      pocketformer supernet --data photos --sampling latency --latency table.json \\
        --max-latency 0.9ms --out runs/near
      pocketformer supernet --data photos --space metapath32 --epochs 60 --out runs/metapath
    """
    from pocketformer.pipelines.sampling import Choice, Sampling
    from pocketformer.pipelines.supernets import supernet_run

    found = supernet_run(
        options.pick_space(space, data),
        data,
        training.recipe(recipe, set_, epochs=epochs, batch_size=batch_size, drop_path=drop_path, balance=balance),
        out,
        sampling=Sampling(sampling, random, latency and str(latency), max_latency),
        plain=plain,
        teacher=teacher,
        class_order=class_order,
        distillation=distillation,
        choice=Choice(noise, alpha_rate),
        seed=seed,
        bad_images=bad_images,
        group_by=group_by,
        workers=workers,
        compute=training.compute(device, precision, False, accumulate, checkpointing, deterministic),
    )
    if json:
        options.print_json(found)
        return
    what = "shared weights, and the norms of every switch"
    if "entropy" in found:
        what = f"every block at the largest width; their choice has an entropy of {found['entropy']:.3f} nats"
    print(f"{out}: supernet of {found['space']}, {found['shared_parameters']:,} parameters ({what})")
    for name in found["accuracy"]:
        print(_described(name, found))


def _described(name: str, found: dict) -> str:
    """One line on the largest, the smallest or a random subnet."""
    from pocketformer.cli.summary import percent

    before, after = (found["accuracy"][name][key] for key in ("before", "recalibrated"))
    paper = ""
    if name == "largest" and "paper" in found:
        ours, printed = found["as_published"], found["paper"]
        paper = f" ({_size(ours)} with two heads of 1000 classes; the paper prints {_size(printed)})"
    size = f"{_size(found[name])}{paper}; " if name in found else ""
    return (
        f"{name} subnet: {size}on search ({after['images']} images, 95 % interval) "
        f"{before['accuracy']:.1%} with the norms' running statistics, {percent(after)} with norms re-calibrated on fit"
    )


def _size(costs: dict) -> str:
    parameters, macs = costs["parameters"], costs["macs"]
    counted = f"{parameters / 1e6:.2f} M" if parameters >= 1e6 else f"{parameters:,}"
    return f"{counted} parameters, " + (f"{macs / 1e9:.2f} GMACs" if macs >= 1e9 else f"{macs / 1e6:.1f} MMACs")
