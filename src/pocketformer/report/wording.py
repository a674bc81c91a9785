"""Numbers as people read them, always with their unit, and text made safe for HTML."""

import html
import math
from typing import Any

UNKNOWN = "not known"


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def safe(value: Any) -> str:
    """Text from a file, escaped: a class name or a path may contain `<`."""
    return html.escape(str(value), quote=True)


def count(value: Any) -> str:
    return f"{value:,.0f}" if is_number(value) else UNKNOWN


def plural(number: float, noun: str) -> str:
    """`1 block`, `2 blocks`."""
    return f"{number:,g} {noun}{'s' * (number != 1)}"


def millions(value: Any) -> str:
    """For figures whose last digits say nothing, such as MACs."""
    return f"{value / 1e6:,.2f} M" if is_number(value) else UNKNOWN


def significant(value: Any, unit: str = "") -> str:
    """About three significant digits, never in exponents within what runs contain."""
    if not is_number(value):
        return UNKNOWN
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:,.{digits}f}{unit and ' ' + unit}"


def ms(value: Any) -> str:
    return significant(value, "ms")


def percent(value: Any, digits: int = 2) -> str:
    return f"{100 * value:.{digits}f} %" if is_number(value) else UNKNOWN


def size(value: Any) -> str:
    """Bytes in decimal units, as the budgets are given."""
    if not is_number(value):
        return UNKNOWN
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= factor:
            return significant(value / factor, unit)
    return f"{value:.0f} bytes"


def interval(values: Any) -> str:
    if isinstance(values, list | tuple) and len(values) == 2 and all(map(is_number, values)):
        return f"{100 * values[0]:.2f} to {100 * values[1]:.2f} %"
    return UNKNOWN


BUDGETS = {  # name in files: (title, what is spent, format)
    "latency": ("Latency", "of one batch", ms),
    "size": ("Parameters", "trainable numbers", count),
    "macs": ("Multiply-adds", "of one image", millions),
    "memory": ("Memory", "of activations at their peak", size),
    "energy": ("Energy", "of one batch", lambda value: significant(value, "mJ")),
}


def budget_title(name: str) -> str:
    """With the device, if the metric is that of one among several."""
    kind, _, device = name.partition(":")
    title = BUDGETS[kind][0] if kind in BUDGETS else kind
    return f"{title}, {device}" if device else title


def budget_value(name: str, value: Any) -> str:
    kind = name.partition(":")[0]
    return BUDGETS[kind][2](value) if kind in BUDGETS else significant(value)


def plain(value: Any) -> str:
    """A nested value of a JSON or YAML file as one line."""
    if isinstance(value, dict):
        return ", ".join(f"{k} {plain(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(plain(v) for v in value)
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
