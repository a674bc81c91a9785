"""The command line asked in this process: what it answers, and how it fails. Shared by the tests of commands."""

import json
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO

import pytest

from pocketformer.cli.main import main


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.err.splitlines()

    def fails(self, code: int, *words: str, alone: bool = False) -> "Answer":
        """Failed with this code and one line of error that holds the words; `alone`: nothing else was said."""
        assert self.code == code, self
        errors = [line for line in self.lines if line.startswith("pocketformer: ")]
        assert errors == self.lines[-1:] != [], self.err
        assert len(self.lines) == 1 or not alone, self.err
        assert "Traceback" not in self.err, self.err
        assert self.out == "", self.out
        for word in words:
            assert word in errors[0], errors[0]
        return self

    def succeeds(self) -> "Answer":
        assert self.code == 0, self.err
        return self

    def json(self) -> dict:
        """The one JSON object that stdout holds."""
        value = json.loads(self.succeeds().out)
        assert isinstance(value, dict), self.out
        assert self.out.count("\n") == 1, self.out
        return value


def answered(arguments: tuple) -> int:
    """The exit code; what is printed is the caller's to capture."""
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    return stop.value.code


def ask(*arguments: object) -> Answer:
    """For fixtures of a module. Tests have the fixture `cli`, which sees what other processes print too."""
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        code = answered(arguments)
    return Answer(code, out.getvalue(), err.getvalue())
