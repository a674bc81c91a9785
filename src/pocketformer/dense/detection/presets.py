"""Recipes and heads for detection by name."""

from pocketformer.dense.detection.heads import Heads
from pocketformer.dense.recipe import DenseRecipe

Preset = tuple[DenseRecipe, Heads]


def paper() -> Preset:
    """V2's on COCO; V1's has a weight decay of 1e-4."""
    return DenseRecipe.detection(), Heads()


def small() -> Preset:
    """For a few hundred or thousand images on a processor or one GPU: images a quarter as large, lighter heads, four
    images a step, a shorter warm-up."""
    recipe = DenseRecipe.detection(
        epochs=24, batch_size=4, size=(384, 640), milestones=(16, 22), warmup_steps=100, checkpoint_every=50
    )
    return recipe, Heads(width=128, hidden=256, mask_convs=2, proposals=500, samples=256)


PRESETS = {"paper": paper, "small": small}
