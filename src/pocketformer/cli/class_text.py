"""The figures of classes as text and as files: a table, worst first, and which are taken for which."""

import csv
import io
from pathlib import Path

from pocketformer.cli.summary import aligned

_ROWS, _PAIRS = 20, 5
_APART = 0.01  # accuracy and balanced accuracy that differ by less say the same


def told(found: dict) -> str:
    """Of a result with `training.confusion.class_figures`: balanced accuracy, the worst classes, the worst pairs."""
    rows = sorted((row for row in found["per_class"] if row["images"]), key=lambda row: (row["recall"], row["name"]))
    shown = [("class", "images", "right (recall)", "right when answered (precision)")]
    shown += [
        (row["name"], f"{row['images']:,}", f"{row['recall']:.1%}", _share(row["precision"])) for row in rows[:_ROWS]
    ]
    lines = [balanced(found), aligned(shown)]
    if more := len(rows) - _ROWS:
        lines += [f"  … and {more:,} classes with more right (--json or --out has all)"] if more > 0 else []
    return "\n".join([*lines, *pairs(found["confusion"])])


def balanced(found: dict) -> str:
    """The balanced accuracy; where accuracy says something else, what always answering one class would have."""
    text = f"balanced accuracy {found['balanced_accuracy']:.1%} (the mean over classes)"
    largest = found["largest_class"]
    if abs(found["accuracy"] - found["balanced_accuracy"]) >= _APART:
        text += f"; always answering {largest['name']} would have {largest['share']:.1%} of the images right"
    return text


def pairs(confusion: dict[str, dict[str, int]]) -> list[str]:
    """One line on the pairs that are confused most often; none where nothing is."""
    from pocketformer.training.confusion import confused

    worst = [
        f"{one} taken for {other} {n:,} of {sum(confusion[one].values()):,}"
        for one, other, n in confused(confusion)[:_PAIRS]
    ]
    return [f"most confused: {'; '.join(worst)}"] if worst else []


def check(out: Path | None) -> None:
    """Raises `UserError` for what `write` cannot write, before any work is done."""
    from pocketformer.errors import UserError

    if out is not None and (out.suffix not in (".json", ".csv") or out.is_dir()):
        raise UserError(f"--out {out}: give the name of a file that ends in .json or .csv")


def write(found: dict, out: Path) -> None:
    """All of a result as .json, or its table of classes as .csv."""
    from pocketformer import files

    if out.suffix == ".json":
        files.write_json(out, found)
        return
    text = io.StringIO()
    lines = csv.DictWriter(text, ("name", "images", "recall", "precision"), lineterminator="\n")
    lines.writeheader()
    lines.writerows(found["per_class"])
    files.write_text(out, text.getvalue())


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
