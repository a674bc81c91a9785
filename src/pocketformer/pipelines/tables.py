"""Latency tables as a person names them: opened, judged by their own check, and what is said of them."""

from pathlib import Path

from pocketformer.architecture import SearchSpace
from pocketformer.devices import LatencyTable
from pocketformer.devices.table import DOUBTFUL
from pocketformer.errors import WorkError
from pocketformer.progress import say

WRONG = 0.2  # mean error of a table's check from which on `design` does not begin


def open_table(path: str | Path, space: SearchSpace | None = None) -> LatencyTable:
    """Raises `UserError` for what is no table; warns of one that is doubtful."""
    table = LatencyTable.load(path)
    warn(table, str(path), space)
    return table


def warn(table: LatencyTable, where: str, space: SearchSpace | None = None) -> None:
    """Says aloud what speaks against a table; `space`, if it is the table's, lets its reference be looked at too."""
    for text in doubts(table, space):
        say(f"warning: latency table {where}: {text}")


def doubts(table: LatencyTable, space: SearchSpace | None = None) -> list[str]:
    found = []
    if table.check is None:
        found.append(
            "nobody has checked it on networks that it has not seen, so that its error is not known "
            "(`profile` does, unless told --checks 0)"
        )
    elif table.check.mean > DOUBTFUL:
        found.append(
            f"its mean error on networks it has not seen is {table.check.mean:.1%} (bias {table.check.bias:+.1%}), "
            f"above {DOUBTFUL:.0%}: profile again while the device is idle"
        )
    off = None if space is None else table.reference_error(space)
    if off is not None and abs(off) > DOUBTFUL:
        found.append(
            f"it says {table.latency(space.largest):.3g} ms of its own reference network, the largest subnet, which "
            f"took {table.reference.latency:.3g} ms ({off:+.0%}): latencies in ms will be off; shares such as 50% are "
            "of what the table says"
        )
    return found


def is_wrong(table: LatencyTable) -> bool:
    """Whether its own check finds it so wrong that what is found by it means nothing."""
    return table.check is not None and table.check.mean > WRONG


def refuse_wrong(table: LatencyTable, where: str, way_out: str) -> None:
    """Raises `WorkError` for a table that `is_wrong`."""
    if is_wrong(table):
        raise WorkError(
            f"latency table {where}: its mean error on networks it has not seen is {table.check.mean:.0%}, above "
            f"{WRONG:.0%}: {way_out}, or accept it (--accept-table-error)"
        )


def told(table: LatencyTable, space: SearchSpace | None = None) -> str:
    """What a table's own check found, in words; empty if nothing is known."""
    parts = []
    if (check := table.check) is not None:
        low, high = table.checked_range
        parts.append(
            f"error on {len(check.networks)} unseen networks: mean {check.mean:.1%}, worst {check.worst:.1%}, "
            f"bias {check.bias:+.1%}"
        )
        parts.append(f"they take {low:.0%} to {high:.0%} of the reference's latency")
        if check.repeatability is not None:
            parts.append(f"two passes differ by {check.repeatability:.1%}")
    off = None if space is None else table.reference_error(space)
    if off is not None:
        parts.append(f"error on the largest subnet, its reference: {off:+.1%}")
    return "; ".join(parts)
