"""What one training step of a segmenter computes."""

import torch
import torch.nn.functional as F

from pocketformer.dense.segmentation.labels import IGNORE
from pocketformer.dense.segmentation.segmenter import Segmenter
from pocketformer.training.engine import Backward, Figures


class SegmentationTask:
    """Cross-entropy of each pixel; those that are ignored count as without error, as in MMSegmentation 0.19.

    So the loss is a mean over all pixels: each weighs the same in whatever part of a batch or process it is, and a
    crop without any label has a loss, 0. "accuracy" is of the pixels that have a label.
    """

    def __init__(self, model: Segmenter):
        self.model = model

    def run(self, images: torch.Tensor, targets: torch.Tensor, step: int, backward: Backward) -> Figures:
        """`targets` int64 (B, H, W): classes, or `IGNORE`."""
        logits = self.model(images)
        # Summed here: on a GPU the library's own sum is refused under `--deterministic`.
        errors = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none")
        loss = errors.sum() / targets.numel()
        backward(loss)
        labelled = targets != IGNORE
        right = (logits.detach().argmax(1) == targets) & labelled
        return {"loss": loss.detach(), "accuracy": right.sum() / labelled.sum().clamp(min=1)}
