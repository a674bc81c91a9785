"""Latency tables: round trips, refusals, what a table says of its space, and its check."""

import dataclasses
import itertools
import json
import math
import subprocess
import sys

import pytest
from hypothesis import given, settings

from additive import check_that_chains_find_it
from designed import spaces
from pocketformer.architecture import SearchSpace
from pocketformer.devices import Check, CheckedNetwork, Entry, LatencyTable, Reference, space_blocks
from pocketformer.errors import UserError
from tiny import TINY


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
        check=Check((CheckedNetwork("check 0", 1.1, 1.0, (0.9, 1.1)), CheckedNetwork("check 1", 1.5, 2.0))),
    )
    return dataclasses.replace(table, **changes)


# The table


def test_a_table_survives_its_file(space, tmp_path):
    table = made_up(space)
    table.save(tmp_path / "table.json")
    assert LatencyTable.load(tmp_path / "table.json") == table
    check = json.loads((tmp_path / "table.json").read_text())["check"]
    assert (check["worst"], check["repeatability"], check["spearman"]) == (0.25, pytest.approx(0.2), pytest.approx(1))


def test_a_table_of_an_older_version_has_no_repeatability(space, tmp_path):
    values = made_up(space).to_dict()
    for network in values["check"]["networks"]:
        del network["repeats"]
    del values["check"]["repeatability"], values["check"]["spearman"]
    (tmp_path / "table.json").write_text(json.dumps(values))
    check = LatencyTable.load(tmp_path / "table.json").check
    assert check.mean == made_up(space).check.mean
    assert check.repeatability is None


@pytest.mark.parametrize(
    ("predicted", "measured"),
    [([1, 2, 3, 4, 5], [1, 3, 2, 5, 4]), ([5, 1, 4, 2], [1, 2, 3, 4]), ([1, 1, 2, 3], [2, 1, 1, 4]), ([1, 2], [4, 3])],
)
def test_rank_correlation_by_its_definition(predicted, measured):
    """Kendall-like signs, summed per value, are ranks up to scale and shift: ties get the mean."""

    def ranks(values):
        return [sum((v > w) - (v < w) for w in values) for v in values]

    a, b = ranks(predicted), ranks(measured)
    wanted = sum(x * y for x, y in zip(a, b, strict=True))
    wanted /= (sum(x * x for x in a) * sum(y * y for y in b)) ** 0.5
    check = Check(tuple(CheckedNetwork("n", p, m) for p, m in zip(predicted, measured, strict=True)))
    assert check.spearman == pytest.approx(wanted)


def test_repeatability_is_the_mean_difference_of_passes():
    repeats = [(1.0, 1.1), (2.0, 1.8), (3.0, 3.3)]
    check = Check(tuple(CheckedNetwork("n", 1, sum(r) / 2, r) for r in repeats))
    wanted = [abs(a - b) / ((a + b) / 2) for a, b in repeats]
    assert check.repeatability == pytest.approx(sum(wanted) / 3)
    three = Check((CheckedNetwork("n", 1, 2.0, (1.0, 2.0, 4.0)),))
    pairs = [abs(a - b) / 2 for a, b in itertools.combinations((1, 2, 4), 2)]
    assert three.repeatability == pytest.approx(sum(pairs) / 3)
    assert Check((CheckedNetwork("n", 1, 1, (1.0,)),)).spearman is None


def test_latency_is_the_sum_of_the_blocks_and_the_constant(space):
    table = made_up(space)
    for seed in range(10):
        member = space.sample(seed)
        wanted = sum(table.entries[b.key()].latency for b in member.blocks(None, 10, distilled=False))
        assert table.latency(member) == wanted - 1 / 7


def test_a_table_covers_its_space_and_no_other(space):
    table = made_up(space)
    assert table.missing(space) == []
    assert table.missing(SearchSpace.named("pocket28")) is None  # of another size
    assert dataclasses.replace(table, num_classes=11).missing(space)
    wider = SearchSpace.from_dict({**TINY, "expansions": [1, 2, 3]})
    assert table.missing(wider)


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
    check_that_chains_find_it(space)
