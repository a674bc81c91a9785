"""The plots of measurements and trainings: predicted against measured latency, losses over steps."""

from pocketformer.report.figure import COLOURS, Plot, axis, figure, step_axis, trace
from pocketformer.report.reading import Record, objects, part
from pocketformer.report.wording import is_number, ms, percent, plain, safe, significant

_POINTS = 1200  # of a drawn curve: more would only make the page larger
_LOSSES = (
    ("loss", "largest subnet"),
    ("loss_smallest", "smallest subnet"),
    ("loss_random", "random subnets"),
)


def latency_pairs(record: Record) -> list[tuple[str, str, float, float]]:
    """(kind, name, predicted, measured) in ms of every whole network that was timed."""
    found = []
    for network in objects(record.table, "check", "networks"):
        found.append(("check", part(network, "name"), part(network, "predicted"), part(network, "measured")))
    for row in objects(record.results, "comparison"):
        name = row.get("title") or row.get("name")
        found.append(("compared", name, row.get("latency_predicted"), row.get("latency_measured")))
    return [pair for pair in found if is_number(pair[2]) and is_number(pair[3]) and pair[3] > 0]


def predicted_measured(record: Record) -> Plot | None:
    pairs = latency_pairs(record)
    if not pairs:
        return None
    values = [v for pair in pairs for v in pair[2:]]
    ends = [0.85 * min(values), 1.1 * max(values)]
    silent = {"hoverinfo": "skip"}
    data = [trace("equal", ends, ends, "lines", "@grey", line={"width": 1}, **silent)]
    for factor in (0.9, 1.1):
        style = {"line": {"width": 1, "dash": "dot"}, "showlegend": factor < 1}
        data.append(trace("10 % off", ends, [factor * e for e in ends], "lines", "@grey", **style, **silent))
    kinds = (("check", "networks of the table's check", "@blue", "circle"),)
    kinds += (("compared", "networks of the comparison", "@orange", "diamond"),)
    for kind, name, colour, symbol in kinds:
        chosen = [pair for pair in pairs if pair[0] == kind]
        if chosen:
            texts = [
                f"<b>{safe(title)}</b><br>predicted {ms(p)}<br>measured {ms(m)}<br>error {percent(p / m - 1, 1)}"
                for _, title, p, m in chosen
            ]
            x, y = [pair[3] for pair in chosen], [pair[2] for pair in chosen]
            data.append(trace(name, x, y, "markers", colour, texts, marker={"size": 9, "symbol": symbol}))
    picture = figure(data, axis("Measured (ms)", range=ends), axis("Predicted by the table (ms)", range=ends))
    caption = (
        "Whole networks; on the line: predicted exactly. Those of the check were not used to make the table; "
        "those of the comparison may have been."
    )
    return Plot("predicted_measured", "Predicted against measured", picture, caption)


def _smooth(values: list[float]) -> list[float]:
    """Centred moving average over about a fortieth of the curve."""
    half = max(1, len(values) // 80)
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    result = []
    for i in range(len(values)):
        low, high = max(0, i - half), min(len(values), i + half + 1)
        result.append((sums[high] - sums[low]) / (high - low))
    return result


def _curve(name: str, lines: list[dict], values: list[float], colour: str) -> list[dict]:
    """The smoothed curve, and what it smooths faintly behind."""
    every = -(-len(values) // _POINTS)
    steps, raw = [line["step"] for line in lines], values
    smooth = _smooth(values) if len(values) > 20 else values
    mode = "lines" if len(values) > 1 else "markers"  # a line through one point is not to be seen
    texts = [
        f"<b>{safe(name)}</b>, step {line['step']}<br>loss {significant(value)} "
        f"(smoothed {significant(mean)})<br>learning rate {plain(line.get('lr'))}"
        for line, value, mean in zip(lines[::every], raw[::every], smooth[::every], strict=True)
    ]
    faint = {
        "opacity": 0.25,
        "hoverinfo": "skip",
        "showlegend": False,
        "legendgroup": name,
        "line": {"width": 1},
    }
    behind = trace(safe(name), steps[::every], raw[::every], "lines", colour, **faint)
    shown = trace(
        safe(name),
        steps[::every],
        smooth[::every],
        mode,
        colour,
        texts,
        legendgroup=name,
        line={"width": 2},
    )
    return [behind, shown]


def _usable(lines: list[dict], key: str) -> tuple[list[dict], list[float]]:
    """The lines that hold the loss, and its values; "loss_random" is the mean of the random subnets'."""
    kept, values = [], []
    for line in lines:
        if key == "loss_random":
            losses = [v for k, v in line.items() if k.startswith("loss_random") and is_number(v)]
        else:
            losses = [line[key]] if is_number(line.get(key)) else []
        if losses:
            kept.append(line)
            values.append(sum(losses) / len(losses))
    return kept, values


def _steps(data: list[dict]) -> dict:
    return step_axis("Step", [x for drawn in data for x in drawn["x"]])


def training_curves(record: Record) -> list[Plot]:
    """One plot for each supernet, and one for all trainings of single networks."""
    plots, single = [], []
    for name, lines in record.trainings.items():
        if record.is_supernet(name):
            data, sandwich = [], any("loss_smallest" in line for line in lines[:1])
            for (key, title), colour in zip(_LOSSES, COLOURS, strict=False):
                if key == "loss" and not sandwich:
                    title = "mean of the subnets"
                kept, values = _usable(lines, key)
                if kept:
                    data += _curve(title, kept, values, colour)
            if data:
                caption = (
                    "Loss of each training step on the fit split. With in-place distillation the largest "
                    "subnet learns from labels, the others also from its output: levels do not compare."
                )
                picture = figure(data, _steps(data), axis("Training loss"))
                plots.append(Plot("supernet_loss", "Supernet", picture, caption))
        else:
            kept, values = _usable(lines, "loss")
            if kept:
                single += _curve(name, kept, values, COLOURS[len(single) // 2 % len(COLOURS)])
    if single:
        title = "Final trainings" if record.command == "design" else "Training"
        caption = "Loss of each training step; hover for the learning rate."
        plots.append(Plot("training_loss", title, figure(single, _steps(single), axis("Training loss")), caption))
    return plots
