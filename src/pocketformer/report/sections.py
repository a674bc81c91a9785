"""The sections of a run's report as HTML. Each returns "" when the run holds nothing for it."""

import os
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from pocketformer.report.reading import Record, found_state, objects, part, states
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
    plural,
    safe,
    significant,
    size,
)
from pocketformer.search.metrics import is_tabulated


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """A two-column table of names and (already safe) values; empty values are left out."""
    body = "".join(f"<tr><th scope='row'>{safe(k)}</th><td>{v}</td></tr>" for k, v in rows if v)
    return f"<div class='scroll'><table class='facts'><tbody>{body}</tbody></table></div>" if body else ""


def card(value: str, name: str, note: str = "") -> str:
    small = f"<span>{safe(note)}</span>" if note else ""
    return f"<div class='card'><span>{safe(name)}</span><b>{safe(value)}</b>{small}</div>"


def found_row(record: Record) -> dict:
    rows = objects(record.results, "comparison")
    return next((row for row in rows if row.get("name") == "found"), {})


def tested(record: Record) -> dict:
    """On test: the found network of a design, or the one that was trained."""
    return part(found_row(record), "test", default={}) or part(record.results, "test", default={})


def asked(record: Record) -> str:
    """What was asked for: images, device, budgets."""
    results, settings = record.results, part(record.config, "settings", default={})
    rows = []
    source = part(results, "data", "source") or settings.get("data")
    if source is not None:
        images, classes = (
            part(results, "data", "images", default={}),
            part(results, "data", "classes", default=[]),
        )
        amount = [f"{len(classes)} classes"] if classes else []
        amount += [f"{count(n)} {split} images" for split, n in images.items()]
        rows.append(("Data", safe(f"{source}: {', '.join(amount)}" if amount else source)))
    runtime, device = part(results, "runtime", default={}), part(record.table, "fingerprint", "device")
    if runtime or device:
        parts = [str(device)] if device else []
        parts += [str(runtime["name"])] if "name" in runtime else []
        parts += [f"{key} {runtime[key]}" for key in ("threads", "batch") if key in runtime]
        rows.append(("Device", safe(", ".join(parts))))
    budgets = [f"{budget_title(k).lower()} at most {budget_value(k, v)}" for k, v in record.budgets.items()]
    if is_number(record.min_mes):
        budgets.append(f"MES at least {significant(record.min_mes)}")
    if budgets:
        rows.append(("Budgets", safe("; ".join(budgets) + ("; all must hold" if len(budgets) > 1 else ""))))
    return facts(rows)


def outcome(record: Record) -> str:
    """The cards: parameters, measured latency, accuracy."""
    shipped, test = part(record.results, "shipped", default={}), tested(record)
    cards = []
    if not shipped and is_number(record.results.get("parameters")):
        cards.append(card(count(record.results["parameters"]), "Parameters"))
    if shipped:
        macs = f"{millions(shipped.get('macs'))} multiply-adds, {size(shipped.get('peak_memory'))} peak memory"
        cards.append(card(count(shipped.get("parameters")), "Parameters as deployed", macs))
        latency = part(shipped, "latency", default={})
        if is_number(latency.get("measured")):
            spread = f", spread {ms(latency['spread'])}" if is_number(latency.get("spread")) else ""
            rounds = f", {count(latency['rounds'])} rounds" if "rounds" in latency else ""
            if latency.get("sessions"):
                rounds += f" of the middle one of {count(latency['sessions'])} sessions"
            median = f"10th percentile; median {ms(latency['median'])}; " if is_number(latency.get("median")) else ""
            note = f"{median}predicted {ms(latency.get('predicted'))}{spread}{rounds}"
            cards.append(card(ms(latency["measured"]), "Latency, measured", note))
        elif is_number(latency.get("predicted")):
            cards.append(card(ms(latency["predicted"]), "Latency, predicted", "not measured"))
        if is_number(shipped.get("mes")):
            cards.append(card(significant(shipped["mes"]), "MES", "Mobile Efficiency Score; more is better"))
    if is_number(test.get("accuracy")):
        note = f"95 % interval {interval(test.get('interval95'))}"
        note += f"; {count(test.get('correct'))} of {count(test.get('images'))} images"
        cards.append(card(percent(test["accuracy"]), f"Accuracy, {test.get('split', 'test')} split", note))
    last = found_state(record)
    if not shipped and last:
        cards.append(card(count(last.get("parameters")), "Parameters", f"after step {last.get('step')}"))
        for name in (name for name in last if name.partition(":")[0] == "latency"):
            device = f", {name.partition(':')[2]}" if ":" in name else ""
            cards.append(card(ms(last[name]), f"Latency{device}, predicted", "by the table"))
        cards.append(card(percent(last.get("accuracy")), "Accuracy, search split", "with the supernet's weights"))
    return f"<div class='cards'>{''.join(cards)}</div>" if cards else ""


