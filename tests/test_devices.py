"""Latency tables: round trips, refusals, interleaved timing, and a profile that resumes."""

import dataclasses
import json
import math
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given, settings

from designed import spaces
from pocketformer.architecture import SearchSpace
from pocketformer.devices import Check, CheckedNetwork, Entry, LatencyTable, Reference, space_blocks
from pocketformer.devices import profile as profiling
from pocketformer.devices.bench import Bench
from pocketformer.devices.chains import block_costs, space_chains
from pocketformer.devices.fit import fit_entries
from pocketformer.devices.measure import Measurement, interleave, paired_ratios, undisturbed
from pocketformer.devices.whole import measure_whole
from pocketformer.errors import UserError
from pocketformer.runtimes import runtime

TINY = {
    "name": "tiny",
    "design": {
        "resolution": 16,
        "stem_strides": [2, 1],
        "stage_strides": [2, 1, 2],
        "heads": 2,
        "key_dim": 4,
        "value_dim": 4,
        "downsampling_heads": 2,
        "downsampling_key_dim": 4,
        "downsampling_value_dim": 4,
    },
    "expansions": [1, 2],
    "stages": [
        {"depth": 1, "widths": [8]},
        {"depth": 1, "widths": [8, 16]},
        {"depth": 2, "widths": [16], "attention": True},
        {"depth": 1, "widths": [16], "attention": True},
    ],
}


@pytest.fixture(scope="module")
def space():
    return SearchSpace.from_dict(TINY)


def made_up(space, num_classes=10, **changes):
    """A table in which each entry has its own power of two, so that any sum is exact."""
    keys = list(space_blocks(space, num_classes))
    table = LatencyTable(
        entries={key: Entry(2.0**-i, 0.125, (1 / 3, -0.1)) for i, key in enumerate(keys)},
        constant=-1 / 7,
        unit=0.7,
        reference=Reference("largest", 3.3),
        space=space.name,
        num_classes=num_classes,
        resolution=space.resolution,
        fingerprint={"device": "a phone", "threads": 1},
        check=Check((CheckedNetwork("check 0", 1.1, 1.0), CheckedNetwork("check 1", 1.5, 2.0))),
    )
    return dataclasses.replace(table, **changes)


# The table


def test_a_table_survives_its_file(space, tmp_path):
    table = made_up(space)
    table.save(tmp_path / "table.json")
    assert LatencyTable.load(tmp_path / "table.json") == table
    assert json.loads((tmp_path / "table.json").read_text())["check"]["worst"] == 0.25


def test_latency_is_the_sum_of_the_blocks_and_the_constant(space):
    table = made_up(space)
    for seed in range(10):
        member = space.sample(seed)
        wanted = sum(table.entries[b.key()].latency for b in member.blocks(None, 10, distilled=False))
        assert table.latency(member) == wanted - 1 / 7


def test_a_table_covers_its_space_and_no_other(space):
    table = made_up(space)
    assert table.covers(space)
    assert not table.covers(SearchSpace.named("pocket28"))
    assert not dataclasses.replace(table, num_classes=11).covers(space)
    wider = SearchSpace.from_dict({**TINY, "expansions": [1, 2, 3]})
    assert not table.covers(wider)


def test_a_block_of_another_grid_is_refused(space):
    other = SearchSpace.from_dict({**TINY, "design": {**TINY["design"], "stem_strides": [1, 1]}})
    with pytest.raises(UserError, match=r"no entry 'stem .*measured for space tiny \(16x16 px, 10 classes\)"):
        made_up(space).latency(other.largest)


def _set(values, path, value):
    *way, last = path
    for step in way:
        values = values[step]
    if value is None:
        del values[last]
    else:
        values[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("entries", 0, "latency"), -1.0, "is negative"),
        (("entries", 0, "latency"), math.nan, "is not a number"),
        (("entries", 0, "latency"), "1 ms", "is not a number"),
        (("entries", 0, "latency"), None, "latency"),
        (("entries", 0, "samples"), [1.0, math.inf], "sample is not a number"),
        (("entries",), None, "'entries' is missing"),
        (("entries",), {}, "needs entries"),
        (("entries",), [], "not a latency table"),
        (("unit",), None, "'unit' is missing"),
        (("unit",), 0, "not positive"),
        (("constant",), True, "not a number"),
        (("reference", "latency"), -2, "not positive"),
        (("resolution",), 16, "not a latency table"),
        (("check", "networks", 0, "measured"), 0, "not positive"),
        (("format",), "something/2", "not a latency table"),
    ],
)
def test_a_damaged_table_is_refused_in_one_line(space, tmp_path, path, value, message):
    values = made_up(space).to_dict()
    if path[1:2] == (0,):
        path = (path[0], next(iter(values["entries"])), *path[2:])
    _set(values, path, value)
    (tmp_path / "table.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=message) as caught:
        LatencyTable.load(tmp_path / "table.json")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "table.json") in str(caught.value)


def test_tables_need_no_torch():
    heavy = "{'torch', 'numpy', 'onnxruntime'}"
    code = f"import pocketformer.devices, sys; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_space_blocks_hold_every_member(space):
    for name in ("pocket28", "pocket64", "efficientformerv2"):
        space = SearchSpace.named(name)
        blocks = space_blocks(space, 10)
        for seed in range(20):
            assert {b.key() for b in space.sample(seed).blocks(None, 10, False)} <= blocks.keys()


