"""`Architecture`: the frozen value that describes a network. JSON in, JSON out; imports no torch."""

import math
import os
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from pocketformer.architecture import blocks as block_values
from pocketformer.architecture.blocks import BlockValue, Grid
from pocketformer.errors import UserError

ACTIVATIONS = ("gelu", "relu", "hardswish")
DOWNSAMPLINGS = ("conv", "dual-path")
_FORMAT = "pocketformer.architecture/1"


@dataclass(frozen=True)
class Attention:
    """A global block: MHSA with its residual. Alone it is legal; published networks follow it with an FFN."""

    def __str__(self) -> str:
        return "attention"


@dataclass(frozen=True)
class FFN:
    """A local block: unified FFN with the expansion ratio E (paper eq. 4)."""

    expansion: float

    def __str__(self) -> str:
        short = f"{self.expansion:g}"  # of six digits; JSON keeps blocks as text, so nothing may be lost
        return f"ffn{short if float(short) == self.expansion else repr(self.expansion)}"


Block = Attention | FFN


def parse_block(text: Any) -> Block:
    if text == "attention":
        return Attention()
    try:
        expansion = float(str(text).removeprefix("ffn"))
        if not math.isfinite(expansion):
            raise ValueError
    except ValueError:
        raise UserError(f"block {text!r} is neither 'attention' nor 'ffn' with a ratio such as 'ffn4'") from None
    return FFN(int(expansion) if expansion == int(expansion) else expansion)


