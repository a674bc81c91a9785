"""`train`: trains or fine-tunes one network."""

from typing import Annotated

import typer

from pocketformer.cli import options, training


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
            help="Start from the network that a run of `design` or `train` shipped, of the same architecture; from a "
            "supernet's weights, of the blocks that a search kept: a folder of `search` or `supernet`, or a design's "
            "supernet/; or from a file of weights: official, timm's or ours. Other classes get a new head.",
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="N|HxW",
            help="Train at this size of images, px; attention biases that --init brings are re-sampled. [default: the "
            "architecture's]",
        ),
    ] = None,
    shrink: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            help="Progressive shrinking before the training: N steps for each state of the search that --init names, "
            "from the largest subnet to the one found.",
        ),
    ] = 0,
    recipe: training.RecipeName = None,
    set_: training.Set = None,
    teacher: options.Teacher = None,
    class_order: options.ClassOrder = None,
    distillation: Annotated[
        str,
        typer.Option(
            metavar="hard|soft",
            callback=options.one_of(lambda: ("hard", "soft")),
            help="Learn from the teacher's answers (the papers') or from its probabilities.",
        ),
    ] = "hard",
    teacher_cache: Annotated[
        str | None,
        typer.Option(
            metavar="K[=FOLDER]",
            help="Go over the augmented images of the first K epochs again and again, and keep the teacher's answers "
            "to them, in --out or in a folder that other runs may share.",
        ),
    ] = None,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(metavar="X", callback=options.above_zero, help="Peak rate for a batch of 1024."),
    ] = None,
    drop_path: options.DropPath = None,
    balance: options.Balance = None,
    validate: Annotated[
        bool,
        typer.Option(
            "--validate",
            help="Hold the search split out, score the network on it after each epoch, and keep the best weights.",
        ),
    ] = False,
    device: training.Device = "cpu",
    precision: training.Precision = "float32",
    compile: training.Compile = False,
    accumulate: training.Accumulate = 1,
    checkpointing: training.Checkpointing = False,
    deterministic: training.Deterministic = False,
    keep: training.Keep = 2,
    seed: options.Seed = 0,
    workers: options.Workers = 2,
    bad_images: options.BadImages = "refuse",
    group_by: options.GroupBy = None,
    json: options.Json = False,
) -> None:
    """Train or fine-tune one network, also under `torchrun`.

    Learns from all images but the test split; accuracy on that one is printed at the end. FOLDER gets
    model.safetensors, architecture.json, config.json, results.json, metrics.jsonl and tensorboard/.

    The recipe is small-images up to 128 px or from a supernet; above, finetune with --init of a trained network or
    weights, and imagenet without.

    After a search: from scratch without --init; inherited and fine-tuned with --init of the search; with --shrink
    as well, through every state on the way.

    \b
    Examples:
      pocketformer train --architecture runs/search --init runs/search --shrink 20 \\
        --data photos --epochs 20 --out runs/final
      pocketformer train --architecture efficientformerv2_s0 --data photos --out runs/s0
      torchrun --nproc-per-node 8 -m pocketformer train --architecture efficientformerv2_s1 \\
        --data imagenet --teacher regnety_160 --device cuda --precision bfloat16 --out runs/s1
    """
    from pocketformer.cli import class_text
    from pocketformer.cli.summary import percent
    from pocketformer.pipelines.trainings import TrainSettings, default_recipe, train_network

    described = training.recipe(
        recipe or default_recipe(architecture, init, bool(shrink), options.size_of(size)),
        set_,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        drop_path=drop_path,
        balance=balance,
    )
    settings = TrainSettings(
        architecture,
        data,
        described,
        init,
        teacher,
        distillation,
        teacher_cache,
        validate,
        seed,
        bad_images,
        group_by,
        training.compute(device, precision, compile, accumulate, checkpointing, deterministic),
        workers,
        keep=keep,
        shrink=shrink,
        size=options.size_of(size),
        class_order=class_order,
    )
    result = train_network(settings, out)
    if json:
        options.print_json(result)
    else:
        print(
            f"{out}: {result['parameters']:,} parameters, accuracy {percent(result['test'])} on test "
            f"({result['test']['images']} images, 95 % interval)\n{class_text.balanced(result['test'])}"
        )
