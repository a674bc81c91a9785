"""The published architectures: EfficientFormerV2's Table 12, in the order that the published weights use."""

import difflib

from pocketformer.architecture.architecture import FFN, Architecture, Attention, Stage
from pocketformer.errors import UserError

# name: (widths, attention blocks in each of stages 3 and 4, expansion ratios per stage). Table 12 lists how many
# of each ratio, not their order: the order is that of the published checkpoints (contract 6.1).
_V2 = {
    "efficientformerv2_s0": ((32, 48, 96, 176), 2, ("44", "44", "433344", "4334")),
    "efficientformerv2_s1": ((32, 48, 120, 224), 2, ("444", "444", "443333444", "443344")),
    "efficientformerv2_s2": ((32, 64, 144, 288), 4, ("4444", "4444", "443333334444", "44333344")),
    "efficientformerv2_l": ((40, 80, 192, 384), 6, ("44444", "44444", "444433333334444", "4443333444")),
}
NAMES = tuple(_V2)


def published(name: str) -> Architecture:
    if name not in _V2:
        near = difflib.get_close_matches(str(name), NAMES, n=2, cutoff=0.4) or NAMES
        raise UserError(f"no published architecture {name!r}; did you mean {' or '.join(near)}?")
    widths, attentions, ratios = _V2[name]
    stages = []
    for j, (width, row) in enumerate(zip(widths, ratios, strict=True)):
        blocks: list = []
        for i, ratio in enumerate(row):
            if j >= 2 and i >= len(row) - attentions:  # the last blocks of stages 3 and 4
                blocks.append(Attention())
            blocks.append(FFN(int(ratio)))
        stages.append(Stage(width, tuple(blocks)))
    return Architecture(tuple(stages))
