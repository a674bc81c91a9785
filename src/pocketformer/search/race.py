"""The race: a frontier evaluated only as far as its decision needs, and never decided otherwise (contract 6.12).

All subnets see the same images, and every image not yet seen counts as answered right, at no loss: a subnet's score
can only get worse from there. So the best of these bounds, by the search's own order, says who has to run next; once
it belongs to a subnet that has seen all images, no other can overtake it. There is no confidence level: the decision is
that of a full evaluation.

What makes the bounds tight is the order of the images: first those that the current network gets wrong, which are all
that a neighbour can gain, then the others by how narrowly it gets them right, which is where neighbours lose. The order
decides what the race costs, not who wins.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from pocketformer import ranks
from pocketformer.architecture import Selection
from pocketformer.search.evaluation import Batch, PrefixEvaluator, Run, Tally, totals
from pocketformer.search.joint import Rank, Score

_RIGHT = (0.1, 0.3, 1)  # where portions end, as shares of the images that the current network gets right
_TOGETHER = 6  # candidates that run the first portion in one pass: more share the prefix, fewer run in vain


@dataclass(frozen=True)
class Bound(Score):
    """The best score that a subnet can still reach which `images` images were enough to leave behind: its accuracy
    is at most this, its loss at least."""

    images: int


class Images(Protocol):
    """The search split, in batches that begin with the unscored images; of several processes, each gives its share.

    `rows`: which images, in which order; None: all, in an order of their own. `readable` are the rows of that, known
    once all have been given.
    """

    def __call__(self, rows: Sequence[int] | None = None) -> Iterable[Batch]: ...

    def readable(self) -> Sequence[int]: ...


class RacingEvaluator(PrefixEvaluator):
    """Scores neighbours in full when called, and only as far as a decision needs by `race`.

    Candidates run the first portion of the images in waves of `together`, the most promising first; the others one
    by one, as the leader mostly wins. Each wave runs the current network's prefix again. Waves depend on the scores
    alone, so several processes, which deal out the batches of a portion, decide as one does; and nothing is kept from
    one call to the next.
    """

    def __init__(self, run: Run, images: Images, unscored: int = 0, together: int = _TOGETHER):
        super().__init__(run, images, unscored)
        self.images, self.together = images, together

    def race(self, current: Selection, candidates: Sequence[Selection], rank: Rank, places: int = 1) -> list[Score]:
        """Scores of the current selection and of each candidate. The first `places` by `rank` have seen all images;
        of the others, those that have not are left with a `Bound` that ranks behind them.

        `rank` must not prefer a lower accuracy or a higher loss, and no two candidates may be equal to it.
        """
        self._begin(current, candidates)
        own, portions = self._survey(current)
        count, last = sum(map(len, portions)), len(portions)
        entrants = [_Entrant(i, candidate, count, last) for i, candidate in enumerate(candidates)]
        while wave := self._wave(entrants, own, rank, places):
            self._advance(current, wave, portions[wave[0].portions])
        return [own, *(entrant.score for entrant in entrants)]

    def _survey(self, current: Selection) -> tuple[Score, list[np.ndarray]]:
        """The current network's score, and the rows of the images in portions, the telling ones first."""
        tally = _Margins(self.unscored)
        self._walk(self.images(), current, [], [], tally)
        ((correct, loss, count),) = totals([tally])
        margins = np.concatenate(ranks.dealt(tally.margins))
        wrong = count - correct
        ends = [wrong + round(share * correct) for share in _RIGHT]
        rows = np.asarray(self.images.readable())[np.argsort(margins, kind="stable")]
        portions = [part for part in np.split(rows, ends) if len(part)]
        return Score(correct / count, loss / count), portions

    def _wave(self, entrants: list["_Entrant"], own: Score, rank: Rank, places: int) -> list["_Entrant"]:
        """Who runs next: none once the first `places` have seen all images."""
        keys = {entrant.number: rank(entrant.number, own, entrant.score) for entrant in entrants}
        ranked = sorted((e for e in entrants if keys[e.number] is not None), key=lambda e: keys[e.number])
        waiting = next((e for e in ranked[:places] if not e.finished), None)
        if waiting is None:
            return []
        if waiting.portions:
            return [waiting]
        return [e for e in ranked if not e.portions][: self.together]

    def _advance(self, current: Selection, wave: list["_Entrant"], rows: np.ndarray) -> None:
        tallies = [Tally(self.unscored) for _ in wave]
        self._walk(self.images(rows), current, [e.selection for e in wave], tallies, None)
        for entrant, (correct, loss, count) in zip(wave, totals(tallies), strict=True):
            entrant.portions += 1
            entrant.seen += count
            entrant.correct += correct
            entrant.loss += loss

    def _tell(self) -> None: ...


class _Margins(Tally):
    """Also, of each image, by how much its class is ahead of the others; below all that are ahead if it is not."""

    def __init__(self, unscored: int) -> None:
        super().__init__(unscored)
        self.margins: list[np.ndarray] = []

    def add(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        super().add(logits, labels)
        logits = logits[self.unscored :].double()
        own = logits.gather(1, labels[:, None])[:, 0]
        others = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
        right = logits.argmax(1) == labels
        self.margins.append(torch.where(right, own - others, -torch.inf).cpu().numpy())


@dataclass
class _Entrant:
    number: int
    selection: Selection
    count: int  # images in all
    last: int  # portions in all
    portions: int = 0
    seen: int = 0
    correct: int = 0
    loss: float = 0.0

    @property
    def finished(self) -> bool:
        return self.portions == self.last

    @property
    def score(self) -> Score:
        if self.finished:
            return Score(self.correct / self.count, self.loss / self.count)
        return Bound((self.correct + self.count - self.seen) / self.count, self.loss / self.count, self.seen)
