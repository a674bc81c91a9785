"""Measuring: interleaved timing, chains and their correction, and what a profile times."""

import dataclasses
import math
import platform
from collections import Counter

import numpy as np
import pytest

from additive import check_that_chains_find_it
from pocketformer.architecture import Architecture, SearchSpace
from pocketformer.deploy import format_for as runtime_format
from pocketformer.devices import host as host_file
from pocketformer.devices import space_blocks
from pocketformer.devices.fit import fit_entries
from pocketformer.devices.groups import Groups
from pocketformer.devices.measure import Measurement, interleave, paired_ratios, undisturbed
from pocketformer.devices.plan import REFERENCE, SMALLEST, UNIT, Plan
from pocketformer.devices.tabulate import tabulate
from pocketformer.errors import UserError
from pocketformer.runtimes import runtime
from tiny import TINY


@pytest.fixture(scope="module")
def space():
    return SearchSpace.from_dict(TINY)


def test_interleaving_times_every_candidate_in_every_round():
    calls, rounds = [], []
    runs = {name: lambda name=name: calls.append(name) for name in "abc"}
    samples = interleave(runs, 5, calls=2, progress=lambda done, total: rounds.append((done, total)))
    assert {name: len(times) for name, times in samples.items()} == dict.fromkeys("abc", 5)
    assert rounds == [(i, 5) for i in range(1, 6)]
    turns = [calls[i : i + 9] for i in range(0, 45, 9)]  # per round: 3 candidates, an untimed and 2 timed calls
    for turn in turns:
        assert all(len(set(turn[i : i + 3])) == 1 for i in (0, 3, 6))
        assert set(turn) == set("abc")
    assert len({tuple(turn[::3]) for turn in turns}) > 1  # the order changes
    first, calls[:] = list(calls), []
    interleave(runs, 5, calls=2)
    assert calls == first  # and is a function of the seed


def test_the_fastest_call_and_fewer_rounds_of_slow_ones(monkeypatch):
    now = 0  # a clock of its own: what this machine is busy with is not tested

    def taking(ms):
        nonlocal now
        now += int(ms * 1e6)

    monkeypatch.setattr("pocketformer.devices.measure.time.perf_counter_ns", lambda: now)
    calls = iter([1.0] * 3 + [20.0, 1.0, 30.0] * 12)
    samples = interleave({"a": lambda: taking(next(calls))}, 12, calls=2, fastest=True, seconds=1e9)["a"]
    assert samples == [1.0] * 12
    calls = iter([20.0, 1.0, 30.0] * 12)
    assert interleave({"a": lambda: taking(next(calls))}, 12, calls=2)["a"] == [15.5] * 12
    slow = {"slow": lambda: taking(2.0)}
    assert len(interleave(slow, 40, seconds=0.001)["slow"]) == 10
    assert len(interleave(slow, 4, seconds=0.001)["slow"]) == 4


def test_statistics():
    measurement = Measurement.of([3, 1, 2, 5, 4])
    assert (measurement.median, measurement.spread) == (3, 2)
    assert paired_ratios([2, 9], [1, 3]) == [2, 3]
    assert undisturbed([float(i) for i in range(100, -1, -1)]) == 10
    assert undisturbed([7.0]) == 7


def test_chains_find_the_costs_of_an_additive_device(space):
    check_that_chains_find_it(space)


def test_whole_networks_correct_the_chains(space):
    blocks = space_blocks(space, 10)
    truth = {key: 1 + i / 10 for i, key in enumerate(blocks)}
    prior = {key: ms * 0.85 for key, ms in truth.items()}  # chains run in warmer caches
    counts = [Counter(b.key() for b in space.sample(seed).blocks(None, 10, False)) for seed in range(12)]
    times = [sum(truth[key] * n for key, n in count.items()) + 0.2 for count in counts]
    fitted, constant = fit_entries(prior, 0.2, blocks, list(zip(counts, times, strict=True))[:8])
    for count, time in list(zip(counts, times, strict=True))[8:]:
        assert sum(fitted[key] * n for key, n in count.items()) + constant == pytest.approx(time, rel=0.02)
    assert all(abs(fitted[key] / truth[key] - 1) <= 0.16 for key in truth)


