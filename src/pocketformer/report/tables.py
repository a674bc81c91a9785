"""The tables of the page: the comparison, predicted against measured latencies, what was used."""

from collections.abc import Callable

from pocketformer.devices.table import DOUBTFUL
from pocketformer.report.curves import latency_pairs
from pocketformer.report.reading import Record, objects, part
from pocketformer.report.sections import facts
from pocketformer.report.wording import (
    budget_title,
    budget_value,
    count,
    interval,
    is_number,
    millions,
    ms,
    percent,
    plain,
    safe,
    significant,
)


def _latency(row: dict) -> float | None:
    """The measured latency where there is one."""
    measured = row.get("latency_measured")
    return measured if is_number(measured) else row.get("latency_predicted")


_COLUMNS: tuple[tuple[str, Callable[[dict], object], Callable[[object], str], int], ...] = (
    # title, value, format, which way is better (0: no winner)
    ("Parameters", lambda r: r.get("parameters"), count, -1),
    ("Multiply-adds", lambda r: r.get("macs"), millions, -1),
    ("Latency, predicted", lambda r: r.get("latency_predicted"), ms, 0),
    ("Latency, measured", lambda r: r.get("latency_measured"), ms, -1),
    ("Its median", lambda r: r.get("latency_median"), ms, 0),
    ("MES", lambda r: r.get("mes"), significant, 1),
    ("Accuracy, search split", lambda r: r.get("accuracy_search"), percent, 0),
    ("Accuracy, test split", lambda r: part(r, "test", "accuracy"), percent, 1),
)


def _over(row: dict, budgets: dict[str, float]) -> list[str] | None:
    """Titles of the budgets that a row exceeds; None if a cost that has a budget is not known."""
    values = {"latency": _latency(row), "size": row.get("parameters"), "memory": row.get("peak_memory")}
    known = {name: values.get(name, row.get(name)) for name in budgets}
    if not all(map(is_number, known.values())):
        exceeded = [n for n, v in known.items() if is_number(v) and v > budgets[n]]
        return [budget_title(n).lower() for n in exceeded] or None
    return [budget_title(n).lower() for n, v in known.items() if v > budgets[n]]


def comparison(record: Record) -> str:
    """Found, largest, smallest and random; the best figure among the rows within all budgets stands out."""
    rows = objects(record.results, "comparison")
    if not rows:
        return ""
    over = [_over(row, record.budgets) for row in rows]
    inside = [row for row, exceeded in zip(rows, over, strict=True) if exceeded == []]
    best = {}
    for title, value, _, way in _COLUMNS:
        figures = [value(row) for row in inside if is_number(value(row))]
        if way and len(figures) > 1 and len(set(figures)) > 1:
            best[title] = max(figures) if way > 0 else min(figures)
    heads = "".join(f"<th scope='col'>{title}</th>" for title, *_ in _COLUMNS)
    head = f"<tr><th scope='col'>Network</th>{heads}</tr>"
    body = ""
    for row, exceeded in zip(rows, over, strict=True):
        cells = ""
        for title, value, text, _ in _COLUMNS:
            number = value(row)
            shown = text(number) if is_number(number) else "—"
            test = part(row, "test", default={})
            if title.endswith("test split") and test:
                amount = f"{count(test.get('correct'))} of {count(test.get('images'))}"
                shown += f"<small>{safe(interval(test.get('interval95')))}</small><small>{amount}</small>"
            chosen = exceeded == [] and is_number(number) and best.get(title) == number
            cells += f"<td class='best'>{shown}</td>" if chosen else f"<td>{shown}</td>"
        held = f"over budget: {', '.join(exceeded)}" if exceeded else "within all budgets"
        held = f"<small>{safe(held)}</small>" if record.budgets and exceeded is not None else ""
        name = safe(row.get("title") or row.get("name"))
        body += f"<tr><th scope='row'>{name}{held}</th>{cells}</tr>"
    caption = (
        "Bold: the best figure of a column among the networks within all budgets, whichever that is. "
        "Search split: with the supernet's weights. Test split: after the final training, with the 95 % "
        "interval beneath."
    )
    return (
        f"<div class='scroll'><table class='wide'><thead>{head}</thead><tbody>{body}</tbody></table></div>"
        f"<p class='muted'>{caption}</p>"
    )


