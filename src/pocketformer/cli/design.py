"""`design` and `quickstart`: the whole chain in one command."""

from pathlib import Path
from typing import Annotated

import typer

from pocketformer.cli import options


def _finish(outcome: dict, out: Path, as_json: bool) -> None:
    from pocketformer.cli.summary import summary
    from pocketformer.report import write_report

    write_report([out])
    if as_json:
        options.print_json(outcome)
    else:
        print(summary(outcome, out))


def quickstart(
    out: options.Out = Path("runs/quickstart"), seed: options.Seed = 0, json: options.Json = False
) -> None:
    """Run `design` on the embedded images (8,000 of Fashion-MNIST) with a small space; about 4 minutes on 2 cores.

    The budget is half the largest subnet's latency and half its parameters.
    """
    from pocketformer.pipelines.quickstart import quickstart as run

    _finish(run(out, seed), out, json)


def design(
    data: options.Data,
    out: options.Out,
    runtime: options.Runtime = "onnxruntime",
    space: options.Space = None,
    max_latency: options.MaxLatency = None,
    max_parameters: options.MaxParameters = None,
    max_memory: options.MaxMemory = None,
    min_mes: options.MinMes = None,
    latency: Annotated[
        Path | None, typer.Option(help="A latency table measured before; else this device is profiled.")
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Supernet epochs (default 30).")] = None,
    final_epochs: Annotated[
        float | None, typer.Option(help="Epochs of the final training (default 30).")
    ] = None,
    batch_size: options.BatchSize = None,
    from_scratch: Annotated[
        bool, typer.Option(help="Train the found network from scratch, not from the supernet's weights.")
    ] = False,
    teacher: Annotated[
        str | None, typer.Option(help="Teacher of the final training: a timm NAME, or NAME=FILE.")
    ] = None,
    threads: options.Threads = 1,
    batch: options.Batch = 1,
    seed: options.Seed = 0,
    workers: options.Workers = 2,
    bad_images: options.BadImages = "refuse",
    json: options.Json = False,
) -> None:
    """Images, a device and budgets in; a searched, trained, exported and measured network out.

    Reads the images, profiles the device, trains a supernet, searches it under the budgets (all must hold),
    trains the found network, exports and verifies it, times the file, and writes OUT/report.html. Every stage
    resumes where it was cut.
    """
    from pocketformer.errors import UserError
    from pocketformer.pipelines.design import design as run
    from pocketformer.pipelines.settings import DesignSettings, ProfileSettings
    from pocketformer.training.recipe import Recipe

    limits = options.budgets(max_latency, max_parameters, max_memory)
    if not limits and min_mes is None:
        raise UserError("give a budget: --max-latency, --max-parameters, --max-memory or --min-mes")
    settings = DesignSettings(
        data=data,
        space=options.pick_space(space, data),
        runtime=runtime,
        budgets=limits,
        min_mes=options.check_min_mes(min_mes),
        seed=seed,
        supernet=options.changed(Recipe.small_images(), epochs, batch_size),
        final=options.changed(
            Recipe.small_images(learning_rate=2e-2 if from_scratch else 1e-2), final_epochs, batch_size
        ),
        profile=ProfileSettings(threads=threads, batch=batch),
        latency=str(latency) if latency else None,
        teacher=teacher,
        from_scratch=from_scratch,
        bad_images=options.check_bad_images(bad_images),
        workers=workers,
    )
    _finish(run(settings, out), out, json)
