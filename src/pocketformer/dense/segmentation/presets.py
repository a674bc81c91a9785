"""Recipes for segmentation by name."""

from pocketformer.dense.recipe import DenseRecipe


def paper() -> DenseRecipe:
    """Both papers' on ADE20K."""
    return DenseRecipe.segmentation()


def small() -> DenseRecipe:
    """For a few hundred small images on a processor, also from scratch: higher rate, layer scales that learn at
    once."""
    return DenseRecipe.segmentation(
        epochs=60,
        batch_size=8,
        size=(192, 192),
        learning_rate=1e-3,
        warmup_steps=50,
        weight_decay=1e-2,
        layer_scale=0.5,
        checkpoint_every=50,
    )


PRESETS = {"paper": paper, "small": small}
