"""All commands under one name. Each command's file imports what is heavy only when it runs."""

import typer

from pocketformer.cli import (
    benchmark,
    design,
    evaluate,
    export,
    models,
    profile,
    report,
    search,
    supernet,
    train,
)

app = typer.Typer(
    name="pocketformer",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Images, a device and a budget in; a searched, trained, exported and measured mobile vision "
    "transformer out. Start with `pocketformer quickstart`, then `pocketformer design --help`.",
)
for command in (
    design.quickstart,
    design.design,
    models.models,
    profile.profile,
    supernet.supernet,
    search.search,
    train.train,
    evaluate.evaluate,
    export.export,
    benchmark.benchmark,
    report.report,
):
    app.command()(command)
