"""`LatencyTable`: what every block of a space costs on a device. Pure Python, as the search needs it."""

import itertools
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pocketformer import files
from pocketformer.architecture import FFN, Architecture, Attention, SearchSpace, placement
from pocketformer.architecture.blocks import BlockValue, Grid
from pocketformer.devices.measure import spearman
from pocketformer.errors import UserError

DOUBTFUL = 0.05  # mean error of a table's check from which on whatever uses the table warns
_FORMAT = "pocketformer.latency-table/1"


def _number(value: Any, what: str, least: float = -math.inf, above: float = -math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{what} is not a number: {value!r}")
    if value < least:
        raise UserError(f"{what} is negative: {value!r}")
    if value <= above:
        raise UserError(f"{what} is not positive: {value!r}")
    return float(value)


@dataclass(frozen=True)
class Entry:
    """One block: what it adds to a network, ms per batch.

    `samples` are the raw rounds of the chain that it was timed in, drift taken out, per block of that chain;
    `spread` is their interquartile range.
    """

    latency: float
    spread: float = 0.0
    samples: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "latency", _number(self.latency, "latency", 0))
        object.__setattr__(self, "spread", _number(self.spread, "spread", 0))
        # Others' tables may hold differences of timings, which noise may push below zero.
        object.__setattr__(self, "samples", tuple(_number(s, "sample") for s in self.samples))


@dataclass(frozen=True)
class Reference:
    """The network that was timed in every round, and its latency in ms; its drift normalises the others."""

    name: str
    latency: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "latency", _number(self.latency, "reference latency", above=0))


@dataclass(frozen=True)
class CheckedNetwork:
    """A whole network that was not used for the table: ms as the table predicts and as measured.

    `repeats` are the ms of the single passes behind `measured`, each with files and sessions of its own.
    """

    name: str
    predicted: float
    measured: float
    repeats: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "predicted", _number(self.predicted, "predicted latency"))
        object.__setattr__(self, "measured", _number(self.measured, "measured latency", above=0))
        object.__setattr__(self, "repeats", tuple(_number(s, "repeat", above=0) for s in self.repeats))

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1


@dataclass(frozen=True)
class Check:
    """The calibration check: relative errors on whole networks that the table has not seen."""

    networks: tuple[CheckedNetwork, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "networks", tuple(self.networks))
        if not self.networks:
            raise UserError("a calibration check needs networks")

    @property
    def mean(self) -> float:
        return sum(abs(n.error) for n in self.networks) / len(self.networks)

    @property
    def bias(self) -> float:
        """The mean error with its sign: above zero where the table says more than was measured."""
        return sum(n.error for n in self.networks) / len(self.networks)

    @property
    def worst(self) -> float:
        return max(abs(n.error) for n in self.networks)

    @property
    def repeatability(self) -> float | None:
        """How far two passes of the same network are apart, as a share of its time: the mean over networks and pairs
        of passes, or None if there was only one pass."""
        pairs = [abs(a - b) / n.measured for n in self.networks for a, b in itertools.combinations(n.repeats, 2)]
        return sum(pairs) / len(pairs) if pairs else None

    @property
    def spearman(self) -> float | None:
        """Rank correlation of predicted and measured times; None where one of them is the same for all."""
        return spearman([n.predicted for n in self.networks], [n.measured for n in self.networks])


