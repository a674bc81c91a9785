"""What a network takes in mJ: from a table, as power times latency, or read from the processor's own counters."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketformer import files
from pocketformer.architecture import Architecture, SearchSpace
from pocketformer.devices.table import LatencyTable, space_blocks
from pocketformer.errors import UserError, WorkError

_FORMAT = "pocketformer.energy-table/1"
_COUNTERS = Path("/sys/class/powercap")


@dataclass(frozen=True)
class EnergyTable:
    """mJ of each block by its table key (contract 6.10), and of a call apart from its blocks."""

    entries: Mapping[str, float]
    num_classes: int
    constant: float = 0.0

    def energy(self, architecture: Architecture) -> float:
        """mJ per batch: the sum over the architecture's blocks, and the constant."""
        blocks = architecture.blocks(None, self.num_classes, distilled=False)
        return sum(self.entries[block.key()] for block in blocks) + self.constant

    @classmethod
    def load(cls, path: str | os.PathLike, space: SearchSpace, num_classes: int) -> "EnergyTable":
        """A file `{"format": "pocketformer.energy-table/1", "entries": {key: mJ, …}, "constant": mJ}`.

        Raises `UserError` unless it answers for every member of the space with that many classes.
        """
        where, values = f"energy table {path}", files.read_json(path, "energy table")
        if not isinstance(values, dict) or values.get("format") != _FORMAT:
            raise UserError(f"{where}: not an energy table (no format {_FORMAT!r})")
        entries = values.get("entries")
        if not isinstance(entries, dict):
            raise UserError(f"{where}: no entries")
        found = {key: _number(value, f"{where}: entry {key!r}") for key, value in entries.items()}
        if missing := [key for key in space_blocks(space, num_classes) if key not in found]:
            raise UserError(
                f"{where} lacks {len(missing)} of the blocks of space {space.name} with {num_classes} classes, "
                f"{missing[0]!r} among them"
            )
        return cls(found, num_classes, _number(values.get("constant", 0.0), f"{where}: constant"))


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise UserError(f"{what} is not a number of mJ: {value!r}")
    return float(value)


@dataclass(frozen=True)
class Power:
    """A device that draws as many watts whatever it runs: energy is power times the table's latency. As a metric
    beside that latency it says nothing new, but it takes budgets in mJ, and weighs devices by what they draw."""

    watts: float
    table: LatencyTable

    def energy(self, architecture: Architecture) -> float:
        return self.watts * self.table.latency(architecture)  # W x ms


def _is_package(zone: Path) -> bool:
    """Not `psys`, which laptops have beside them: the whole platform, its packages included."""
    name = zone / "name"
    return not name.is_file() or name.read_text(encoding="ascii", errors="replace").startswith("package")


class Counters:
    """The energy counters of the processor's packages (RAPL, Intel and AMD on Linux), which count everything that
    the packages do. Raises `UserError` where there are none, or none that this user may read."""

    def __init__(self, folder: Path = _COUNTERS):
        zones = sorted(folder.glob("intel-rapl:*"))  # a package's own parts are intel-rapl:0:1, ...
        self._zones = [zone for zone in zones if zone.name.count(":") == 1 and _is_package(zone)]
        if not self._zones:
            raise UserError(f"no energy counters here (no {folder}/intel-rapl:0): give the watts, or a table of mJ")
        self.read()

    def read(self) -> list[int]:
        """µJ of each package, since some time."""
        try:
            return [self._value(zone / "energy_uj") for zone in self._zones]
        except PermissionError as error:
            raise UserError(f"{error.filename} may not be read (most systems let only root): try as root") from None

    @staticmethod
    def _value(file: Path) -> int:
        return int(file.read_text(encoding="ascii"))

    def joules(self, run: Callable[[], object]) -> float:
        """What the packages take while `run` runs. A counter begins anew after some minutes at full load, which
        shows once; longer runs need to be cut."""
        before = self.read()
        run()
        total = 0
        for zone, start, end in zip(self._zones, before, self.read(), strict=True):
            total += end - start if end >= start else end - start + self._value(zone / "max_energy_range_uj")
        return total / 1e6

    def watts(self, run: Callable[[], object], seconds: float = 5.0) -> float:
        """The mean power while `run` runs again and again."""

        def repeat() -> None:
            while time.perf_counter() - began < seconds:
                run()

        began = time.perf_counter()
        joules = self.joules(repeat)
        if not joules > 0:
            raise WorkError("the energy counters did not move: this machine (a virtual one?) does not keep them")
        return joules / (time.perf_counter() - began)
