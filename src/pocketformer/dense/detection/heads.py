"""What stands on the backbone of a detector, as one frozen value."""

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import yaml

from pocketformer.errors import UserError
from pocketformer.training.entries import as_number, is_number

_WHOLE = ("width", "hidden", "mask_convs", "proposals", "candidates", "samples", "detections")


@dataclass(frozen=True)
class Heads:
    """Mask R-CNN as both papers have it (MMDetection's R-50-FPN), or Faster R-CNN without `masks`.

    `width`: channels of the pyramid and of the convolutional heads; `hidden`: of the box head's two linears;
    `anchor_scale`: side of an anchor, in strides of its map; `candidates` and `proposals`: boxes before (per map, in
    training twice as many) and after the first NMS; `samples`: boxes an image that the second stage learns from.
    `score`, `nms` and `detections` are of the result; a mask is where its probability is above `mask_threshold`.
    """

    masks: bool = True
    width: int = 256
    hidden: int = 1024
    mask_convs: int = 4
    anchor_scale: float = 8.0
    candidates: int = 1000
    proposals: int = 1000
    samples: int = 512
    score: float = 0.05
    nms: float = 0.5
    detections: int = 100
    mask_threshold: float = 0.5

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name == "masks":
                good = isinstance(value, bool)
            elif name in ("score", "nms", "mask_threshold"):
                good = is_number(value) and 0 <= value <= 1
            else:
                good = is_number(value) and 0 < value < math.inf and (name not in _WHOLE or value == int(value))
            if not good:
                raise UserError(f"detector: {name} cannot be {value!r}")
            if name in _WHOLE:
                object.__setattr__(self, name, int(value))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Heads":
        """Of plain data; `UserError` for an unknown entry or value."""
        known = [f.name for f in fields(cls)]
        if unknown := [name for name in values if name not in known]:
            raise UserError(f"detector: unknown entry {unknown[0]!r}; known: {', '.join(known)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def with_text(self, settings: list[str]) -> "Heads":
        """With entries given as `NAME=VALUE`; `masks` is told by the data, not here."""
        found = self
        for text in settings:
            name, equals, value = text.partition("=")
            if not equals or name not in self.to_dict() or name == "masks":
                known = ", ".join(n for n in self.to_dict() if n != "masks")
                raise UserError(f"--set detector.{text}: write it as detector.NAME=VALUE; known: {known}")
            try:
                found = replace(found, **{name: as_number(yaml.safe_load(value))})
            except yaml.YAMLError:
                raise UserError(f"--set detector.{text}: {value!r} is not a value") from None
        return found
