"""`quickstart`: the whole chain on the images shipped with the package, in a few minutes on two cores."""

from dataclasses import replace
from pathlib import Path

from pocketformer.architecture import SearchSpace
from pocketformer.pipelines.design import design
from pocketformer.pipelines.settings import Budget, DesignSettings, ProfileSettings
from pocketformer.training.recipe import Recipe

# Half of what the largest subnet takes, in time and in parameters.
_HALF = {"latency": Budget(0.5, relative=True), "size": Budget(0.5, relative=True)}


def quickstart_settings(seed: int = 0) -> DesignSettings:
    return DesignSettings(
        data="embedded",
        space=SearchSpace.named("pocket28"),
        runtime="onnxruntime",
        budgets=_HALF,
        seed=seed,
        supernet=Recipe.small_images(epochs=2.8, batch_size=128),
        final=Recipe.small_images(epochs=1.25, batch_size=128, learning_rate=1e-2, warmup_epochs=0.2),
        profile=ProfileSettings(rounds=24, networks=16, checks=4),
        random=14,
        calibration=64,
        command="quickstart",
    )


def quickstart(out: str | Path, seed: int = 0, accept_table_error: bool = False) -> dict:
    return design(replace(quickstart_settings(seed), accept_table_error=accept_table_error), out)
