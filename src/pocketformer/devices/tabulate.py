"""From times to a table: block costs, their correction and the check, wherever the times were measured."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from pocketformer.devices.chains import block_costs
from pocketformer.devices.fit import fit_entries
from pocketformer.devices.measure import interquartile_range, paired_ratios, undisturbed
from pocketformer.devices.plan import REFERENCE, UNIT, Plan
from pocketformer.devices.table import Check, CheckedNetwork, Entry, LatencyTable, Reference, space_blocks

# Candidates that were timed together, the reference among them: name to samples in ms.
Group = Mapping[str, Sequence[float]]


def tabulate(plan: Plan, groups: Sequence[Group], fingerprint: Mapping[str, Any]) -> LatencyTable:
    """The table of a plan's space from times of all its candidates.

    Every group holds the reference, whose drift from group to group is taken out. A candidate's time is the
    undisturbed one over the reference's, the median if it is in several groups; what a check differs by from
    group to group is its repeatability. Chains alone make the table of a plan without networks.
    """
    reference = statistics.median(undisturbed(group[REFERENCE]) for group in groups)
    repeats: dict[str, list[float]] = {}
    rounds: dict[str, list[float]] = {}
    for group in groups:
        base = group[REFERENCE]
        for name, samples in group.items():
            repeats.setdefault(name, []).append(undisturbed(samples) / undisturbed(base) * reference)
            rounds.setdefault(name, []).extend(ratio * reference for ratio in _ratios(samples, base))
    times = {name: statistics.median(found) for name, found in repeats.items()}

    entries, constant = block_costs(list(plan.chains.values()), times)
    if plan.networks:
        known = [*plan.networks, REFERENCE]
        blocks = space_blocks(plan.space, plan.num_classes)
        entries, constant = fit_entries(entries, constant, blocks, [(plan.counts(n), times[n]) for n in known])

    def predicted(name: str) -> float:
        return sum(entries[key] * count for key, count in plan.counts(name).items()) + constant

    checked = [CheckedNetwork(n, predicted(n), times[n], tuple(repeats[n])) for n in plan.checks]
    # An entry's raw samples are those of the longest chain for its block, per block of the chain.
    samples = {
        chain.target.key(): tuple(round(ms / len(chain.blocks), 6) for ms in rounds[chain.name])
        for chain in sorted(plan.chains.values(), key=lambda chain: chain.repeats)
    }
    about = {"precision": "float32", "grids": [list(grid) for grid in plan.space.grids]}
    about |= {"resolution": list(plan.space.resolution)}
    return LatencyTable(
        entries={key: Entry(ms, interquartile_range(samples[key]), samples[key]) for key, ms in entries.items()},
        constant=constant,
        unit=times[UNIT],
        reference=Reference(REFERENCE, reference),
        space=plan.space.name,
        num_classes=plan.num_classes,
        resolution=plan.space.resolution,
        fingerprint={**about, **fingerprint},
        check=Check(tuple(checked)) if checked else None,
    )


def _ratios(samples: Sequence[float], base: Sequence[float]) -> list[float]:
    """Round by round where there are as many of both, else over the reference's undisturbed time."""
    if len(samples) == len(base):
        return paired_ratios(samples, base)
    return [sample / undisturbed(base) for sample in samples]
