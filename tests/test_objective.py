"""MES and budgets over any metrics, what they weigh, and what a space can reach of them."""

import itertools
import json
from functools import cache, partial

import pytest

from pocketformer import SearchSpace, mes
from pocketformer.devices import Entry, LatencyTable, Reference, space_blocks
from pocketformer.devices.energy import Counters, EnergyTable, Power
from pocketformer.errors import UserError, WorkError
from pocketformer.pipelines.costs import CostModel
from pocketformer.pipelines.settings import Budget, parse_budget
from pocketformer.search import Objective, joint_search
from pocketformer.search.metrics import amount, spread
from pocketformer.search.reach import smallest_reachable
from searched import MEMBERS, TOY, MadeUp, noise, plain, run

# --- MES


@pytest.mark.parametrize(
    ("parameters", "latency", "printed"),
    [  # Table 2 of the paper: millions, ms on the phone, MES
        (3.5, 0.9, 102.9),  # MobileNetV2 x 1.0 and EfficientFormerV2-S0
        (6.1, 1.2, 58.4),
        (5.6, 1.0, 73.2),
        (2.3, 7.3, 15.6),
        (10.9, 29.6, 1.8),
        (12.3, 1.4, 35.3),
        (30, 7.6, 4.2),
        (29.0, 83.7, 0.4),
    ],
)
def test_mes_is_that_of_table_2(parameters, latency, printed):
    assert round(mes({"size": parameters * 1e6, "latency": latency}), 1) == printed


def test_mes_terms():
    costs = {"size": 12e6, "latency": 3.0, "memory": 8.0}
    assert mes(costs) == pytest.approx(100 / 2 / 3)
    assert mes(costs, exponents={"latency": 2}) == pytest.approx(100 / 9)
    assert mes(costs, units={"size": 12e6}, score=1) == pytest.approx(1 / 3)
    third = mes(costs, units={"memory": 2.0}, exponents={"memory": 0.5, "latency": 1})
    assert third == pytest.approx(100 / 2 / 3)
    for bad in ({"size": 1e6}, {"size": 0, "latency": 1}, {"size": 1, "latency": float("nan")}):
        with pytest.raises(UserError, match="MES needs"):
            mes(bad)
    with pytest.raises(UserError, match="unit"):
        mes(costs, exponents={"memory": 1})


def test_budget_form_stops_rewarding_a_met_budget():
    """Contract 6.8: prod (max(M, B) / U) ** -alpha."""
    objective = Objective({"latency": 2.0, "size": 6e6})
    paper = Objective({"latency": 2.0, "size": 6e6}, form="paper")
    for size, latency in itertools.product((3e6, 6e6, 24e6), (0.5, 2.0, 8.0)):
        costs = {"size": size, "latency": latency}
        expected = 100 * (max(size, 6e6) / 3e6) ** -0.5 * max(latency, 2.0) ** -1
        assert objective.compass(costs) == pytest.approx(expected)
        assert paper.compass(costs) == objective.mes(costs) == paper.mes(costs) == mes(costs)
        assert objective.met(costs) == (size <= 6e6 and latency <= 2.0)
        assert objective.usage(costs) == {"latency": latency / 2, "size": size / 6e6}
    assert not Objective(min_mes=mes({"size": 3e6, "latency": 1.0})).met({"size": 3e6, "latency": 1.1})
    assert Objective(min_mes=99.0).met({"size": 3e6, "latency": 1.0})


def test_a_smallest_score_goes_on_rewarding_what_has_met_its_budget():
    """Else nothing would be left to climb once the budgets hold and the score does not."""
    made_up = MadeUp(1, coarse=False, bumpy=False)
    whole = made_up.costs(TOY.whole)
    objective = Objective({"latency": 0.9 * whole["latency"]}, min_mes=3 * mes(whole))
    moves, reason = run(joint_search(TOY.whole, made_up.costs, made_up, objective))
    assert reason == "all budgets hold"
    found = moves[-1].chosen.costs
    assert mes(found) >= 3 * mes(whole)
    assert objective.held(found) == {"latency", "mes"}
    assert objective.held(moves[0].state.costs) == frozenset()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"exponents": {"size": -0.5}}, "size must be zero or above"),
        ({"exponents": {"size": float("nan")}}, "size must be zero or above"),
        ({"exponents": {"size": 0.0}}, "every metric's exponent is zero"),
        ({"exponents": {}}, "every metric's exponent is zero"),
        ({"form": "log"}, "budget, paper"),
    ],
)
def test_objectives_that_lead_nowhere(wrong, words):
    with pytest.raises(UserError, match=words):
        Objective(**wrong)