def latencies(record: Record) -> str:
    """The table's errors in words, and each network that was timed whole."""
    check = part(record.table, "check", default={})
    sentences = ""
    if is_number(check.get("mean")) and is_number(check.get("worst")):
        number = len(objects(check, "networks"))
        sentences = (
            f"<p>On {number} whole networks that the latency table had not seen, its predictions were off by "
            f"{percent(check['mean'], 1)} on average and by {percent(check['worst'], 1)} at worst{_leaning(check)}.</p>"
        )
        if check["mean"] > DOUBTFUL:
            sentences += (
                f"<p><strong>That is more than {percent(DOUBTFUL)}: what was found by this table may be another "
                "network than a right one would find. Profile again while the device is idle.</strong></p>"
            )
    elif record.table:
        sentences = "<p><strong>The latency table was not checked: its error is not known.</strong></p>"
    rows = ""
    for _, name, predicted, measured in latency_pairs(record):
        error = f"{100 * (predicted / measured - 1):+.1f} %"
        cells = "".join(f"<td>{text}</td>" for text in (ms(predicted), ms(measured), error))
        rows += f"<tr><th scope='row'>{safe(name)}</th>{cells}</tr>"
    if not rows:
        return sentences
    head = "".join(f"<th scope='col'>{t}</th>" for t in ("Network", "Predicted", "Measured", "Error"))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f"{sentences}<details><summary>The networks</summary><div class='scroll'>{table}</div></details>"


def _leaning(check: dict) -> str:
    """The check's bias and range, if it has them: tables of before do not."""
    text = ""
    if is_number(check.get("bias")):
        text += f", with their sign by {100 * check['bias']:+.1f} %"
    if isinstance(check.get("range"), list) and all(map(is_number, check["range"])):
        low, high = check["range"]
        text += f"; these networks take {percent(low)} to {percent(high)} of the largest's latency"
    return text


def provenance(record: Record) -> str:
    """Versions, fingerprints, seeds and notes."""
    results, table = record.results, record.table
    data = part(results, "data", default={})
    versions = part(results, "versions", default={}) or part(record.config, "versions", default={})
    notes = "".join(f"<li>{safe(note)}</li>" for note in part(data, "notes", default=[]))
    classes = part(data, "classes", default=[])
    images = ", ".join(f"{split} {count(n)}" for split, n in part(data, "images", default={}).items())
    seed = results.get("seed", part(record.config, "settings", "seed"))
    skipped = ("device", "packages", "method")  # the last: how samples were taken, for the journal alone
    how = {k: v for k, v in part(table, "fingerprint", default={}).items() if k not in skipped}
    device = part(table, "fingerprint", "device")
    rows = [
        ("Command", safe(record.command)),
        ("Seed", "" if seed is None else safe(seed)),
        ("Data", safe(data.get("source", ""))),
        ("Images", safe(images)),
        ("Classes", safe(f"{len(classes)}: {plain(classes)}") if classes else ""),
        ("Fingerprint of the data", safe(data.get("fingerprint", ""))),
        ("Fingerprint of the split", safe(data.get("split_fingerprint", ""))),
        ("Notes", f"<ul>{notes}</ul>" if notes else ""),
        (
            "Search space",
            safe(part(results, "space", "name") or part(record.network, "space", "name") or table.get("space") or ""),
        ),
        ("Resolution", safe(" × ".join(map(str, part(results, "space", "resolution", default=[]))))),
        ("Device", safe(device or "")),
        *((f"Latency table, {k.replace('_', ' ')}", safe(plain(v))) for k, v in how.items()),
        (
            "Unit of latency in MES",
            safe(f"{ms(table['unit'])} (MobileNetV2 ×1.0)") if "unit" in table else "",
        ),
        ("Reference network", _reference(table)),
        *((f"Version of {k}", safe(v)) for k, v in versions.items()),
        *((title, safe(text)) for title, text in _facts(record, data)),
    ]
    config = ""
    if record.config_text:
        config = (
            "<details><summary>The exact settings (config.yaml)</summary>"
            f"<pre>{safe(record.config_text)}</pre></details>"
        )
    return facts(rows) + config


_FACTS = {
    "data_fingerprint": "Fingerprint of the data",
    "split_fingerprint": "Fingerprint of the split",
    "test_fingerprint": "Fingerprint of the test images",
    "listed": "Fingerprints of the files' names and sizes",
    "largest": "Costs of the largest subnet",
}


def _facts(record: Record, data: dict) -> list[tuple[str, str]]:
    """What the run recorded in its configuration, with units, unless it stands above already."""
    shown = [data.get("fingerprint"), data.get("split_fingerprint")]
    found = []
    for name, value in part(record.config, "facts", default={}).items():
        if (isinstance(value, str) and value in shown) or name == "space":
            continue
        if name == "largest" and isinstance(value, dict):
            value = "; ".join(f"{budget_title(k).lower()} {budget_value(k, v)}" for k, v in value.items())
        elif name == "listed" and isinstance(value, dict):
            value = ", ".join(f"{_LISTED.get(k, k)} {plain(v)}" for k, v in value.items())
        found.append((_FACTS.get(name, name.replace("_", " ").capitalize()), plain(value)))
    return found


_LISTED = {"fingerprint": "data", "split_fingerprint": "split", "test_fingerprint": "test images"}


def _reference(table: dict) -> str:
    name, latency = part(table, "reference", "name"), part(table, "reference", "latency")
    return safe(f"{name}, {ms(latency)}") if name else ""