def budgets(record: Record) -> str:
    shipped, last = part(record.results, "shipped", default={}), found_state(record) or {}
    measured = is_number(part(shipped, "latency", "measured"))
    used = {
        "latency": part(shipped, "latency", "measured" if measured else "predicted") or last.get("latency"),
        "size": shipped.get("parameters") or last.get("parameters"),
        "macs": shipped.get("macs") or last.get("macs"),
        "memory": shipped.get("peak_memory") or last.get("memory"),
    }
    parts = []
    for name, budget in record.budgets.items():
        value, share = used.get(name, last.get(name)), part(shipped, "usage", name)
        if not is_number(share) and is_number(value) and is_number(budget) and budget > 0:
            share = value / budget
        if not is_number(share):
            continue
        how = ", measured" if measured and name == "latency" else ", predicted" if is_tabulated(name) else ""
        binding = part(record.results, "binding")
        binding = "" if binding is None else " (the binding budget)" if binding == name else " (not binding)"
        text = f"{budget_value(name, value)} of {budget_value(name, budget)} = {percent(share, 1)}"
        over = " over" if share > 1 else ""
        parts.append(
            f"<div class='budget'><div class='what'><strong>{safe(budget_title(name))}{how}{binding}</strong>"
            f"<span>{safe(text)}{' — over budget' if over else ''}</span></div>"
            f"<div class='bar{over}'><i style='width:{min(100, 100 * share):.1f}%'></i></div></div>"
        )
    return "".join(parts)


def take(record: Record, page_folder: Path) -> str:
    """The files to use, with their sizes, as relative links."""
    shipped = part(record.results, "shipped", default={})
    names = [shipped["file"]] if isinstance(shipped.get("file"), str) else []
    own = ("model.safetensors", "architecture.json", "config.json")
    names += [name for name in own if (record.path / name).is_file()]
    paths = [record.path / name for name in names]
    items = []
    for path in dict.fromkeys(p.resolve() for p in paths):
        name = os.path.relpath(path, record.path.resolve())
        if path.is_file():
            link = quote(Path(os.path.relpath(path, page_folder.resolve())).as_posix())
            items.append(f"<li><a href='{link}'>{safe(name)}</a> ({size(path.stat().st_size)})</li>")
        elif path == (record.path / str(shipped.get("file"))).resolve():
            items.append(f"<li>{safe(name)} ({size(shipped.get('file_bytes'))}; no longer in the folder)</li>")
    return f"<h3>Files to take</h3><ul>{''.join(items)}</ul>" if items else ""


def verdict(record: Record) -> str:
    values = part(record.results, "verdict", default={})
    if not values:
        return ""
    numbers = ""
    if is_number(values.get("difference")) and is_number(values.get("half_width")):
        difference, half = 100 * values["difference"], 100 * values["half_width"]
        numbers = f" <span class='muted'>(difference {difference:+.2f} ± {half:.2f} percentage points)</span>"
    return f"<p class='verdict'>{safe(values.get('text', ''))}{numbers}</p>"


def checks(record: Record) -> str:
    """How the shipped network was trained and its file checked."""
    shipped = part(record.results, "shipped", default={})
    training, export = part(shipped, "training", default={}), part(shipped, "export", default={})
    rows = []
    if training:
        teacher = training.get("teacher") or "none"
        epochs = plural(training["epochs"], "epoch") if is_number(training.get("epochs")) else "epochs not known"
        steps = f", {count(training['steps'])} steps" if is_number(training.get("steps")) else ""
        text = f"{epochs}{steps}, starting from: {training.get('init')}; teacher: {teacher}"
        rows.append(("Final training", safe(text)))
    if export:
        numbers = [export.get("max_difference"), export.get("logits_std")]
        worst, spread = (f"{n:.3g}" if is_number(n) else "not known" for n in numbers)
        text = (
            f"largest difference of a logit to PyTorch {worst} on {count(export.get('images'))} images "
            f"(the logits' standard deviation: {spread}); {plain(export.get('details'))}"
        )
        rows.append(("Exported file", safe(text)))
    return facts(rows)


def search_facts(record: Record) -> str:
    search = part(record.results, "search", default={})
    end = next((line for line in reversed(record.search) if line.get("type") == "end"), {})
    status = search.get("status") or end.get("status") or ("not finished" if record.search else "")
    done, naive = search.get("block_executions"), search.get("naive_block_executions")
    work = f"{count(done)} per batch of images" if is_number(done) else ""
    if is_number(done) and is_number(naive) and done:
        times = significant(naive / done)
        work = f"{count(done)}; {count(naive)} without shared prefixes ({times} times as many)"
    evaluated = search.get("evaluations") or sum(line.get("type") == "evaluated" for line in record.search)
    moves = search.get("steps") if is_number(search.get("steps")) else max(0, len(states(record)) - 1)
    rows = [
        ("It stopped because", safe(status)),
        ("Steps", count(moves)),
        ("Subnets evaluated", count(evaluated)),
    ]
    return facts([*rows, ("Block executions", safe(work))])
