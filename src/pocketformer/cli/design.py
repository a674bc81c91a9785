"""`design` and `quickstart`: the whole chain in one command."""

from pathlib import Path
from typing import Annotated

import typer

from pocketformer.cli import goals, options


def _finish(outcome: dict, out: Path, as_json: bool) -> None:
    from pocketformer.cli.summary import summary
    from pocketformer.report import write_report

    write_report([out])
    if as_json:
        options.print_json(outcome)
    else:
        print(summary(outcome, out))


def quickstart(
    out: options.Out = Path("runs/quickstart"),
    seed: options.Seed = 0,
    accept_table_error: options.AcceptTableError = False,
    json: options.Json = False,
) -> None:
    """See the whole chain on embedded images, in minutes.

    Runs `design` on 8,000 images of Fashion-MNIST that come with the package, with a small space and half of
    the largest subnet's latency and parameters as budgets; about 4 minutes on 2 cores. `pocketformer design
    --help` lists the files that appear.

    \b
    Example:
      pocketformer quickstart --out runs/quickstart
    """
    from pocketformer.pipelines.quickstart import quickstart as run

    _finish(run(out, seed, accept_table_error), out, json)


def design(
    data: options.Data,
    out: options.Out,
    runtime: options.Runtime = "onnxruntime",
    space: options.Space = None,
    max_latency: options.MaxLatency = None,
    max_parameters: options.MaxParameters = None,
    max_macs: options.MaxMacs = None,
    max_memory: options.MaxMemory = None,
    min_mes: options.MinMes = None,
    alpha: options.Alpha = None,
    form: options.Form = "budget",
    latency: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A latency table of `profile`. [default: measure this device]"),
    ] = None,
    epochs: options.Epochs = None,
    final_epochs: Annotated[
        float | None,
        typer.Option(metavar="X", callback=options.above_zero, help="Epochs of the final training. [default: 30]"),
    ] = None,
    batch_size: options.BatchSize = None,
    balance: options.Balance = None,
    accept_table_error: options.AcceptTableError = False,
    from_scratch: Annotated[
        bool,
        typer.Option("--from-scratch", help="Train the found network anew, without the supernet's weights."),
    ] = False,
    teacher: options.Teacher = None,
    class_order: options.ClassOrder = None,
    threads: options.Threads = 1,
    seed: options.Seed = 0,
    workers: options.Workers = 2,
    bad_images: options.BadImages = "refuse",
    group_by: options.GroupBy = None,
    json: options.Json = False,
) -> None:
    """Images, a device and budgets in; a network out.

    Reads the images, measures this device, trains a supernet (--epochs), searches it under the budgets (at
    least one; all must hold), trains the found network (--final-epochs), exports and verifies it, times the
    file, and compares it with the largest, the smallest and the best random subnet. Every stage resumes where
    it was cut.

    \b
    Files in FOLDER:
      report.html                 the page to look at
      exported/                   the network to deploy in the runtime's format, verified and timed
      model.safetensors           the same for `evaluate`, `export` and `train --init`,
        + architecture.json, config.json
      results.json                every figure of the page
      latency_table.json          this device, for `search` and `design --latency`
      supernet/, search.jsonl, front/, networks/, config.yaml   how it came about

    \b
    Example:
      pocketformer design --data photos --max-latency 2ms --max-parameters 1M --out runs/mine
    """
    from pocketformer.pipelines.design import design as run
    from pocketformer.pipelines.settings import DesignSettings, ProfileSettings
    from pocketformer.training.recipe import Recipe

    settings = DesignSettings(
        data=data,
        budgets=goals.budgets(max_latency, max_parameters, max_memory, min_mes, max_macs),
        space=options.pick_space(space, data),
        runtime=runtime,
        min_mes=min_mes,
        alphas=goals.alphas(alpha),
        form=form,
        seed=seed,
        supernet=options.changed(Recipe.small_images(), epochs=epochs, batch_size=batch_size, balance=balance),
        final=options.changed(
            Recipe.small_images(learning_rate=2e-2 if from_scratch else 1e-2),
            epochs=final_epochs,
            batch_size=batch_size,
            balance=balance,
        ),
        profile=ProfileSettings(threads=threads),
        latency=str(latency) if latency else None,
        accept_table_error=accept_table_error,
        teacher=teacher,
        class_order=class_order,
        from_scratch=from_scratch,
        bad_images=bad_images,
        group_by=group_by,
        workers=workers,
    )
    _finish(run(settings, out), out, json)
