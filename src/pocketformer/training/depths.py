"""How values of more than 8 bits become 0 to 255: by one rule for all images of a set."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pocketformer.errors import UserError

BITS = (1, *range(8, 33, 2))  # of integers; 1: masks of 0 and 1
SPANS = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))  # of real numbers


@dataclass(frozen=True)
class Extent:
    """Smallest and largest value met: of integers of more than 8 bits, and of real numbers. None: there were none."""

    whole: tuple[int, int] | None = None
    real: tuple[float, float] | None = None

    @classmethod
    def of(cls, values: np.ndarray) -> "Extent":
        """Of one image's values. Raises `ValueError` where some are not finite."""
        low, high = values.min().item(), values.max().item()
        if values.dtype.kind != "f":
            return cls(whole=(low, high))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("holds values that are not numbers (NaN, infinity)")
        return cls(real=(low, high))

    @classmethod
    def over(cls, extents: Iterable["Extent"]) -> "Extent":
        """Of all of them together."""
        extents = list(extents)
        return cls(_joined(e.whole for e in extents), _joined(e.real for e in extents))


def _joined(ranges: Iterable[tuple | None]) -> tuple | None:
    known = [r for r in ranges if r is not None]
    return (min(low for low, _ in known), max(high for _, high in known)) if known else None


@dataclass(frozen=True)
class Depth:
    """The rule: integers have `bits` bits (and, `signed`, zero in their middle), of which the highest eight are kept;
    real numbers from `real[0]` to `real[1]` are spread over 0 to 255. What lies beyond is cut off.

    None is not known: each image then goes by its own values, as `within` says.
    """

    bits: int | None = None
    signed: bool = False
    real: tuple[float, float] | None = None

    def within(self, extent: Extent) -> "Depth":
        """What is not known yet, by the values of a set (or of one image): the fewest of `BITS` that hold its
        integers; of real numbers the first of `SPANS` that does, else from the smallest to the largest."""
        bits, signed, real = self.bits, self.signed, self.real
        if bits is None and extent.whole is not None:
            low, high = extent.whole
            signed = low < 0
            most = max(high, -low - 1) * 2 + 1 if signed else high
            bits = next(b for b in BITS if most < 2**b and not (signed and b < 8))
        if real is None and extent.real is not None:
            low, high = extent.real
            fits = (span for span in SPANS if span[0] <= low and high <= span[1])
            real = next(fits, (low, high))
        return Depth(bits, signed, real)

    def holds(self, extent: Extent) -> bool:
        """Whether nothing of it is cut off."""
        real, whole = extent.real, extent.whole
        if real is not None and not self.real[0] <= real[0] <= real[1] <= self.real[1]:
            return False
        return whole is None or self._lowest <= whole[0] <= whole[1] < self._lowest + 2**self.bits

    @property
    def _lowest(self) -> int:
        return -(2 ** (self.bits - 1)) if self.signed else 0

    def reduced(self, values: np.ndarray) -> np.ndarray:
        """uint8 of integers, or of real numbers, of any shape."""
        if values.dtype.kind == "f":
            low, high = self.real
            scaled = (values.astype(np.float64) - low) * (255 / (high - low or 1.0))
            return np.rint(scaled.clip(0, 255)).astype(np.uint8)
        values = (values.astype(np.int64) - self._lowest).clip(0, 2**self.bits - 1)
        return (values * 255 if self.bits == 1 else values >> (self.bits - 8)).astype(np.uint8)

    def to_dict(self) -> dict[str, Any]:
        return {"bits": self.bits, "signed": self.signed, "real": None if self.real is None else list(self.real)}

    def recorded(self) -> dict[str, Any]:
        """An entry `depth` for a configuration; none where nothing is known."""
        return {} if self == Depth() else {"depth": self.to_dict()}

    @classmethod
    def of_record(cls, configuration: Mapping[str, Any]) -> "Depth":
        """The entry `depth` of a configuration. Without one nothing is known."""
        values = configuration.get("depth")
        if values is None:
            return cls()
        try:
            bits, real = values["bits"], values["real"]
            bits = None if bits is None else BITS[BITS.index(bits)]
            return cls(bits, bool(values["signed"]), None if real is None else (float(real[0]), float(real[1])))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise UserError(f"the depth of images in a configuration is not understood ({error})") from None

    def text(self) -> str:
        """The rule as one tells it."""
        parts = []
        if self.bits is not None:
            last, bits = self._lowest + 2**self.bits - 1, f"{self.bits} bit{'s' * (self.bits > 1)}"
            parts.append(f"integers from {self._lowest} to {last} ({bits})")
        if self.real is not None:
            parts.append(f"real numbers from {self.real[0]:g} to {self.real[1]:g}")
        return " and ".join(parts)
