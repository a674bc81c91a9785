"""The page: sections put together, plotly inlined once; and the same plots as files of their own."""

import json
from collections.abc import Sequence
from pathlib import Path

from pocketformer import files
from pocketformer.errors import UserError
from pocketformer.progress import say
from pocketformer.report import classes, correlation, curves, diagram, plots, scores, sections, tables, theme
from pocketformer.report.figure import Plot
from pocketformer.report.images import save_image
from pocketformer.report.reading import Record, chosen_network, part, read_run
from pocketformer.report.wording import count, ms, percent, safe


def write_report(runs: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Writes one self-contained HTML page about the runs (by default `report.html` in the first).

    Returns its path. It shows what the folders hold and says what they do not. Raises `UserError` for a
    folder that is no run.
    """
    records = _records(runs)
    out = Path(out) if out is not None else records[0].path / "report.html"
    if out.is_dir():
        raise UserError(f"{out} is a folder: name the HTML file to write")
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"{out}: the page is an HTML file, whose name ends in .html")
    page = _Page(out.absolute().parent)
    several = len(records) > 1
    body = _side_by_side(records, page) if several else ""
    body += "".join(_run(record, page, f"r{i}-" if several else "") for i, record in enumerate(records))
    title = "Runs side by side" if several else f"{records[0].command}: {records[0].title}"
    files.write_text(out, _document(title, body, page.draws))
    for problem in dict.fromkeys(problem for record in records for problem in record.problems):
        say(f"warning: {problem}")
    return out


def write_figures(runs: Sequence[str | Path], folder: str | Path) -> list[Path]:
    """Writes every plot to `folder` as stand-alone HTML and SVG (where kaleido is installed, also PDF).

    Returns the paths. Raises `UserError` for a folder that is no run, and if there is nothing to draw.
    """
    records, folder = _records(runs), Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, not a folder for figures")
    written: list[Path] = []
    shared = [plots.trajectories(records)] if len(records) > 1 else []
    groups = [("", [p for p in shared if p])]
    for record in records:
        prefix = f"{record.title.replace('/', '_')}_" if len(records) > 1 else ""
        groups.append((prefix, _plots(record)))
        architecture, selection = chosen_network(record)
        if architecture is not None:
            drawing = diagram.diagram(architecture, selection, record.num_classes, scores.head_of(record))
            path = folder / f"{prefix}architecture.svg"
            files.write_text(path, diagram.standalone(drawing))
            written.append(path)
        if matrix := classes.drawing(record):
            path = folder / f"{prefix}confusion.svg"
            files.write_text(path, diagram.standalone(matrix, classes.CSS))
            written.append(path)
    for prefix, group in groups:
        for plot in group:
            path = folder / f"{prefix}{plot.name}.html"
            files.write_text(path, standalone(plot))
            written += [path, *save_image(plot, folder, f"{prefix}{plot.name}")]
    if not written:
        raise UserError("nothing to draw: the runs hold no search, training, network or measurement yet")
    return written


def standalone(plot: Plot) -> str:
    """One plot as an HTML page of its own."""
    return _document(plot.title, f"<h1>{safe(plot.title)}</h1>{_Page(Path()).plot(plot)}", True)


def _records(runs: Sequence[str | Path]) -> list[Record]:
    if isinstance(runs, str | Path):
        runs = [runs]
    if not runs:
        raise UserError("a report needs at least one run")
    records = [read_run(run) for run in runs]
    titles = [record.title for record in records]
    for i, record in enumerate(records):
        if titles.count(record.title) > 1:  # tell equal names apart
            record.title = f"{record.path.resolve().parent.name}/{titles[i]}"
    if len({record.title for record in records}) < len(records):
        for i, record in enumerate(records, 1):
            record.title = f"{i} {record.title}"
    return records


def _plots(record: Record) -> list[Plot]:
    made = [make(record) for make in (plots.mes_accuracy, plots.latency_accuracy, plots.steps)]
    made += [curves.predicted_measured(record), *correlation.plots(record), *curves.training_curves(record)]
    return [plot for plot in made if plot is not None]


class _Page:
    """Counts the plots of a page, so that each has its own id."""

    def __init__(self, folder: Path):
        self.folder, self.number = folder, 0

    @property
    def draws(self) -> bool:
        return self.number > 0

    def plot(self, plot: Plot | None) -> str:
        if plot is None:
            return ""
        self.number += 1
        data = json.dumps(plot.figure, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
        tall = " tall" if plot.tall else ""
        name = f"data-name='{plot.name}' role='img' aria-label='{safe(plot.title)}'"
        return (
            f"<figure><div class='plot{tall}' id='plot{self.number}' {name}></div>"
            f"<figcaption>{safe(plot.caption)}</figcaption></figure>"
            f"<script type='application/json' id='plot{self.number}-data'>{data}</script>"
        )


def _titled(page: _Page, plot: Plot | None) -> str:
    return f"<h3>{safe(plot.title)}</h3>{page.plot(plot)}" if plot else ""


def _drawing(record: Record) -> str:
    architecture, selection = chosen_network(record)
    if architecture is None:
        return ""
    drawn = diagram.diagram(architecture, selection, record.num_classes, scores.head_of(record))
    note = "Data flows from top to bottom, in each stage from left to right."
    return f"<p class='muted'>{note}</p><div class='scroll'>{drawn}</div>"


def _run(record: Record, page: _Page, prefix: str) -> str:
    search = [_titled(page, p(record)) for p in (plots.mes_accuracy, plots.latency_accuracy, plots.steps)]
    pairs = page.plot(curves.predicted_measured(record))
    agreement = [_titled(page, plot) for plot in correlation.plots(record)]
    training = [_titled(page, plot) for plot in curves.training_curves(record)]
    has_search = bool(record.search or part(record.results, "random"))
    contents: list[tuple[str, str, str]] = [
        ("comparison", "Comparison", tables.comparison(record)),
        ("scores", "What it reaches", scores.table(record)),
        ("classes", "Class by class, on test", classes.section(record)),
        ("correlation", "What the supernet says of training", correlation.table(record) + "".join(agreement)),
        ("search", "The search", "".join(search) + (sections.search_facts(record) if has_search else "")),
        ("architecture", "The network", _drawing(record) + sections.checks(record)),
        ("latency", "Predicted and measured latency", tables.latencies(record) + pairs),
        ("training", "Training", "".join(training)),
        ("settings", "Versions, fingerprints and settings", tables.provenance(record)),
    ]
    expected = _EXPECTED.get(record.command, _WHOLE)
    missing = [title.lower() for name, title, content in contents if not content and name in expected]
    remarks = [f"Not in this folder (yet): {', '.join(missing)}."] if missing else []
    remarks += [f"Could not be read: {problem}" for problem in record.problems]
    links = "".join(f"<a href='#{prefix}{name}'>{safe(title)}</a>" for name, title, content in contents if content)
    header = (
        f"<header><h1 id='{prefix}top'>{safe(record.command)}: {safe(record.title)}</h1>"
        f"{sections.asked(record)}{sections.verdict(record)}{sections.outcome(record)}{scores.cards(record)}{sections.budgets(record)}"
        f"{sections.take(record, page.folder)}"
        + "".join(f"<p class='muted'>{safe(remark)}</p>" for remark in remarks)
        + f"<nav aria-label='Sections'>{links}</nav></header>"
    )
    return header + "".join(
        f"<section id='{prefix}{name}'><h2>{safe(title)}</h2>{content}</section>"
        for name, title, content in contents
        if content
    )


# Which sections to say of that they are missing.
_WHOLE = ("comparison", "search", "architecture", "latency", "training")
_EXPECTED = {
    "correlate": ("correlation",),
    "search": ("search", "architecture"),
    "supernet": ("training",),
    "train": ("architecture", "training"),
    "segment train": ("scores", "architecture", "training"),
    "detect train": ("scores", "architecture", "training"),
}


def _side_by_side(records: list[Record], page: _Page) -> str:
    """What several runs found, in one table and one plot."""
    heads = ("Run", "Parameters", "Latency", "Accuracy, search split", "Accuracy, test split")
    rows = ""
    for i, record in enumerate(records):
        shipped, row = part(record.results, "shipped", default={}), sections.found_row(record)
        last = plots.found_state(record) or {}
        latency = part(shipped, "latency", "measured")
        shown = f"{ms(latency)} measured" if latency else f"{ms(last.get('latency'))} predicted" if last else "—"
        cells = (
            count(shipped.get("parameters") or last.get("parameters") or record.results.get("parameters")),
            shown,
            percent(row.get("accuracy_search", last.get("accuracy"))),
            percent(part(sections.tested(record), "accuracy")),
        )
        link = f"<a href='#r{i}-top'>{safe(record.title)}</a>"
        rows += f"<tr><th scope='row'>{link}</th>{''.join(f'<td>{safe(c)}</td>' for c in cells)}</tr>"
    head = "".join(f"<th scope='col'>{h}</th>" for h in heads)
    table = f"<div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    return f"<h1>Runs side by side</h1>{table}{_titled(page, plots.trajectories(records))}"


def _document(title: str, body: str, draws: bool) -> str:
    scripts = ""
    if draws:
        from plotly.offline import get_plotlyjs

        scripts = f"<script>{get_plotlyjs()}</script><script>{theme.SCRIPT}</script>"
    return (
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{safe(title)}</title><style>{theme.CSS}{diagram.CSS}{classes.CSS}</style></head>\n"
        f"<body><main>{body}</main>\n{scripts}</body></html>\n"
    )
