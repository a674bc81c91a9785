"""What a profile times, by name: chains of blocks, whole networks to fit and to check with. Pure Python.

Half of the networks that correct the table, and of those that check it, follow the space's own law (contract 6.6),
whose sums of many independent choices are mostly middling; the others are as deep and wide everywhere as at a place
between smallest and largest, so that both ends are known as well; for checks these places are spread evenly.
"""

import random
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

from pocketformer.architecture import Architecture, SearchSpace, metapath
from pocketformer.architecture.published import NAMES
from pocketformer.architecture.selection import Selection
from pocketformer.devices.chains import Chain, space_chains

REFERENCE, UNIT, SMALLEST = "largest", "mobilenetv2_100", "smallest"


@dataclass(frozen=True)
class Plan:
    """The candidates of one profile. `networks` correct the table, `checks` test it; none of them is the
    reference, the space's largest member, which is in every group of candidates that are timed together."""

    space: SearchSpace
    num_classes: int
    networks: Mapping[str, Architecture]
    checks: Mapping[str, Architecture]

    @classmethod
    def draw(
        cls,
        space: SearchSpace,
        num_classes: int,
        networks: int,
        checks: int,
        seed: int,
        avoid: Collection[Architecture] = (),
    ) -> "Plan":
        """`networks` random members and the smallest, and `checks` others and the published members; fewer if
        the space has no more. None of `avoid` is drawn. Zero of a kind leaves out all of that kind."""
        rng = random.Random(seed)
        fitting: dict[str, Architecture] = {SMALLEST: space.minimum.architecture} if networks else {}
        published = {name: a for name in NAMES if space.contains(a := Architecture.named(name))}
        checking = {name: a for name, a in published.items() if checks and a not in avoid}
        taken = {space.largest, *fitting.values(), *published.values(), *avoid}
        for found, kind, count in ((fitting, "network", networks), (checking, "check", checks)):
            for i in range(count):
                for _ in range(40):
                    share = _spread(i // 2, count // 2, rng)
                    member = (_between(space, share, rng) if i % 2 else space.sample_selection(rng)).architecture
                    if member not in taken:
                        found[f"{kind} {i}"] = member
                        taken.add(member)
                        break
        return cls(space, num_classes, fitting, checking)

    @cached_property
    def chains(self) -> dict[str, Chain]:
        return {chain.name: chain for chain in space_chains(self.space, self.num_classes)}

    @property
    def whole(self) -> dict[str, Architecture]:
        """All whole networks, the reference among them."""
        return {REFERENCE: self.space.largest, **self.networks, **self.checks}

    @property
    def roles(self) -> dict[str, str]:
        """What each candidate is for, in the order of measuring."""
        roles = {REFERENCE: "reference"} | dict.fromkeys(self.chains, "chain") | {UNIT: "unit"}
        return roles | dict.fromkeys(self.networks, "network") | dict.fromkeys(self.checks, "check")

    def counts(self, name: str) -> Counter:
        """How often each block's key occurs in a whole network."""
        return Counter(b.key() for b in self.whole[name].blocks(None, self.num_classes, distilled=False))

    def fit_groups(self, size: int) -> list[list[str]]:
        """What corrects the table in groups of about `size`, all alike: each holds some chains of each sort and some
        networks. The two chains for one block, whose difference counts, stay together."""
        blocks: dict[str, list[str]] = {}
        for chain in self.chains.values():
            blocks.setdefault(chain.target.key(), []).append(chain.name)
        units = [*blocks.values(), [UNIT], *([name] for name in self.networks)]
        count = -(-sum(map(len, units)) // size)
        return [[name for unit in units[i::count] for name in unit] for i in range(count)]

    def check_groups(self, size: int) -> list[list[str]]:
        names = list(self.checks)
        count = -(-len(names) // size)
        return [names[i::count] for i in range(count)]


def _spread(place: int, places: int, rng: random.Random) -> float:
    """A share of the way for each of some places, whose costs fall in even steps from the largest's (a network's cost
    goes about with depth and with width)."""
    return max(1 - (place + 0.5 * rng.random()) / max(places, 1), 0) ** 0.5


def _between(space: SearchSpace, share: float, rng: random.Random) -> Selection:
    """A member whose choices lie at that share of the way from smallest to largest, rounded up or down by chance."""

    def near(choices: int) -> int:
        return min(int((choices - 1) * share + rng.random()), choices - 1)

    widths, kept, expansions, places, room = [], [], [], [], 0
    for stage in space.stages:
        widths.append(stage.widths[near(len(stage.widths))])
        ffns = [slot for slot in range(stage.slots) if not stage.is_attention(slot)]
        attentions = [slot for slot in range(stage.slots) if stage.is_attention(slot)]
        chosen = rng.sample(ffns, 1 + near(len(ffns)))
        expansions.append(tuple(space.expansions[near(len(space.expansions))] for _ in chosen))
        places.append([ffns.index(slot) for slot in chosen])
        if space.metapath:
            room += len(chosen) if stage.attention else 0
            continue
        chosen += rng.sample(attentions, near(len(attentions) + 1))
        kept.append(tuple(sorted(chosen)))
    if space.metapath:
        kept = metapath.kept_slots(space, places, near(room + 1))
    return Selection(space, tuple(widths), tuple(kept), tuple(expansions))