# --- metrics by name


def test_amounts_carry_their_unit():
    told = {
        ("size", 3_600_256): "3,600,256 parameters",
        ("latency", 0.2441): "0.244 ms",
        ("latency:phone", 12.3): "12.30 ms on phone",
        ("macs", 407.4e6): "407.40 M MACs",
        ("memory", 4_014_080): "4.01 MB of activations",
        ("energy", 0.5): "0.5 mJ",
    }
    for (metric, value), text in told.items():
        assert amount(metric, value) == text


def test_what_is_said_of_latency_is_said_of_every_device():
    known = ("size", "latency:phone", "latency:laptop", "macs")
    assert spread({"latency": 1, "macs": 2}, known, "a budget on") == {
        "latency:phone": 1,
        "latency:laptop": 1,
        "macs": 2,
    }
    own = {"latency:phone": 3, "latency": 1}
    assert spread(own, known, "") == spread(dict(reversed(own.items())), known, "") == {
        "latency:phone": 3, "latency:laptop": 1}  # fmt: skip
    assert spread({"latency": 1}, ("size", "latency"), "") == {"latency": 1}
    for unknown in ("latency:tablet", "energy", "phone"):
        with pytest.raises(UserError, match=f"a budget on '{unknown}' is unknown here; known: size, latency:phone"):
            spread({unknown: 1}, known, "a budget on")


def test_budgets_are_read_in_their_units():
    read = {
        ("macs", "0.4G"): 4e8, ("macs", "300M"): 3e8, ("macs", "12"): 12, ("energy", "2"): 2, ("energy", "0.5J"): 500,
        ("energy", "20uJ"): 0.02, ("energy", "1.5 mJ"): 1.5, ("latency:phone", "900us"): 0.9, ("memory", "4"): 4e6,
    }  # fmt: skip
    for (metric, text), value in read.items():
        assert parse_budget(metric, text) == Budget(pytest.approx(value))
    assert parse_budget("energy", "50%") == Budget(0.5, relative=True)
    for metric, text in (("macs", "3ms"), ("energy", "3W"), ("energy", "-1mJ")):
        with pytest.raises(UserError, match=f"--max-{metric}"):
            parse_budget(metric, text)


# --- what networks cost

SPACE = SearchSpace.named("pocket28")


def table(seed, unit, reference="other", classes=10):
    entries = {key: Entry(0.01 + noise(seed, key)) for key in space_blocks(SPACE, classes)}
    return LatencyTable(entries, 0.1, unit, Reference(reference, 77.0), SPACE.name, classes, SPACE.resolution)


def test_costs_of_several_devices_and_energy(tmp_path):
    """Each is what its own model says; defaults weigh the devices together as much as the paper weighs one."""
    phone, laptop = table(0, 2.0, "largest"), table(1, 0.5)
    mj = {key: noise("mJ", key) for key in space_blocks(SPACE, 10)}
    (tmp_path / "mj.json").write_text(
        json.dumps({"format": "pocketformer.energy-table/1", "entries": mj, "constant": 0.25})
    )
    tabled = EnergyTable.load(tmp_path / "mj.json", SPACE, 10)
    for energy in (None, tabled, Power(2.5, laptop)):
        costs = CostModel({"phone": phone, "laptop": laptop}, 10, energy=energy)
        for seed in range(5):
            network = SPACE.sample(seed)
            found = costs(SPACE.select(network))
            wanted = {
                "size": network.parameters(10, False),
                "latency:phone": phone.latency(network),
                "latency:laptop": laptop.latency(network),
                "macs": network.macs(num_classes=10, distilled=False),
                "memory": network.peak_memory(num_classes=10),
            }
            if energy is tabled:
                wanted["energy"] = 0.25 + sum(mj[b.key()] for b in network.blocks(None, 10, distilled=False))
            elif energy is not None:
                wanted["energy"] = 2.5 * wanted["latency:laptop"]
            assert found == costs(network) == pytest.approx(wanted)
            assert list(found) == list(wanted)
        largest = costs.largest(SPACE)
        assert largest == costs(SPACE.largest)  # as the table says of all members, not as its reference was measured
        half = Budget(0.5, relative=True)
        goal = costs.objective(SPACE, {"latency": half, "macs": Budget(1e6)}, None, {"size": 0.25})
        assert goal.budgets == {
            "latency:phone": largest["latency:phone"] / 2,
            "latency:laptop": largest["latency:laptop"] / 2,
            "macs": 1e6,
        }
        assert goal.exponents == {"size": 0.25, "latency:phone": 0.5, "latency:laptop": 0.5, "macs": 0.5}
        assert goal.units.items() >= {"size": 3e6, "latency:phone": 2.0, "latency:laptop": 0.5}.items()
        assert goal.units["macs"] == largest["macs"]
        goal = costs.objective(SPACE, {}, 50.0, {"latency": 2, "latency:phone": 0, "memory": 1}, "paper")
        assert goal.exponents == {"size": 0.5, "latency:laptop": 2, "memory": 1}
        assert (goal.min_mes, goal.form) == (50.0, "paper")
    one = CostModel(phone, 10).objective(SPACE, {"memory": half})
    assert one.exponents == {"size": 0.5, "latency": 1.0, "memory": 0.5}
    doubled = CostModel(phone, 10).corrected(2.0)(SPACE.largest)
    assert doubled["latency"] == pytest.approx(2 * phone.latency(SPACE.largest))


