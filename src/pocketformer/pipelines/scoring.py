"""How the search scores subnets: on the search split, with norms calibrated on images of fit."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from pocketformer import ranks
from pocketformer.progress import Stage
from pocketformer.search.evaluation import PrefixEvaluator
from pocketformer.search.race import RacingEvaluator
from pocketformer.supernet import Supernet
from pocketformer.training.batches import Batch, EvalBatches, eval_batches, train_batches
from pocketformer.training.data import Data, Split
from pocketformer.training.memory import keep_freed_memory


class SearchImages:
    """A split in batches of about equal size, each beginning with the `unlabelled` images; of several processes, each
    gives batches rank, rank + count, …. `search.race.Images`."""

    def __init__(
        self, split: Split, unlabelled: torch.Tensor, batch_size: int, size: tuple[int, int], where: torch.device
    ):
        self.split, self.batch_size, self.size, self.where = split, batch_size, size, where
        self.unlabelled = unlabelled.to(where)

    def __call__(self, rows: Sequence[int] | None = None) -> Iterator[Batch]:
        split = self.split
        if rows is not None:
            rows = torch.as_tensor(rows)
            split = replace(split, indices=rows if split.indices is None else split.indices[rows])
        batches = self._batches(split)
        for images, labels in batches.at(range(ranks.rank(), len(batches), ranks.count())):
            images = torch.cat([self.unlabelled, images.to(self.where)])
            yield images.contiguous(memory_format=torch.channels_last), labels.to(self.where)

    def _batches(self, split: Split) -> EvalBatches:
        """Of about equal size: norms are calibrated anew in each, so that a small last one would be dear."""
        count = -(-len(split) // self.batch_size)
        return eval_batches(split, -(-len(split) // count), self.size)

    def readable(self) -> list[int]:
        """Rows of the images that can be read, as far as the processes have met them."""
        rows = range(len(self.split))
        if not self.split.streamed:
            return list(rows)
        bad = set().union(*ranks.gather(set(self.split.images.bad)))
        return [row for row in rows if self.split.row(row) not in bad]

    @property
    def work(self) -> int:
        """About how many images this process runs in one pass, unlabelled ones too."""
        batches = len(self._batches(self.split))
        return -(-len(self.split) // ranks.count()) + len(self.unlabelled) * -(-batches // ranks.count())


@contextmanager
def evaluator(
    supernet: Supernet,
    data: Data,
    seed: int,
    calibration: int = 128,
    progress: Stage | None = None,
    race: bool = False,
) -> Iterator[PrefixEvaluator]:
    """Scores subnets on the search split. Each batch begins with the same `calibration` images of fit, from
    which every norm takes its statistics: in the middle of a search a subnet has been trained rarely or never,
    and its switches' running statistics belong to others. 0: the switches' own statistics, as in the paper.

    With `race` it also decides between neighbours at less work: `search.race`.
    """
    keep_freed_memory()
    size = supernet.space.resolution
    # About the same memory whatever the image size, but never so few that calibrating dominates.
    batch_size = max(256, min(1024, 1024 * 32 * 32 // (size[0] * size[1])))
    unlabelled = next(train_batches(data.fit, max(calibration, 1), size, None, seed).steps(0, 1))[0][:calibration]
    where = next(supernet.parameters()).device
    images = SearchImages(data.search, unlabelled, batch_size, size, where)
    found = (RacingEvaluator if race else PrefixEvaluator)(supernet.run, images, len(unlabelled))
    if progress is not None:
        in_all = images.work

        def inside_a_step(executed: int, planned: int) -> None:
            share = executed / (planned * in_all)
            progress.update(progress.done, f"of the subnets to score next {share:.0%} done")

        found.progress = inside_a_step
    supernet.eval()
    with supernet.calibrated(len(unlabelled)):
        yield found
