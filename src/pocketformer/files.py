"""Files that are either whole or not there, and logs that survive a kill.

Every file of a run is written to a temporary name in the same folder, flushed to the disk and renamed. What a
kill leaves under such a name goes away when the same file is written again.
"""

import glob
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pocketformer.errors import UserError

_WEIGHTS = {".safetensors", ".bin", ".pth", ".pt"}
_DESCRIPTIONS = {"architecture.json", "search.jsonl"}
_PARTS = ("supernet", "alone")  # folders of a run that hold networks
_TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp(\.[^.]*){0,2}")


def as_text(name: str) -> str:
    """A name of the file system as UTF-8 says it, in whatever encoding Python took it; bytes that are no UTF-8 stand as
    \\xNN. Can always be written."""
    if _is_unicode(name):
        return name
    try:
        raw = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a character, out of JSON
        raw = name.encode("utf-8", "backslashreplace")
    return raw.decode("utf-8", "backslashreplace")


def as_path(name: str | os.PathLike) -> str:
    """The name as this process's file system takes it, of what `as_text` may have come from."""
    try:
        return os.fsdecode(os.fspath(name).encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        return os.fspath(name)


def digest(path: str | os.PathLike) -> str:
    """16 hex digits of what a file holds; of a folder, of the weights and descriptions of networks in it."""
    path = Path(path)
    if path.is_dir():
        inside = [p for part in (".", *_PARTS) for p in (path / part).glob("*")]
        networks = sorted(p for p in inside if p.suffix in _WEIGHTS or p.name in _DESCRIPTIONS)
        facts = (f"{p.relative_to(path).as_posix()} {digest(p)}" for p in networks if p.is_file())
        return hashlib.sha256("\n".join(facts).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def is_temporary(path: Path) -> bool:
    """Whether it is a file that was never finished, or is being written now."""
    return _TEMPORARY.fullmatch(path.name) is not None


@contextmanager
def whole(path: str | os.PathLike, *companions: str | None) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it is fsynced and renamed, else removed.

    What is written there may be a folder. Each of `companions`, a suffix or None, is a further file that goes with it:
    they share their stems, and `path`, the one that people name, is never there with another's companions.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_unfinished(path)
        yield temporary
        parts = {temporary.with_suffix(suffix): path.with_suffix(suffix) for suffix in companions if suffix}
        _flush(*(p for p in [temporary, *temporary.rglob("*"), *parts] if p.is_file()))
        _replace(path, temporary, parts)
    except OSError as error:
        if error.filename is None:  # of a full disk, the system does not say which file it was
            error.filename = str(path)
        raise
    finally:
        remove(temporary, *companions)


def _replace(path: Path, new: Path, companions: dict[Path, Path]) -> None:
    """Renames the companions and then `new`, with `path` gone meanwhile if there are any. A folder cannot be renamed
    over another: the old one is whole, under a temporary name, until the new one is there."""
    old = None
    if new.is_dir() and path.is_dir():
        old = path.with_name(f".{path.name}.old.{os.getpid()}.tmp")
        os.replace(path, old)
    elif companions:
        path.unlink(missing_ok=True)
    try:
        for source, target in companions.items():
            os.replace(source, target)
        os.replace(new, path)
    except BaseException:
        if old is not None:
            os.replace(old, path)
        raise
    if old is not None:
        remove(old)


def _flush(*paths: Path) -> None:
    for path in paths:
        with open(path, "rb") as f:
            os.fsync(f.fileno())


def remove(path: Path, *companions: str | None) -> None:
    """Removes a file or folder, and its companions, if they are there."""
    for part in [path, *(path.with_suffix(suffix) for suffix in companions if suffix)]:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


def copy(path: Path, to: Path, *companions: str | None) -> None:
    """Copies a file or folder, and its companions."""
    for suffix in (path.suffix, *filter(None, companions)):
        part = path.with_suffix(suffix)
        (shutil.copytree if part.is_dir() else shutil.copyfile)(part, to.with_suffix(suffix))


def _remove_unfinished(path: Path) -> None:
    """Removes the temporary files of processes that were killed while they wrote `path`."""
    for name in glob.glob(f".{glob.escape(path.name)}.*.tmp*", root_dir=path.parent):
        found = _TEMPORARY.fullmatch(name)
        if found and not _is_alive(int(found[1])):
            remove(path.parent / name)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def check_name(path: str | os.PathLike) -> None:
    """Raises `UserError` if a file's or folder's name is no UTF-8: libraries that would read or write there take none
    else."""
    if as_text(str(path)) != str(path):
        raise UserError(f"{path} cannot be written: the name is no UTF-8; give another one")


def check_target(path: str | os.PathLike) -> None:
    """Raises `UserError` if no file can be written there: said before the work is done, not after."""
    path = Path(path)
    check_name(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder: name the file to write")
    parent = next(p for p in path.absolute().parents if p.exists())  # the folders below it will be made
    if not parent.is_dir():
        raise UserError(f"cannot write {path}: {parent} is not a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"cannot write {path}: no permission to write in {parent}")


def write_text(path: str | os.PathLike, text: str) -> None:
    with whole(path) as temporary:
        temporary.write_text(as_text(text), encoding="utf-8")


def write_json(path: str | os.PathLike, value: Any) -> None:
    write_text(path, json_text(value, indent=1) + "\n")


def read_json(path: str | os.PathLike, what: str = "file") -> Any:
    """Reads JSON; a missing or broken file is a `UserError` that names it as `what`."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))  # Windows' editors begin with a mark
    except FileNotFoundError:
        raise UserError(f"{what} not found: {path}") from None
    except IsADirectoryError:
        raise UserError(f"{what} is a folder, not a file: {path}") from None
    except (ValueError, RecursionError) as error:  # of JSON, of UTF-8, of numbers too long, of depth
        raise UserError(f"{what} is not valid JSON: {path} ({error})") from None


def as_json(value: Any) -> Any:
    """The value as it would be read back from JSON (tuples become lists, keys strings)."""
    return _as_text(json.loads(json.dumps(value)))


def json_text(value: Any, indent: int | None = None) -> str:
    """As JSON that can be written: names that are no UTF-8 stand as `as_text` has them."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return text if _is_unicode(text) else json.dumps(as_json(value), indent=indent, ensure_ascii=False)


def _as_text(value: Any) -> Any:
    if isinstance(value, dict):
        return {as_text(key): _as_text(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_as_text(part) for part in value]
    return as_text(value) if isinstance(value, str) else value


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Lines:
    """An append-only file of JSON lines.

    A line cut short by a kill is dropped on opening, so that every line read back is whole. `keep` says how
    many of the whole lines to keep (all by default): a resumed training drops those after its checkpoint.
    """

    def __init__(self, path: str | os.PathLike, keep: Callable[[dict], bool] | None = None):
        self.path = Path(path)
        lines = self.read(self.path)
        kept = lines if keep is None else [line for line in lines if keep(line)]
        data = self._dump(*kept)
        if self.path.exists() and self.path.read_bytes() != data:
            with whole(self.path) as temporary:
                temporary.write_bytes(data)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 (closed by close)

    @staticmethod
    def _dump(*lines: dict) -> bytes:
        return "".join(json_text(line) + "\n" for line in lines).encode()

    @staticmethod
    def read(path: str | os.PathLike) -> list[dict]:
        """All whole lines of a file; none if it is not there."""
        path = Path(path)
        if not path.exists():
            return []
        lines = []
        # Bytes: what was cut may end in the middle of a character.
        for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
            try:
                lines.append(json.loads(line))
            except (json.JSONDecodeError, UnicodeDecodeError):
                raise UserError(f"{path}: line {number} is not JSON") from None
        return lines

    def write(self, *lines: dict) -> None:
        """Appends lines in one system call: a kill leaves all of them, or a cut that reading drops."""
        data = memoryview(self._dump(*lines))
        while data:  # a disk that fills up takes a part; the rest then raises
            data = data[self._file.write(data) :]

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
