"""The classes one by one: how much of each is right, and which are taken for which, as a table and as a drawing."""

from pocketformer.report.reading import Record, objects, part
from pocketformer.report.sections import tested
from pocketformer.report.wording import count, is_number, percent, safe

_DRAWN = 40  # classes up to which the whole matrix is drawn; of more, those most in error
_OF_MANY = 25
_ROWS = 50  # of the table, of which the first stand open
_OPEN = 12
_LETTER, _NUMBERED = 6.6, 15  # px a letter; classes up to which cells hold their numbers

CSS = """
.confusion text{font:11px system-ui,sans-serif;fill:var(--fg)} .confusion .small{fill:var(--muted)}
.confusion .right{fill:var(--blue)} .confusion .wrong{fill:var(--orange)}
.confusion .frame{fill:none;stroke:var(--line)}
"""


def section(record: Record) -> str:
    """Balanced accuracy, the table (worst first), the confusion matrix; "" where the run knows of no classes."""
    rows = _rows(record)
    if not rows:
        return ""
    return _words(record, rows) + _table(rows) + _matrix(record, rows)


def _rows(record: Record) -> list[dict]:
    """Of the classes that have images, the worst first."""
    rows = [row for row in objects(tested(record), "per_class") if row.get("images") and is_number(row.get("recall"))]
    return sorted(rows, key=lambda row: (row["recall"], str(row.get("name"))))


def _words(record: Record, rows: list[dict]) -> str:
    test = tested(record)
    text = f"Balanced accuracy, the mean over the classes: {percent(test.get('balanced_accuracy'))}."
    share, name = part(test, "largest_class", "share"), part(test, "largest_class", "name")
    accuracy, balanced = test.get("accuracy"), test.get("balanced_accuracy")
    if all(map(is_number, (share, accuracy, balanced))) and abs(accuracy - balanced) >= 0.01:
        text += f" Accuracy over all images: {percent(accuracy)}. Always answering {name} would have {percent(share)}."
    return f"<p>{safe(text)}</p>"


def _table(rows: list[dict]) -> str:
    heads = ("Class", "Images", "Right (recall)", "Right when answered (precision)")
    head = "".join(f"<th scope='col'>{h}</th>" for h in heads)

    def table(chosen: list[dict]) -> str:
        body = ""
        for row in chosen:
            precision = percent(row["precision"], 1) if is_number(row.get("precision")) else "never answered"
            cells = (count(row["images"]), percent(row["recall"], 1), precision)
            body += f"<tr><th scope='row'>{safe(row.get('name'))}</th>{''.join(f'<td>{c}</td>' for c in cells)}</tr>"
        return f"<div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"

    if len(rows) <= _OPEN:
        return table(rows)
    more = f"<details><summary>The next {len(rows[_OPEN:_ROWS])}</summary>{table(rows[_OPEN:_ROWS])}</details>"
    rest = f"<p class='muted'>{count(len(rows))} classes, worst first; results.json has all of them.</p>"
    return table(rows[:_OPEN]) + more + rest


def _matrix(record: Record, rows: list[dict]) -> str:
    drawn, names = drawing(record), _chosen(record)
    if not drawn:
        return ""
    some = len(names) < len(rows)
    what = f"The {len(names)} of {count(len(rows))} classes with most errors." if some else "All classes."
    note = f"{what} Rows: what the images are. Columns: what they were taken for. Darker: a larger share of the row."
    return f"<h3>Confusion matrix</h3><p class='muted'>{note}</p><div class='scroll'>{drawn}</div>"


def _chosen(record: Record) -> list[str]:
    """Names of the classes to draw, in the order of the network's."""
    confusion = part(tested(record), "confusion", default={})
    names = [str(row.get("name")) for row in objects(tested(record), "per_class")]
    involved = dict.fromkeys(names, 0)
    seen = set()
    for truth, row in confusion.items():
        for answer, n in row.items() if isinstance(row, dict) else ():
            if truth in involved and answer in involved and is_number(n):
                seen |= {truth, answer}
                involved[truth] += n * (truth != answer)
                involved[answer] += n * (truth != answer)
    names = [name for name in names if name in seen]
    if len(names) <= _DRAWN:
        return names
    worst = set(sorted(names, key=lambda name: -involved[name])[:_OF_MANY])
    return [name for name in names if name in worst]


def drawing(record: Record) -> str:
    """The confusion matrix as an inline SVG, with the numbers of images as titles of its cells; "" without one."""
    confusion, names = part(tested(record), "confusion", default={}), _chosen(record)
    if len(names) < 2:
        return ""
    cell = 38 if len(names) <= _NUMBERED else 22
    labels = [name if len(name) <= 24 else f"{name[:23]}…" for name in names]
    left = 12 + max(map(len, labels)) * _LETTER
    side = cell * len(names)
    parts = [f'<rect class="frame" x="{left:.0f}" y="0" width="{side}" height="{side}"/>']
    for r, (name, label) in enumerate(zip(names, labels, strict=True)):
        y = r * cell
        parts.append(f'<text x="{left - 5:.0f}" y="{y + cell / 2 + 4:.0f}" text-anchor="end">{safe(label)}</text>')
        x = left + y + cell / 2 - 4
        parts.append(f'<text transform="translate({x:.0f} {side + 6}) rotate(90)">{safe(label)}</text>')
        row = {key: n for key, n in part(confusion, name, default={}).items() if is_number(n) and n > 0}
        total = sum(row.values())
        for c, other in enumerate(names):
            if not row.get(other):
                continue
            share = row[other] / total
            title = f"{name} taken for {other}: {count(row[other])} of {count(total)} ({percent(share, 1)})"
            place = f'x="{left + c * cell:.0f}" y="{y}" width="{cell}" height="{cell}"'
            kind = "right" if c == r else "wrong"
            ink = f'class="{kind}" fill-opacity="{0.12 + 0.88 * share:.2f}"'
            number = ""
            if len(names) <= _NUMBERED:
                middle = f'x="{left + (c + 0.5) * cell:.0f}" y="{y + cell / 2 + 4:.0f}" text-anchor="middle"'
                number = f'<text {middle} pointer-events="none">{count(row[other])}</text>'
            parts.append(f"<rect {ink} {place}><title>{safe(title)}</title></rect>{number}")
    width, height = left + side + 1, side + left
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="confusion" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="Confusion matrix">{"".join(parts)}</svg>'
    )
