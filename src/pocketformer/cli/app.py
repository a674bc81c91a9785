"""All commands under one name. Each command's file imports what is heavy only when it runs."""

from typing import Annotated

import typer

from pocketformer.cli import (
    benchmark,
    correlate,
    design,
    detect,
    evaluate,
    export,
    models,
    predict,
    profile,
    report,
    search,
    segment,
    supernet,
    train,
)

app = typer.Typer(
    name="pocketformer",
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"max_content_width": 110},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"pocketformer {version('pocketformer')}")
        raise typer.Exit


@app.callback()
def pocketformer(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Images, a device and a budget in; a searched, trained, exported and measured mobile vision transformer out.

    \b
    See it work on embedded images:  pocketformer quickstart
    Your images, your budget:        pocketformer design --data photos --max-latency 2ms --out runs/mine

    `pocketformer COMMAND --help` explains each command. Exit codes: 0 success; 1 the work failed or was
    refused; 2 a mistake in what was asked; 130 interrupted. Results go to stdout, progress and notes to
    stderr.
    """


for command in (
    design.quickstart,
    design.design,
    models.models,
    profile.profile,
    supernet.supernet,
    search.search,
    correlate.correlate,
    train.train,
    evaluate.evaluate,
    predict.predict,
    export.export,
    benchmark.benchmark,
    report.report,
):
    app.command()(command)

app.add_typer(detect.app)
app.add_typer(segment.app)
