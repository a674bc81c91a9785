"""The makings of a plot: axes, traces and lines as plain plotly figures (dicts). "@blue" names a colour."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pocketformer.report.wording import is_number

COLOURS = ("@blue", "@orange", "@green", "@purple", "@red", "@grey")


@dataclass(frozen=True)
class Plot:
    """A plotly figure with the name of its file and what a reader must know of it."""

    name: str
    title: str
    figure: dict
    caption: str
    tall: bool = False


def axis(title: str, **kwargs) -> dict:
    return {
        "title": {"text": title, "standoff": 8},
        "gridcolor": "@line",
        "linecolor": "@line",
        "zeroline": False,
        "automargin": True,
        **kwargs,
    }


def _distance(span: float) -> float:
    """A round distance of ticks that cuts a span into four to ten."""
    rough = span / 8
    unit = 10.0 ** math.floor(math.log10(rough))
    return next(m * unit for m in (1, 2, 2.5, 5, 10) if m * unit >= rough)


def step_axis(title: str, steps: Sequence[float], **kwargs) -> dict:
    """An axis of whole steps. Plotly's own ticks at halves would be printed as whole numbers, some of them twice."""
    known = [step for step in steps if is_number(step)]
    span = max(known, default=1) - min(known, default=0)
    return axis(title, tickformat="d", dtick=max(1, math.ceil(_distance(span or 1))), **kwargs)


def share_axis(title: str, shares: Sequence[float], **kwargs) -> dict:
    """An axis in per cent, with as many digits as tell its ticks apart."""
    known = [share for share in shares if is_number(share)]
    span = max(known, default=1.0) - min(known, default=0.0)
    distance = _distance(span if span > 1e-6 else 0.01)
    digits = next(d for d in range(7) if abs(round(100 * distance, d) - 100 * distance) < 1e-9)
    return axis(title, tickformat=f".{digits}%", dtick=distance, **kwargs)


def figure(data: list[dict], x: dict, y: dict, **layout) -> dict:
    return {
        "data": data,
        "layout": {
            "xaxis": x,
            "yaxis": y,
            "font": {"family": "system-ui, sans-serif", "size": 13, "color": "@fg"},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "margin": {"l": 64, "r": 16, "t": 32, "b": 52},
            "legend": {"orientation": "h", "y": -0.2, "yanchor": "top", "x": 0},
            "hoverlabel": {
                "align": "left",
                "bgcolor": "@panel",
                "font": {"color": "@fg"},
                "bordercolor": "@line",
            },
            "hovermode": "closest",
            "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "@grey", "activecolor": "@blue"},
            **layout,
        },
    }


def _rounded(values: Sequence) -> list:
    return [float(f"{v:.6g}") if is_number(v) else None for v in values]


def trace(name: str, x: Sequence, y: Sequence, mode: str, colour: str, text: Sequence[str] = (), **more) -> dict:
    """`more["marker"]` and `more["line"]` add to the colour."""
    hover = {"text": list(text), "hovertemplate": "%{text}<extra></extra>"} if text else {}
    marker, line = {"color": colour, **more.pop("marker", {})}, {"color": colour, **more.pop("line", {})}
    dress = ({"marker": marker} if "markers" in mode else {}) | ({"line": line} if "lines" in mode else {})
    base = {"type": "scatter", "name": name, "x": _rounded(x), "y": _rounded(y), "mode": mode}
    return {**base, **dress, **hover, **more}


def budget_line(
    name: str,
    at: float,
    axis: str = "x",
    side: str = "y",
    number: str = "",
    log: bool = False,
    values: Sequence[float] = (),
) -> tuple[dict, dict]:
    """A dashed line across the plot at a budget, and its label. On a logarithmic axis plotly wants the
    label's place as a logarithm, but not the line's. Among `values`, the axis's, the label stands on the side that has
    more room."""
    ends = {f"{axis}0": at, f"{axis}1": at, f"{side}0": 0, f"{side}1": 1}
    across = f"{side}{number} domain" if axis == "x" else f"{side} domain"
    along = axis if axis == "x" else f"{axis}{number}"
    refs = {f"{axis}ref": along, f"{side}ref": across}
    shape = {"type": "line", **ends, **refs, "line": {"color": "@red", "dash": "dash", "width": 1.5}}
    if axis == "x":
        place = {"x": math.log10(at) if log else at, "y": 0.02, "yanchor": "bottom", "bgcolor": "@bg"}
        right = bool(values) and at > (math.sqrt(min(values) * max(values)) if log else (min(values) + max(values)) / 2)
        place |= {"xanchor": "right", "xshift": -3} if right else {"xanchor": "left", "xshift": 3}
    else:
        place = {"x": 1, "y": at, "xanchor": "right", "yanchor": "bottom"}
    return shape, {"text": name, "showarrow": False, "font": {"color": "@red", "size": 12}, **refs, **place}


def log_axis(title: str, values: Sequence[float]) -> dict:
    """A log axis with round ticks of its own: plotly labels a short one with bare digits."""
    low, high = min(values) / 1.06, max(values) * 1.06
    for steps in ((1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8), (1, 1.5, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        ticks = [s * 10**e for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high))) for s in steps]
        ticks = [t for t in ticks if low <= t <= high]
        if len(ticks) <= 7:
            break
    span = {
        "range": [math.log10(low), math.log10(high)],
        "tickvals": ticks,
        "ticktext": [f"{t:,.0f}" if t >= 1e4 else f"{t:,.4g}" for t in ticks],
    }
    return axis(title, type="log", **(span if len(ticks) > 1 else {}))
