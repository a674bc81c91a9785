"""Which images stand in which batch: a function of (seed, step) alone, for any number of processes."""

from typing import NamedTuple

import numpy as np

from pocketformer.errors import UserError
from pocketformer.training.balance import equal_shares
from pocketformer.training.splitting import random_words

_ORDER = 1  # key of the stream of random numbers
_ROUND = 256  # timm's: an epoch with repeats is a multiple of so many samples


class Share(NamedTuple):
    """The part of every batch that one process makes: positions rank, rank + ranks, … of it."""

    rank: int = 0
    ranks: int = 1


WHOLE = Share()


class Places(NamedTuple):
    """One process's share of a batch: its epoch, `positions` int64 (B,) in the split, and `copies` int64 (B,), which
    tell the samples of one image in an epoch apart."""

    epoch: int
    positions: np.ndarray
    copies: np.ndarray


class Order:
    """Shuffles a split anew in each epoch and cuts it into batches.

    With `repeats`, every image stands that many times in a row and an epoch ends after about `count` samples, as by
    timm's `RepeatAugSampler`. The copies of an image are dealt to neighbouring processes.

    With `labels` int64 (count,) the epoch's images are drawn so that the classes are equally many (`equal_shares`);
    `copies` are then places in the epoch, which no two samples share.

    Attributes:
        batch_size: images in a batch of all processes; fewer than asked for if the epoch has no more.
        steps_per_epoch: whole batches in an epoch; what remains is left out (others in each epoch).

    Raises `UserError` in one line if the batch cannot be dealt out evenly.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int,
        repeats: int = 1,
        share: Share = WHOLE,
        labels: np.ndarray | None = None,
    ):
        if batch_size < 1:
            raise UserError(f"the batch size is {batch_size}; it must be at least 1")
        if not 0 <= share.rank < share.ranks:
            raise UserError(f"process {share.rank} of {share.ranks}: the rank must be at least 0 and below the number")
        if batch_size % share.ranks:
            raise UserError(f"the batch size is {batch_size}; it must be a multiple of the {share.ranks} processes")
        kept = count // _ROUND * _ROUND if repeats > 1 and count >= _ROUND else count
        if kept < share.ranks:
            raise UserError(f"{count} images cannot be dealt out to {share.ranks} processes")
        self.count, self.seed, self.repeats, self.share, self.labels = count, seed, repeats, share, labels
        self.batch_size = min(batch_size, kept // share.ranks * share.ranks)
        self.steps_per_epoch = kept // self.batch_size
        self._epoch: tuple[int, np.ndarray] | None = None  # a memo: number and order

    def at(self, step: int) -> Places:
        """This process's share of batch number `step` >= 0 of the training."""
        epoch, number = divmod(step, self.steps_per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, self._shuffled(epoch)
        first = number * self.batch_size
        places = np.arange(first + self.share.rank, first + self.batch_size, self.share.ranks)
        copies = places % self.repeats if self.labels is None else places
        return Places(epoch, self._epoch[1][places // self.repeats], copies)

    def _shuffled(self, epoch: int) -> np.ndarray:
        if self.labels is not None:
            return equal_shares(self.labels, self.seed, epoch)
        return np.argsort(random_words(self.count, self.seed, epoch, _ORDER), kind="stable")
