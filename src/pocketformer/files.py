"""Files that are either whole or not there, and logs that survive a kill.

Every file of a run is written to a temporary name in the same folder, flushed to the disk and renamed.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pocketformer.errors import UserError


@contextmanager
def whole(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it is fsynced and renamed, else removed."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as f:
            os.fsync(f.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: str | os.PathLike, what: str = "file") -> Any:
    """Reads JSON; a missing or broken file is a `UserError` that names it as `what`."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{what} not found: {path}") from None
    except IsADirectoryError:
        raise UserError(f"{what} is a folder, not a file: {path}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{what} is not valid JSON: {path} ({error})") from None


def as_json(value: Any) -> Any:
    """The value as it would be read back from JSON (tuples become lists, keys strings)."""
    return json.loads(json.dumps(value))


class Lines:
    """An append-only file of JSON lines.

    A line cut short by a kill is dropped on opening, so that every line read back is whole. `keep` says how
    many of the whole lines to keep (all by default): a resumed training drops those after its checkpoint.
    """

    def __init__(self, path: str | os.PathLike, keep: Callable[[dict], bool] | None = None):
        self.path = Path(path)
        lines = self.read(self.path)
        kept = lines if keep is None else [line for line in lines if keep(line)]
        text = "".join(self._dump(line) for line in kept)
        if self.path.exists() and self.path.read_text(encoding="utf-8") != text:
            write_text(self.path, text)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)

    @staticmethod
    def _dump(line: dict) -> str:
        return json.dumps(line, ensure_ascii=False) + "\n"

    @staticmethod
    def read(path: str | os.PathLike) -> list[dict]:
        """All whole lines of a file; none if it is not there."""
        path = Path(path)
        if not path.exists():
            return []
        lines = []
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1], 1):
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                raise UserError(f"{path}: line {number} is not JSON") from None
        return lines

    def write(self, *lines: dict) -> None:
        """Appends lines in one system call: a kill leaves all of them, or a cut that reading drops."""
        self._file.write("".join(self._dump(line) for line in lines))
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
