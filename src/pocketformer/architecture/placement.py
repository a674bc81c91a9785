"""Which block value stands at each place of an architecture: stages and design switches in, block values out."""

from collections.abc import Sequence

from pocketformer.architecture import blocks as values
from pocketformer.architecture.blocks import BlockValue, Grid
from pocketformer.architecture.design import Design
from pocketformer.architecture.stage import Attention, StageBlock


def stem(design: Design, in_chans: int, width: int, resolution: Grid) -> BlockValue:
    if design.stem == "large-kernel":
        first, second = design.stem_strides
        return values.PatchStem(in_chans, width, resolution, first * second, design.norm)
    return values.Stem(in_chans, width, resolution, design.stem_strides, design.activation_of_stem, design.norm)


def downsampling(design: Design, stage: int, in_width: int, width: int, grid: Grid) -> BlockValue:
    """The downsampling in front of `stage` (counted from 0), whose input has `grid`."""
    kind, stride = design.downsampling[stage - 1], design.stage_strides[stage - 1]
    if kind == "conv":
        return values.ConvDownsampling(in_width, width, grid, stride, design.norm)
    return values.AttentionDownsampling(
        in_width,
        width,
        design.downsampling_heads,
        design.downsampling_key_dim,
        design.downsampling_value_dim,
        grid,
        stride,
        design.activations[stage],
        design.norm,
        local_value=design.local_value,
        bias=design.attention_bias,
        dual_path=kind == "dual-path",
    )


def on_tokens(design: Design, blocks: Sequence[StageBlock]) -> bool:
    """Whether a stage ends on tokens: in V1's design, from its first attention block on (V1 Sec. 4.1)."""
    return design.attention == "tokens" and any(isinstance(b, Attention) for b in blocks)


def block(
    design: Design, j: int, width: int, here: StageBlock, grid: Grid, before: Sequence[StageBlock] = ()
) -> BlockValue:
    """A block of stage `j` (counted from 0) on `grid`, behind the blocks `before` of the same stage."""
    activation, tokens = design.activations[j], on_tokens(design, (*before, here))
    heads = (design.heads, design.key_dim, design.value_dim)
    if isinstance(here, Attention):
        if tokens:
            return values.TokenAttentionBlock(width, *heads, grid, design.attention_bias)
        return values.AttentionBlock(
            width,
            *heads,
            grid,
            design.attention_strides[j],
            activation,
            design.norm,
            local_value=design.local_value,
            talking_heads=design.talking_heads,
            bias=design.attention_bias,
            full_queries=design.strided_attention == "keys-values" and design.attention_strides[j] > 1,
        )
    if tokens:
        return values.TokenFFNBlock(width, here.expansion, grid, activation)
    if design.token_mixer == "ffn":
        return values.FFNBlock(width, here.expansion, grid, activation, design.norm)
    mixed = bool(before) and isinstance(before[-1], Attention)  # which is this block's token mixer
    return values.MetaBlock(
        width, here.expansion, "none" if mixed else design.token_mixer, grid, activation, design.norm
    )


def head(design: Design, width: int, grid: Grid, num_classes: int, distilled: bool, tokens: bool) -> BlockValue:
    """`tokens`: the last stage ends on them."""
    return values.Head(width, grid, num_classes, distilled, "ln" if tokens else design.norm)
