"""V1's MetaPath space (V1 Sec. 4.2, eq. 7): which selections of a space are EfficientFormers.

A place of a stage chooses between MB4D and identity, with `attention` also MB3D. In slots: an attention block and the
FFN behind it, both kept, are MB3D; the FFN alone is MB4D; neither is identity. An attention block alone is nothing, and
MB3D are the last N blocks of the network, so that it goes over to tokens once (V1 Sec. 4.1, "Searching Space").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from pocketformer.errors import UserError

if TYPE_CHECKING:
    import random

    from pocketformer.architecture.selection import Selection
    from pocketformer.architecture.space import SearchSpace


class Block(NamedTuple):
    """A kept block: `place` counts a stage's MetaPaths, `slot` is its FFN's; MB3D if `tokens`, else MB4D."""

    stage: int
    place: int
    slot: int
    tokens: bool


def slot_of(space: SearchSpace, stage: int, place: int) -> int:
    """Of the FFN; where there is attention, its slot is the one before."""
    return 2 * place + 1 if space.stages[stage].attention else place


def blocks(selection: Selection) -> Iterator[Block]:
    """The kept blocks in order."""
    for j, offer in enumerate(selection.space.stages):
        kept = set(selection.kept[j])
        for place in range(offer.depth):
            slot = slot_of(selection.space, j, place)
            if slot in kept:
                yield Block(j, place, slot, offer.attention and slot - 1 in kept)


def check_space(space: SearchSpace) -> None:
    for j, (here, behind) in enumerate(zip(space.stages, space.stages[1:], strict=False)):
        if here.attention and not behind.attention:
            raise UserError(
                f"space {space.name}: MB3D are the last blocks of a network, so stage {j + 2} needs attention as well"
            )


def check(selection: Selection) -> None:
    """Raises `UserError` unless it is a member."""
    name, tokens = selection.space.name, False
    for j, offer in enumerate(selection.space.stages):
        for slot in selection.kept[j]:
            if offer.is_attention(slot) and slot + 1 not in selection.kept[j]:
                raise UserError(f"space {name}: stage {j + 1}: attention in slot {slot} without its FFN is no MB3D")
    for block in blocks(selection):
        if tokens and not block.tokens:
            where = f"stage {block.stage + 1}: the MB4D in slot {block.slot}"
            raise UserError(f"space {name}: {where} is behind an MB3D; MB3D are the last blocks of a network")
        tokens = block.tokens


def first_global(selection: Selection) -> Block | None:
    """The first MB3D, the only one that may become an MB4D."""
    return next((block for block in blocks(selection) if block.tokens), None)


def last_local(selection: Selection) -> Block | None:
    """The last MB4D, the only one that may become an MB3D."""
    return next((block for block in reversed(list(blocks(selection))) if not block.tokens), None)


def comes_back_on_tokens(selection: Selection, stage: int, slot: int) -> bool:
    """Whether a block in that FFN's slot would be an MB3D: whether there is one before it."""
    return any(block.tokens for block in blocks(selection) if (block.stage, block.slot) < (stage, slot))


def kept_slots(space: SearchSpace, places: Sequence[Sequence[int]], last: int) -> tuple[tuple[int, ...], ...]:
    """The slots of `places`, those kept in each stage, the network's `last` of them as MB3D (as far as there is
    attention)."""
    kept: list[tuple[int, ...]] = []
    for j in reversed(range(len(places))):
        slots: list[int] = []
        for place in sorted(places[j], reverse=True):
            slots.append(slot_of(space, j, place))
            if last > 0 and space.stages[j].attention:
                slots.append(slots[-1] - 1)
                last -= 1
        kept.insert(0, tuple(reversed(slots)))
    return tuple(kept)


def draw(space: SearchSpace, rng: random.Random) -> tuple[tuple[int, ...], ...]:
    """Slots of a random member: per stage the number of blocks uniform, then which; N uniform over what they allow."""
    places = [rng.sample(range(stage.depth), rng.randint(1, stage.depth)) for stage in space.stages]
    room = sum(len(kept) for kept, stage in zip(places, space.stages, strict=True) if stage.attention)
    return kept_slots(space, places, rng.randint(0, room))