class Device:
    """A made-up device: blocks have costs; chains are biased alike for a kind at a grid, more so the wider the block;
    and networks take longer the larger they are, as larger ones leave the caches."""

    def __init__(self, plan, seed, noise=0.015, growth=0.15):
        rng = np.random.default_rng(seed)
        self.plan, self.rng, self.noise, self.growth = plan, rng, noise, growth
        blocks = space_blocks(plan.space, plan.num_classes)
        kinds = {(b.kind, b.grid): rng.normal(0, [0.2, 0.12, 0.08]) for b in blocks.values()}
        self.costs, self.in_chains = {}, {}
        for key, block in blocks.items():
            cost, alike, wider = kinds[block.kind, block.grid]
            typical = block.macs() / 3e7 + 0.01
            self.costs[key] = typical * math.exp(cost + rng.normal(0, 0.08))
            self.in_chains[key] = self.costs[key] * math.exp(alike - 0.05 + wider * math.log(typical / 0.05))
        self.largest = plan.space.largest.parameters(plan.num_classes)

    def true(self, member):
        ms = sum(self.costs[b.key()] for b in member.blocks(None, self.plan.num_classes, False)) + 0.03
        return ms * (1 + self.growth * member.parameters(self.plan.num_classes) / self.largest)

    def time(self, name):
        if name == UNIT:
            return 1.0
        if name in self.plan.chains:
            ms = sum(self.in_chains[b.key()] for b in self.plan.chains[name].blocks) + 0.02
        else:
            ms = self.true(self.plan.whole[name])
        return ms * math.exp(self.rng.normal(0, self.noise))

    def group(self, names, drift=1.0):
        return {name: [drift * self.time(name)] * 3 for name in [*names, REFERENCE]}

    def table(self, plan=None):
        plan = plan or self.plan
        parts = [*plan.fit_groups(12), *plan.check_groups(12), *plan.check_groups(12)]
        return tabulate(plan, [self.group(names) for names in parts], {})


@pytest.mark.parametrize("name", ["pocket28", "efficientformerv2"])
def test_the_fit_has_little_bias_at_either_end(name):
    """Mean, worst, largest, smallest and published, over made-up devices; chains alone are far worse."""
    fitted, alone, ends, published = [], [], [], []
    for seed in range(3):
        plan = Plan.draw(SearchSpace.named(name), 100, 64, 20, seed)
        device = Device(plan, seed)
        table = device.table()
        errors = {n: table.latency(a) / device.true(a) - 1 for n, a in plan.whole.items()}
        fitted += [abs(errors[n]) for n in plan.checks]
        ends += [abs(errors[n]) for n in (REFERENCE, SMALLEST)]
        published += [abs(errors[n]) for n in plan.checks if n.startswith("efficient")]
        chains = device.table(dataclasses.replace(plan, networks={}))
        alone += [abs(chains.latency(a) / device.true(a) - 1) for a in plan.checks.values()]
    assert np.mean(fitted) < 0.02
    assert np.mean(alone) > 2 * np.mean(fitted)
    assert max(fitted) < 0.08
    assert np.mean(ends) < 0.04
    assert len(published) == (12 if name == "efficientformerv2" else 0)
    assert not published or np.mean(published) < 0.03


def test_disturbed_networks_count_less():
    errors = {False: [], True: []}
    for seed in range(3):
        plan = Plan.draw(SearchSpace.named("pocket28"), 10, 64, 0, seed)
        device = Device(plan, seed, noise=0.01)
        groups = [device.group(names) for names in plan.fit_groups(12)]
        for disturbed in (False, True):
            for name in list(plan.networks)[1::12] if disturbed else ():
                for group in groups:
                    group.update({name: [1.4 * ms for ms in group[name]]} if name in group else {})
            table = tabulate(plan, groups, {})
            members = [plan.space.sample(i) for i in range(20)]
            errors[disturbed] += [abs(table.latency(a) / device.true(a) - 1) for a in members]
    assert np.mean(errors[True]) < 1.6 * np.mean(errors[False])


