"""V1's MetaPath space: members and their neighbours against brute force, what is refused, and its profile."""

import itertools
from collections import Counter
from dataclasses import replace

import pytest
import torch

import metapaths
from additive import check_that_chains_find_it
from metapaths import DEPTHS, TINY, all_kinds, member
from pocketformer import Architecture, MetaPathSupernet, SearchSpace, Supernet
from pocketformer.architecture import Attention, Selection, metapath
from pocketformer.devices import space_blocks
from pocketformer.devices.plan import Plan
from pocketformer.errors import UserError
from pocketformer.search import frontier, regrowth

torch.set_num_threads(1)


# --- the space


def test_the_published_networks_are_members():
    space = SearchSpace.named("efficientformer")
    counts = {"l1": 12_289_928, "l3": 31_406_000, "l7": 82_229_328}
    for name, count in counts.items():
        network = Architecture.named(f"efficientformer_{name}")
        assert space.contains(network)
        assert space.select(network).architecture == network
        assert network.parameters() == count
    assert all(width % 16 == 0 for stage in space.stages for width in stage.widths)
    assert not space.contains(Architecture.named("efficientformerv2_s0"))
    # Attention in front of an MB4D, without its FFN, or in stage 3 without being the last blocks.
    l3 = Architecture.named("efficientformer_l3")
    for stage, blocks in (
        (3, (*l3.stages[3].blocks, l3.stages[0].blocks[0])),
        (3, (*l3.stages[3].blocks, Attention())),
        (2, (*l3.stages[2].blocks[:-1], Attention(), l3.stages[2].blocks[-1])),
    ):
        stages = list(l3.stages)
        stages[stage] = replace(stages[stage], blocks=blocks)
        assert not space.contains(replace(l3, stages=tuple(stages)))


def test_members_are_those_of_brute_force():
    """Any set of slots is a member just if it is one of the sequences MB4D … MB3D."""
    wanted = {metapaths.slots(kinds) for kinds in all_kinds()}
    counts = [range(s.slots + 1) for s in TINY.stages]
    offers = [
        itertools.chain(*(itertools.combinations(range(s.slots), n) for n in count))
        for s, count in zip(TINY.stages, counts, strict=True)
    ]
    accepted = set()
    for kept in itertools.product(*offers):
        ffns = [sum(not s.is_attention(i) for i in k) for s, k in zip(TINY.stages, kept, strict=True)]
        try:
            Selection(TINY, (6, 8, 12, 16), kept, tuple((2,) * n for n in ffns))
        except UserError:
            continue
        accepted.add(kept)
    assert accepted == wanted
    drawn = Counter(TINY.sample_selection(seed).kept for seed in range(4000))
    assert drawn.keys() == wanted
    for kinds in all_kinds():
        selection = member(kinds)
        assert TINY.contains(selection.architecture)
        assert TINY.select(selection.architecture).architecture == selection.architecture
        found = ["I"] * 7
        for block in metapath.blocks(selection):
            found[sum(DEPTHS[: block.stage]) + block.place] = "3D" if block.tokens else "4D"
        assert tuple(found) == kinds
    assert SearchSpace.from_dict(TINY.to_dict()) == TINY


def test_neighbours_are_one_action_of_v1_away():
    everyone = {member(kinds): kinds for kinds in all_kinds()}
    for selection, kinds in everyone.items():
        smaller = set()
        for other, theirs in everyone.items():
            changed = [(a, b) for a, b in zip(kinds, theirs, strict=True) if a != b]
            if len(changed) == 1 and changed[0] in (("4D", "I"), ("3D", "I"), ("3D", "4D")):
                smaller.add(other)
        found = [s for action, s in frontier(selection) if action.kind == "depth"]
        assert len(found) == len(set(found))
        assert set(found) == smaller
        larger = [s for action, s in regrowth(selection) if action.kind == "depth"]
        assert all(selection in [s for _, s in frontier(other)] for other in larger)
        missing = kinds.count("I")
        assert missing <= len(larger) <= missing + 1  # each place comes back, and the last MB4D may become an MB3D
    widths = [s.widths for action, s in frontier(member(all_kinds()[0])) if action.kind == "width"]
    assert widths == [(4, 8, 12, 16), (6, 6, 12, 16), (6, 8, 10, 16), (6, 8, 12, 12)]


def ending(stage, *blocks):
    """Stages of the smallest member, one of them with other blocks."""
    stages = TINY.to_dict()["smallest"]
    stages[stage] = {**stages[stage], "blocks": blocks}
    return stages


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"metapath": "yes"}, "metapath must be true or false, not 'yes'"),
        ({"stages": [*TINY.to_dict()["stages"][:3], {"depth": 2, "widths": [12]}]}, "stage 4 needs attention as well"),
        ({"smallest": ending(3, "attention", "ffn2", "ffn2")}, "behind an MB3D"),
        ({"smallest": ending(3, "attention", "attention", "ffn2")}, "without its FFN"),
        ({"smallest": ending(0, "attention", "ffn2")}, "no room"),
    ],
)
def test_bad_spaces_are_refused(change, words):
    with pytest.raises(UserError, match=words) as refusal:
        SearchSpace.from_dict({**TINY.to_dict(), **change})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"expansions": [1, 2]}, "has one expansion"),
        ({"metapath": False}, "needs a space of EfficientFormers"),
        ({"design": {**TINY.to_dict()["design"], "token_mixer": "dwconv"}}, "token mixer 'pool' only, not 'dwconv'"),
        ({"design": {**TINY.to_dict()["design"], "norm": "gn"}}, "norm 'bn' only"),
    ],
)
def test_spaces_without_a_metapath_supernet_are_refused(change, words):
    with pytest.raises(UserError, match=words) as refusal:
        MetaPathSupernet(SearchSpace.from_dict({**TINY.to_dict(), **change}))
    assert "\n" not in str(refusal.value)


def test_v2s_supernet_says_whose_space_it_is():
    with pytest.raises(UserError, match="MetaPathSupernet"):
        Supernet(TINY)


# --- the lookup table


def test_a_profile_knows_every_block():
    """Attention is timed with its MLP, as MB3D; an additive device is found again; networks drawn are members."""
    space = SearchSpace.named("metapath32")
    blocks = space_blocks(space, 10)
    for seed in range(50):
        assert {b.key() for b in space.sample(seed).blocks(None, 10, False)} <= blocks.keys()
    chains = check_that_chains_find_it(space)
    units = [[block.key().split()[0] for block in chain.unit] for chain in chains if chain.target.kind == "attention"]
    assert units
    assert all(unit == ["token-attention", "token-ffn"] for unit in units)
    plan = Plan.draw(space, 10, 40, 20, 0)
    drawn = [*plan.networks.values(), *plan.checks.values()]
    assert all(map(space.contains, drawn))
    assert len({sum(isinstance(b, Attention) for s in a.stages for b in s.blocks) for a in drawn}) > 5
