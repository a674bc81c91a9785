"""Random architectures under every combination of design switches. Shared by the tests of costs and of blocks."""

import math
from dataclasses import replace

from hypothesis import strategies as st

from pocketformer.architecture import FFN, Architecture, Attention, Design, SearchSpace, Stage, StageSpace

SIZES = st.integers(1, 3)
DIMS = st.integers(2, 4)  # GroupNorm refuses a single value
ACTIVATIONS = ("gelu", "relu", "hardswish")


@st.composite
def designs(draw, tokens: bool | None = None, elastic: bool = False):
    """A legal design of 3 to 5 stages for small images. `elastic`: one that a supernet can execute."""
    n = draw(st.integers(3, 5))
    tokens = not elastic and draw(st.booleans()) if tokens is None else tokens
    strides, one = st.integers(1, 2), st.just(1)
    stem_strides = draw(st.tuples(strides, strides))
    stage_strides = draw(st.lists(strides, min_size=n - 1, max_size=n - 1))
    total = math.prod((*stem_strides, *stage_strides))
    kinds = st.sampled_from(("conv", "attention", "dual-path"))
    return Design(
        resolution=draw(st.tuples(*2 * (st.integers(total, total + 12),))),
        activation=draw(
            st.one_of(st.sampled_from(ACTIVATIONS), st.lists(st.sampled_from(ACTIVATIONS), min_size=n, max_size=n))
        ),
        stem_activation=draw(st.sampled_from(("", *ACTIVATIONS))),
        norm="bn" if elastic else draw(st.sampled_from(("bn", "gn"))),
        stem="conv" if elastic else draw(st.sampled_from(("conv", "large-kernel"))),
        stem_strides=stem_strides,
        stage_strides=stage_strides,
        downsampling=draw(st.lists(kinds, min_size=n - 1, max_size=n - 1)),
        token_mixer="ffn" if elastic else draw(st.sampled_from(("ffn", "dwconv", "pool"))),
        attention="tokens" if tokens else "map",
        attention_strides=draw(st.lists(one if tokens else strides, min_size=n, max_size=n)),
        strided_attention=draw(st.sampled_from(("stride", "keys-values"))),
        local_value=not tokens and draw(st.booleans()),
        talking_heads=not tokens and draw(st.booleans()),
        attention_bias=draw(st.booleans()),
        heads=draw(SIZES),
        key_dim=draw(DIMS),
        value_dim=draw(DIMS),
        downsampling_heads=draw(SIZES),
        downsampling_key_dim=draw(DIMS),
        downsampling_value_dim=draw(DIMS),
    )


@st.composite
def architectures(draw, tokens: bool | None = None):
    design = draw(designs(tokens))
    expansions = st.one_of(st.integers(1, 4), st.floats(0.5, 4))
    blocks = st.lists(st.one_of(st.just(Attention()), st.builds(FFN, expansions)), min_size=1, max_size=3)
    stages = tuple(Stage(draw(st.integers(4, 11)), draw(blocks)) for _ in design.attention_strides)
    return Architecture(stages, design)


@st.composite
def spaces(draw, elastic: bool = False):
    """A small search space under such a design."""
    design = draw(designs(elastic=elastic))
    design = replace(design, resolution=tuple(side + design.total_stride for side in design.resolution))  # grids >= 2
    widths = st.sets(st.integers(4, 11), min_size=1, max_size=2).map(sorted)
    depths, attention = st.integers(1, 2), st.booleans()
    stages = tuple(StageSpace(draw(depths), draw(widths), draw(attention)) for _ in design.attention_strides)
    return SearchSpace("made-up", stages, draw(st.sampled_from([(1, 2), (0.5, 1.5, 2)])), design)
