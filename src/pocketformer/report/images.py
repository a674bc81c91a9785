"""A plot as a vector image for papers: by kaleido where it is installed, else drawn here as SVG."""

import math
from importlib.util import find_spec
from pathlib import Path

from pocketformer import files
from pocketformer.report.figure import Plot
from pocketformer.report.theme import LIGHT, resolved

_WIDTH, _HEIGHT = 640, 400
_LEFT, _RIGHT, _TOP, _BOTTOM, _ROW = 70, 16, 14, 52, 18
_LETTER = 4.9  # px, of the small print of names


def save_image(plot: Plot, folder: Path, stem: str) -> list[Path]:
    """Writes SVG and, by kaleido, PDF; returns the paths."""
    figure = resolved(plot.figure, LIGHT)
    if find_spec("kaleido") is not None:
        try:
            return _by_kaleido(figure, folder, stem)
        except Exception:  # kaleido needs a browser of its own, and fails in many ways without one
            pass
    path = folder / f"{stem}.svg"
    files.write_text(path, draw(figure))
    return [path]


def _by_kaleido(figure: dict, folder: Path, stem: str) -> list[Path]:
    import plotly.io

    written = []
    for ending in ("svg", "pdf"):
        path = folder / f"{stem}.{ending}"
        with files.whole(path) as temporary:
            plotly.io.write_image(figure, temporary, format=ending, width=_WIDTH, height=_HEIGHT)
        written.append(path)
    return written


def draw(figure: dict) -> str:
    """The figure as SVG. Knows what this package uses of plotly: scatter traces with texts, logarithmic axes, panels
    above each other, lines across and a legend below."""
    data, layout = figure["data"], figure["layout"]
    legend, rows = _legend(data)
    height = _HEIGHT + rows * _ROW
    x_axis = layout["xaxis"]
    # Names beside the axis take what they need; the drawing itself keeps its width.
    names = [text for name, axis in layout.items() if name.startswith("yaxis") for text in axis.get("ticktext", ())]
    left = max([_LEFT, *(24 + _LETTER * len(name) for name in names)])
    width = _WIDTH + left - _LEFT
    x = _Scale(x_axis, [v for t in data for v in t["x"]], left, width - _RIGHT)
    parts = [f'<rect width="{width:.0f}" height="{height}" fill="#fff"/>']
    panels = {}
    for name in sorted(k for k in layout if k.startswith("yaxis")):
        number = name.removeprefix("yaxis")
        low, high = layout[name].get("domain", (0, 1))
        inside = _HEIGHT - _TOP - _BOTTOM
        values = [v for t in data if t.get("yaxis", "y") == f"y{number}" for v in t["y"]]
        values += [s["y0"] for s in layout.get("shapes", ()) if s["yref"] == f"y{number}"]
        bottom, top = _HEIGHT - _BOTTOM - low * inside, _HEIGHT - _BOTTOM - high * inside
        panels[f"y{number}"] = _Scale(layout[name], values, bottom, top)
        parts.append(_grid(layout[name], panels[f"y{number}"], x))
    parts.append(_x_ticks(x_axis, x, panels.values()))
    for shape in layout.get("shapes", ()):
        parts.append(_shape(shape, x, panels))
    parts += [_trace(trace, x, panels[trace.get("yaxis", "y")]) for trace in data]
    for note in layout.get("annotations", ()):
        parts.append(_note(note, x, panels))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}" '
        f'viewBox="0 0 {width:.0f} {height}" font-family="sans-serif" font-size="12" fill="{LIGHT["fg"]}">'
        f"{''.join(parts)}{legend}</svg>\n"
    )


class _Scale:
    """Values of an axis to pixels, and its ticks."""

    def __init__(self, axis: dict, values: list, start: float, end: float):
        self.log, self.start, self.end = axis.get("type") == "log", start, end
        known = [math.log10(v) if self.log else v for v in values if v is not None] or [0, 1]
        low, high = min(known), max(known)
        margin = 0.06 * (high - low or abs(high) or 1)
        low, high = (low - margin, high + margin)
        if axis.get("rangemode") == "tozero":
            low = min(0, low + margin)
        self.low, self.high = axis.get("range", (low, high))
        self.whole, self.step = axis.get("tickformat") == "d", axis.get("dtick")
        self.percent = "%" in axis.get("tickformat", "")
        self.given = list(zip(axis.get("tickvals", ()), axis.get("ticktext", ()), strict=True))

    def at(self, value: float, logarithm: bool = False) -> float:
        """Pixels of a value, or of its logarithm as annotations give it."""
        value = math.log10(value) if self.log and not logarithm else value
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        if self.given or self.log:
            return [(self.at(value), text) for value, text in self.given]
        rough = (self.high - self.low) / (5 if abs(self.end - self.start) > 200 else 3)
        unit = 10 ** math.floor(math.log10(rough))
        step = next(m * unit for m in (1, 2, 2.5, 5, 10) if m * unit >= rough)
        step = self.step or (max(1, math.ceil(step)) if self.whole else step)
        found, i = [], math.ceil(self.low / step)
        while i * step <= self.high:
            value = i * step
            text = f"{100 * value:.4g}%" if self.percent else f"{value:,.6g}"
            found.append((self.at(value), text))
            i += 1
        return found