@given(spaces())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_space_blocks_hold_every_member_of_any_design(space):
    blocks = space_blocks(space, 10)
    for subnet in (space.whole, space.minimum, *map(space.sample_selection, range(8))):
        assert {b.key() for b in subnet.architecture.blocks(None, 10, False)} <= blocks.keys()
    truth = {key: 1 + i / 10 for i, key in enumerate(blocks)}
    chains = space_chains(space, 10)
    times = {c.name: sum(truth[b.key()] for b in c.blocks) + 0.5 for c in chains}
    costs, constant = block_costs(chains, times)
    assert costs == pytest.approx(truth)
    assert constant == pytest.approx(0.5)


# Measuring


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


def test_statistics():
    measurement = Measurement.of([3, 1, 2, 5, 4])
    assert (measurement.median, measurement.spread) == (3, 2)
    assert paired_ratios([2, 9], [1, 3]) == [2, 3]
    assert undisturbed([float(i) for i in range(100, -1, -1)]) == 10
    assert undisturbed([7.0]) == 7


def test_chains_find_the_costs_of_an_additive_device(space):
    blocks = space_blocks(space, 10)
    truth = {key: 1 + i / 10 for i, key in enumerate(blocks)}
    chains = space_chains(space, 10)
    times = {c.name: sum(truth[b.key()] for b in c.blocks) + 0.5 for c in chains}
    costs, constant = block_costs(chains, times)
    assert costs == pytest.approx(truth)
    assert constant == pytest.approx(0.5)


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


def test_unknown_runtimes_are_named():
    with pytest.raises(UserError, match="no runtime 'abacus'; known: onnxruntime"):
        runtime("abacus")


# The profile as a whole


@pytest.fixture(scope="module")
def profiled(space, tmp_path_factory):
    """A finished profile: its table and its work folder."""
    work = tmp_path_factory.mktemp("profile")
    return profiling.profile(space, "onnxruntime", 10, work=work, **QUICK), work


QUICK = {"rounds": 4, "networks": 4, "checks": 2}


def test_a_profile_measures_the_space(profiled, space, tmp_path):
    table, work = profiled
    assert table.covers(space)
    assert all(entry.latency > 0 and len(entry.samples) == 4 for entry in table.entries.values())
    assert len(table.check.networks) == 2
    assert math.isfinite(table.check.mean)
    assert table.check.mean <= table.check.worst
    assert table.unit > 0
    assert table.latency(space.largest) > table.latency(space.minimum.architecture)
    assert table.fingerprint["runtime"] == "onnxruntime"
    assert [p.name for p in work.iterdir()] == [profiling.JOURNAL]
    table.save(tmp_path / "table.json")
    assert LatencyTable.load(tmp_path / "table.json") == table


def test_an_interrupted_profile_goes_on(profiled, space, tmp_path, monkeypatch):
    table, work = profiled
    lines = (work / profiling.JOURNAL).read_text().splitlines(keepends=True)
    assert len(lines) >= 4
    journal = tmp_path / profiling.JOURNAL
    journal.write_text("".join(lines[:-1]) + lines[-1][: len(lines[-1]) // 2])  # killed while writing
    measured, interleaved = [], Bench.interleave

    def counting(bench, names, *args, **kwargs):
        measured.append(set(names))
        return interleaved(bench, names, *args, **kwargs)

    monkeypatch.setattr(Bench, "interleave", counting)
    profiling.profile(space, "onnxruntime", 10, work=tmp_path, **QUICK)
    assert measured == [set(json.loads(lines[-1])["samples"])]
    again = profiling.profile(space, "onnxruntime", 10, work=tmp_path, **QUICK)
    assert len(measured) == 1
    assert again.entries.keys() == table.entries.keys()


def test_other_settings_start_anew(profiled, space, tmp_path, monkeypatch):
    lines = (profiled[1] / profiling.JOURNAL).read_text()
    (tmp_path / profiling.JOURNAL).write_text(lines)
    monkeypatch.setattr(Bench, "interleave", lambda bench, names, *a, **k: {name: [1.0, 1.0] for name in names})
    profiling.profile(space, "onnxruntime", 10, work=tmp_path, **{**QUICK, "rounds": 2})
    text = (tmp_path / profiling.JOURNAL).read_text()
    assert text.splitlines()[0] != lines.splitlines()[0]
    assert all(set(json.loads(line)["samples"].popitem()[1]) == {1.0} for line in text.splitlines()[1:])


def test_whole_files_are_timed_beside_the_reference(profiled, space, tmp_path):
    table = profiled[0]
    profiling.write_reference(space, "onnxruntime", 10, tmp_path / "reference.onnx")
    paths = {"same": tmp_path / "reference.onnx"}
    found = measure_whole(paths, table, tmp_path / "reference.onnx", "onnxruntime", rounds=8)["same"]
    assert found.latency == pytest.approx(table.reference.latency, rel=0.5)
    assert len(found.raw.samples) == 8
    with pytest.raises(UserError, match="not found"):
        measure_whole({"x": tmp_path / "no.onnx"}, table, tmp_path / "reference.onnx", "onnxruntime")
    (tmp_path / "broken.onnx").write_text("no model")
    with pytest.raises(UserError, match=r"cannot load .*broken\.onnx"):
        measure_whole({"x": tmp_path / "broken.onnx"}, table, tmp_path / "reference.onnx", "onnxruntime")


@pytest.mark.parametrize("changes", [{"threads": 0}, {"rounds": 1}, {"networks": 0}, {"checks": -1}])
def test_unusable_settings_are_refused(space, tmp_path, changes):
    with pytest.raises(UserError, match="must be at least"):
        profiling.profile(space, "onnxruntime", 10, work=tmp_path, **changes)
    assert list(tmp_path.iterdir()) == []
