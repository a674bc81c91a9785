"""A run's folder: its configuration, its lock, and the ledger of work done (contract 5)."""

import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import yaml

from pocketformer import files, ranks
from pocketformer.errors import UserError
from pocketformer.progress import say

_PACKAGES = ("pocketformer", "torch", "torchvision", "timm", "onnx", "onnxruntime", "numpy")


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


# What a setting that names a place stands for: what lies there (`held`), or None for what is recorded once it is read,
# as images are by their fingerprints. The place itself may be another when a run is resumed.
Inputs = Mapping[str, str | None]


def held(**places: str | os.PathLike | None) -> dict[str, str]:
    """{setting: what lies where it says}, of those that are given: paths, or NAME=FILE, of files or of folders of
    runs. A name without a file holds nothing here."""
    found = {}
    for setting, place in places.items() if ranks.first() else ():
        if place is None:
            continue
        name, is_pair, file = os.fspath(place).rpartition("=")
        if not is_pair or Path(place).exists():
            name, file = "", place
        if Path(file).exists():
            found[setting] = f"{name}={files.digest(file)}" if name else files.digest(file)
    return found


def check_folder(path: str | os.PathLike, command: str, settings: dict[str, Any], inputs: Inputs | None = None) -> None:
    """Raises `UserError` if the folder holds anything but a run of the same command and settings. Writes nothing:
    a command asks before it reads a single image. Of several processes the first does: the others might look while
    it writes. What `inputs` names may lie at another place by now, if it holds the same."""
    if not ranks.first():
        return
    path = Path(path)
    files.check_name(path)
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file, not a folder for a run")
    if (path / "config.yaml").exists():
        earlier = read_config(path)
        if earlier["command"] != command:
            found = earlier["command"]
            raise UserError(f"{path} holds a run of '{found}', not of '{command}': choose another --out")
        _check_settings(path, earlier, files.as_json(settings), inputs or {})
    # A run killed in its first moments leaves its lock and a configuration that was never finished.
    elif path.is_dir() and not all(p.name == ".lock" or files.is_temporary(p) for p in path.iterdir()):
        raise UserError(f"{path} is not empty and holds no run: choose another --out")


def _check_settings(path: Path, earlier: dict, settings: dict[str, Any], inputs: Inputs) -> None:
    known = earlier["facts"].get("inputs", {})
    moved = set()
    for name, was, now in _differing(earlier["settings"], settings):
        is_place = name in inputs and was is not None and now is not None
        if is_place and (inputs[name] is None or inputs[name] == known.get(name)):
            moved.add(name)
            continue
        other = ", which holds something else" if is_place and name in known else ""
        raise UserError(
            f"{path} holds another run ({name} was {_short(was)}, now {_short(now)}{other}): choose another --out, or "
            "repeat the earlier command to resume it"
        )
    for name, content in inputs.items():
        if content is not None and name not in moved and known.get(name, content) != content:
            raise UserError(f"{path}: the {_called(name)} changed since this run began: choose another --out")


def _called(setting: str) -> str:
    return setting.replace("_", " ").replace("latency", "latency table")


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

    def __init__(self, path: str | os.PathLike, command: str, settings: dict[str, Any], inputs: Inputs | None = None):
        """Creates the folder, or takes up an earlier run of the same command and settings; says which `inputs` lie
        elsewhere by now.

        Raises `UserError` if the folder holds anything else or another process works in it. Nothing is written
        before these checks.
        """
        self.path = Path(path)
        self._lock = None
        if not ranks.first():
            ranks.wait()
            self.ledger = Ledger(None)
            return
        check_folder(path, command, settings, inputs)
        self._lock = _locked(self.path)
        try:
            check_folder(path, command, settings, inputs)  # again: another process may have been here before us
            if not (self.path / "config.yaml").exists():
                facts = {"inputs": known} if (known := {k: v for k, v in (inputs or {}).items() if v}) else {}
                about = {"command": command, "settings": files.as_json(settings)}
                self._write({**about, "versions": versions(), "facts": facts})
            for name, was, now in _differing(read_config(self.path)["settings"], files.as_json(settings)):
                say(
                    f"note: {_called(name)}: this run began with {was} and goes on with {now}, which must hold the same"
                )
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


def differences(was: Any, now: Any) -> list[str]:
    """What differs, in words: "rounds was 30, now 31"; of what is nested, each by its names."""
    return [f"{name} was {_short(one)}, now {_short(other)}" for name, one, other in _differing(was, now)]


def _differing(was: Any, now: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(was, dict) and isinstance(now, dict):
        for key in sorted({*was, *now}):
            yield from _differing(was.get(key), now.get(key), f"{name} {key}".strip())
    elif isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        for i, (one, other) in enumerate(zip(was, now, strict=True)):
            yield from _differing(one, other, f"{name}[{i}]")
    elif was != now:
        yield name, was, now


def _short(value: Any) -> str:
    text = json.dumps(value) if value is not None else "not given"
    return text if len(text) <= 60 else text[:57] + "..."


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same in a tenth of the time, where libyaml is there


def read_config(path: str | os.PathLike) -> dict:
    """The configuration of a run's folder; `UserError` if it holds none."""
    file = Path(path) / "config.yaml"
    try:
        config = yaml.load(file.read_text(encoding="utf-8"), Loader=_LOADER)
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
