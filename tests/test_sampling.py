"""Which subnets a step runs: the laws against enumeration on a small space, and what is spread over a cost."""

import itertools
import math
from collections import Counter
from random import Random

import pytest

from pocketformer import SearchSpace
from pocketformer.architecture import Design, Selection, StageSpace
from pocketformer.architecture.paths import path
from pocketformer.errors import UserError
from pocketformer.supernet.sampling import NEAR, LatencyAware, Sandwich, Uniform

DESIGN = Design(resolution=16, stage_strides=(2,), downsampling=("conv",), attention_strides=(1, 1))
TOY = SearchSpace("toy", (StageSpace(1, (4, 8)), StageSpace(2, (8, 16), True)), (1, 2), DESIGN)
POCKET = SearchSpace.named("pocket28")


def macs(architecture):
    return architecture.macs(num_classes=10, distilled=False)


def choose(n, slots):
    return itertools.combinations(slots, n)


def uniform_law():
    """{selection: probability} of TOY: per stage a width; in stage 2 how many FFNs, 1 or 2, and which, and how many
    attention blocks, 0 to 2, and which; an expansion each."""
    first, second = [(width, (0,), (ratio,), 1 / 2 / 2) for width in (4, 8) for ratio in (1, 2)], []
    for width, count, heads in itertools.product((8, 16), (1, 2), (0, 1, 2)):
        for ffns, ratios in itertools.product(choose(count, (1, 3)), itertools.product((1, 2), repeat=count)):
            for attention in choose(heads, (0, 2)):
                share = 1 / 2 / 2 / 3 / math.comb(2, count) / 2**count / math.comb(2, heads)
                second.append((width, tuple(sorted(ffns + attention)), ratios, share))
    return {
        Selection(TOY, (a[0], b[0]), (a[1], b[1]), (a[2], b[2])): a[3] * b[3]
        for a, b in itertools.product(first, second)
    }


def chi_square(counts, law):
    """Standard deviations by which counts are further from a law than chance has them."""
    total = sum(counts.values())
    statistic = sum((counts[key] - total * share) ** 2 / (total * share) for key, share in law.items())
    freedom = len(law) - 1
    return (statistic - freedom) / math.sqrt(2 * freedom)


def drawn(rule, steps):
    """The random subnets of that many steps."""
    ends = sum(not role.startswith("random") for role in rule.roles)
    return [subnet for step in range(steps) for subnet in rule.subnets(step)[ends:]]


RULES = {
    "sandwich": lambda space, seed: Sandwich(space, 3, seed),
    "uniform": lambda space, seed: Uniform(space, 3, seed),
    "latency": lambda space, seed: LatencyAware(space, macs, 3, seed),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_rule_is_a_function_of_seed_and_step(rule):
    steps = [rule(POCKET, 5).subnets(step) for step in range(100)]
    again = rule(SearchSpace.named("pocket28"), 5)
    assert [again.subnets(step) for step in (99, 0, 42)] == [steps[99], steps[0], steps[42]]
    assert rule(POCKET, 6).subnets(0)[-3:] != steps[0][-3:]
    roles = rule(POCKET, 5).roles
    for step in steps:
        for role, subnet in zip(roles, step, strict=True):
            assert POCKET.contains(subnet.architecture)
            if role in ("largest", "smallest"):
                assert subnet.architecture == getattr(POCKET, role)
    assert roles[-3:] == ("random_1", "random_2", "random_3")
    assert roles[:-3] == (() if rule is RULES["uniform"] else ("largest", "smallest"))
    assert len({subnet for step in steps for subnet in step[-3:]}) > 280  # new ones in each step


@pytest.mark.parametrize("rule", [Sandwich(TOY, 4), Uniform(TOY, 4, seed=1)], ids=lambda rule: type(rule).__name__)
def test_the_uniform_law_is_the_contracts(rule):
    law = uniform_law()
    assert sum(law.values()) == pytest.approx(1)
    counts = Counter(drawn(rule, 3000))
    assert counts.keys() <= law.keys()
    assert abs(chi_square(counts, law)) < 4
    # It can tell: members all alike likely are another law.
    assert chi_square(counts, dict.fromkeys(law, 1 / len(law))) > 30


def test_uniform_runs_something():
    with pytest.raises(UserError, match="at least 1"):
        Uniform(TOY, 0)


# --- spread over a cost


def spread(subnets, low, high, bins=5):
    """Shares of the subnets in equal parts of a range; outside of it there are none."""
    places = [(macs(subnet.architecture) - low) / (high - low) for subnet in subnets]
    assert all(-1e-9 <= place <= 1 + 1e-9 for place in places)
    counts = Counter(min(int(place * bins), bins - 1) for place in places)
    return [counts[i] / len(places) for i in range(bins)]


@pytest.mark.parametrize("name", ["pocket28", "efficientformerv2"])
def test_latencies_are_spread_evenly(name):
    space = SearchSpace.named(name)
    low, high = macs(space.smallest), macs(space.largest)
    subnets = drawn(LatencyAware(space, macs, 4, seed=2), 50)
    assert all(0.12 < share < 0.28 for share in spread(subnets, low, high))
    # The uniform law leaves most of the range alone.
    plain = sorted(macs(subnet.architecture) for subnet in drawn(Uniform(space, 4, seed=2), 50))
    assert (plain[-10] - low) / (high - low) < 0.6


@pytest.mark.parametrize("share", [0.15, 0.3, 0.8])
def test_latencies_near_a_budget(share):
    budget = share * macs(POCKET.largest)
    subnets = drawn(LatencyAware(POCKET, macs, 2, budget=budget), 150)
    counts = spread(subnets, budget * (1 - NEAR), budget * (1 + NEAR), 4)
    assert all(0.1 < found < 0.4 for found in counts)
    assert len(set(subnets)) > 280


def test_every_member_within_the_range_is_drawn():
    law = uniform_law()
    rule = LatencyAware(TOY, macs, 10)
    low, high = rule.range
    assert (low, high) == (macs(TOY.smallest), macs(TOY.largest))
    counts = Counter(drawn(rule, 300))
    within = {member for member in law if low <= macs(member.architecture) <= high}
    assert counts.keys() <= within
    assert len(counts) > 0.9 * len(within)


def test_a_path_changes_one_choice_at_a_time():
    lengths = []
    for seed in range(20):
        rng = Random(seed)
        start = POCKET.sample_selection(rng)
        members = list(path(start, POCKET.minimum if seed % 2 else POCKET.whole, rng))
        assert members[0] == start
        assert members[-1] == (POCKET.minimum if seed % 2 else POCKET.whole)
        for before, after in itertools.pairwise(members):
            changed = sum(a != b for a, b in zip(before.widths, after.widths, strict=True))
            changed += sum(set(a) != set(b) for a, b in zip(before.kept, after.kept, strict=True))
            changed += sum(
                before.kept[j] == after.kept[j] and before.expansions[j] != after.expansions[j] for j in range(4)
            )
            assert changed == 1
        lengths.append(len(members))
    assert sum(lengths) > 10 * len(lengths)


def test_a_budget_that_no_member_is_near_is_refused():
    smallest, largest = macs(POCKET.minimum.architecture), macs(POCKET.largest)
    for budget in (smallest / 2, largest * 2):
        with pytest.raises(UserError, match="no member of space pocket28 is near a budget") as refusal:
            LatencyAware(POCKET, macs, budget=budget).subnets(0)
        assert "\n" not in str(refusal.value)
    for budget in (smallest, largest):
        assert LatencyAware(POCKET, macs, budget=budget).subnets(0)
