"""Supernet accuracy against accuracy after training, as in V2's Fig. 5: the plots and the table."""

from pocketformer.report.figure import Plot, figure, share_axis, trace
from pocketformer.report.reading import Record, objects, part
from pocketformer.report.wording import count, is_number, percent, safe

TITLES = {
    "spread": "spread over the space",
    "near": "of about one size",
    "own": "supernet, its own norms",
    "recalibrated": "supernet, norms re-calibrated",
    "alone": "largest trained alone, norms re-calibrated (EagleEye)",
}
MEASURES = {"r2": "r² (Pearson)", "spearman": "Spearman's ρ", "kendall": "Kendall's τ"}
_DRAWN = (("recalibrated", "@blue", "circle"), ("own", "@orange", "diamond"), ("alone", "@green", "star"))


def accuracies(found: dict, way: str) -> list[float]:
    """Of a set's subnets, those that are known."""
    values = [part(row, "accuracy", way, "accuracy") for row in objects(found, "subnets")]
    return [value for value in values if is_number(value)]


def figures_of(measures: dict) -> list[str]:
    """The coefficients of `MEASURES` with their intervals; of r² also whether it is that of a negative r."""
    shown = []
    for name in MEASURES:
        value, ends = part(measures, name, "value"), part(measures, name, "interval95", default=[])
        if not is_number(value) or len(ends) != 2 or not all(map(is_number, ends)):
            shown.append("undefined")
            continue
        shown.append(f"{value:.2f} ({ends[0]:.2f} to {ends[1]:.2f}){_sign(measures) if name == 'r2' else ''}")
    return shown


def _sign(measures: dict) -> str:
    r = part(measures, "pearson", "value")
    return ", r < 0" if is_number(r) and r < 0 else ""


def plots(record: Record) -> list[Plot]:
    """One for each set."""
    return [plot for name in ("spread", "near") if (plot := _plot(record, name)) is not None]


def _plot(record: Record, name: str) -> Plot | None:
    rows = objects(record.correlation, "sets", name, "subnets")
    data = []
    for way, colour, symbol in _DRAWN:
        pairs = [(part(r, "accuracy", way, "accuracy"), part(r, "accuracy", "trained", "accuracy"), r) for r in rows]
        pairs = [pair for pair in pairs if is_number(pair[0]) and is_number(pair[1])]
        if not pairs:
            continue
        measures = part(record.correlation, "sets", name, "ways", way, default={})
        r2 = part(measures, "r2", "value")
        told = safe(f"r² = {r2:.2f}{_sign(measures)}" if is_number(r2) else "r² undefined")
        marker = {"size": 8, "symbol": symbol}
        texts = [
            f"<b>{safe(row.get('subnet'))}</b>, {count(row.get('parameters'))} parameters<br>{percent(x)} "
            f"{TITLES[way]}<br>{percent(y)} after training"
            for x, y, row in pairs
        ]
        x, y = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        data.append(trace(f"{TITLES[way]}: {told}", x, y, "markers", colour, texts, marker=marker))
    if not data:
        return None
    picture = figure(
        data,
        share_axis("Accuracy without training, search split", [x for drawn in data for x in drawn["x"]]),
        share_axis("After training from scratch", [y for drawn in data for y in drawn["y"]]),
    )
    images = count(record.correlation.get("images"))
    caption = f"A point is a subnet; accuracies on the search split ({images} images), trained on fit (paper, Fig. 5)."
    return Plot(f"correlation_{name}", f"Subnets {TITLES[name]}", picture, caption)


def table(record: Record) -> str:
    """How well each way tells the accuracy after training, and what the found networks came to."""
    sets, body = part(record.correlation, "sets", default={}), ""
    for name in ("spread", "near"):
        for way, measures in part(sets, name, "ways", default={}).items():
            before = accuracies(sets[name], way)
            told = f"{percent(min(before), 1)} to {percent(max(before), 1)}" if before else ""
            cells = "".join(f"<td>{safe(shown)}</td>" for shown in figures_of(measures))
            heading = f"<th scope='row'>{safe(TITLES.get(way, way))}<small>{safe(TITLES[name])}</small></th>"
            body += f"<tr>{heading}<td>{told}</td>{cells}</tr>"
    if not body:
        return ""
    heads = ("Accuracy against that after training", "Range", *MEASURES.values())
    head = "".join(f"<th scope='col'>{title}</th>" for title in heads)
    made = f"<div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    return made + "<p class='muted'>In brackets: 95 % bootstrap intervals over the subnets.</p>" + _found(sets)


def _found(sets: dict) -> str:
    rows = "".join(
        f"<li>{safe(row.get('subnet'))}: {count(row.get('parameters'))} parameters, "
        f"{percent(part(row, 'accuracy', 'trained', 'accuracy'))} after the same training</li>"
        for row in objects(sets, "found", "subnets")
    )
    return f"<p>Networks that searches found:</p><ul>{rows}</ul>" if rows else ""
