"""`profile`: measures the latency table of a space on this device (contract 6.10).

Blocks are timed in chains on the fused graph, the values then corrected by whole random networks, and the
table is checked on further networks. Everything is timed in groups, interleaved with a reference network,
whose drift is taken out. Finished groups are kept in a journal, so that an interrupted profile goes on.
"""

import datetime
import json
import os
import random
import shutil
import statistics
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType

import torch

from pocketformer.architecture import Architecture, SearchSpace
from pocketformer.deploy import SUFFIXES, format_for
from pocketformer.devices.bench import Bench
from pocketformer.devices.candidates import write_chain, write_network, write_unit
from pocketformer.devices.chains import block_costs, space_chains
from pocketformer.devices.fit import fit_entries
from pocketformer.devices.host import host, packages
from pocketformer.devices.measure import interquartile_range, paired_ratios, undisturbed
from pocketformer.devices.table import Check, CheckedNetwork, Entry, LatencyTable, Reference, space_blocks
from pocketformer.errors import UserError
from pocketformer.files import Lines
from pocketformer.runtimes import check_device, runtime

JOURNAL = "profile.jsonl"
_METHOD = 2  # raised when measurements of an older journal must not be used any more
_GROUP = 12
_REFERENCE, _UNIT = "largest", "mobilenetv2_100"

Writer = Callable[[Path], None]
Progress = Callable[[int, int, str], None]


def profile(
    space: SearchSpace,
    runtime_name: str,
    num_classes: int,
    *,
    threads: int = 1,
    device: str = "cpu",
    batch: int = 1,
    rounds: int = 50,
    networks: int = 24,
    checks: int = 6,
    seed: int = 0,
    work: str | os.PathLike,
    progress: Progress | None = None,
) -> LatencyTable:
    """The latency table of `space` for `num_classes` on this device, by the runtime of that name.

    Times are ms per batch of `batch` images; `rounds` samples of each candidate; `networks` random members
    correct the table, `checks` others test it. `work` is a folder for the journal and for model files while
    they are needed; another call with the same settings measures only what the journal lacks.
    `progress(done, total, what)` is called after each group. Raises `UserError` for an unknown runtime or
    unusable settings.
    """
    if min(threads, batch, num_classes, networks) < 1 or rounds < 2 or checks < 0:
        raise UserError("threads, batch, classes and networks must be at least 1, rounds 2, checks 0")
    check_device(runtime(runtime_name), device)
    format = format_for(runtime_name)
    chains = space_chains(space, num_classes)
    members = _members(space, networks, checks, seed)
    write = partial(write_network, format, num_classes=num_classes, resolution=space.resolution, batch=batch)
    writers: dict[str, Writer] = {c.name: partial(write_chain, format, c.blocks, batch=batch) for c in chains}
    writers[_UNIT] = partial(write_unit, format, num_classes, space.resolution, batch=batch)
    for name in random.Random(seed).sample(list(members), len(members)):  # each group holds some of each sort
        writers[name] = partial(_write_member, write, members[name])

    settings = {
        "method": _METHOD,
        "space": space.to_dict(),
        "num_classes": num_classes,
        "threads": threads,
        "batch": batch,
        "rounds": rounds,
        "networks": networks,
        "checks": checks,
        "seed": seed,
        **host(),
        **runtime(runtime_name).fingerprint(device),
        "on": device,
        "packages": packages(),
    }
    reference = partial(_write_member, write, space.largest)
    with Bench(runtime_name, threads, device) as bench:
        groups = _Groups(bench, format, rounds, seed, reference, Path(work), settings)
        rounds_of, times, reference_ms = groups.measure(writers, progress)

    costs, constant = block_costs(chains, times)
    blocks = space_blocks(space, num_classes)
    counts = {
        name: Counter(b.key() for b in member.blocks(None, num_classes, distilled=False))
        for name, member in {**members, _REFERENCE: space.largest}.items()
    }
    whole = {name: times[name] for name in members} | {_REFERENCE: reference_ms}
    known = [name for name in counts if not name.startswith("check")]
    entries, constant = fit_entries(costs, constant, blocks, [(counts[n], whole[n]) for n in known])

    # An entry's raw samples are those of the longest chain for its block, per block of the chain.
    samples = {
        chain.target.key(): tuple(round(ms / len(chain.blocks), 6) for ms in rounds_of[chain.name])
        for chain in sorted(chains, key=lambda chain: chain.repeats)
    }

    def predicted(name: str) -> float:
        return sum(entries[key] * count for key, count in counts[name].items()) + constant

    checked = [CheckedNetwork(n, predicted(n), whole[n]) for n in members if n not in known]
    fingerprint = {key: value for key, value in settings.items() if key not in ("space", "num_classes")}
    fingerprint |= {"precision": "float32", "grids": [list(grid) for grid in space.grids]}
    fingerprint |= {"resolution": list(space.resolution), "date": datetime.date.today().isoformat()}
    return LatencyTable(
        entries={key: Entry(ms, interquartile_range(samples[key]), samples[key]) for key, ms in entries.items()},
        constant=constant,
        unit=times[_UNIT],
        reference=Reference(_REFERENCE, reference_ms),
        space=space.name,
        num_classes=num_classes,
        resolution=space.resolution,
        fingerprint=fingerprint,
        check=Check(tuple(checked)) if checked else None,
    )