def test_drift_between_groups_is_taken_out(space):
    plan = Plan.draw(space, 10, 8, 4, 0)
    device = Device(plan, 0, noise=0)
    parts = [*plan.fit_groups(5), *plan.check_groups(3), *plan.check_groups(3)]
    steady = tabulate(plan, [device.group(names) for names in parts], {"device": "d"})
    drifts = [1.0 if i % 3 else 1.4 for i in range(len(parts))]
    drifting = tabulate(plan, [device.group(n, drift) for n, drift in zip(parts, drifts, strict=True)], {"device": "d"})
    assert drifting.reference.latency == pytest.approx(steady.reference.latency)
    for key in steady.entries:
        assert drifting.entries[key].latency == pytest.approx(steady.entries[key].latency)
        assert drifting.entries[key].samples == pytest.approx(steady.entries[key].samples, abs=2e-6)
    assert drifting.check.repeatability == pytest.approx(0, abs=1e-9)
    assert len(drifting.check.networks[0].repeats) == 2


class Slots:
    """A bench on which whatever is loaded at a lucky place runs a tenth faster."""

    def __init__(self, lucky):
        self.lucky, self.loaded = lucky, []

    def __enter__(self):
        return self

    def __exit__(self, *_): ...

    def load(self, name, path):
        self.loaded.append(name)

    def drop(self, names): ...

    def interleave(self, names, rounds, **_):
        return {name: [0.9 if name == self.lucky else 1.0] * rounds for name in names}


@pytest.mark.parametrize("lucky", [REFERENCE, f"{REFERENCE}, copy 1", "a"])
def test_a_lucky_session_of_the_reference_is_no_error_of_all_others(tmp_path, lucky):
    written = []

    def write(name, path):
        written.append(name)
        path.touch()

    groups = Groups(write, runtime_format("onnxruntime"), 3, 0, tmp_path, {})
    parts, benches = {"fit": [["a", "b"], ["c", "d"]], "check": [["e"]]}, [Slots(lucky), Slots(lucky)]
    found = groups.measure(parts, iter(benches).__next__, None)
    assert [set(group) for group in found] == [{"a", "b", REFERENCE}, {"c", "d", REFERENCE}, {"e", REFERENCE}]
    assert all(group[REFERENCE] == pytest.approx([1.0] * 3) for group in found)
    assert [sum(name.startswith(REFERENCE) for name in bench.loaded) for bench in benches] == [4, 4]
    assert written.count(REFERENCE) == 1  # its copies are files of their own, but not made anew
    again = groups.measure(parts, lambda: Slots("b"), None)
    assert again == found  # from the journal


@pytest.mark.parametrize("first", [1, 2, 3, 4])
def test_after_an_interruption_the_reference_has_another_luck(tmp_path, first):
    class Interrupted(Slots):
        def interleave(self, *args, **kwargs):
            if sum(name in self.loaded for name in "abcde") > first:
                raise KeyboardInterrupt
            return super().interleave(*args, **kwargs)

    groups = Groups(lambda name, path: path.touch(), runtime_format("onnxruntime"), 3, 0, tmp_path, {})
    parts = {"fit": [[name] for name in "abcde"]}
    with pytest.raises(KeyboardInterrupt):
        groups.measure(parts, lambda: Interrupted("nobody"), None)
    found = groups.measure(parts, lambda: Slots(REFERENCE), None)
    assert [next(iter(group)) for group in found] == list("abcde")
    references = [ms for group in found for ms in group[REFERENCE]]
    assert references == pytest.approx([1.0] * 15)


