"""The metrics of a search by name: "size", "latency" (several devices: "latency:phone"), "macs", "memory", "energy".

Files write "size" as "parameters"; everything else is called the same everywhere.
"""

from collections.abc import Iterable, Mapping
from typing import TypeVar

from pocketformer.errors import UserError

Value = TypeVar("Value")

UNITS = {"size": "parameters", "latency": "ms", "macs": "MACs", "memory": "bytes", "energy": "mJ"}
_TABULATED = ("latency", "energy")  # sums of a table's entries, in which a smaller block may cost more


def kind_of(metric: str) -> str:
    """The metric without its device."""
    return metric.partition(":")[0]


def device_of(metric: str) -> str | None:
    return metric.partition(":")[2] or None


def unit_of(metric: str) -> str:
    """Of the values in costs and files; empty for a caller's own metric."""
    return UNITS.get(kind_of(metric), "")


def is_tabulated(metric: str) -> bool:
    return kind_of(metric) in _TABULATED


def to_key(metric: str) -> str:
    """What files call it."""
    return "parameters" if metric == "size" else metric


def from_key(key: str) -> str:
    return "size" if key == "parameters" else key


def amount(metric: str, value: float) -> str:
    """A cost with its unit, as a person reads it."""
    device = f" on {device_of(metric)}" if device_of(metric) else ""
    match kind_of(metric):
        case "size":
            return f"{value:,.0f} parameters"
        case "memory":
            return f"{value / 1e6:.3g} MB of activations"
        case "macs":
            return f"{value / 1e6:,.2f} M MACs"
        case "latency" | "energy":
            return f"{value:.3g} {unit_of(metric)}{device}" if value < 1 else f"{value:,.2f} {unit_of(metric)}{device}"
    return f"{metric} {value:,.4g}"


def spread(given: Mapping[str, Value], known: Iterable[str], what: str) -> dict[str, Value]:
    """What was given by metric, for the metrics that there are: "latency" is that of every device that has not been
    named itself. Raises `UserError` for a metric that is not known; `what` is what was given.
    """
    known, found = tuple(known), {}
    for name, value in sorted(given.items(), key=lambda item: ":" in item[0]):  # a device's own comes later
        fitting = [k for k in known if name in (k, kind_of(k))]
        if not fitting:
            raise UserError(f"{what} {name!r} is unknown here; known: {', '.join(known)}")
        found.update(dict.fromkeys(fitting, value))
    return {name: found[name] for name in known if name in found}