def test_the_energy_of_a_processor(tmp_path):
    """Two packages' counters, of which one begins anew meanwhile; a package's parts are not counted again."""
    folder = tmp_path / "powercap"
    with pytest.raises(UserError, match="no energy counters here"):
        Counters(folder)
    zones = {"intel-rapl:0": 5_000_000, "intel-rapl:1": 990_000, "intel-rapl:0:0": 1, "intel-rapl:2": 7}
    for name, value in zones.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "name").write_text("psys\n" if name == "intel-rapl:2" else f"package-{name[11]}\n")
        (folder / name / "energy_uj").write_text(f"{value}\n")
        (folder / name / "max_energy_range_uj").write_text("1000000\n")

    def work():
        (folder / "intel-rapl:0" / "energy_uj").write_text("7500000\n")
        (folder / "intel-rapl:0:0" / "energy_uj").write_text("999\n")
        (folder / "intel-rapl:2" / "energy_uj").write_text("9000000\n")  # the platform, packages included
        (folder / "intel-rapl:1" / "energy_uj").write_text("20000\n")

    counters = Counters(folder)
    assert counters.joules(work) == pytest.approx(2.5 + 0.03)
    with pytest.raises(WorkError, match="did not move"):
        counters.watts(lambda: None, seconds=0.01)
    calls = []

    def more():
        calls.append(int((folder / "intel-rapl:0" / "energy_uj").read_text()))
        (folder / "intel-rapl:0" / "energy_uj").write_text(str(calls[-1] + 100_000))

    watts = counters.watts(more, seconds=0.05)
    assert 0 < watts <= 0.1 * len(calls) / 0.05


def test_counters_that_only_root_may_read(tmp_path, monkeypatch):
    (tmp_path / "intel-rapl:0").mkdir()

    def refused(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.read_text", refused)
    with pytest.raises(UserError, match=r"energy_uj may not be read .*root"):
        Counters(tmp_path)


# --- what can be reached at all


def test_smallest_reachable_is_that_of_the_whole_space():
    """Tables of two devices and of energy without any order among their entries; real parameters, multiply-adds and
    activation memory."""
    networks = {key: selection.architecture for key, selection in MEMBERS.items()}
    fixed = {
        key: {"size": n.parameters(10), "macs": n.macs(), "memory": n.peak_memory()} for key, n in networks.items()
    }
    other = 0
    for seed in range(16):
        entries = {name: cache(partial(noise, seed, name)) for name in ("latency:a", "latency", "energy")}

        def costs(selection, entries=entries):
            steps = [(s.kind, s.stage, s.in_width, s.width, s.expansion) for s in selection.steps]
            tabled = {name: sum(entry(*step) for step in steps) for name, entry in entries.items()}
            return {**tabled, **fixed[plain(selection)]}

        table = [costs(selection) for selection in MEMBERS.values()]
        found = smallest_reachable(TOY, costs)
        assert found == {name: min(row[name] for row in table) for name in table[0]}
        other += found["latency"] < costs(TOY.minimum)["latency"]
    assert other > 10  # the fastest member is often not the smallest
