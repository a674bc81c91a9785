"""How the search scores subnets: on the search split, with norms calibrated on images of fit."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pocketformer import ranks
from pocketformer.progress import Stage
from pocketformer.search.evaluation import PrefixEvaluator
from pocketformer.supernet import Supernet
from pocketformer.training.batches import eval_batches, train_batches
from pocketformer.training.data import Data
from pocketformer.training.memory import keep_freed_memory


@contextmanager
def evaluator(
    supernet: Supernet, data: Data, seed: int, calibration: int = 128, progress: Stage | None = None
) -> Iterator[PrefixEvaluator]:
    """Scores subnets on the search split. Each batch begins with the same `calibration` images of fit, from
    which every norm takes its statistics: in the middle of a search a subnet has been trained rarely or never,
    and its switches' running statistics belong to others. 0: the switches' own statistics, as in the paper.
    """
    keep_freed_memory()
    size = supernet.space.resolution
    # About the same memory whatever the image size, but never so few that calibrating dominates.
    batch_size = max(256, min(1024, 1024 * 32 * 32 // (size[0] * size[1])))
    unlabelled = next(train_batches(data.fit, max(calibration, 1), size, None, seed).steps(0, 1))[0][:calibration]
    all_batches = eval_batches(data.search, batch_size, size)

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for images, labels in all_batches.at(range(ranks.rank(), len(all_batches), ranks.count())):
            yield torch.cat([unlabelled, images]).contiguous(memory_format=torch.channels_last), labels

    found = PrefixEvaluator(supernet.run, batches, len(unlabelled))
    if progress is not None:
        count = -(-len(all_batches) // ranks.count())

        def inside_a_step(executed: int, planned: int) -> None:
            share = executed / (planned * count)
            progress.update(progress.done, f"step {progress.done + 1}: {share:.0%} of its actions evaluated")

        found.progress = inside_a_step
    supernet.eval()
    with supernet.calibrated(len(unlabelled)):
        yield found