def _grid(axis: dict, y: _Scale, x: _Scale) -> str:
    parts = []
    size = axis.get("tickfont", {}).get("size", 12)
    for at, text in y.ticks():
        if axis.get("showgrid", True):
            parts.append(f'<path d="M{x.start} {at:.1f}H{x.end}" stroke="{LIGHT["line"]}"/>')
        parts.append(f'<text x="{x.start - 6}" y="{at + 4:.1f}" text-anchor="end" font-size="{size}">{text}</text>')
    middle = (y.start + y.end) / 2
    title = axis["title"]["text"]
    return "".join(parts) + (
        f'<text transform="translate(14 {middle:.1f}) rotate(-90)" text-anchor="middle">{title}</text>'
    )


def _x_ticks(axis: dict, x: _Scale, panels) -> str:
    bottom = _HEIGHT - _BOTTOM
    parts = []
    for at, text in x.ticks():
        for panel in panels:
            parts.append(f'<path d="M{at:.1f} {panel.start:.1f}V{panel.end:.1f}" stroke="{LIGHT["line"]}"/>')
        parts.append(f'<text x="{at:.1f}" y="{bottom + 18}" text-anchor="middle">{text}</text>')
    middle = (x.start + x.end) / 2
    return "".join(parts) + f'<text x="{middle}" y="{bottom + 40}" text-anchor="middle">{axis["title"]["text"]}</text>'


def _dash(line: dict) -> str:
    pattern = {"dash": "6 4", "dot": "2 3"}.get(line.get("dash", ""), "")
    return f' stroke-dasharray="{pattern}"' if pattern else ""


def _shape(shape: dict, x: _Scale, panels: dict[str, _Scale]) -> str:
    line = shape["line"]
    style = f'stroke="{line["color"]}" stroke-width="{line["width"]}"{_dash(line)}'
    if shape["xref"] == "x" and shape["yref"] != "y":
        at = x.at(shape["x0"])
        return f'<path d="M{at:.1f} {_TOP}V{_HEIGHT - _BOTTOM}" {style}/>'
    at = panels[shape["yref"]].at(shape["y0"])
    return f'<path d="M{x.start} {at:.1f}H{x.end}" {style}/>'


def _note(note: dict, x: _Scale, panels: dict[str, _Scale]) -> str:
    if note["xref"] == "x":
        right = note.get("xanchor") == "right"
        at, y = x.at(note["x"], logarithm=x.log) + (-4 if right else 4), _HEIGHT - _BOTTOM - 6
        anchor = "end" if right else "start"
    else:
        at, y, anchor = x.end - 4, panels[note["yref"]].at(note["y"]) - 4, "end"
    colour = note["font"]["color"]
    return f'<text x="{at:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{note["text"]}</text>'


def _trace(trace: dict, x: _Scale, y: _Scale) -> str:
    points = [(x.at(a), y.at(b)) for a, b in zip(trace["x"], trace["y"], strict=True) if None not in (a, b)]
    parts = []
    if "lines" in trace["mode"]:
        line = trace["line"]
        path = "".join(f"{'L' if i else 'M'}{a:.1f} {b:.1f}" for i, (a, b) in enumerate(points))
        width = line.get("width", 2)
        parts.append(f'<path d="{path}" fill="none" stroke="{line["color"]}" stroke-width="{width}"{_dash(line)}/>')
    if "markers" in trace["mode"]:
        sizes = trace["marker"].get("size", 6)
        sizes = sizes if isinstance(sizes, list) else [sizes] * len(points)
        parts += [_marker(a, b, {**trace["marker"], "size": s}) for (a, b), s in zip(points, sizes, strict=True)]
    if "text" in trace["mode"]:
        size = trace.get("textfont", {}).get("size", 12)
        parts += [
            f'<text x="{a:.1f}" y="{b - size / 2:.1f}" text-anchor="middle" font-size="{size}">{text}</text>'
            for (a, b), text in zip(points, trace["text"], strict=True)
        ]
    return f'<g opacity="{trace.get("opacity", 1)}">{"".join(parts)}</g>'


def _marker(a: float, b: float, marker: dict) -> str:
    size, colour, symbol = marker.get("size", 6), marker["color"], marker.get("symbol", "circle")
    style = f'fill="{colour}" fill-opacity="{marker.get("opacity", 1)}"'
    if symbol == "circle":
        return f'<circle cx="{a:.1f}" cy="{b:.1f}" r="{size / 2}" {style}/>'
    corners = 10 if symbol == "star" else 4
    points = []
    for i in range(corners):
        reach = size / 2 * (0.45 if symbol == "star" and i % 2 else 1.1)
        angle = 2 * math.pi * i / corners - math.pi / 2
        points.append(f"{a + reach * math.cos(angle):.1f},{b + reach * math.sin(angle):.1f}")
    return f'<polygon points="{" ".join(points)}" {style}/>'


def _legend(data: list[dict]) -> tuple[str, int]:
    parts, x, row = [], _LEFT, 0
    for trace in (t for t in data if t.get("showlegend", True)):
        length = 36 + 6.6 * len(trace["name"])
        if x > _LEFT and x + length > _WIDTH - _RIGHT:
            x, row = _LEFT, row + 1
        y = _HEIGHT + row * _ROW + 6
        if "lines" in trace["mode"]:
            line = trace["line"]
            parts.append(f'<path d="M{x} {y - 4}h18" stroke="{line["color"]}" stroke-width="2"{_dash(line)}/>')
        if "markers" in trace["mode"]:
            size = trace["marker"].get("size", 6)
            parts.append(_marker(x + 9, y - 4, {**trace["marker"], "size": 8 if isinstance(size, list) else size}))
        parts.append(f'<text x="{x + 24}" y="{y}">{trace["name"]}</text>')
        x += length
    return "".join(parts), (row + 1 if parts else 0)
