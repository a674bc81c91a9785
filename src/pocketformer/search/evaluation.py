"""Scores of many neighbouring subnets in one pass over the images (contract 6.12)."""

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F

from pocketformer import ranks
from pocketformer.architecture import Selection, Step
from pocketformer.search.joint import Score

Run = Callable[[Step, torch.Tensor], torch.Tensor]  # executes one step of a selection: `Supernet.run`
Batches = Callable[[], Iterable[tuple[torch.Tensor, torch.Tensor]]]


def shared_prefix(current: Selection, candidate: Selection) -> int:
    """How many steps from the stem on are the same: their activations are too."""
    pairs = zip(current.steps, candidate.steps, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(current.steps), len(candidate.steps)))


def block_executions(current: Selection, candidates: Sequence[Selection]) -> int:
    """Closed formula of exact prefix sharing, per batch: the current network once, each candidate's rest."""
    return len(current.steps) + sum(len(c.steps) - shared_prefix(current, c) for c in candidates)


class _Tally:
    """What a subnet answered, batch by batch."""

    def __init__(self, unscored: int) -> None:
        self.unscored = unscored
        self.batches: list[tuple[int, float, int]] = []  # images right, sum of losses, images

    def add(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        logits = logits[self.unscored :]
        correct = int((logits.argmax(1) == labels).sum())
        self.batches.append((correct, float(F.cross_entropy(logits.double(), labels, reduction="sum")), len(labels)))


def _scores(tallies: list[_Tally]) -> list[Score]:
    """Over the batches of all processes, added up in their order: the decisions are those of one process."""
    batches = ranks.dealt(list(zip(*(tally.batches for tally in tallies), strict=True)))
    scores = []
    for answers in zip(*batches, strict=True):
        correct, loss, count = map(sum, zip(*answers, strict=True))
        scores.append(Score(correct / count, loss / count))
    return scores


class PrefixEvaluator:
    """Batches outside, actions inside: for each batch the current network runs once, and every candidate
    starts from the activation at which it departs. Memory is one batch; nothing is computed twice.

    `run` executes one step (of a supernet in eval mode); `batches` gives the search split's images anew at each
    call; of several processes, each gives batches rank, rank + count, ….
    The first `unscored` images of each batch have no labels and are not scored (they calibrate the norms).
    `executed` counts block executions, one a step and batch. `progress`, if set, is called with the executions of
    this call so far and those that each of its batches takes.
    """

    def __init__(self, run: Run, batches: Batches, unscored: int = 0):
        self.run, self.batches, self.unscored = run, batches, unscored
        self.progress: Callable[[int, int], None] | None = None
        self.executed = 0

    def _tally(self) -> "_Tally":
        return _Tally(self.unscored)

    def _run(self, x: torch.Tensor, steps: Sequence[Step]) -> torch.Tensor:
        for step in steps:
            x = self.run(step, x)
        self.executed += len(steps)
        return x

    @torch.inference_mode()
    def __call__(self, current: Selection, candidates: Sequence[Selection]) -> list[Score]:
        departing: dict[int, list[int]] = {}
        for i, candidate in enumerate(candidates):
            departing.setdefault(shared_prefix(current, candidate), []).append(i)
        begun, planned = self.executed, block_executions(current, candidates)
        tallies = [self._tally() for _ in candidates]
        own = self._tally()
        for images, labels in self.batches():
            x = images
            for position, step in enumerate(current.steps):
                for i in departing.get(position, ()):
                    tallies[i].add(self._run(x, candidates[i].steps[position:]), labels)
                x = self._run(x, (step,))
                if self.progress:
                    self.progress(self.executed - begun, planned)
            own.add(x, labels)
            for i in departing.get(len(current.steps), ()):  # the same network again
                tallies[i].add(x, labels)
        return _scores([own, *tallies])


class NaiveEvaluator(PrefixEvaluator):
    """Every candidate from the image on: the reference that `PrefixEvaluator` is checked and timed against."""

    @torch.inference_mode()
    def __call__(self, current: Selection, candidates: Sequence[Selection]) -> list[Score]:
        tallies = [self._tally() for _ in (current, *candidates)]
        for images, labels in self.batches():
            for tally, candidate in zip(tallies, (current, *candidates), strict=True):
                tally.add(self._run(images, candidate.steps), labels)
        return _scores(tallies)
