"""`report`: the page of a run."""

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from pocketformer.cli import options


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN",
            help="Folders of `design`, `search`, `supernet`, `correlate` or `train`.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Page to write. [default: report.html in the first run]"),
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Also write every figure to this folder (HTML and SVG)."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Write the page of a run, or of several side by side.

    One self-contained HTML file: it can be mailed and opened without a network. `design` writes it by itself.

    \b
    Examples:
      pocketformer report runs/mine
      pocketformer report runs/a runs/b --out compared.html --figures figures
    """
    from pocketformer.errors import UserError
    from pocketformer.pipelines.tables import open_table
    from pocketformer.report import write_figures, write_report

    for table in (run / "latency_table.json" for run in runs):
        with suppress(UserError):  # a page shows what it can
            if table.is_file():
                open_table(table)
    page = write_report(runs, out)
    written = write_figures(runs, figures) if figures else []
    if json:
        options.print_json({"page": str(page), "figures": [str(p) for p in written]})
        return
    print(page)
    for path in written:
        print(path)
