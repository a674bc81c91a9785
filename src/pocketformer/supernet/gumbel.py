"""How a MetaPath supernet explores its paths while it is trained: the noise and the temperature of V1's eq. 8."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch

from pocketformer.errors import UserError

NOISES = ("gumbel", "paper")
FIRST, LAST = 5.0, 0.5  # temperatures (contract 6.14)


@dataclass(frozen=True)
class Draw:
    """Of one step: a number for each path of each MetaPath, in order, and the temperature."""

    noise: tuple[torch.Tensor, ...]
    temperature: float


@dataclass(frozen=True)
class Exploration:
    """A function of (seed, step): a resumed run, and every process of a job, draws the same.

    Noise is Gumbel's, -log(-log U), with which a path has the largest share as often as softmax(alpha) says; `paper`
    is U(0, 1), as printed under eq. 8. The temperature of step t of T is FIRST * (LAST / FIRST) ** (t / (T - 1)): a
    constant factor a step.
    """

    steps: int
    seed: int = 0
    noise: str = "gumbel"

    def __post_init__(self) -> None:
        if self.noise not in NOISES:
            raise UserError(f"noise {self.noise!r} is unknown; known: {', '.join(NOISES)}")

    def temperature(self, step: int) -> float:
        return FIRST * (LAST / FIRST) ** min(step / max(self.steps - 1, 1), 1.0)

    def draw(self, choices: Sequence[int], step: int) -> Draw:
        """`choices`: how many paths each MetaPath has."""
        rng = Random(f"metapath {self.seed}/{step}")
        noise = tuple(torch.tensor([self._number(rng) for _ in range(count)]) for count in choices)
        return Draw(noise, self.temperature(step))

    def _number(self, rng: Random) -> float:
        uniform = rng.random()
        return uniform if self.noise == "paper" else -math.log(-math.log(uniform or 0.5**54))
