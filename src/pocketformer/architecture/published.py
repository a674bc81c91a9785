"""The published architectures: V1's Table 5 and V2's Table 12, in the order that the published weights use."""

import difflib

from pocketformer.architecture.architecture import Architecture
from pocketformer.architecture.design import EFFICIENTFORMER
from pocketformer.architecture.stage import FFN, Attention, Stage
from pocketformer.errors import UserError

# name: (widths, attention blocks in each of stages 3 and 4, expansion ratios per stage). Table 12 lists how many
# of each ratio, not their order: the order is that of the published checkpoints (contract 6.1).
_V2 = {
    "efficientformerv2_s0": ((32, 48, 96, 176), 2, ("44", "44", "433344", "4334")),
    "efficientformerv2_s1": ((32, 48, 120, 224), 2, ("444", "444", "443333444", "443344")),
    "efficientformerv2_s2": ((32, 64, 144, 288), 4, ("4444", "4444", "443333334444", "44333344")),
    "efficientformerv2_l": ((40, 80, 192, 384), 6, ("44444", "44444", "444433333334444", "4443333444")),
}
# name: (widths, depths, attention blocks at the end of stage 4). V1's Table 5 is garbled for L3 and L7: these are the
# published weights' (contract 6.14).
_V1 = {
    "efficientformer_l1": ((48, 96, 224, 448), (3, 2, 6, 4), 1),
    "efficientformer_l3": ((64, 128, 320, 512), (4, 4, 12, 6), 4),
    "efficientformer_l7": ((96, 192, 384, 768), (6, 6, 18, 8), 8),
}
NAMES = (*_V1, *_V2)


def published(name: str) -> Architecture:
    if name in _V1:
        return _v1(*_V1[name])
    if name in _V2:
        return _v2(*_V2[name])
    near = difflib.get_close_matches(str(name), NAMES, n=2, cutoff=0.4) or NAMES
    raise UserError(f"no published architecture {name!r}; did you mean {' or '.join(near)}?")


def name_of(architecture: Architecture) -> str | None:
    """The name by which an architecture, at whatever resolution, is published; None for any other."""
    resolution = architecture.design.resolution
    return next((n for n in NAMES if published(n).with_design(resolution=resolution) == architecture), None)


def _v1(widths: tuple[int, ...], depths: tuple[int, ...], attentions: int) -> Architecture:
    stages = []
    for j, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        global_blocks = attentions if j == 3 else 0
        blocks = [FFN(4)] * (depth - global_blocks) + [Attention(), FFN(4)] * global_blocks
        stages.append(Stage(width, tuple(blocks)))
    return Architecture(tuple(stages), EFFICIENTFORMER)


def _v2(widths: tuple[int, ...], attentions: int, ratios: tuple[str, ...]) -> Architecture:
    stages = []
    for j, (width, row) in enumerate(zip(widths, ratios, strict=True)):
        blocks: list = []
        for i, ratio in enumerate(row):
            if j >= 2 and i >= len(row) - attentions:  # the last blocks of stages 3 and 4
                blocks.append(Attention())
            blocks.append(FFN(int(ratio)))
        stages.append(Stage(width, tuple(blocks)))
    return Architecture(tuple(stages))


# Stochastic depth in training (V2 Table 5; V1 trains without).
_DROP_PATH = {"efficientformerv2_s2": 0.02, "efficientformerv2_l": 0.1}


def published_drop_path(architecture: Architecture) -> float:
    """The rate that a published network was trained with, whatever its input size; 0 for any other."""
    rates = (rate for name, rate in _DROP_PATH.items() if published(name).stages == architecture.stages)
    return next(rates, 0.0)