def test_what_changed_is_said_when_a_profile_starts_anew(tmp_path, capsys):
    parts = {"fit": [["a"]]}

    def measure(**settings):
        Groups(lambda name, path: path.touch(), runtime_format("onnxruntime"), 3, 0, tmp_path, settings).measure(
            parts, lambda: Slots(None), None
        )
        return capsys.readouterr().err

    assert measure(rounds=30, packages={"torch": "2", "timm": "1"}) == ""
    assert measure(rounds=30, packages={"torch": "2", "timm": "1"}) == ""
    told = measure(rounds=31, packages={"torch": "3", "timm": "1"})
    assert told == 'starting anew: packages torch was "2", now "3"; rounds was 30, now 31\n'


def test_without_networks_the_table_is_the_chains_own(space):
    plan = Plan.draw(space, 10, 0, 2, 0)
    assert plan.networks == {}
    device = Device(plan, 0, noise=0, growth=0)
    device.in_chains = device.costs
    table = device.table()
    assert {k: e.latency for k, e in table.entries.items()} == pytest.approx(device.costs)


def test_what_a_profile_times():
    space = SearchSpace.named("efficientformerv2")
    plan = Plan.draw(space, 1000, 64, 20, 0)
    assert len(plan.networks) == 65
    assert {f"efficientformerv2_{s}" for s in ("s0", "s1", "s2", "l")} < plan.checks.keys()
    assert len(plan.checks) == 24
    members = [*plan.whole.values()]
    assert len(set(members)) == len(members)
    assert all(space.contains(a) for a in members)
    sizes = sorted(a.macs() / space.largest.macs() for a in plan.networks.values())
    assert sizes[0] < 0.05
    assert sum(size > 0.6 for size in sizes) >= 5  # large ones too, which the space's own law all but never draws
    assert sum(space.sample(seed).macs() > 0.6 * space.largest.macs() for seed in range(64)) == 0
    other = Plan.draw(
        space, 1000, 0, 20, 0, avoid=set(plan.checks.values()) - {Architecture.named("efficientformerv2_l")}
    )
    assert not set(other.checks.values()) & set(plan.checks.values()) - {Architecture.named("efficientformerv2_l")}
    assert Plan.draw(space, 1000, 0, 0, 0).checks == {}
    for size in (5, 12):
        groups = plan.fit_groups(size)
        names = [name for group in groups for name in group]
        assert sorted([*names, *plan.checks, REFERENCE]) == sorted(plan.roles)
        assert max(map(len, groups)) <= size + 3
        where = {name: i for i, group in enumerate(groups) for name in group}
        for chain in plan.chains.values():
            pair = [c.name for c in plan.chains.values() if c.target == chain.target]
            assert len({where[name] for name in pair}) == 1


def test_a_small_space_has_no_more_networks_than_it_has():
    one = {**TINY, "expansions": [1], "stages": [{"depth": 1, "widths": [8]}] * 3 + [{"depth": 2, "widths": [8]}]}
    plan = Plan.draw(SearchSpace.from_dict(one), 10, 5, 5, 0)  # two members: the smallest and the largest
    assert set(plan.networks) == {SMALLEST}
    assert plan.checks == {}


def test_unknown_runtimes_are_named():
    with pytest.raises(UserError, match="no runtime 'abacus'; known: onnxruntime"):
        runtime("abacus")


# --- where


def test_a_device_is_known_by_its_board_or_its_processor(tmp_path):
    """64-bit ARM kernels name no processor: two boards would be one device, and take each other's tables."""
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nBogoMIPS\t: 108.00\n\nModel\t\t: Raspberry Pi 5\n")
    (tmp_path / "proc/device-tree/model").write_text("Raspberry Pi 5 Model B Rev 1.0\0")
    assert host_file._processor(tmp_path) == "Raspberry Pi 5 Model B Rev 1.0"
    (tmp_path / "proc/device-tree/model").unlink()
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nmodel name\t: AMD EPYC\n")
    assert host_file._processor(tmp_path) == "AMD EPYC"
    (tmp_path / "proc/cpuinfo").unlink()
    assert host_file._processor(tmp_path) in (platform.processor(), platform.machine())
