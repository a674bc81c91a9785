"""Training batches made image by image with timm's transforms, by worker processes.

Everything random about a sample is drawn from (seed, epoch, row, copy), and workers keep nothing from one batch to the
next: their number, and the step at which a training continues, change no bit.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import Image
from timm.data import auto_augment, create_transform
from timm.data.transforms import MaybeToTensor
from torch.utils.data import Dataset, default_collate
from torchvision.transforms import Compose, Normalize

from pocketformer.errors import UserError, WorkError, first_line
from pocketformer.training.augmentation import Augmentation
from pocketformer.training.balance import labels_of
from pocketformer.training.data import Split
from pocketformer.training.orders import WHOLE, Order, Places, Share
from pocketformer.training.pixels import OURS, Normalisation
from pocketformer.training.workers import by_workers, own_randomness, seed_sample


class TransformedBatches:
    """Shuffled batches of a split, each image varied by timm's pipeline: random resized crop (bicubic), flip,
    RandAugment, normalising, erasing (pixel noise).

    Streamed images are cropped at their own size, decoded whole: JPEGs are not decoded at a lower resolution, however
    small the crop becomes. Images in memory are cropped as they are stored.

    Args:
        split: images to train on.
        batch_size: images in a batch of all processes; a smaller epoch is one batch. The incomplete last batch of an
            epoch is left out (each epoch leaves out others).
        size: height and width of the batches in pixels.
        augmentation: what is done; its `repeats` are in `Order`.
        seed: of order and augmentation.
        normalisation: of the images.
        share: the part of each batch to make.
        workers: processes that read and transform; 0: the calling one.
        balanced: draw all classes equally often (`balance.equal_shares`).
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        size: tuple[int, int],
        augmentation: Augmentation,
        seed: int,
        normalisation: Normalisation = OURS,
        share: Share = WHOLE,
        workers: int = 0,
        balanced: bool = False,
    ):
        if len(split) == 0:
            raise UserError(f"the {split.name} split has no images")
        self.split, self.size, self.workers = split, tuple(size), workers
        labels = labels_of(split) if balanced else None
        self._order = Order(len(split), batch_size, seed, augmentation.repeats, share, labels)
        self.batch_size, self.steps_per_epoch = self._order.batch_size, self._order.steps_per_epoch
        self._samples = _Samples(split, self.size, transform(self.size, augmentation, normalisation), seed)

    def steps(self, first: int, last: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Batches of steps `first` … `last` - 1: images float32 (B, 3, H, W), channels last and normalised, and
        labels int64 (B,).

        Workers live as long as the iterator, also over the end of an epoch. Raises `WorkError` in one line if one of
        them dies or an image cannot be read; `split.images.bad` has those that were replaced.
        """
        places = map(self._order.at, range(first, last))
        made = by_workers(self._samples, places, self.workers) if self.workers > 0 else map(self._samples.here, places)
        for images, labels, bad in made:
            if bad:
                self.split.images.bad.update(bad)
            yield images, labels


def transform(
    size: tuple[int, int], augmentation: Augmentation, normalisation: Normalisation
) -> Callable[[Image.Image], torch.Tensor]:
    """timm's transform of one training image, without colour jitter: RGB image to float32 (3, H, W)."""
    found = create_transform(
        size,
        is_training=True,
        scale=augmentation.scale,
        ratio=augmentation.ratio,
        hflip=0.5 if augmentation.flip else 0.0,
        color_jitter=None,
        auto_augment=augmentation.randaugment or None,
        interpolation="bicubic",
        mean=normalisation.mean,
        std=normalisation.std,
        re_prob=augmentation.erase,
        re_mode="pixel",
    )
    parts = [part for part in found.transforms if not isinstance(part, MaybeToTensor)]
    for i, part in enumerate(parts):
        if isinstance(part, Normalize):
            parts[i] = _ToNormalised(size[1], normalisation)
        for op in getattr(part, "ops", ()):
            if op.aug_fn is auto_augment.posterize:
                op.aug_fn = _posterize
    return Compose(parts)


class _ToNormalised:
    """timm's `MaybeToTensor` and `Normalize` to the same bits, in half the time: rows stay as they lie in the image,
    whose channels come last, and so does the tensor (3, H, W) that is returned."""

    def __init__(self, width: int, normalisation: Normalisation):
        self.mean, self.std = (torch.tensor(values).repeat(width) for values in normalisation)

    def __call__(self, image: Image.Image) -> torch.Tensor:
        rows = torch.from_numpy(np.array(image)).flatten(1).to(torch.float32)
        rows.div_(255).sub_(self.mean).div_(self.std)
        return rows.unflatten(1, (-1, 3)).permute(2, 0, 1)


def _posterize(image: Image.Image, bits_to_keep: int, **options) -> Image.Image:
    """timm's, also at its highest magnitude, where it keeps no bit: Pillow refuses that since version 13."""
    if bits_to_keep < 1:
        return Image.new(image.mode, image.size)
    return auto_augment.posterize(image, bits_to_keep, **options)


class _Samples(Dataset):
    """Makes the batch of `Places`: images, labels and what could not be read so far (row -> why)."""

    def __init__(self, split: Split, size: tuple[int, int], transform: Callable, seed: int):
        self.split, self.size, self.transform, self.seed = split, size, transform, seed

    def __getitem__(self, places: Places) -> tuple[torch.Tensor, torch.Tensor, dict[int, str]]:
        images, labels = [], []
        last, image, label = -1, None, -1
        for position, copy in zip(places.positions.tolist(), places.copies.tolist(), strict=True):
            if position != last:  # copies follow each other: decoded once
                last, (image, label) = position, self.split.open(position)
            row = self.split.row(position)
            seed_sample(self.seed, places.epoch, row, copy)
            try:
                images.append(self.transform(image).permute(1, 2, 0))
            except Exception as error:  # whatever a library raises, the user sees one line
                raise WorkError(f"{self._name(row)} cannot be augmented: {first_line(error)}") from error
            labels.append(label)
        bad = dict(self.split.images.bad) if self.split.streamed else {}
        # Stacked right into shared memory, channels last.
        return default_collate(images).permute(0, 3, 1, 2), torch.tensor(labels), bad

    def here(self, places: Places) -> tuple[torch.Tensor, torch.Tensor, dict[int, str]]:
        """The same, with the generators of this process as they were."""
        with own_randomness():
            return self[places]

    def _name(self, row: int) -> str:
        return self.split.images.name(row) if self.split.streamed else f"image {row}"
