"""What a batch of images shows: boxes, classes and masks of objects; the targets of a training of detectors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

PADDED_TO = 32  # images are padded to multiples of it, px


@dataclass(frozen=True, eq=False)
class Instances:
    """Objects of B images, those of one image after another's; implements the engine's `Annotations`.

    `sizes`: height and width of each image in px, without what was padded; `counts`: objects of each; `boxes` float32
    (N, 4) left, top, right, bottom in px; `labels` int64 (N,) from 1; `masks` uint8 (N, H, W) of the padded batch, or
    None.
    """

    sizes: tuple[tuple[int, int], ...]
    counts: tuple[int, ...]
    boxes: torch.Tensor
    labels: torch.Tensor
    masks: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.sizes)

    def chunk(self, parts: int) -> "Sequence[Instances]":
        pieces = [(int(p[0]), int(p[-1]) + 1) for p in torch.arange(len(self)).chunk(parts)]
        return [self._part(first, last) for first, last in pieces]

    def _part(self, first: int, last: int) -> "Instances":
        start, stop = sum(self.counts[:first]), sum(self.counts[:last])
        masks = None if self.masks is None else self.masks[start:stop]
        boxes, labels = self.boxes[start:stop], self.labels[start:stop]
        return Instances(self.sizes[first:last], self.counts[first:last], boxes, labels, masks)

    def to(self, device: torch.device, non_blocking: bool = False) -> "Instances":
        moved = (t.to(device, non_blocking=non_blocking) for t in (self.boxes, self.labels))
        masks = None if self.masks is None else self.masks.to(device, non_blocking=non_blocking)
        return Instances(self.sizes, self.counts, *moved, masks)

    def tensors(self) -> dict[str, torch.Tensor]:
        found = {
            "sizes": torch.tensor(self.sizes),
            "counts": torch.tensor(self.counts),
            "boxes": self.boxes.contiguous(),
            "labels": self.labels.contiguous(),
        }
        return found if self.masks is None else {**found, "masks": self.masks.contiguous()}

    def by_image(self) -> list[dict[str, Any]]:
        """As torchvision's detectors take them, with the image's "size"."""
        parts = {"boxes": self.boxes, "labels": self.labels}
        if self.masks is not None:
            parts["masks"] = self.masks
        split = {name: tensor.split(self.counts) for name, tensor in parts.items()}
        found = [{name: tensors[i] for name, tensors in split.items()} for i in range(len(self))]
        return [{**of_one, "size": size} for of_one, size in zip(found, self.sizes, strict=True)]
