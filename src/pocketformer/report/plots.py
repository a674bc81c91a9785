"""The plots of the search, as in the paper's Fig. 3 and 4, and of its costs over the steps."""

import math
from collections.abc import Sequence

from pocketformer.report.figure import COLOURS, Plot, axis, budget_line, figure, log_axis, share_axis, step_axis, trace
from pocketformer.report.reading import Record, correction, found_state, objects, part, states
from pocketformer.report.wording import (
    budget_title,
    budget_value,
    count,
    is_number,
    ms,
    percent,
    plain,
    safe,
    significant,
)
from pocketformer.search.metrics import unit_of


def _costs_text(line: dict) -> str:
    memory = f"<br>{budget_value('memory', line['memory'])} peak memory" if "memory" in line else ""
    size, latency = count(line.get("parameters")), f"{ms(line['latency'])}, " if "latency" in line else ""
    further = [name for name in line if name in ("macs", "energy") or name.startswith("latency:")]
    more = "".join(f"<br>{safe(budget_title(name))} {budget_value(name, line[name])}" for name in further)
    return f"{size} parameters, {latency}MES {significant(line.get('mes'))}{memory}{more}"


def _state_text(line: dict) -> str:
    what = safe(line.get("text", ""))
    phase = " (growing back)" if line.get("phase") in ("regrow", "back") else ""
    accuracy = percent(line.get("accuracy"))
    widths = part(line, "selection", "widths", default=[])
    kept = " / ".join(str(len(k)) for k in part(line, "selection", "kept", default=[]))
    ratios = " | ".join(plain(e) for e in part(line, "selection", "expansions", default=[]))
    return (
        f"<b>step {line.get('step')}</b>: {what}{phase}<br>{accuracy} on the search split"
        f"<br>{_costs_text(line)}<br>widths {safe(plain(widths))}; blocks {kept}<br>expansions {safe(ratios)}"
    )


def _usable(line: dict, cost: str) -> bool:
    """Whether a state can be drawn: costs are positive, also for the logarithm."""
    return is_number(line.get(cost)) and line[cost] > 0 and is_number(line.get("accuracy"))


def _random_trace(record: Record, cost: str) -> list[dict]:
    lines = [line for line in objects(record.results, "random") if _usable(line, cost)]
    if not lines:
        return []
    texts = []
    for line in lines:
        chosen = "<br>the best on the search split: trained and compared" if line.get("chosen") else ""
        texts.append(
            f"<b>random subnet</b><br>{percent(line['accuracy'])} on the search split<br>{_costs_text(line)}{chosen}"
        )
    x, y = [line[cost] for line in lines], [line["accuracy"] for line in lines]
    rings = [2 if line.get("chosen") else 0 for line in lines]
    marker = {"size": 8, "opacity": 0.7, "line": {"color": "@fg", "width": rings}}
    return [trace("random subnets", x, y, "markers", "@orange", texts, marker=marker)]


def _search_traces(record: Record, cost: str) -> list[dict]:
    trajectory = [s for s in states(record) if _usable(s, cost)]
    data = _random_trace(record, cost)
    if trajectory:
        x, y = [s[cost] for s in trajectory], [s["accuracy"] for s in trajectory]
        texts = [_state_text(s) for s in trajectory]
        style = {"marker": {"size": 5}, "line": {"width": 1.5}}
        if any(s.get("phase") == "propose" for s in trajectory):
            style = {"marker": {"size": 8}}  # each was drawn anew: there is no way between them
        data.append(trace("search", x, y, "lines+markers" if "line" in style else "markers", "@blue", texts, **style))
        found = found_state(record)
        if found in trajectory:
            star = {"size": 15, "symbol": "star", "line": {"color": "@fg", "width": 1}}
            label = f"found network (step {found.get('step')})"
            data.append(
                trace(
                    label,
                    [found[cost]],
                    [found["accuracy"]],
                    "markers",
                    "@green",
                    [_state_text(found)],
                    marker=star,
                )
            )
    return data


def _accuracies(data: list[dict]) -> dict:
    return share_axis("Accuracy, search split", [y for drawn in data for y in drawn["y"]])


_SUPERNET = "All accuracies here are on the search split, with the weights of the supernet, before any final training."


def _note(record: Record) -> str:
    note = _SUPERNET
    if any(line.get("chosen") for line in objects(record.results, "random")):
        note += " Ringed: the best of the random subnets, which was trained and compared too."
    found = part(found_state(record), "accuracy")
    rows = objects(record.results, "comparison")
    again = next((row.get("accuracy_search") for row in rows if row.get("name") == "found"), None)
    if is_number(found) and is_number(again) and abs(found - again) > 5e-4:
        note += f" Scored once more for the comparison, the found network has {percent(again)}."
    return note


def mes_accuracy(record: Record) -> Plot | None:
    data = _search_traces(record, "mes")
    values = [x for drawn in data for x in drawn["x"] if x]
    if not values:
        return None
    shapes, notes = [], []
    lines = [("MES asked for", record.min_mes), ("all budgets exactly used", _mes_of_budgets(record))]
    lines = [(name, value) for name, value in lines if is_number(value) and value > 0]
    values += [value for _, value in lines]
    for name, value in lines:
        shape, note = budget_line(f"{name}: {significant(value)}", value, log=True, values=values)
        shapes.append(shape)
        notes.append(note)
    x = log_axis("MES (log scale)", values)
    picture = figure(data, x, _accuracies(data), shapes=shapes, annotations=notes)
    caption = f"{_note(record)} MES, the Mobile Efficiency Score, grows as latency and size shrink (paper, Fig. 3)."
    return Plot("mes_accuracy", "Efficiency against accuracy", picture, caption)


