"""The plots of `benchmark`: top-1 over latency as in the papers' Fig. 1, and the ratios of the operators."""

import math
from pathlib import Path

from pocketformer import files
from pocketformer.errors import UserError
from pocketformer.report.figure import Plot, axis, figure, log_axis, share_axis, trace
from pocketformer.report.images import draw
from pocketformer.report.page import standalone
from pocketformer.report.theme import LIGHT, resolved
from pocketformer.report.wording import count, is_number, ms, percent, safe, significant

ENDINGS = (".svg", ".html")
_AREA = 12.0  # square pixels of a million parameters
_FAMILIES = (("EfficientFormerV2", "@blue"), ("EfficientFormer", "@green"), ("CONV", "@grey"), ("Hybrid", "@orange"))
_FAMILIES += (("others", "@purple"),)
_ROOM = 1.35  # for the outermost names


def accuracy_latency(outcome: dict) -> Plot | None:
    """Published top-1 over the latency measured here; areas are parameters (V2 Fig. 1, V1 Fig. 1)."""
    rows = [row for row in outcome["networks"] if row["top1"] and row["parameters"]]
    if not rows:
        return None
    data = []
    for family, colour in _FAMILIES:
        chosen = [row for row in rows if _family(row) == family]
        if chosen:
            x, y = [row["median_ms"] for row in chosen], [row["top1"][-1] / 100 for row in chosen]
            sizes = [2 * math.sqrt(_AREA * row["parameters"] / 1e6 / math.pi) for row in chosen]
            labels = {"text": [safe(_short(row["name"])) for row in chosen], "textposition": "top center"}
            labels |= {"customdata": list(map(_hover, chosen)), "hovertemplate": "%{customdata}<extra></extra>"}
            marker = {"size": sizes, "opacity": 0.6}
            dots = trace(family, x, y, "markers+text", colour, marker=marker, textfont={"size": 7}, **labels)
            data.append(dots)
    how = outcome["fingerprint"]
    where = f"{how['runtime']} on {how.get('gpu', how['device'])}, {how['threads']} thread(s), batch {how['batch']}"
    times = [row["median_ms"] for row in rows]
    x = log_axis("Latency measured here (ms a batch, log scale)", [min(times) / _ROOM, max(times) * _ROOM])
    picture = figure(data, x, share_axis("Published top-1 on ImageNet-1K", [row["top1"][-1] / 100 for row in rows]))
    caption = f"Latency: {where}; areas: parameters; accuracies are those printed for the longest training."
    if how["activation"] == "relu":
        caption += " All activations are ReLU; the accuracies are those with the networks' own."
    return Plot("accuracy_latency", "Published accuracy over latency measured here", picture, caption, tall=True)


def operator_ratios(outcome: dict) -> Plot:
    """Each comparison's ratio with its interval; above 1, the side that the paper calls slower is slower here."""
    rows, data = outcome["comparisons"], []
    colours = {"holds here": "@green", "does not hold here": "@red", "undecided": "@grey"}
    places = [-i for i in range(len(rows))]
    bounds = [v for row in rows for v in (*row["ratio95"], row["ratio"]) if is_number(v) and v > 0] + [1]
    low, high = min(bounds), max(bounds)
    for place, row in zip(places, rows, strict=True):
        ends = [high if v is None else min(max(v, low), high) for v in row["ratio95"]]
        style = {"showlegend": False, "hoverinfo": "skip", "line": {"width": 3}}
        data.append(trace("95 % interval", ends, [place, place], "lines", colours[row["verdict"]], **style))
    for verdict, colour in colours.items():
        chosen = [(place, row) for place, row in zip(places, rows, strict=True) if row["verdict"] == verdict]
        if chosen:
            ratios = [high if row["ratio"] is None else row["ratio"] for _, row in chosen]
            x, y = [min(max(ratio, low), high) for ratio in ratios], [place for place, _ in chosen]
            texts = [_comparison_hover(row) for _, row in chosen]
            data.append(trace(verdict, x, y, "markers", colour, texts, marker={"size": 8}))
    names = [safe(f"{row['observation']}: {row['comparison']}") for row in rows]
    x = log_axis("Ratio of the two times (log scale)", bounds)
    line = {"type": "line", "x0": 1, "x1": 1, "y0": 0, "y1": 1, "xref": "x", "yref": "y domain"}
    shapes = [{**line, "line": {"color": "@fg", "dash": "dot", "width": 1}}]
    named = {"tickvals": places, "ticktext": names, "tickfont": {"size": 9}}
    picture = figure(data, x, axis("", range=[-len(rows), 1], showgrid=False, **named), shapes=shapes)
    caption = (
        "Observations 1 to 4 of V1's latency analysis (Sec. 3), the side called slower there over the other; each with "
        "its 95 % interval. An interval across 1 is undecided; 'hardly slower' holds up to 1.05."
    )
    return Plot("operators", "The paper's latency observations here", picture, caption, tall=True)


def save_plot(plot: Plot, path: Path) -> None:
    """Writes an image (.svg) or an interactive page (.html), whole."""
    if path.suffix not in ENDINGS:
        raise UserError(f"a plot is a file that ends in {' or '.join(ENDINGS)}, not {path.name}")
    files.write_text(path, draw(resolved(plot.figure, LIGHT)) if path.suffix == ".svg" else standalone(plot))


def _family(row: dict) -> str:
    name = row["name"].lower()
    for family, _ in _FAMILIES[:2]:
        if name.startswith(family.lower()):
            return family
    return row["kind"] if row["kind"] in ("CONV", "Hybrid") else "others"


def _short(name: str) -> str:
    for long, short in (("efficientformerv2 space, largest", "V2 supernet"), ("efficientformerv2_", "V2-")):
        name = name.replace(long, short)
    return name.replace("efficientformer_", "V1-").replace("EfficientNet", "EffNet")


def _hover(row: dict) -> str:
    low, high = row["ratio95"]
    return (
        f"<b>{safe(row['name'])}</b><br>{percent(row['top1'][-1] / 100, 1)} top-1 (published)<br>"
        f"{ms(row['median_ms'])}, {significant(row['ratio'])} of MobileNetV2's ({low:.2f} to {high:.2f})<br>"
        f"{count(row['parameters'])} parameters, MES {significant(row['mes'])}"
    )


def _comparison_hover(row: dict) -> str:
    ratio, low, high = ("?" if v is None else f"{v:.2f}" for v in (row["ratio"], *row["ratio95"]))
    sides = f"{ms(row['slower_ms'])} against {ms(row['faster_ms'])}"
    title = f"<b>{safe(row['comparison'])}</b><br>{safe(row['source'])}<br>{sides}"
    return f"{title}<br>ratio {ratio} ({low} to {high}): {row['verdict']}"
