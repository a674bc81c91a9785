"""A toy search space, every member of it, and made-up costs and scores. Shared by the tests of the search."""

import itertools
import random
from functools import cache

from pocketformer import SearchSpace, Selection
from pocketformer.architecture import Design, StageSpace
from pocketformer.search import Score

TOY = SearchSpace(
    "toy",
    (StageSpace(2, (8, 12)), StageSpace(2, (8, 12, 16), attention=True)),
    (1, 2),
    Design(
        resolution=16, stage_strides=(2,), downsampling=("dual-path",), attention_strides=(1, 2), heads=2,
        key_dim=4, value_dim=4, downsampling_heads=2, downsampling_key_dim=4, downsampling_value_dim=4,
    ),
)  # fmt: skip


def plain(selection):
    """A selection as plain data: (width of each stage, {(stage, slot): "attention" or expansion} as a set)."""
    found = set()
    for j, kept in enumerate(selection.kept):
        ratios = iter(selection.expansions[j])
        for slot in kept:
            found.add((j, slot, "attention" if j == 1 and slot in (0, 2) else next(ratios)))
    return selection.widths, frozenset(found)


def all_members():
    """{plain data: selection}: every member of the toy space, spelled out."""
    stages = []
    for widths, ffns, attentions in (((8, 12), (0, 1), ()), ((8, 12, 16), (1, 3), (0, 2))):
        options = []
        for width in widths:
            for kept in itertools.chain(*(itertools.combinations(ffns, n) for n in range(1, 3))):
                for more in itertools.chain(*(itertools.combinations(attentions, n) for n in range(3))):
                    for ratios in itertools.product((1, 2), repeat=len(kept)):
                        options.append((width, tuple(sorted(kept + more)), ratios))
        stages.append(options)
    selections = [Selection(TOY, *zip(*choice, strict=True)) for choice in itertools.product(*stages)]
    return {plain(s): s for s in selections}


MEMBERS = all_members()
WIDTHS = ((8, 12), (8, 12, 16))


def slimming(larger, smaller):
    """(stage, slot, kind) if `smaller` is one slimming action away from `larger`, else None."""
    (widths, blocks), (new_widths, new_blocks) = larger, smaller
    if blocks == new_blocks:
        changed = [j for j in (0, 1) if widths[j] != new_widths[j]]
        if len(changed) == 1:
            (j,) = changed
            if WIDTHS[j].index(widths[j]) - WIDTHS[j].index(new_widths[j]) == 1:
                return (j, -1, "width")
    elif widths == new_widths:
        gone, new = blocks - new_blocks, new_blocks - blocks
        if len(gone) == 1:
            (stage, slot, what) = next(iter(gone))
            if not new:
                return (stage, slot, "depth")
            if len(new) == 1 and next(iter(new)) == (stage, slot, 1) and what == 2:
                return (stage, slot, "expansion")
    return None


@cache
def steps_down(key):
    """[(action, member)] in the fixed order: by stage, slot (a width first), kind."""
    found = [(slimming(key, other), other) for other in MEMBERS]
    return sorted((pair for pair in found if pair[0]), key=lambda pair: pair[0])


@cache
def steps_up(key):
    """The reverse; an FFN comes back at the smallest expansion only."""
    found = [(slimming(other, key), other) for other in MEMBERS]
    found = [(action, other) for action, other in found if action]
    back = {other: other[1] - key[1] for _, other in found}
    found = [
        (action, other)
        for action, other in found
        if action[2] != "depth" or next(iter(back[other]))[2] in ("attention", 1)
    ]
    return sorted(found, key=lambda pair: pair[0])


def noise(*key):
    """A number in [0, 1) that is a function of its arguments in every process."""
    return _noise(repr(key))


@cache
def _noise(text):
    return random.Random(text).random()


class MadeUp:
    """Additive costs and an evaluator over the toy space. `coarse` rounds accuracy and loss, so that some actions
    cost nothing and many tie, their costs included; without it every action costs accuracy. `bumpy` costs need
    not fall with a slimming action: a narrower block can be slower."""

    def __init__(self, seed, coarse, bumpy):
        self.seed, self.coarse, self.bumpy = seed, coarse, bumpy

    def costs(self, selection):
        widths, blocks = plain(selection)
        size, latency = 3e5, 0.25
        for j, slot, what in sorted(blocks, key=repr):
            work = widths[j] * (2 if what == "attention" else what)
            size += 1e4 * work
            jitter = noise(self.seed, "ms", j, what, widths[j])
            if self.bumpy:
                latency += 0.05 + 0.3 * jitter
            else:  # sums of eighths are exact: equal work ties
                latency += work / 8 if self.coarse else work * (0.1 + 0.01 * (slot + jitter / 2))
        if self.bumpy:
            latency += noise(self.seed, "down", widths)
        else:
            size += sum(1e4 * w for w in widths)
            latency += sum(widths) / 8
        return {"size": size, "latency": latency}

    def score(self, selection):
        widths, blocks = plain(selection)
        if self.coarse:
            number = noise(self.seed, "acc", widths, sorted(blocks, key=repr))
            return Score(round(number * 6) / 6, round(noise(number) * 3) / 3)
        worth = sum(widths[j] * noise(self.seed, j) for j in (0, 1))
        for j, slot, what in sorted(blocks, key=repr):
            worth += (2 if what == "attention" else what) * (0.1 + noise(self.seed, j, slot, what == "attention"))
        return Score(worth / 100, -worth)

    def __call__(self, current, candidates):
        return [self.score(s) for s in (current, *candidates)]


def budgets_of(made_up, seed):
    start = made_up.costs(TOY.whole)
    shares = {"latency": 0.3 + 0.6 * noise(seed, "a"), "size": 0.3 + 0.6 * noise(seed, "b")}
    names = (("latency",), ("size",), ("latency", "size"))[seed % 3]
    return {name: start[name] * shares[name] for name in names}


def run(generator):
    """The moves and why it stopped."""
    moves = []
    while True:
        try:
            moves.append(next(generator))
        except StopIteration as stop:
            return moves, stop.value


def many_costs(made_up):
    """Further metrics beside those of `made_up`, a second device among them, each with an order of its own."""

    def costs(selection):
        widths, blocks = plain(selection)
        work = [
            sum(widths[j] * (2 if what == "attention" else what) for j, _, what in blocks if j == i) for i in (0, 1)
        ]
        return {
            **made_up.costs(selection),
            "latency:phone": 0.1 + 0.02 * work[0] + 0.1 * work[1] + 0.3 * noise(made_up.seed, "phone", widths),
            "macs": 1e5 * (4 * work[0] + work[1]),
            "memory": 1e3 * max(4 * widths[0], widths[1] * max((w for *_, w in blocks if w != "attention"))),
            "energy": 1 + work[0] * noise(made_up.seed, "mJ"),
        }

    return costs


def compass(costs, budgets, exponents, units, form):
    """Eq. 7 as contract 6.8 has it, spelled out."""
    score = 100.0
    for name, alpha in exponents.items():
        value = max(costs[name], budgets.get(name, 0)) if form == "budget" else costs[name]
        score *= (value / units[name]) ** -alpha
    return score
