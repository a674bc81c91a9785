"""A device whose networks take the sum of their blocks and a constant. Shared by the tests of chains."""

import pytest

from pocketformer.devices import space_blocks
from pocketformer.devices.chains import block_costs, space_chains


def check_that_chains_find_it(space):
    """Every block's cost and the constant, from the times of the space's chains. Returns the chains."""
    truth = {key: 1 + i / 10 for i, key in enumerate(space_blocks(space, 10))}
    chains = space_chains(space, 10)
    times = {c.name: sum(truth[b.key()] for b in c.blocks) + 0.5 for c in chains}
    costs, constant = block_costs(chains, times)
    assert costs == pytest.approx(truth)
    assert constant == pytest.approx(0.5)
    return chains
