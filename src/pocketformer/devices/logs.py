"""What benchmark tools print, as ms: LiteRT's benchmark_model, ExecuTorch's executor_runner, trtexec."""

import csv
import json
import re
from pathlib import Path

from pocketformer.errors import UserError

_NUMBER = r"([-+.\deEna]+)"  # nan too, so that it is refused, not overlooked
# benchmark_model, older and newer: the mean over its regular runs, in microseconds.
_LITERT = re.compile(rf"Inference \(avg\): {_NUMBER}|no stats: {_NUMBER}")
# executor_runner: each call (since 2026), and all calls together (before).
_EXECUTORCH = re.compile(rf"Iteration \d+ of \d+: {_NUMBER} ms")
_EXECUTORCH_ALL = re.compile(rf"Model executed successfully (\d+) time\(s\) in {_NUMBER} ms")
# trtexec: the summary, as far as the median.
_TRTEXEC = re.compile(rf"GPU Compute Time: min = .*?median = {_NUMBER} ms")


def read_log(path: Path) -> list[float]:
    """The times in a tool's output, in ms: single calls where it prints them, else their mean or median.

    Also reads trtexec's --exportTimes (.json). Raises `UserError` for a file without any.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    try:
        found = _exported(text) if path.suffix == ".json" else _printed(text)
    except (ValueError, KeyError, TypeError, ZeroDivisionError):
        raise UserError(f"{path}: its times are not numbers, or of no calls at all") from None
    if not found:
        raise UserError(f"{path}: no times of benchmark_model, executor_runner or trtexec in it")
    return found


def _printed(text: str) -> list[float]:
    if calls := _EXECUTORCH.findall(text):
        return [float(ms) for ms in (calls[1:] or calls)]  # the first call warms up
    if match := _last(_EXECUTORCH_ALL, text):
        return [float(match[2]) / int(match[1])]
    if match := _last(_LITERT, text):
        return [float(match[1] or match[2]) / 1000]
    if match := _last(_TRTEXEC, text):
        return [float(match[1])]
    return []


def _exported(text: str) -> list[float]:
    return [float(call["computeMs"]) for call in json.loads(text)]


def _last(pattern: re.Pattern, text: str) -> re.Match | None:
    return next(reversed(list(pattern.finditer(text))), None)


def read_csv(path: Path) -> list[dict[str, list[float]]]:
    """Times noted by hand, as passes: lines of a model's name and its ms in each pass, a column each.

    An empty cell says that the model was not timed in that pass; a column without times is no pass.
    """
    passes: dict[int, dict[str, list[float]]] = {}
    names: set[str] = set()
    for name, *cells in _rows(path):
        if name in names:
            raise UserError(f"{path}: {name!r} is there twice; its times of further passes are further columns")
        names.add(name)
        for column, cell in enumerate(cells):
            try:
                times = [float(cell)] if cell else []
            except ValueError:
                raise UserError(f"{path}: {name!r} has a time that is not a number: {cell!r}") from None
            if times:
                passes.setdefault(column, {})[name] = times
    return [passes[column] for column in sorted(passes)]


def _rows(path: Path) -> list[list[str]]:
    """The cells of all lines but empty ones and those that begin with #."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:  # spreadsheets put a mark first
            rows = [[cell.strip() for cell in row] for row in csv.reader(file)]
    except UnicodeDecodeError:
        raise UserError(f"{path}: not text in UTF-8; save it as such") from None
    except csv.Error as error:
        raise UserError(f"{path}: not a table of comma-separated values ({error})") from None
    return [row for row in rows if any(row) and not row[0].startswith("#")]