@dataclass(frozen=True)
class Stage:
    width: int
    blocks: tuple[Block, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", tuple(self.blocks))
        if not isinstance(self.width, int) or self.width < 1:
            raise UserError(f"a stage's width must be a positive whole number, not {self.width!r}")
        if not self.blocks:
            raise UserError("a stage needs at least one block")
        for block in self.blocks:
            if isinstance(block, FFN) and int(self.width * block.expansion) < 1:
                raise UserError(f"expansion {block.expansion:g} of width {self.width} leaves no hidden channel")


def _pair(value: Any) -> Grid:
    return (value, value) if isinstance(value, int) else tuple(value)


@dataclass(frozen=True)
class Design:
    """The switches that all blocks share. Defaults are EfficientFormerV2's (pitfalls 8, 9).

    `resolution` is the native input size; a model may be built for another (`create_model(resolution=)`).
    Small images need fewer strides: a space states them here (contract 6.13).
    """

    resolution: Grid = (224, 224)
    activation: str = "gelu"
    stem_strides: tuple[int, int] = (2, 2)
    stage_strides: tuple[int, ...] = (2, 2, 2)  # of the downsampling in front of stages 2, 3, 4
    downsampling: tuple[str, ...] = ("conv", "conv", "dual-path")
    attention_strides: tuple[int, ...] = (1, 1, 2, 1)  # per stage; > 1 is stride attention
    heads: int = 8
    key_dim: int = 32
    value_dim: int = 128
    downsampling_heads: int = 8
    downsampling_key_dim: int = 16
    downsampling_value_dim: int = 64

    def __post_init__(self) -> None:
        object.__setattr__(self, "resolution", _pair(self.resolution))
        for name in ("stem_strides", "stage_strides", "downsampling", "attention_strides"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.activation not in ACTIVATIONS:
            raise UserError(f"activation {self.activation!r} is not one of {', '.join(ACTIVATIONS)}")
        for name in self.downsampling:
            if name not in DOWNSAMPLINGS:
                raise UserError(f"downsampling {name!r} is not one of {', '.join(DOWNSAMPLINGS)}")
        numbers = (*self.resolution, *self.stem_strides, *self.stage_strides, *self.attention_strides)
        sizes = (self.heads, self.key_dim, self.value_dim, self.downsampling_heads)
        sizes += (self.downsampling_key_dim, self.downsampling_value_dim)
        if any(not isinstance(n, int) or n < 1 for n in numbers + sizes):
            raise UserError("a design's sizes, strides and head counts must be positive whole numbers")
        if len(self.resolution) != 2 or len(self.stem_strides) != 2:
            raise UserError("a design has two image sides and two stem strides")
        if not len(self.stage_strides) == len(self.downsampling) == len(self.attention_strides) - 1:
            raise UserError(
                "a design for n stages has n - 1 stage strides, n - 1 downsamplings and n attention strides"
            )

    @classmethod
    def from_dict(cls, values: dict) -> "Design":
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise UserError(f"unknown design switch {unknown[0]!r}; known: {', '.join(sorted(known))}")
        return cls(**values)


@dataclass(frozen=True)
class Architecture:
    """A network as a value: per stage a width and a sequence of blocks, and one set of design switches.

    >>> Architecture.named("efficientformerv2_s0").parameters()
    3600256
    """

    stages: tuple[Stage, ...]
    design: Design = field(default_factory=Design)

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        if len(self.stages) != len(self.design.attention_strides):
            raise UserError(f"{len(self.stages)} stages, but the design describes {len(self.design.attention_strides)}")

    @classmethod
    def named(cls, name: str) -> "Architecture":
        """A published architecture. Raises `UserError` with the nearest names if there is none."""
        from pocketformer.architecture.published import published

        return published(name)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Architecture":
        from pocketformer import files

        return cls.from_dict(files.read_json(path, "architecture file"), where=str(path))

    def save(self, path: str | os.PathLike) -> None:
        from pocketformer import files

        files.write_json(path, self.to_dict())

    def to_dict(self) -> dict:
        stages = [{"width": s.width, "blocks": [str(b) for b in s.blocks]} for s in self.stages]
        return {"format": _FORMAT, "stages": stages, "design": asdict(self.design)}

    @classmethod
    def from_dict(cls, values: Any, where: str = "architecture") -> "Architecture":
        if not isinstance(values, dict) or "stages" not in values:
            raise UserError(f"{where}: not an architecture (no 'stages')")
        if values.get("format", _FORMAT) != _FORMAT:
            raise UserError(f"{where}: format {values['format']!r} is not {_FORMAT!r}")
        try:
            stages = tuple(Stage(s["width"], tuple(map(parse_block, s["blocks"]))) for s in values["stages"])
            return cls(stages, Design.from_dict(values.get("design", {})))
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{where}: not an architecture ({type(error).__name__}: {error})") from None

    def blocks(
        self,
        resolution: int | Grid | None = None,
        num_classes: int = 1000,
        distilled: bool = True,
        in_chans: int = 3,
    ) -> tuple[BlockValue, ...]:
        """Every block from stem to head in order of execution, with widths and grids filled in."""
        d = self.design
        layer: BlockValue = block_values.Stem(
            in_chans, self.stages[0].width, _pair(resolution or d.resolution), d.stem_strides, d.activation
        )
        result = [layer]
        for j, stage in enumerate(self.stages):
            if j > 0:
                layer = downsampling_block(d, j, self.stages[j - 1].width, stage.width, layer.out_grid)
                result.append(layer)
            for block in stage.blocks:
                result.append(stage_block(d, j, stage.width, block, layer.out_grid))
        grid = layer.out_grid
        return (*result, block_values.Head(self.stages[-1].width, grid, num_classes, distilled))

    def parameters(
        self,
        num_classes: int = 1000,
        distilled: bool = True,
        resolution: int | Grid | None = None,
        in_chans: int = 3,
    ) -> int:
        """Trainable parameters, both heads if `distilled` (contract 6.2)."""
        return sum(b.parameters() for b in self.blocks(resolution, num_classes, distilled, in_chans))

    def macs(
        self,
        resolution: int | Grid | None = None,
        num_classes: int = 1000,
        distilled: bool = True,
        in_chans: int = 3,
    ) -> int:
        """Multiply-adds of one image: convolutions, linears and the attention products."""
        return sum(b.macs() for b in self.blocks(resolution, num_classes, distilled, in_chans))

    def peak_memory(self, resolution: int | Grid | None = None, num_classes: int = 1000) -> int:
        """Bytes of the largest set of activations alive at once in the fused graph; float32, batch 1."""
        return 4 * max(b.activations() for b in self.blocks(resolution, num_classes, distilled=False))


def downsampling_block(design: Design, stage: int, in_width: int, width: int, grid: Grid) -> BlockValue:
    """The downsampling in front of `stage` (counted from 0), whose input has `grid`."""
    stride = design.stage_strides[stage - 1]
    if design.downsampling[stage - 1] == "conv":
        return block_values.ConvDownsampling(in_width, width, grid, stride, design.activation)
    return block_values.DualPathDownsampling(
        in_width,
        width,
        design.downsampling_heads,
        design.downsampling_key_dim,
        design.downsampling_value_dim,
        grid,
        stride,
        design.activation,
    )


def stage_block(design: Design, stage: int, width: int, block: Block, grid: Grid) -> BlockValue:
    """`block` of `stage` (counted from 0) at the stage's width and grid."""
    if isinstance(block, FFN):
        return block_values.FFNBlock(width, block.expansion, grid, design.activation)
    return block_values.AttentionBlock(
        width,
        design.heads,
        design.key_dim,
        design.value_dim,
        grid,
        design.attention_strides[stage],
        design.activation,
    )