def _mes_of_budgets(record: Record) -> float | None:
    """MES of a network that used each budget to the full; none unless every metric of MES has one."""
    start = next((line for line in record.search if line.get("type") == "start"), {})
    exponents, units = part(start, "exponents", default={}), part(start, "units", default={})
    if not exponents or not all(is_number(record.budgets.get(n)) and is_number(units.get(n)) for n in exponents):
        return None
    return 100 * math.prod((record.budgets[n] / units[n]) ** -e for n, e in exponents.items())


def latency_accuracy(record: Record) -> Plot | None:
    data = _search_traces(record, "latency")
    if not data:
        return None
    extra = {}
    if is_number(budget := record.budgets.get("latency")):
        shape, note = budget_line(f"budget {ms(budget)}", budget, values=[x for drawn in data for x in drawn["x"]])
        extra = {"shapes": [shape], "annotations": [note]}
    x = axis("Predicted latency (ms)")
    picture = figure(data, x, _accuracies(data), **extra)
    return Plot("latency_accuracy", "Latency against accuracy", picture, f"{_note(record)} {_unit(record)}")


def _unit(record: Record) -> str:
    """What all predicted latencies of the page are."""
    factor = correction(record)
    if factor == 1:
        return "Latencies are the table's."
    return f"All latencies are the table's × {significant(factor)}, as whole networks were measured near the budget."


def steps(record: Record) -> Plot | None:
    """Each cost over the steps, one panel each, with its budget."""
    trajectory = states(record)
    costs = [("parameters", "size", "Parameters"), ("latency", "latency", "Latency (ms)")]
    for name in sorted(record.budgets.keys() - {"size", "latency"}):
        title, unit = safe(budget_title(name)), unit_of(name)
        costs.append((name, name, f"{title} ({unit})" if unit not in ("", title) else title))
    costs = [c for c in costs if any(is_number(s.get(c[0])) for s in trajectory)]
    if len(trajectory) < 2 or not costs:
        return None
    data, axes, shapes, notes, share = [], {}, [], [], 1 / len(costs)
    for i, (key, name, title) in enumerate(costs):
        number, top = (str(i + 1) if i else ""), 1 - i * share
        x, y = [s.get("step") for s in trajectory], [s.get(key) for s in trajectory]
        axes[f"yaxis{number}"] = axis(title, domain=[max(0, top - share + 0.06), top], rangemode="tozero")
        texts = [_state_text(s) for s in trajectory]
        line = trace(title, x, y, "lines+markers", "@blue", texts, marker={"size": 4}, line={"width": 1.5})
        data.append({**line, "yaxis": f"y{number}", "showlegend": False})
        if is_number(budget := record.budgets.get(name)):
            shape, note = budget_line(f"budget {budget_value(name, budget)}", budget, "y", "x", number)
            shapes.append(shape)
            notes.append(note)
    corrections = [line for line in record.search if line.get("type") == "correction"]
    for line in corrections:
        ends = {"x0": line.get("step"), "x1": line.get("step"), "y0": 0, "y1": 1}
        style = {"color": "@grey", "dash": "dot", "width": 1.5}
        shapes.append({"type": "line", **ends, "xref": "x", "yref": "paper", "line": style})
    caption = "Dashed: the budgets."
    if corrections:
        factors = ", ".join(f"× {significant(line.get('factor'))}" for line in corrections)
        caption += (
            " Dotted: whole networks near the budget were measured, and the table's latencies scaled by what was found "
            f"({factors}). All are drawn with the last factor."
        )
    last = f"y{len(costs)}" if len(costs) > 1 else "y"
    picture = figure(
        data,
        step_axis("Step of the search", [s.get("step") for s in trajectory], anchor=last),
        axes.pop("yaxis"),
        **axes,
        shapes=shapes,
        annotations=notes,
    )
    return Plot("steps", "Costs over the steps", picture, caption)


def trajectories(records: Sequence[Record]) -> Plot | None:
    """The searches of several runs in one plot, as in the paper's Fig. 3."""
    data = []
    for i, record in enumerate(records):
        line = [s for s in states(record) if _usable(s, "mes")]
        proposed = any(s.get("phase") == "propose" for s in line)  # each drawn anew: there is no way between them
        if line:
            x, y, texts = zip(*((s["mes"], s["accuracy"], _state_text(s)) for s in line), strict=True)
            colour = COLOURS[i % len(COLOURS)]
            marks, marker = ("markers", {"size": 8}) if proposed else ("lines+markers", {"size": 5})
            data.append(trace(safe(record.title), x, y, marks, colour, texts, marker=marker))
    if len(data) < 2:
        return None
    x = log_axis("MES (log scale)", [v for drawn in data for v in drawn["x"]])
    picture = figure(data, x, _accuracies(data))
    caption = f"{_SUPERNET} Runs on another device or runtime have another unit of MES and cannot be compared here."
    return Plot("trajectories", "The searches side by side", picture, caption)
