"""Mixup and CutMix of a batch, as a function of (seed, step)."""

import numpy as np
import torch
from timm.data import Mixup

from pocketformer.training.recipe import Recipe


class Mixing:
    """timm's `Mixup`, always applied, one of the two by a coin (V2 Table 5), with the recipe's label smoothing.

    The processes of a job mix each its own share with the same coefficients.
    """

    def __init__(self, recipe: Recipe, num_classes: int, seed: int):
        self.seed = seed
        self._mixup = Mixup(
            mixup_alpha=recipe.mixup,
            cutmix_alpha=recipe.cutmix,
            label_smoothing=recipe.label_smoothing,
            num_classes=num_classes,
        )

    def __call__(self, images: torch.Tensor, labels: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (B, C, H, W) and labels int64 (B,) to mixed images and soft targets (B, classes). B is even."""
        before = np.random.get_state()  # timm draws from the global generator
        np.random.seed(np.random.SeedSequence([self.seed, step]).generate_state(4))
        try:
            # A copy: the batch may be kept by who made it, and timm mixes in place.
            return self._mixup(images.clone(memory_format=torch.preserve_format), labels)
        finally:
            np.random.set_state(before)
