"""The frontier: every slimming action one step away from a selection (paper eq. 9), and the reverse moves."""

from dataclasses import dataclass

from pocketformer.architecture import Selection


@dataclass(frozen=True, order=True)
class Action:
    """One action. `kind` is "depth" (A_N: one block), "width" (A_C: one stage) or "expansion" (A_E: one FFN).

    The order of the fields is the fixed order that breaks ties: by stage, then slot, then kind. `value` is the
    new width or expansion.
    """

    stage: int
    slot: int  # -1 for a width
    kind: str
    value: float = 0

    def __str__(self) -> str:
        if self.kind == "width":
            return f"stage {self.stage + 1}: width to {self.value:g}"
        where = f"stage {self.stage + 1} slot {self.slot}"
        if self.kind == "expansion":
            return f"{where}: expansion to {self.value:g}"
        return f"{where}: {'add' if self.value else 'remove'} block"

    def to_dict(self) -> dict:
        return {"kind": self.kind, "stage": self.stage, "slot": self.slot, "value": self.value}


def frontier(selection: Selection) -> list[tuple[Action, Selection]]:
    """Every slimming action and where it leads, in the fixed order."""
    space = selection.space
    found = []
    for j, offer in enumerate(space.stages):
        width = selection.widths[j]
        if (index := offer.widths.index(width)) > 0:
            smaller = offer.widths[index - 1]
            found.append((Action(j, -1, "width", smaller), selection.with_width(j, smaller)))
        for slot in selection.kept[j]:
            if selection.may_lose(j, slot):
                found.append((Action(j, slot, "depth"), selection.without(j, slot)))
            if not offer.is_attention(slot):
                index = space.expansions.index(selection.expansion(j, slot))
                if index > 0:
                    smaller = space.expansions[index - 1]
                    narrowed = selection.with_expansion(j, slot, smaller)
                    found.append((Action(j, slot, "expansion", smaller), narrowed))
    return sorted(found, key=lambda pair: pair[0])


def regrowth(selection: Selection) -> list[tuple[Action, Selection]]:
    """Every reverse move: one block back (an FFN at the smallest expansion), one step wider or more expanded."""
    space = selection.space
    found = []
    for j, offer in enumerate(space.stages):
        index = offer.widths.index(selection.widths[j])
        if index + 1 < len(offer.widths):
            wider = offer.widths[index + 1]
            found.append((Action(j, -1, "width", wider), selection.with_width(j, wider)))
        for slot in range(offer.slots):
            if slot not in selection.kept[j]:
                if selection.may_gain(j, slot):
                    expansion = None if offer.is_attention(slot) else space.expansions[0]
                    found.append((Action(j, slot, "depth", 1), selection.with_slot(j, slot, expansion)))
            elif not offer.is_attention(slot):
                index = space.expansions.index(selection.expansion(j, slot))
                if index + 1 < len(space.expansions):
                    larger = space.expansions[index + 1]
                    widened = selection.with_expansion(j, slot, larger)
                    found.append((Action(j, slot, "expansion", larger), widened))
    return sorted(found, key=lambda pair: pair[0])
