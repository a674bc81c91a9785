"""A stage of an architecture: a width and a sequence of blocks, attention or FFN."""

import math
from dataclasses import dataclass
from typing import Any

from pocketformer.errors import UserError


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


StageBlock = Attention | FFN


def parse_block(text: Any) -> StageBlock:
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
    blocks: tuple[StageBlock, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", tuple(self.blocks))
        if not isinstance(self.width, int) or self.width < 1:
            raise UserError(f"a stage's width must be a positive whole number, not {self.width!r}")
        if not self.blocks:
            raise UserError("a stage needs at least one block")
        for block in self.blocks:
            if isinstance(block, FFN) and int(self.width * block.expansion) < 1:
                raise UserError(f"expansion {block.expansion:g} of width {self.width} leaves no hidden channel")
