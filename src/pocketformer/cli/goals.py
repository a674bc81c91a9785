"""What `search` and `design` climb and where they stop, read from the options: budgets, exponents, tables, energy.

Options that may name a device take NAME=VALUE.
"""

import math
import re
from pathlib import Path
from typing import Any

from pocketformer.errors import UserError

_NAMED = re.compile(r"([\w.-]+)=(.+)")


def budgets(
    latency: str | None,
    parameters: str | None,
    memory: str | None,
    min_mes: float | None,
    macs: str | None = None,
    energy: str | None = None,
    devices: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """{metric: Budget} of those given, and of `devices`; `UserError` if there is none, nor a smallest score."""
    from pocketformer.pipelines.settings import parse_budget

    given = {"latency": latency, "size": parameters, "macs": macs, "memory": memory, "energy": energy}
    limits = {name: parse_budget(name, text) for name, text in given.items() if text is not None}
    limits |= devices or {}
    if not limits and min_mes is None:
        more = "" if devices is None else "--max-energy "
        raise UserError(f"give a budget: --max-latency, --max-parameters, --max-macs, --max-memory, {more}or --min-mes")
    return limits


def alphas(given: list[str] | None, devices: bool = False) -> dict[str, float]:
    """{metric: exponent} of `--alpha METRIC=X`; with `devices`, a metric may be one device's: latency:phone."""
    from pocketformer.search.metrics import UNITS, kind_of

    found: dict[str, float] = {}
    for text in given or ():
        name, _, value = text.partition("=")
        known = [k for k in UNITS if devices or k != "energy"]
        if name not in known and not (devices and kind_of(name) == "latency"):
            raise UserError(f"--alpha {text}: unknown metric {name!r}; known: {', '.join(known)}")
        if name in found:
            raise UserError(f"--alpha gives {name} twice")
        found[name] = _exponent(text, value)
    return found


def _exponent(text: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        raise UserError(f"--alpha {text} is not understood; give METRIC=X, such as latency=1") from None
    if not (number >= 0 and math.isfinite(number)):
        raise UserError(f"--alpha {text}: an exponent is zero or above")
    return number


def named(text: str) -> tuple[str, str]:
    """The device ("" if there is none) and the value; a file that is there is no name and value."""
    found = None if Path(text).exists() else _NAMED.fullmatch(text)
    return (found[1], found[2]) if found else ("", text)


def tables(given: list[str]) -> dict[str, Path]:
    """{device: file} of `--latency FILE`, or of several `--latency NAME=FILE`."""
    found: dict[str, Path] = {}
    for text in given:
        name, file = named(text)
        if name in found and name:
            raise UserError(f"--latency gives two tables for {name}")
        if name in found or (name == "") != ("" in (found or {name: None})):
            raise UserError("of several latency tables each needs its device: --latency phone=FILE")
        found[name] = Path(file)
    return found


def latency_budgets(given: list[str]) -> dict[str, Any]:
    """{metric: Budget} of `--max-latency TIME`, of every device, and of `--max-latency NAME=TIME`."""
    from pocketformer.pipelines.settings import parse_budget

    found = {}
    for text in given:
        name, value = named(text)
        metric = f"latency:{name}" if name else "latency"
        if metric in found:
            raise UserError(f"--max-latency is given twice{f' for {name}' if name else ''}")
        found[metric] = parse_budget(metric, value)
    return found


def energy(given: str | None) -> Any:
    """A table's path, or the watts (and device) of `--energy 2.5W` or `--energy phone=2.5W`."""
    from pocketformer.pipelines.searches import Watts

    if given is None:
        return None
    name, value = named(given)
    watts = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*([mk]?)W", value)
    if watts is None:
        if name:
            raise UserError(f"--energy {given}: a device has watts, such as {name}=2.5W; a table of mJ has no device")
        return Path(given)
    amount = float(watts[1]) * {"m": 1e-3, "": 1.0, "k": 1e3}[watts[2]]
    if not amount > 0:
        raise UserError(f"--energy {given}: the power must be above zero")
    return Watts(amount, name or None)
