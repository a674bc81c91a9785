"""A split: some rows of shared images, in memory or decoded as they are taken."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from PIL import Image

from pocketformer.errors import WorkError
from pocketformer.training.streaming import StreamedImages

T = TypeVar("T")
_REPLACEMENTS = 100  # unreadable images in a row after which it is no longer a matter of single images


@dataclass(frozen=True, eq=False)
class Split:
    """Some rows of shared image data: `images` uint8 (N, 3, S_h, S_w), `labels` int64 (N,).

    `indices` int64 are the rows that belong to the split, in order; None: all of them. The images of a streamed
    split are decoded when they are taken; one that cannot be read, where that is accepted, is then replaced by
    the next of the split that can.
    """

    name: str
    images: torch.Tensor | StreamedImages
    labels: torch.Tensor
    indices: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels if self.indices is None else self.indices)

    @property
    def streamed(self) -> bool:
        return isinstance(self.images, StreamedImages)

    @property
    def stored_size(self) -> tuple[int, int]:
        """Height and width, in pixels, that `take` returns."""
        return tuple(self.images.shape[-2:])

    def row(self, position: int) -> int:
        """The row of the source that is at a position of the split."""
        return position if self.indices is None else int(self.indices[position])

    def take(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies of images uint8 (B, 3, S_h, S_w) and labels int64 (B,) at `rows`, positions in the split."""
        if not self.streamed:
            rows = rows if self.indices is None else self.indices[rows]
            return self.images[rows], self.labels[rows]
        images = np.empty((len(rows), *self.images.shape[1:]), np.uint8)
        labels = np.empty(len(rows), np.int64)

        def fill(place: int) -> None:
            images[place], labels[place] = self._next_readable(int(rows[place]), self.images.pixels)

        with ThreadPoolExecutor(self.images.workers) if self.images.workers > 0 else nullcontext() as pool:
            for _ in (pool.map if pool else map)(fill, range(len(rows))):
                pass
        return torch.from_numpy(images), torch.from_numpy(labels)

    def open(self, position: int) -> tuple[Image.Image, int]:
        """The RGB image at a position, at its own size if streamed, else at the stored one; and its label."""
        if self.streamed:
            return self._next_readable(position, self.images.whole)
        row = self.row(position)
        return Image.fromarray(self.images[row].permute(1, 2, 0).contiguous().numpy()), int(self.labels[row])

    def _next_readable(self, position: int, read: Callable[[int], T | None]) -> tuple[T, int]:
        attempts = min(len(self), _REPLACEMENTS)
        for step in range(attempts):
            row = self.row((position + step) % len(self))
            found = read(row)
            if found is not None:
                return found, int(self.labels[row])
        raise WorkError(
            f"{self.images.source}: {attempts} images in a row cannot be read, from {self.images.name(row)} on; "
            "these are too many to be left out"
        )
