"""A run's folder: its configuration, its lock, and the ledger of work done (contract 5)."""

import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import yaml

from pocketformer import files, ranks
from pocketformer.errors import UserError

_PACKAGES = ("pocketformer", "torch", "torchvision", "timm", "onnx", "onnxruntime", "numpy")


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def check_folder(path: str | os.PathLike, command: str, settings: dict[str, Any]) -> None:
    """Raises `UserError` if the folder holds anything but a run of the same command and settings. Writes nothing:
    a command asks before it reads a single image. Of several processes the first does: the others might look while
    it writes."""
    if not ranks.first():
        return
    path, settings = Path(path), files.as_json(settings)
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file, not a folder for a run")
    if (path / "config.yaml").exists():
        earlier = read_config(path)
        if earlier["command"] != command:
            found = earlier["command"]
            raise UserError(f"{path} holds a run of '{found}', not of '{command}': choose another --out")
        for name in sorted({*earlier["settings"], *settings}):
            for text in differences(earlier["settings"].get(name), settings.get(name), name):
                raise UserError(
                    f"{path} holds another run ({text}): choose another --out, or repeat the earlier command to resume "
                    "it"
                )
    # A run killed in its first moments leaves its lock and a configuration that was never finished.
    elif path.is_dir() and not all(p.name == ".lock" or files.is_temporary(p) for p in path.iterdir()):
        raise UserError(f"{path} is not empty and holds no run: choose another --out")


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Creates the folder; no other process is in this for the same folder. Raises `UserError` if one is."""
    with _locked(folder):
        yield


def _locked(folder: Path) -> IO[str]:
    """The folder's lock, held until it is closed."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = open(folder / ".lock", "w")  # noqa: SIM115 (held until close)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its last holder may have removed the folder meanwhile.
        if os.path.samestat(os.fstat(lock.fileno()), os.stat(folder / ".lock")):
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        lock.close()
        raise
    lock.close()
    raise UserError(f"{folder}: another process is working in this folder")


class Run:
    """An output folder in use by this job. Opening it again with the same settings resumes it.

    Of the processes of a job, only the first locks and writes.
    """

    def __init__(self, path: str | os.PathLike, command: str, settings: dict[str, Any]):
        """Creates the folder, or takes up an earlier run of the same command and settings.

        Raises `UserError` if the folder holds anything else or another process works in it. Nothing is written
        before these checks.
        """
        self.path = Path(path)
        self._lock = None
        if not ranks.first():
            ranks.wait()
            self.ledger = Ledger(None)
            return
        check_folder(path, command, settings)
        self._lock = _locked(self.path)
        try:
            check_folder(path, command, settings)  # again: another process may have been here before us
            if not (self.path / "config.yaml").exists():
                facts = {"command": command, "settings": files.as_json(settings)}
                self._write({**facts, "versions": versions(), "facts": {}})
            self.ledger = Ledger(self.path / "work.jsonl")
        except BaseException:
            self._lock.close()
            raise
        ranks.wait()

    def _write(self, config: dict) -> None:
        files.write_text(self.path / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))

    def record(self, **facts: Any) -> None:
        """Adds facts found while working (fingerprints); a resumed run must find the same ones."""
        if not ranks.first():
            return
        config = read_config(self.path)
        for name, value in facts.items():
            value = files.as_json(value)
            was = config["facts"].setdefault(name, value)
            if was != value:
                what = name.replace("_", " ")
                raise UserError(
                    f"{self.path}: the {what} changed since this run began (was {_short(was)}, now {_short(value)})"
                )
        self._write(config)

    def close(self) -> None:
        self.ledger.close()
        if self._lock is not None:
            self._lock.close()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def differences(was: Any, now: Any, name: str = "") -> list[str]:
    """What differs, in words: "rounds was 30, now 31"; of what is nested, each by its names."""
    if isinstance(was, dict) and isinstance(now, dict):
        keys = sorted({*was, *now})
        return [text for key in keys for text in differences(was.get(key), now.get(key), f"{name} {key}".strip())]
    if isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        pairs = enumerate(zip(was, now, strict=True))
        return [text for i, (one, other) in pairs for text in differences(one, other, f"{name}[{i}]")]
    return [] if was == now else [f"{name} was {_short(was)}, now {_short(now)}"]


def _short(value: Any) -> str:
    text = json.dumps(value) if value is not None else "not given"
    return text if len(text) <= 60 else text[:57] + "..."


def read_config(path: str | os.PathLike) -> dict:
    """The configuration of a run's folder; `UserError` if it holds none."""
    file = Path(path) / "config.yaml"
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is not a run: it has no config.yaml") from None
    except NotADirectoryError:
        raise UserError(f"{path} is a file, not a run's folder") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is damaged: {' '.join(str(error).split())}") from None
    if not isinstance(config, dict) or not {"command", "settings", "facts"} <= set(config):
        raise UserError(f"{file} is not a run's configuration")
    return config


class Ledger:
    """Every unit of work that was really executed, appended as it happens: work done twice after a kill shows as
    a line that stands twice. "seconds" are those since the unit before it in the same process."""

    def __init__(self, path: Path | None):
        """None: of a process that does not write."""
        self._lines = None if path is None else files.Lines(path)
        self._since = time.monotonic()

    def did(self, stage: str, unit: int | str) -> None:
        now = time.monotonic()
        if self._lines is not None:
            self._lines.write({"stage": stage, "unit": unit, "seconds": round(now - self._since, 4)})
        self._since = now

    def close(self) -> None:
        if self._lines is not None:
            self._lines.close()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def repeated_units(path: str | os.PathLike) -> dict[str, int]:
    """{stage: units executed more than once, counted as often as they were repeated} of a run's ledger."""
    seen, repeated = set(), {}
    for line in files.Lines.read(Path(path) / "work.jsonl"):
        unit = (line["stage"], line["unit"])
        if unit in seen:
            repeated[line["stage"]] = repeated.get(line["stage"], 0) + 1
        seen.add(unit)
    return repeated


def seconds_by_stage(path: str | os.PathLike) -> dict[str, float]:
    """{stage: seconds that its units took} of a run's ledger, a unit that was done twice counted as the last time.
    Stages written before ledgers had seconds are left out."""
    lines = files.Lines.read(Path(path) / "work.jsonl")
    untimed = {line["stage"] for line in lines if "seconds" not in line}
    units = {(line["stage"], line["unit"]): line["seconds"] for line in lines if line["stage"] not in untimed}
    found: dict[str, float] = {}
    for (stage, _), seconds in units.items():
        found[stage] = found.get(stage, 0.0) + seconds
    return found