def write_reference(space: SearchSpace, runtime_name: str, num_classes: int, path: Path, batch: int = 1) -> None:
    """Writes the reference network of a table of `space`, for timing other files beside it."""
    write_network(format_for(runtime_name), space.largest, num_classes, space.resolution, path, batch)


def _members(space: SearchSpace, networks: int, checks: int, seed: int) -> dict[str, Architecture]:
    """Distinct random members by name, fewer if the space has no more; those to check with come last."""
    rng = random.Random(seed)
    names = [f"network {i}" for i in range(networks)] + [f"check {i}" for i in range(checks)]
    members = {"smallest": space.minimum.architecture}
    for _ in range(20 * len(names)):
        member = space.sample_selection(rng).architecture
        if names and member != space.largest and member not in members.values():
            members[names.pop(0)] = member
    return members


def _write_member(write: Callable, member: Architecture, path: Path) -> None:
    write(member, path=path)


class _Groups:
    """Measures candidates in groups, and remembers finished groups in the journal."""

    def __init__(
        self,
        bench: Bench,
        format: ModuleType,
        rounds: int,
        seed: int,
        reference: Writer,
        work: Path,
        settings: dict,
    ):
        self.bench, self.format, self.rounds, self.seed = bench, format, rounds, seed
        self.reference, self.work = reference, work
        self.settings = json.loads(json.dumps(settings))
        self.has_reference = False

    def measure(
        self, writers: Mapping[str, Writer], progress: Progress | None
    ) -> tuple[dict[str, list[float]], dict[str, float], float]:
        """By name, ms in each round and ms undisturbed, both with the reference's drift taken out; and the
        reference's median."""
        names = list(writers)
        groups = [names[i : i + _GROUP] for i in range(0, len(names), _GROUP)]
        path = self.work / JOURNAL
        lines = Lines.read(path)
        same = bool(lines) and lines[0] == {"settings": self.settings}
        done = {frozenset(line["samples"]): line["samples"] for line in lines[1:]} if same else {}
        models = self.work / "models"
        with Lines(path, keep=lambda _: same) as journal:
            if not same:
                journal.write({"settings": self.settings})
            shutil.rmtree(models, ignore_errors=True)  # of a run that was killed
            try:
                for i, group in enumerate(groups):
                    members = frozenset([*group, _REFERENCE])
                    if members not in done:
                        done[members] = self._group({name: writers[name] for name in group}, models, i)
                        journal.write({"samples": done[members]})
                    if progress is not None:
                        progress(i + 1, len(groups), group[-1])
            finally:
                shutil.rmtree(models, ignore_errors=True)
        reference = statistics.median(ms for samples in done.values() for ms in samples[_REFERENCE])
        rounds, times = {}, {}
        for samples in done.values():
            base = samples[_REFERENCE]
            for name in samples.keys() - {_REFERENCE}:
                rounds[name] = [ratio * reference for ratio in paired_ratios(samples[name], base)]
                times[name] = undisturbed(samples[name]) / undisturbed(base) * reference
        return rounds, times, reference

    def _group(self, writers: Mapping[str, Writer], models: Path, index: int) -> dict[str, list[float]]:
        models.mkdir(parents=True, exist_ok=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            for name, write in writers.items():
                self._load(name, write, models)
            if not self.has_reference:
                # One for all groups: where its memory lies makes a session some per cent faster or slower.
                self._load(_REFERENCE, self.reference, models)
                self.has_reference = True
        samples = self.bench.interleave([*writers, _REFERENCE], self.rounds, seed=self.seed + index)
        self.bench.drop(list(writers))
        return {name: [round(ms, 6) for ms in times] for name, times in samples.items()}

    def _load(self, name: str, write: Writer, models: Path) -> None:
        path = models / f"candidate{SUFFIXES[self.format.NAME]}"
        write(path)
        self.bench.load(name, path)
        path.unlink()
