"""`Design`: the frozen switches that all blocks of an architecture share (the papers' ablations)."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from operator import index
from typing import Any

from pocketformer.errors import UserError

Grid = tuple[int, int]

ACTIVATIONS = ("gelu", "relu", "hardswish")
_CHOICES = {
    "stem_activation": ("", *ACTIVATIONS),
    "norm": ("bn", "gn"),
    "stem": ("conv", "large-kernel"),
    "token_mixer": ("ffn", "dwconv", "pool"),
    "attention": ("map", "tokens"),
    "strided_attention": ("stride", "keys-values"),
}
DOWNSAMPLINGS = ("conv", "attention", "dual-path")


def pair(value: Any) -> Grid:
    """An image size as (height, width): of one whole number, or of two."""
    try:
        size = tuple(map(index, value)) if isinstance(value, Iterable) else (index(value),) * 2
    except TypeError:
        size = ()
    if len(size) != 2 or min(size) < 1:
        raise UserError(f"an image size is a whole number of px or a pair (height, width), not {value!r}")
    return size


@dataclass(frozen=True)
class Design:
    """Defaults are EfficientFormerV2's (pitfalls 8, 9); `EFFICIENTFORMER` has those of V1.

    `resolution` is the native input size; a model may be built for another (`create_model(resolution=)`).
    Small images need fewer strides: a space states them here (contract 6.13).
    """

    resolution: Grid = (224, 224)
    activation: str | tuple[str, ...] = "gelu"  # of all blocks, or one a stage
    stem_activation: str = ""  # "" is that of stage 1
    norm: str = "bn"  # of maps; gn is GroupNorm with one group (V1 Table 3)
    stem: str = "conv"  # or large-kernel: one 7x7 convolution (V1 Table 3)
    stem_strides: tuple[int, int] = (2, 2)
    stage_strides: tuple[int, ...] = (2, 2, 2)  # of the downsampling in front of stages 2, 3, 4
    downsampling: tuple[str, ...] = ("conv", "conv", "dual-path")
    token_mixer: str = "ffn"  # of local blocks: inside the unified FFN, or a residual of its own (V2 Sec. 3.1)
    attention: str = "map"  # convolutions on a map (V2), or linears on tokens (V1)
    attention_strides: tuple[int, ...] = (1, 1, 2, 1)  # per stage
    strided_attention: str = "stride"  # what a stride > 1 applies to: q, k and v, or only k and v (V2 eq. 1)
    local_value: bool = True
    talking_heads: bool = True
    attention_bias: bool = True
    heads: int = 8
    key_dim: int = 32
    value_dim: int = 128
    downsampling_heads: int = 8
    downsampling_key_dim: int = 16
    downsampling_value_dim: int = 64

    def __post_init__(self) -> None:
        object.__setattr__(self, "resolution", pair(self.resolution))
        for name in ("stem_strides", "stage_strides", "downsampling", "attention_strides"):
            if not isinstance(getattr(self, name), list | tuple):
                raise UserError(f"{name.replace('_', ' ')} is a list, not {getattr(self, name)!r}")
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if isinstance(self.activation, list | tuple):
            # A list of equal names says what the name alone says, and must compare and be stored as it.
            names = tuple(self.activation)
            object.__setattr__(self, "activation", names[0] if names and names == names[:1] * self.stages else names)
        for name in self.activation if isinstance(self.activation, tuple) else (self.activation,):
            _check_choice("activation", name, ACTIVATIONS)
        for name, choices in _CHOICES.items():
            _check_choice(name.replace("_", " "), getattr(self, name), choices)
        for name in self.downsampling:
            _check_choice("downsampling", name, DOWNSAMPLINGS)
        for name in ("local_value", "talking_heads", "attention_bias"):
            if not isinstance(getattr(self, name), bool):
                raise UserError(f"{name.replace('_', ' ')} must be true or false, not {getattr(self, name)!r}")
        numbers = (*self.resolution, *self.stem_strides, *self.stage_strides, *self.attention_strides)
        sizes = (self.heads, self.key_dim, self.value_dim, self.downsampling_heads)
        sizes += (self.downsampling_key_dim, self.downsampling_value_dim)
        if any(type(n) is not int or n < 1 for n in numbers + sizes):  # true is an int, too
            raise UserError("a design's sizes, strides and head counts must be positive whole numbers")
        if len(self.stem_strides) != 2:
            raise UserError("a design has two stem strides")
        if not len(self.stage_strides) == len(self.downsampling) == len(self.attention_strides) - 1:
            raise UserError(
                "a design for n stages has n - 1 stage strides, n - 1 downsamplings and n attention strides"
            )
        if isinstance(self.activation, tuple) and len(self.activation) != self.stages:
            raise UserError(f"activation is one name or one a stage: {self.stages}, not {len(self.activation)}")
        if self.attention == "tokens" and (self.local_value or self.talking_heads or max(self.attention_strides) > 1):
            raise UserError(
                "attention on tokens has no local value, talking heads or stride: switch them off, or use 'map'"
            )

    @property
    def stages(self) -> int:
        return len(self.attention_strides)

    @property
    def activations(self) -> tuple[str, ...]:
        """One a stage: of its blocks, and of the downsampling that leads to it."""
        return self.activation if isinstance(self.activation, tuple) else (self.activation,) * self.stages

    @property
    def activation_of_stem(self) -> str:
        return self.stem_activation or self.activations[0]

    @property
    def total_stride(self) -> int:
        """Of the last stage's grid against the image."""
        stride = self.stem_strides[0] * self.stem_strides[1]
        for s in self.stage_strides:
            stride *= s
        return stride

    def check_size(self, size: Grid) -> None:
        """Raises `UserError` for an image that the strides leave nothing of."""
        if min(size) < self.total_stride:
            need = f"{self.total_stride} px at least"
            raise UserError(f"an image of {size[0]}x{size[1]} px is too small for the strides of its stages: {need}")

    @classmethod
    def from_dict(cls, values: dict) -> "Design":
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise UserError(f"unknown design switch {unknown[0]!r}; known: {', '.join(sorted(known))}")
        return cls(**values)


def _check_choice(what: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{what} {value!r} is not one of {', '.join(filter(None, choices))}")


# V1 (Sec. 4.1): pooling mixers, attention on tokens, convolutions between stages, ReLU in the stem (pitfall 2).
EFFICIENTFORMER = Design(
    stem_activation="relu",
    downsampling=("conv", "conv", "conv"),
    token_mixer="pool",
    attention="tokens",
    attention_strides=(1, 1, 1, 1),
    local_value=False,
    talking_heads=False,
)
