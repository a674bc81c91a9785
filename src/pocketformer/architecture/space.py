"""`SearchSpace`: the supernet's shape as data, and which architectures it contains (paper Sec. 4.2.2).

Modules that take milliseconds to import (pathlib, random, yaml) are imported where they are needed.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pocketformer.architecture import metapath
from pocketformer.architecture.architecture import Architecture
from pocketformer.architecture.design import Design, Grid
from pocketformer.architecture.selection import Selection
from pocketformer.architecture.stage import FFN, Attention, Stage
from pocketformer.errors import UserError

if TYPE_CHECKING:
    import random


@dataclass(frozen=True)
class StageSpace:
    """What one stage of the supernet offers. Its slots are `depth` FFNs, or, with `attention`, `depth` pairs of
    an attention block followed by an FFN; every slot is removable, but one FFN must stay."""

    depth: int
    widths: tuple[int, ...]
    attention: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        if not isinstance(self.depth, int) or self.depth < 1:
            raise UserError(f"a stage's depth must be a positive whole number, not {self.depth!r}")
        if not self.widths or list(self.widths) != sorted(set(self.widths)) or self.widths[0] < 1:
            raise UserError(f"a stage's widths must be positive and ascending, not {list(self.widths)}")

    @property
    def slots(self) -> int:
        return self.depth * 2 if self.attention else self.depth

    def is_attention(self, slot: int) -> bool:
        return self.attention and slot % 2 == 0


@dataclass(frozen=True)
class SearchSpace:
    """The set of architectures that a supernet can execute.

    `smallest` is the member that the sandwich trains as its minimum (contract 6.3: by default S0-like, not the
    absolute minimum); `minimum` is the absolute one. With `metapath` only EfficientFormers (V1) are members, whose
    attention blocks come with their FFNs and at the network's end: `architecture.metapath`.
    """

    name: str
    stages: tuple[StageSpace, ...]
    expansions: tuple[float, ...] = (1, 2, 3, 4)
    design: Design = field(default_factory=Design)
    smallest: Architecture | None = None
    metapath: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        object.__setattr__(self, "expansions", tuple(self.expansions))
        if not self.expansions or list(self.expansions) != sorted(set(self.expansions)):
            raise UserError(f"space {self.name}: expansions must be ascending, not {list(self.expansions)}")
        if not all(0 < e < math.inf for e in self.expansions):
            raise UserError(f"space {self.name}: expansions must be above zero, not {list(self.expansions)}")
        if not isinstance(self.metapath, bool):
            raise UserError(f"space {self.name}: metapath must be true or false, not {self.metapath!r}")
        if self.metapath:
            metapath.check_space(self)
        if self.smallest is None:
            object.__setattr__(self, "smallest", self.minimum.architecture)
        self.select(self.smallest)  # must be a member
        for j, grid in enumerate(self.grids):
            if min(grid) < 2 and self.stages[j].attention:
                raise UserError(f"space {self.name}: stage {j + 1} has a grid of {grid[0]}x{grid[1]}; too small")

    @classmethod
    def named(cls, name: str) -> SearchSpace:
        """A space shipped with the package (`SPACES`), or the YAML file at the path `name`."""
        if name in SPACES:
            return cls.load(os.path.join(_FOLDER, f"{name}.yaml"))
        if str(name).endswith((".yaml", ".yml")):
            return cls.load(name)
        raise UserError(f"no search space {name!r}; known: {', '.join(SPACES)}, or the path of a .yaml file")

    @classmethod
    def load(cls, path: str | os.PathLike) -> SearchSpace:
        try:
            with open(path, encoding="utf-8") as file:
                return cls.from_yaml(file.read(), str(path))
        except OSError as error:
            raise UserError(f"search space {path}: {error.strerror or error}") from None
        except UnicodeDecodeError:
            raise UserError(f"search space {path}: not a text file") from None

    @classmethod
    def from_yaml(cls, text: str, where: str) -> SearchSpace:
        import yaml

        try:
            return cls.from_dict(yaml.safe_load(text), where)
        except yaml.YAMLError as error:
            raise UserError(f"search space {where}: not valid YAML ({' '.join(str(error).split())})") from None

    @classmethod
    def from_dict(cls, values: Any, where: str = "space") -> SearchSpace:
        if not isinstance(values, dict) or "stages" not in values:
            raise UserError(f"search space {where}: needs 'stages'")
        if unknown := sorted(set(values) - {"name", "stages", "expansions", "design", "smallest", "metapath"}):
            raise UserError(f"search space {where}: unknown entry {unknown[0]!r}")
        try:
            design = Design.from_dict(values.get("design", {}))
            stages = tuple(StageSpace(**stage) for stage in values["stages"])
            smallest = values.get("smallest")
            if isinstance(smallest, str):  # its stages, whatever the space's resolution and switches
                smallest = Architecture(Architecture.named(smallest).stages, design)
            elif smallest is not None:
                design_of_space = {"design": design.__dict__}
                smallest = Architecture.from_dict({**design_of_space, "stages": smallest}, where)
            rest = values.get("expansions", (1, 2, 3, 4)), design, smallest, values.get("metapath", False)
            return cls(values.get("name", where), stages, *rest)
        except (TypeError, AttributeError) as error:
            raise UserError(f"search space {where}: {error}") from None

    def to_dict(self) -> dict:
        """Plain data from which `from_dict` rebuilds the space."""
        design = {k: list(v) if isinstance(v, tuple) else v for k, v in self.design.__dict__.items()}
        return {
            "name": self.name,
            "design": design,
            "expansions": list(self.expansions),
            "stages": [{"depth": s.depth, "widths": list(s.widths), "attention": s.attention} for s in self.stages],
            "smallest": self.smallest.to_dict()["stages"],
            **({"metapath": True} if self.metapath else {}),
        }

    @property
    def resolution(self) -> Grid:
        return self.design.resolution

    @cached_property
    def grids(self) -> tuple[Grid, ...]:
        """The grid of each stage."""
        from pocketformer.architecture.blocks import Stem, strided

        grid = Stem(3, 2, self.resolution, self.design.stem_strides, "gelu").out_grid
        grids = [grid]
        for stride in self.design.stage_strides:
            grids.append(strided(grids[-1], stride))
        return tuple(grids)

    @cached_property
    def whole(self) -> Selection:
        """The supernet itself: every slot kept, largest widths and expansions."""
        kept = tuple(tuple(range(s.slots)) for s in self.stages)
        expansions = tuple((self.expansions[-1],) * s.depth for s in self.stages)
        return Selection(self, tuple(s.widths[-1] for s in self.stages), kept, expansions)

    @cached_property
    def minimum(self) -> Selection:
        """The absolute minimum: one FFN a stage, smallest widths and expansions."""
        kept = tuple((s.slots - 1,) for s in self.stages)
        expansions = tuple((self.expansions[0],) for _ in self.stages)
        return Selection(self, tuple(s.widths[0] for s in self.stages), kept, expansions)

    @property
    def largest(self) -> Architecture:
        return self.whole.architecture

    def contains(self, architecture: Architecture) -> bool:
        try:
            self.select(architecture)
        except UserError:
            return False
        return True

    def select(self, architecture: Architecture) -> Selection:
        """The default selection of a member: the last fitting slots of each stage, in order (contract 6.4).

        Raises `UserError` that says why if the architecture is not a member.
        """
        if architecture.design != self.design:
            raise UserError(f"space {self.name}: the architecture has other design switches or resolution")
        if len(architecture.stages) != len(self.stages):
            raise UserError(f"space {self.name}: {len(self.stages)} stages, not {len(architecture.stages)}")
        kept, expansions = [], []
        for j, (stage, offer) in enumerate(zip(architecture.stages, self.stages, strict=True)):
            kept.append(self._fit(j, stage, offer))
            expansions.append(tuple(b.expansion for b in stage.blocks if isinstance(b, FFN)))
        widths = tuple(s.width for s in architecture.stages)
        return Selection(self, widths, tuple(kept), tuple(expansions))

    def _fit(self, j: int, stage: Stage, offer: StageSpace) -> tuple[int, ...]:
        slots, slot = [], offer.slots
        for block in reversed(stage.blocks):  # taking the last fitting slot each time never blocks an earlier one
            slot -= 1
            while slot >= 0 and offer.is_attention(slot) != isinstance(block, Attention):
                slot -= 1
            if slot < 0:
                raise UserError(f"space {self.name}: stage {j + 1} has no room for these {len(stage.blocks)} blocks")
            slots.append(slot)
        return tuple(reversed(slots))

    def sample(self, seed: int) -> Architecture:
        """A random member: a function of the seed and the space alone."""
        return self.sample_selection(seed).architecture

    def sample_selection(self, seed: int | random.Random) -> Selection:
        """Contract 6.6: per stage the number of FFNs and of attention blocks uniform, then which; widths and
        expansions uniform. Of EfficientFormers: `metapath.draw`."""
        import random

        rng = seed if isinstance(seed, random.Random) else random.Random(seed)
        if self.metapath:
            chosen = tuple(rng.choice(stage.widths) for stage in self.stages)
            slots = metapath.draw(self, rng)
            counts = [sum(not s.is_attention(i) for i in kept) for s, kept in zip(self.stages, slots, strict=True)]
            return Selection(self, chosen, slots, tuple(tuple(rng.choices(self.expansions, k=n)) for n in counts))
        widths, kept, expansions = [], [], []
        for stage in self.stages:
            widths.append(rng.choice(stage.widths))
            ffn = [i for i in range(stage.slots) if not stage.is_attention(i)]
            attention = [i for i in range(stage.slots) if stage.is_attention(i)]
            slots = rng.sample(ffn, rng.randint(1, len(ffn)))
            expansions.append(tuple(rng.choice(self.expansions) for _ in slots))
            slots += rng.sample(attention, rng.randint(0, len(attention)))
            kept.append(tuple(sorted(slots)))
        return Selection(self, tuple(widths), tuple(kept), tuple(expansions))


_FOLDER = os.path.join(os.path.dirname(__file__), "spaces")
SPACES = tuple(sorted(name.removesuffix(".yaml") for name in os.listdir(_FOLDER) if name.endswith(".yaml")))
