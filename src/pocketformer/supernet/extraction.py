"""Where a subnet's steps stand in the static network of its architecture."""

from collections.abc import Iterator

from pocketformer.architecture import Selection, Step


def places(selection: Selection) -> Iterator[tuple[Step, str]]:
    """Every step but the head, with the name of its module in `models.Network`."""
    index = [0] * len(selection.space.stages)
    for step in selection.steps[:-1]:
        if step.slot < 0:
            yield step, "stem" if step.kind == "stem" else f"stages.{step.stage}.downsample"
            continue
        yield step, f"stages.{step.stage}.blocks.{index[step.stage]}"
        index[step.stage] += 1
