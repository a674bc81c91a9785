"""Scores of many neighbouring subnets in one pass over the images (contract 6.12)."""

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F

from pocketformer import ranks
from pocketformer.architecture import Selection, Step
from pocketformer.search.joint import Score

Run = Callable[[Step, torch.Tensor], torch.Tensor]  # executes one step of a selection: `Supernet.run`
Batch = tuple[torch.Tensor, torch.Tensor]
Batches = Callable[[], Iterable[Batch]]


def shared_prefix(current: Selection, candidate: Selection) -> int:
    """How many steps from the stem on are the same: their activations are too."""
    pairs = zip(current.steps, candidate.steps, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(current.steps), len(candidate.steps)))


def block_executions(current: Selection, candidates: Sequence[Selection]) -> int:
    """Closed formula of exact prefix sharing, per batch: the current network once, each candidate's rest."""
    return len(current.steps) + sum(len(c.steps) - shared_prefix(current, c) for c in candidates)


class Tally:
    """What a subnet answered, batch by batch."""

    def __init__(self, unscored: int) -> None:
        self.unscored = unscored
        self.batches: list[tuple[int, float, int]] = []  # images right, sum of losses, images

    def add(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        logits = logits[self.unscored :]
        correct = int((logits.argmax(1) == labels).sum())
        self.batches.append((correct, float(F.cross_entropy(logits.double(), labels, reduction="sum")), len(labels)))


def totals(tallies: Sequence[Tally]) -> list[tuple[int, float, int]]:
    """Images right, sum of losses, and images: over the batches of all processes, added up in their order, so that
    the decisions are those of one process."""
    batches = ranks.dealt(list(zip(*(tally.batches for tally in tallies), strict=True)))
    return [tuple(map(sum, zip(*answers, strict=True))) for answers in zip(*batches, strict=True)]


class PrefixEvaluator:
    """Batches outside, actions inside: for each batch the current network runs once, and every candidate
    starts from the activation at which it departs. Memory is one batch; nothing is computed twice.

    `run` executes one step (of a supernet in eval mode); `batches` gives the search split's images anew at each
    call; of several processes, each gives batches rank, rank + count, ….
    The first `unscored` images of each batch have no labels and are not scored (they calibrate the norms).
    `executed` counts block executions, one a step and batch; `executed_images` one a step and image, unscored ones
    too; `scored` the subnets that were asked for. `progress`, if set, is called with the block executions of this
    call so far, and with how many each image takes.
    """

    def __init__(self, run: Run, batches: Batches, unscored: int = 0):
        self.run, self.batches, self.unscored = run, batches, unscored
        self.progress: Callable[[int, int], None] | None = None
        self.executed = self.executed_images = self.scored = 0
        self._begun = self._planned = 0

    def __call__(self, current: Selection, candidates: Sequence[Selection]) -> list[Score]:
        self._begin(current, candidates)
        own, *tallies = (Tally(self.unscored) for _ in (current, *candidates))
        self._walk(self.batches(), current, candidates, tallies, own)
        return [Score(correct / count, loss / count) for correct, loss, count in totals([own, *tallies])]

    def _begin(self, current: Selection, candidates: Sequence[Selection]) -> None:
        self.scored += 1 + len(candidates)
        self._begun, self._planned = self.executed_images, block_executions(current, candidates)

    def _run(self, x: torch.Tensor, steps: Sequence[Step]) -> torch.Tensor:
        self.executed += len(steps)
        self.executed_images += len(steps) * len(x)
        for step in steps:
            x = self.run(step, x)
        return x

    @torch.inference_mode()
    def _walk(
        self,
        batches: Iterable[Batch],
        current: Selection,
        candidates: Sequence[Selection],
        tallies: Sequence[Tally],
        own: Tally | None,
    ) -> None:
        """One pass over `batches`. Without a tally of its `own` the current network runs as far as it is needed."""
        departing: dict[int, list[int]] = {}
        for i, candidate in enumerate(candidates):
            departing.setdefault(shared_prefix(current, candidate), []).append(i)
        last = max(departing, default=0) if own is None else len(current.steps)
        for images, labels in batches:
            x = images
            for position in range(last + 1):
                for i in departing.get(position, ()):  # the last position is the same network again
                    tallies[i].add(self._run(x, candidates[i].steps[position:]), labels)
                if position < last:
                    x = self._run(x, (current.steps[position],))
                    if self.progress:
                        self.progress(self.executed_images - self._begun, self._planned)
            if own is not None:
                own.add(x, labels)


class NaiveEvaluator(PrefixEvaluator):
    """Every candidate from the image on: the reference that `PrefixEvaluator` is checked and timed against."""

    @torch.inference_mode()
    def __call__(self, current: Selection, candidates: Sequence[Selection]) -> list[Score]:
        tallies = [Tally(self.unscored) for _ in (current, *candidates)]
        for images, labels in self.batches():
            for tally, candidate in zip(tallies, (current, *candidates), strict=True):
                tally.add(self._run(images, candidate.steps), labels)
        return [Score(correct / count, loss / count) for correct, loss, count in totals(tallies)]
