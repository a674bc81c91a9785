"""Diagrams of architectures: kept and removed slots, any design, and the names of its blocks."""

from xml.etree import ElementTree

from hypothesis import given, settings

import designed
from pocketformer.architecture import Architecture, SearchSpace
from pocketformer.report.diagram import diagram


def test_diagram_shows_kept_and_removed_slots():
    space = SearchSpace.named("pocket28")
    selection = space.whole.without(2, 1).without(3, 0)
    drawn = diagram(selection.architecture, selection, 10)
    assert drawn.count('class="gone"') == 2 + 1  # and in the legend
    assert drawn.count("<title>") == sum(s.slots for s in space.stages)
    whole = Architecture.named("efficientformerv2_l")
    assert diagram(whole).count("<title>") == sum(len(s.blocks) for s in whole.stages)


@given(designed.architectures())
@settings(max_examples=50, deadline=None, derandomize=True)
def test_diagram_draws_any_design(architecture):
    drawn = diagram(architecture)
    ElementTree.fromstring(drawn)
    assert drawn.count("<title>") == sum(len(s.blocks) for s in architecture.stages)


def test_diagram_names_the_blocks_of_other_designs():
    l1 = Architecture.named("efficientformer_l1")
    for network, words in (
        (l1, ["pooling and MLP by expansion", "attention (tokens)", ": attention on tokens<", ": MLP on tokens, exp"]),
        (l1.with_design(token_mixer="dwconv", attention="map"), ["3×3 convolution and MLP, expansion 4", ": MLP, exp"]),
        (l1.with_design(stem="large-kernel"), ["48 channels, one 7 × 7 convolution"]),
        (
            l1.with_design(downsampling=("conv", "attention", "dual-path")),
            ["g: attention, s", "g: dual-path attention"],
        ),
    ):
        for word in words:
            assert word in diagram(network)