@dataclass(frozen=True)
class LatencyTable:
    """Latency of the blocks of a space, measured on one device by one runtime (contract 6.8, 6.10).

    `entries` by block key, ms per batch; `constant` is what a network takes besides its blocks, and may be
    negative; `unit` is MobileNetV2 x1.0's latency in ms at the same input size and number of classes in the
    same profile run. `resolution` is (height, width) in px. `fingerprint` says where and how it was measured.
    """

    entries: Mapping[str, Entry]
    constant: float
    unit: float
    reference: Reference
    space: str
    num_classes: int
    resolution: Grid
    fingerprint: Mapping[str, Any] = field(default_factory=dict)
    check: Check | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "entries", dict(self.entries))
        object.__setattr__(self, "fingerprint", dict(self.fingerprint))
        object.__setattr__(self, "resolution", tuple(self.resolution))
        object.__setattr__(self, "constant", _number(self.constant, "constant"))
        object.__setattr__(self, "unit", _number(self.unit, "unit", above=0))
        if not self.entries:
            raise UserError("a latency table needs entries")

    def latency(self, architecture: Architecture) -> float:
        """ms per batch: the sum over the architecture's blocks, and the constant.

        Raises `UserError` if a block was not measured: the table is of another space, grid or class count.
        """
        blocks = architecture.blocks(self.resolution, self.num_classes, distilled=False)
        return sum(self[block] for block in blocks) + self.constant

    def __getitem__(self, block: BlockValue) -> float:
        """ms of one block."""
        try:
            return self.entries[block.key()].latency
        except KeyError:
            size = f"{self.resolution[0]}x{self.resolution[1]} px, {self.num_classes} classes"
            raise UserError(
                f"the latency table has no entry {block.key()!r}: it was measured for space {self.space} "
                f"({size}); profile the space you search"
            ) from None

    @property
    def checked_range(self) -> tuple[float, float] | None:
        """The fastest and the slowest network of the check, as shares of the reference's latency."""
        if self.check is None:
            return None
        times = [n.measured / self.reference.latency for n in self.check.networks]
        return min(times), max(times)

    def reference_error(self, space: SearchSpace) -> float | None:
        """How far the table is off for the network that it was timed beside: predicted / measured - 1. None where that
        is not the largest member of the space."""
        if self.reference.name != "largest" or self.missing(space) != []:
            return None
        return self.latency(space.largest) / self.reference.latency - 1

    def missing(self, space: SearchSpace) -> list[str] | None:
        """Keys of the space's blocks that have no entry; none: `latency` answers for every member. None for images of
        another size."""
        if self.resolution != space.resolution:
            return None
        return [key for key in space_blocks(space, self.num_classes) if key not in self.entries]

    def to_dict(self) -> dict:
        entries = {k: {**asdict(e), "samples": list(e.samples)} for k, e in self.entries.items()}
        check = None
        if self.check is not None:
            networks = [{**asdict(n), "repeats": list(n.repeats)} for n in self.check.networks]
            check = {name: getattr(self.check, name) for name in ("mean", "bias", "worst", "repeatability", "spearman")}
            check["range"] = list(self.checked_range)
            check["networks"] = networks
        return {
            "format": _FORMAT,
            "space": self.space,
            "num_classes": self.num_classes,
            "resolution": list(self.resolution),
            "constant": self.constant,
            "unit": self.unit,
            "reference": asdict(self.reference),
            "fingerprint": self.fingerprint,
            "check": check,
            "entries": entries,
        }

    @classmethod
    def from_dict(cls, values: Any, where: str = "latency table") -> "LatencyTable":
        if not isinstance(values, dict) or values.get("format") != _FORMAT:
            raise UserError(f"{where}: not a latency table (no format {_FORMAT!r})")
        try:
            entries = {}
            for key, entry in values["entries"].items():
                try:
                    entries[key] = Entry(**entry)
                except (TypeError, UserError) as error:
                    raise UserError(f"entry {key!r}: {error}") from None
            check = values.get("check")
            if check is not None:
                check = Check(tuple(CheckedNetwork(**n) for n in check["networks"]))
            rest = ("constant", "unit", "space", "num_classes", "resolution")
            reference = Reference(**values["reference"])
            fingerprint = values.get("fingerprint", {})
            return cls(
                entries,
                reference=reference,
                fingerprint=fingerprint,
                check=check,
                **{k: values[k] for k in rest},
            )
        except KeyError as error:
            raise UserError(f"{where}: {error.args[0]!r} is missing") from None
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        except (TypeError, AttributeError, ValueError) as error:
            raise UserError(f"{where}: not a latency table ({error})") from None

    @classmethod
    def load(cls, path: str | os.PathLike) -> "LatencyTable":
        return cls.from_dict(files.read_json(path, "latency table"), f"latency table {path}")

    def save(self, path: str | os.PathLike) -> None:
        files.write_json(path, self.to_dict())


def space_blocks(space: SearchSpace, num_classes: int) -> dict[str, BlockValue]:
    """Every block that a member of the space may hold, by key, at the space's resolution."""
    design, stages, blocks = space.design, space.stages, []
    for width in stages[0].widths:
        blocks.append(placement.stem(design, 3, width, space.resolution))
    for j, (stage, grid) in enumerate(zip(stages, space.grids, strict=True)):
        for width in stage.widths:
            if j > 0:
                for in_width in stages[j - 1].widths:
                    blocks.append(placement.downsampling(design, j, in_width, width, space.grids[j - 1]))
            kinds = [FFN(e) for e in space.expansions] + [Attention()] * stage.attention
            for before in [(), (Attention(),)][: 1 + stage.attention]:  # in some designs, blocks behind one differ
                blocks.extend(placement.block(design, j, width, kind, grid, before) for kind in kinds)
    for width in stages[-1].widths:
        for tokens in sorted({False, placement.on_tokens(design, [Attention()] * stages[-1].attention)}):
            blocks.append(placement.head(design, width, space.grids[-1], num_classes, False, tokens))
    return {block.key(): block for block in blocks}
