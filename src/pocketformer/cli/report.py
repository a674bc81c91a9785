"""`report`: the page of a run."""

from pathlib import Path
from typing import Annotated

import typer

from pocketformer.cli import options


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs.")],
    out: Annotated[Path | None, typer.Option(help="Page to write (default: RUN/report.html).")] = None,
    figures: Annotated[Path | None, typer.Option(help="Also write every figure to this folder.")] = None,
    json: options.Json = False,
) -> None:
    """One self-contained HTML page of a run, or of several."""
    from pocketformer.report import write_figures, write_report

    page = write_report(runs, out)
    written = write_figures(runs, figures) if figures else []
    if json:
        options.print_json({"page": str(page), "figures": [str(p) for p in written]})
        return
    print(page)
    for path in written:
        print(path)
