"""All block values: what a block is, what it costs, and the key of its latency entry.

Everything that needs to know a block (the model builder, the supernet, the cost model, the latency table, the
plots) takes these values.
"""

from pocketformer.architecture.block import Block, strided
from pocketformer.architecture.efficientformer import MetaBlock, TokenAttentionBlock, TokenFFNBlock
from pocketformer.architecture.efficientformerv2 import AttentionBlock, AttentionDownsampling, FFNBlock
from pocketformer.architecture.ends import ConvDownsampling, Head, PatchStem, Stem
from pocketformer.architecture.layers import Grid, positions

__all__ = [
    "AttentionBlock",
    "AttentionDownsampling",
    "Block",
    "BlockValue",
    "ConvDownsampling",
    "FFNBlock",
    "Grid",
    "Head",
    "MetaBlock",
    "PatchStem",
    "Stem",
    "TokenAttentionBlock",
    "TokenFFNBlock",
    "positions",
    "strided",
]

BlockValue = (
    Stem
    | PatchStem
    | FFNBlock
    | MetaBlock
    | TokenFFNBlock
    | AttentionBlock
    | TokenAttentionBlock
    | ConvDownsampling
    | AttentionDownsampling
    | Head
)
