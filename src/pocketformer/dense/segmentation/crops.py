"""Training batches: crops of scaled images with their masks, as both papers' recipe makes them.

Everything random about a sample is drawn from (seed, epoch, row), and workers keep nothing from one batch to the next:
their number, and the step at which a training continues, change no bit.
"""

import random
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, default_collate
from torchvision.transforms import v2

from pocketformer.architecture.design import Grid
from pocketformer.dense.segmentation.folders import Pairs
from pocketformer.dense.segmentation.labels import IGNORE, Coding
from pocketformer.dense.segmentation.maskfiles import read_mask
from pocketformer.errors import UserError, WorkError
from pocketformer.training.colours import upright
from pocketformer.training.opening import open_image, why_unreadable
from pocketformer.training.orders import WHOLE, Order, Places, Share
from pocketformer.training.pixels import Normalisation
from pocketformer.training.workers import by_workers, own_randomness, seed_sample

RATIOS = (0.5, 2.0)  # of the base scale
LONGEST = 4  # sides: no image is scaled to more than so many short sides of the base (2048 to 512 px)
MOST = 0.75  # of a crop's labelled pixels may be of one class
_TRIES = 10


def scale_to(width: int, height: int, size: Grid) -> float:
    """The factor that brings an image to the base scale: its short side to the shorter of `size`."""
    short = min(size)
    return min(short / min(width, height), LONGEST * short / max(width, height))


class Photometric(v2.RandomPhotometricDistort):
    """Brightness, contrast, saturation and hue, half of the times each, in MMSegmentation's ranges (its brightness is
    added, here it is a factor). Channels keep their order, as there."""

    def __init__(self) -> None:
        super().__init__(brightness=(0.875, 1.125), contrast=(0.5, 1.5), saturation=(0.5, 1.5), hue=(-0.1, 0.1))

    def make_params(self, flat_inputs: list) -> dict:
        return {**super().make_params(flat_inputs), "channel_permutation": None}


class CropBatches:
    """Shuffled batches of crops.

    Args:
        pairs: images and masks to train on.
        coding: of the masks.
        batch_size: images in a batch of all processes. The incomplete last batch of an epoch is left out (each epoch
            leaves out others).
        size: height and width of the crops in pixels.
        seed: of order and augmentation.
        normalisation: of the images.
        share: the part of each batch to make.
        workers: processes that read and crop; 0: the calling one.
    """

    def __init__(
        self,
        pairs: Pairs,
        coding: Coding,
        batch_size: int,
        size: Grid,
        seed: int,
        normalisation: Normalisation,
        share: Share = WHOLE,
        workers: int = 0,
    ):
        self._order = Order(len(pairs), batch_size, seed, share=share)
        self.batch_size, self.steps_per_epoch = self._order.batch_size, self._order.steps_per_epoch
        self._crops, self.workers = Crops(pairs, coding, size, seed, normalisation), workers

    def steps(self, first: int, last: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Batches of steps `first` … `last` - 1: images float32 (B, 3, H, W), channels last and normalised, and
        classes int64 (B, H, W), `IGNORE` where there is none.

        Raises `WorkError` in one line if a worker dies or a file can no longer be read.
        """
        places = map(self._order.at, range(first, last))
        made = by_workers(self._crops, places, self.workers) if self.workers > 0 else map(self._crops.here, places)
        return ((images, targets.long()) for images, targets in made)


class Crops(Dataset):
    """Makes the batch of `Places`: images float32 (B, 3, H, W) and classes int16 (B, H, W)."""

    def __init__(self, pairs: Pairs, coding: Coding, size: Grid, seed: int, normalisation: Normalisation):
        self.pairs, self.coding, self.size, self.seed = pairs, coding, size, seed
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1) for values in normalisation)
        self.distort = Photometric()

    def __getitem__(self, places: Places) -> tuple[torch.Tensor, torch.Tensor]:
        made = []
        for row in places.positions.tolist():
            image, classes = read_pair(self.pairs, row, self.coding)
            seed_sample(self.seed, places.epoch, row, 0)
            made.append(self.sample(image, classes))
        images, targets = default_collate(made)
        return images.permute(0, 3, 1, 2), targets  # channels last

    def here(self, places: Places) -> tuple[torch.Tensor, torch.Tensor]:
        """The same, with the generators of this process as they were."""
        with own_randomness():
            return self[places]

    def sample(self, image: Image.Image, classes: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """A random crop (H, W, 3), and its classes; scaled and cut in one step, each pixel computed once."""
        scale = scale_to(*image.size, self.size) * random.uniform(*RATIOS)
        width, height = (max(1, round(side * scale)) for side in image.size)
        # The nearest pixel of the mask for each place of the scaled one.
        columns, rows = _nearest(image.width, width), _nearest(image.height, height)
        high, wide = min(self.size[0], height), min(self.size[1], width)
        for _ in range(_TRIES):
            top, left = random.randint(0, height - high), random.randint(0, width - wide)
            cut = classes[np.ix_(rows[top : top + high], columns[left : left + wide])]
            if _is_mixed(cut):
                break
        box = np.array([left / width, top / height, (left + wide) / width, (top + high) / height])
        box = (box * np.tile(image.size, 2)).clip(0, np.tile(image.size, 2))
        pixels = np.asarray(image.resize((wide, high), Image.Resampling.BILINEAR, box=tuple(box.tolist())))
        if random.random() < 0.5:
            pixels, cut = pixels[:, ::-1], cut[:, ::-1]
        found = self.distort(torch.from_numpy(pixels.transpose(2, 0, 1).copy()))
        x = torch.zeros(*self.size, 3)  # behind the edges: the mean
        x[:high, :wide] = found.float().div_(255).sub_(self.mean).div_(self.std).permute(1, 2, 0)
        target = torch.full(self.size, IGNORE, dtype=torch.int16)
        target[:high, :wide] = torch.from_numpy(cut.copy())
        return x, target


def _nearest(old: int, new: int) -> np.ndarray:
    """Of each of `new` pixels along a side, the one of `old` that it lies in."""
    return ((np.arange(new) + 0.5) * old / new).astype(int)


def _is_mixed(classes: np.ndarray) -> bool:
    counts = np.bincount(classes[classes >= 0])
    return np.count_nonzero(counts) > 1 and counts.max() < MOST * counts.sum()


def read_pair(pairs: Pairs, row: int, coding: Coding) -> tuple[Image.Image, np.ndarray]:
    """An upright RGB image and its classes int16 (H, W). Raises `WorkError` in one line."""
    name = pairs.images[row]
    try:
        with open_image(pairs.root / name) as image:
            found = upright(image, pairs.depth)
        name = pairs.masks[row]
        return found, coding.classes(read_mask(pairs.root / name, coding, pairs.turns.get(row, 1)))
    except (UserError, WorkError, MemoryError):
        raise
    except Exception as error:  # decoders raise whatever they like
        raise WorkError(
            f"{pairs.root / name} cannot be read now ({why_unreadable(error)}), but could when the work began; put it "
            "back and run the same command to continue"
        ) from None
