"""`Architecture`: the frozen value that describes a network. JSON in, JSON out; imports no torch.

The blocks' own values take milliseconds to import: they are imported when first needed.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pocketformer.architecture.design import Design, Grid, pair
from pocketformer.architecture.stage import Stage, parse_block
from pocketformer.errors import UserError

if TYPE_CHECKING:
    from pocketformer.architecture.blocks import BlockValue
    from pocketformer.architecture.layers import Cost

_FORMAT = "pocketformer.architecture/1"


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
        if self.design.stem == "conv" and self.stages[0].width < 2:
            raise UserError("the stem's first convolution has half the width of stage 1, which must be 2 or more")

    @classmethod
    def named(cls, name: str) -> Architecture:
        """A published architecture. Raises `UserError` with the nearest names if there is none."""
        from pocketformer.architecture.published import published

        return published(name)

    @classmethod
    def find(cls, value: Any) -> Architecture:
        """What a person may name one by: itself, a published name, its plain data, the path of its JSON, or of a
        folder that holds one."""
        if isinstance(value, Architecture):
            return value
        if isinstance(value, dict):
            return cls.from_dict(value)
        if isinstance(value, str | os.PathLike):
            if os.path.isdir(value):
                return cls.load(os.path.join(value, "architecture.json"))
            path = isinstance(value, os.PathLike) or value.endswith(".json")
            return cls.load(value) if path else cls.named(value)
        raise UserError(f"an architecture is an Architecture, a name or the path of its JSON, not {value!r}")

    @classmethod
    def load(cls, path: str | os.PathLike) -> Architecture:
        from pocketformer import files

        return cls.from_dict(files.read_json(path, "architecture file"), where=str(path))

    def save(self, path: str | os.PathLike) -> None:
        from pocketformer import files

        files.write_json(path, self.to_dict())

    def to_dict(self) -> dict:
        stages = [{"width": s.width, "blocks": [str(b) for b in s.blocks]} for s in self.stages]
        return {"format": _FORMAT, "stages": stages, "design": asdict(self.design)}

    @classmethod
    def from_dict(cls, values: Any, where: str = "architecture") -> Architecture:
        if not isinstance(values, dict) or "stages" not in values:
            raise UserError(f"{where}: not an architecture (no 'stages')")
        if values.get("format", _FORMAT) != _FORMAT:
            raise UserError(f"{where}: format {values['format']!r} is not {_FORMAT!r}")
        try:
            stages = tuple(Stage(s["width"], tuple(map(parse_block, s["blocks"]))) for s in values["stages"])
            return cls(stages, Design.from_dict(values.get("design", {})))
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{where}: not an architecture ({type(error).__name__}: {error})") from None

    def with_design(self, **switches: Any) -> Architecture:
        """The same stages under other design switches, for example `with_design(token_mixer="dwconv")`."""
        return replace(self, design=Design.from_dict({**self.design.__dict__, **switches}))

    def blocks(
        self,
        resolution: int | Grid | None = None,
        num_classes: int = 1000,
        distilled: bool = True,
        in_chans: int = 3,
    ) -> tuple[BlockValue, ...]:
        """Every block from stem to head in order of execution, with widths and grids filled in."""
        from pocketformer.architecture import placement

        d = self.design
        size = d.resolution if resolution is None else pair(resolution)
        if in_chans < 1 or num_classes < 0:
            raise UserError(f"a network needs channels and no fewer than 0 classes, not {in_chans} and {num_classes}")
        d.check_size(size)
        layer: BlockValue = placement.stem(d, in_chans, self.stages[0].width, size)
        result = [layer]
        for j, stage in enumerate(self.stages):
            if j > 0:
                layer = placement.downsampling(d, j, self.stages[j - 1].width, stage.width, layer.out_grid)
                result.append(layer)
            for i, block in enumerate(stage.blocks):
                result.append(placement.block(d, j, stage.width, block, layer.out_grid, stage.blocks[:i]))
        tokens = placement.on_tokens(d, stage.blocks)
        return (*result, placement.head(d, stage.width, layer.out_grid, num_classes, distilled, tokens))

    def parameters(
        self,
        num_classes: int = 1000,
        distilled: bool = True,
        resolution: int | Grid | None = None,
        in_chans: int = 3,
    ) -> int:
        """Trainable parameters, both heads if `distilled` (contract 6.2)."""
        return self._cost(resolution, num_classes, distilled, in_chans).parameters

    def macs(
        self,
        resolution: int | Grid | None = None,
        num_classes: int = 1000,
        distilled: bool = True,
        in_chans: int = 3,
    ) -> int:
        """Multiply-adds of one image: convolutions, linears and the attention products."""
        return self._cost(resolution, num_classes, distilled, in_chans).macs

    def paper_parameters(self, num_classes: int = 1000) -> int:
        """Parameters in the convention of the papers' tables (`architecture.layers`), both heads."""
        return self._cost(None, num_classes, True, 3).paper_parameters

    def paper_macs(self, resolution: int | Grid | None = None, num_classes: int = 1000) -> int:
        """Multiply-adds of one image in the convention of the papers' tables, both heads."""
        return self._cost(resolution, num_classes, True, 3).paper_macs

    def weight_bytes(
        self,
        num_classes: int = 1000,
        distilled: bool = True,
        resolution: int | Grid | None = None,
        in_chans: int = 3,
    ) -> int:
        """Bytes of the network's tensors in a checkpoint: float32 parameters and running statistics."""
        cost = self._cost(resolution, num_classes, distilled, in_chans)
        return 4 * cost.parameters + cost.buffer_bytes

    def peak_memory(self, resolution: int | Grid | None = None, num_classes: int = 1000) -> int:
        """Bytes of the largest set of activations alive at once in the fused graph; float32, batch 1.
        `architecture.block` says what counts as alive."""
        return 4 * max(b.activations() for b in self.blocks(resolution, num_classes, distilled=False))

    def _cost(self, resolution: int | Grid | None, num_classes: int, distilled: bool, in_chans: int) -> Cost:
        from pocketformer.architecture import layers

        return layers.sum_costs(b.cost for b in self.blocks(resolution, num_classes, distilled, in_chans))
