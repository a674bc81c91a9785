"""What a person sees while work goes on: a bar for each stage on a terminal, a line now and then elsewhere.

All of it goes to stderr; stdout is for results.
"""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from pocketformer import ranks
from pocketformer.files import as_text

_LINE_EVERY = 10.0  # seconds between lines when stderr is no terminal


def duration(seconds: float) -> str:
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    return f"{minutes} min {seconds:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


@contextmanager
def _own_stderr() -> Iterator[TextIO]:
    """A stream of the same place as stderr: while a converter works, stderr itself is turned off."""
    try:
        descriptor = os.dup(sys.stderr.fileno())
    except (OSError, ValueError):  # no file, or closed
        yield sys.stderr
        return
    with open(descriptor, "w", buffering=1, encoding=sys.stderr.encoding, errors=sys.stderr.errors) as stream:
        yield stream


class Stage:
    """Progress of one stage: `total` units, `advance` as they are done, `note` for the figures beside the bar."""

    def __init__(self, name: str, total: int | None, done: int = 0, stream: TextIO | None = None):
        self.name, self.total, self.done, self.text, self._stream = name, total, done, "", stream
        self._first, self._began = done, time.monotonic()

    @property
    def seconds_left(self) -> float | None:
        fresh = self.done - self._first
        if self.total is None or fresh <= 0:
            return None
        return (time.monotonic() - self._began) / fresh * (self.total - self.done)

    def advance(self, units: int = 1, note: str | None = None) -> None:
        self.update(self.done + units, note)

    def update(self, done: int, note: str | None = None, total: int | None = None) -> None:
        self.done, self.total = done, total or self.total
        self.text = self.text if note is None else note
        self._show()

    def _show(self) -> None: ...

    def close(self, whole: bool) -> None: ...


class _Lines(Stage):
    """A line at the beginning, one at the end, and between them one every ten seconds, whether anything came of them
    or not: a converter may work for minutes on a single file."""

    def __init__(self, *args):
        super().__init__(*args)
        self._closed, self._told = threading.Event(), threading.Lock()
        self._last = time.monotonic()
        print(f"{self.name} …", file=self._stream, flush=True)
        self._thread = threading.Thread(target=self._beat, name="progress", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        while not self._closed.wait(max(self._last + _LINE_EVERY - time.monotonic(), 0.01)):
            self._show()

    def _show(self) -> None:
        with self._told:
            if self._closed.is_set() or time.monotonic() - self._last < _LINE_EVERY:
                return
            self._last = time.monotonic()
            print(self._line(), file=self._stream, flush=True)

    def _line(self) -> str:
        counted = f"{self.done}/{self.total}" if self.total else str(self.done) if self.done else ""
        left = self.seconds_left
        passed = f"{duration(time.monotonic() - self._began)} so far"
        parts = [counted, self.text, passed if left is None else f"{duration(left)} left"]
        return f"{self.name}: " + ", ".join(p for p in parts if p)

    def close(self, whole: bool) -> None:
        self._closed.set()
        self._thread.join()
        if whole:
            took = duration(time.monotonic() - self._began)
            print(f"{self.name}: done in {took}" + (f" ({self.text})" if self.text else ""), file=self._stream)


class _Bar(Stage):
    def __init__(self, *args):
        super().__init__(*args)
        from rich import progress as rich
        from rich.console import Console

        columns = (
            rich.TextColumn("{task.description:<28}"),
            rich.BarColumn(),
            rich.MofNCompleteColumn(),
            rich.TimeElapsedColumn(),
            rich.TimeRemainingColumn(),
            rich.TextColumn("{task.fields[note]}"),
        )
        self._rich = rich.Progress(*columns, console=Console(file=self._stream))
        self._task = self._rich.add_task(self.name, total=self.total, completed=self.done, note="")
        self._rich.start()

    def _show(self) -> None:
        self._rich.update(self._task, completed=self.done, total=self.total, note=self.text)

    def close(self, whole: bool) -> None:
        if whole and self.total is not None:
            self._rich.update(self._task, completed=self.total)
        self._rich.stop()


@contextmanager
def stage(name: str, total: int | None = None, done: int = 0) -> Iterator[Stage]:
    """Shows the progress of one stage; `done` units were done by an earlier process."""
    kind = Stage if not ranks.first() else _Bar if sys.stderr.isatty() else _Lines
    with _own_stderr() as stream:
        shown = kind(name, total, done, stream)
        try:
            yield shown
        except BaseException:
            shown.close(whole=False)
            raise
        shown.close(whole=True)


def say(text: str) -> None:
    """One line for the person, on stderr; of several processes, the first's."""
    if ranks.first():
        print(as_text(text), file=sys.stderr, flush=True)
