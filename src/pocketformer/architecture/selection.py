"""`Selection`: which slots of a supernet, at which widths and expansions, an architecture borrows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from pocketformer.architecture import metapath
from pocketformer.architecture.architecture import Architecture
from pocketformer.architecture.stage import FFN, Attention, Stage
from pocketformer.errors import UserError

if TYPE_CHECKING:
    from pocketformer.architecture.space import SearchSpace


class Step(NamedTuple):
    """One layer of the supernet at one switch: equal steps on equal inputs give equal outputs."""

    kind: str  # "stem", "downsampling", "attention", "ffn", "head"
    stage: int
    slot: int  # -1 unless in a stage
    in_width: int
    width: int
    expansion: float = 0
    tokens: bool = False  # an FFN or the head of V1's design behind an attention block: MB3D's MLP, a LayerNorm


@dataclass(frozen=True)
class Selection:
    """A subnet of a supernet. `kept[j]` are the slots of stage j in order; `expansions[j]` belong to its FFNs.

    Two selections may be the same architecture with different weights.
    """

    space: SearchSpace = field(repr=False, compare=False)
    widths: tuple[int, ...]
    kept: tuple[tuple[int, ...], ...]
    expansions: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        name, stages = self.space.name, self.space.stages
        if not len(self.widths) == len(self.kept) == len(self.expansions) == len(stages):
            raise UserError(f"space {name} has {len(stages)} stages")
        for j, (offer, width, kept) in enumerate(zip(stages, self.widths, self.kept, strict=True)):
            where = f"space {name}: stage {j + 1}"
            if width not in offer.widths:
                raise UserError(f"{where}: width {width} is not one of {list(offer.widths)}")
            if list(kept) != sorted(set(kept)) or not all(0 <= slot < offer.slots for slot in kept):
                raise UserError(f"{where}: slots {list(kept)} are not ascending within 0..{offer.slots - 1}")
            ffns = sum(not offer.is_attention(slot) for slot in kept)
            if ffns == 0:
                raise UserError(f"{where}: at least one FFN must be kept")
            if len(self.expansions[j]) != ffns:
                raise UserError(f"{where}: {ffns} FFNs but {len(self.expansions[j])} expansions")
            for expansion in self.expansions[j]:
                if expansion not in self.space.expansions:
                    raise UserError(f"{where}: expansion {expansion:g} is not in {list(self.space.expansions)}")
        if self.space.metapath:
            metapath.check(self)

    @cached_property
    def architecture(self) -> Architecture:
        stages = []
        for j, width in enumerate(self.widths):
            ratio = iter(self.expansions[j])
            attention = self.space.stages[j].is_attention
            blocks = (Attention() if attention(slot) else FFN(next(ratio)) for slot in self.kept[j])
            stages.append(Stage(width, tuple(blocks)))
        return Architecture(tuple(stages), self.space.design)

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """The layers to execute, from stem to head."""
        v1, tokens = self.space.design.attention == "tokens", False
        steps = [Step("stem", 0, -1, 0, self.widths[0])]
        for j, width in enumerate(self.widths):
            if j > 0:
                steps.append(Step("downsampling", j, -1, self.widths[j - 1], width))
            ratio, tokens = iter(self.expansions[j]), False
            for slot in self.kept[j]:
                if self.space.stages[j].is_attention(slot):
                    tokens = v1
                    steps.append(Step("attention", j, slot, width, width))
                else:
                    steps.append(Step("ffn", j, slot, width, width, next(ratio), tokens))
        last = self.widths[-1]
        return (*steps, Step("head", len(self.widths) - 1, -1, last, last, tokens=tokens))

    def expansion(self, stage: int, slot: int) -> float:
        """The expansion of a kept FFN slot."""
        return self._ratios(stage)[slot]

    def _ratios(self, stage: int) -> dict[int, float]:
        ffns = (s for s in self.kept[stage] if not self.space.stages[stage].is_attention(s))
        return dict(zip(ffns, self.expansions[stage], strict=True))

    def _with_stage(self, stage: int, kept: tuple[int, ...], ratios: dict[int, float]) -> Selection:
        expansions = tuple(ratios[slot] for slot in kept if slot in ratios)
        return replace(
            self,
            kept=(*self.kept[:stage], kept, *self.kept[stage + 1 :]),
            expansions=(*self.expansions[:stage], expansions, *self.expansions[stage + 1 :]),
        )

    def may_lose(self, stage: int, slot: int) -> bool:
        """Whether it may be `without` a kept slot."""
        offer = self.space.stages[stage]
        if not offer.is_attention(slot):
            return sum(not offer.is_attention(s) for s in self.kept[stage]) > 1
        if not self.space.metapath:
            return True
        first = metapath.first_global(self)
        return (first.stage, first.slot - 1) == (stage, slot)

    def may_gain(self, stage: int, slot: int) -> bool:
        """Whether it may be `with_slot`, one that is not kept."""
        if not self.space.metapath or not self.space.stages[stage].is_attention(slot):
            return True
        last = metapath.last_local(self)
        return last is not None and (last.stage, last.slot - 1) == (stage, slot)

    def without(self, stage: int, slot: int) -> Selection:
        """The same without one kept slot; of an EfficientFormer's blocks an FFN takes its attention along."""
        ratios = self._ratios(stage)
        ratios.pop(slot, None)
        gone = {slot}
        if self.space.metapath and slot - 1 >= 0 and self.space.stages[stage].is_attention(slot - 1):
            gone.add(slot - 1)
        return self._with_stage(stage, tuple(s for s in self.kept[stage] if s not in gone), ratios)

    def with_slot(self, stage: int, slot: int, expansion: float | None = None) -> Selection:
        """The same with one more slot kept (an FFN needs its expansion); an EfficientFormer's block behind an MB3D
        comes back as an MB3D."""
        ratios = self._ratios(stage)
        new = {slot}
        if expansion is not None:
            ratios[slot] = expansion
            if self.space.metapath and metapath.comes_back_on_tokens(self, stage, slot):
                new.add(slot - 1)
        return self._with_stage(stage, tuple(sorted({*self.kept[stage], *new})), ratios)

    def with_expansion(self, stage: int, slot: int, expansion: float) -> Selection:
        return self._with_stage(stage, self.kept[stage], {**self._ratios(stage), slot: expansion})

    def with_width(self, stage: int, width: int) -> Selection:
        return replace(self, widths=(*self.widths[:stage], width, *self.widths[stage + 1 :]))

    def to_dict(self) -> dict:
        return {
            "widths": list(self.widths),
            "kept": [list(k) for k in self.kept],
            "expansions": [list(e) for e in self.expansions],
        }

    @classmethod
    def from_dict(cls, space: SearchSpace, values: dict) -> Selection:
        kept = tuple(tuple(k) for k in values["kept"])
        return cls(space, tuple(values["widths"]), kept, tuple(tuple(e) for e in values["expansions"]))
