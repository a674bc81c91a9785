"""The search on disk: what its file tells, and that it goes on from wherever a kill cut it."""

import itertools
import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from pocketformer.errors import UserError, WorkError
from pocketformer.files import Lines
from pocketformer.pipelines.searches import pick
from pocketformer.pipelines.searching import Trajectory
from pocketformer.pipelines.settings import Budget
from pocketformer.report.reading import read_run
from pocketformer.report.reading import states as states_drawn
from pocketformer.runs import Ledger, repeated_units
from pocketformer.search import Objective, Walk, beam_search, joint_search, mes, regrow
from pocketformer.search.trajectory import (
    end_line,
    move_lines,
    path_to,
    points,
    start_line,
    turn_lines,
    whole_moves,
)
from searched import TOY, MadeUp, budgets_of, many_costs, run

SETTINGS = {"form": "budget"}


def written(path, seed, width=1):
    """A whole search's file: slimming, with a beam or without, then regrowth."""
    made_up = MadeUp(seed, coarse=seed % 2 > 0, bumpy=False)
    objective = Objective(budgets_of(made_up, seed))
    with Lines(path) as lines:
        start = made_up.costs(TOY.whole)
        lines.write(start_line(TOY.whole, start, objective.mes(start), SETTINGS))
        if width > 1:
            turns, reason = run(beam_search(TOY.whole, made_up.costs, made_up, objective, width))
            for turn in turns:
                lines.write(*turn_lines(turn, objective.mes))
            lines.write(end_line(turns[-1].kept[-1].step, reason))
            return turns
        moves, reason = run(joint_search(TOY.whole, made_up.costs, made_up, objective))
        last = moves[-1].chosen.selection
        grown, _ = run(regrow(last, made_up.costs, made_up, objective, step=len(moves)))
        for move in (*moves, *grown):
            lines.write(*move_lines(move, objective.mes))
        lines.write(end_line(len(moves) + len(grown), reason))
    return [*moves, *grown]


def test_equal_inputs_write_equal_bytes(tmp_path):
    """Also in another process with another hash seed; and the search needs no torch there (it is an algorithm
    over values)."""
    for seed in range(4):
        for name in "ab":
            written(tmp_path / f"{name}{seed}", seed, width=1 + seed // 2)
        assert (tmp_path / f"a{seed}").read_bytes() == (tmp_path / f"b{seed}").read_bytes()
    script = (
        "import sys, pocketformer.search, pocketformer.search.reach\n"
        "assert 'torch' not in sys.modules\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_trajectory import written\n"
        "[written(sys.argv[1] + str(seed), seed, 1 + seed // 2) for seed in range(4)]\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "4242"}
    command = [sys.executable, "-c", script, str(tmp_path / "c")]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    for seed in range(4):
        assert (tmp_path / f"a{seed}").read_bytes() == (tmp_path / f"c{seed}").read_bytes()


def test_the_file_tells_the_whole_trajectory(tmp_path):
    moves = written(tmp_path / "search.jsonl", 2)
    lines = Lines.read(tmp_path / "search.jsonl")
    found = points(TOY, lines)
    assert [p.selection for p in found] == [TOY.whole, *(m.chosen.selection for m in moves)]
    assert [p.costs for p in found[1:]] == [m.chosen.costs for m in moves]
    assert [p.score for p in found[:-1]] == [m.state.score for m in moves]
    assert [p.phase for p in found[1:]] == [m.phase for m in moves]
    evaluated = [line for line in lines if line["type"] == "evaluated"]
    assert len(evaluated) == sum(len(m.evaluated) for m in moves)
    assert sum(line["chosen"] for line in evaluated) == len(moves)
    by_step = {m.step: m for m in moves}
    for line in evaluated:
        before = by_step[line["step"]].state
        assert line["delta_accuracy"] == line["accuracy"] - before.score.accuracy
        assert line["delta_latency"] == line["latency"] - before.costs["latency"]
        assert line["delta_parameters"] == line["parameters"] - before.costs["size"]
    # A kill at any line leaves whole moves.
    for cut in range(1, len(lines)):
        kept = whole_moves(lines[:cut])
        assert kept == lines[: len(kept)]
        assert kept[-1]["type"] in ("start", "executed")
        assert not any(line["type"] != "evaluated" for line in lines[len(kept) : cut])


def test_a_beam_of_one_writes_what_algorithm_1_writes(tmp_path):
    for seed in range(4):
        made_up = MadeUp(seed, coarse=seed % 2 > 0, bumpy=False)
        objective = Objective(budgets_of(made_up, seed))
        known = (TOY.whole, made_up.costs, made_up, objective)
        moves, turns = run(joint_search(*known))[0], run(beam_search(*known, 1))[0]
        assert [move_lines(m, objective.mes) for m in moves] == [turn_lines(t, objective.mes) for t in turns]


# --- the search stage


class Costs:
    """Made-up costs of six metrics; latencies can be corrected."""

    def __init__(self, made_up, factor=1.0):
        self.made_up, self.factor, self.plain = made_up, factor, many_costs(made_up)

    def __call__(self, selection):
        return {k: v * (self.factor if k == "latency" else 1) for k, v in self.plain(selection).items()}

    def corrected(self, factor):
        return Costs(self.made_up, factor)


class Failing:
    """An evaluator that fails at call number `at`."""

    def __init__(self, made_up, at, answer):
        self.made_up, self.left, self.answer = made_up, at, answer

    def __call__(self, current, candidates):
        self.left -= 1
        scores = self.made_up(current, candidates)
        return self.answer(scores) if self.left < 0 else scores


def search(folder, seed, walk, evaluator=None, budgets=None):
    """A whole search by the pipeline's stage: slimming, a correction, more of it, and the budgets filled."""
    made_up = MadeUp(seed, coarse=False, bumpy=False)
    costs = Costs(made_up)
    whole = costs(TOY.whole)
    budgets = budgets or {"latency": 0.5 * whole["latency"], "memory": 0.8 * whole["memory"]}
    exponents = {"size": 0.5, "latency": 0.5, "latency:phone": 0.5, "energy": 0.25, "memory": 0.5}
    objective = Objective(budgets, None, whole, exponents)
    folder.mkdir(exist_ok=True)
    with Ledger(folder / "work.jsonl") as ledger:
        trajectory = Trajectory(
            folder / "search.jsonl", TOY.whole, costs, objective, evaluator or made_up, ledger, method=walk
        )
        try:
            trajectory.slim()
            if walk == Walk():
                trajectory.correct(1.1)
                trajectory.slim()
            trajectory.regrow()
        finally:
            trajectory.close()
    return trajectory


WALKS = {"joint": Walk(), "regrow": Walk(regrow=True), "beam": Walk(beam=3)}


@pytest.mark.parametrize("walk", WALKS)
def test_a_search_that_is_cut_anywhere_goes_on_byte_for_byte(tmp_path, walk):
    rng = random.Random(walk)
    for seed in (1, 5):
        search(tmp_path / "whole", seed, WALKS[walk])
        whole = (tmp_path / "whole" / "search.jsonl").read_bytes()
        told = {"joint": b'"correction"', "regrow": b'"phase": "back"', "beam": b'"parent"'}[walk]
        assert told in whole
        ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
        executed = [i for i, line in zip(ends, Lines.read(tmp_path / "whole" / "search.jsonl"), strict=True)
                    if line["type"] != "evaluated"]  # fmt: skip
        for cut in {*executed, *rng.sample(range(len(whole)), 15)}:
            folder = tmp_path / "cut"
            folder.mkdir(exist_ok=True)
            (folder / "search.jsonl").write_bytes(whole[:cut])
            search(folder, seed, WALKS[walk])
            assert (folder / "search.jsonl").read_bytes() == whole, cut
        assert repeated_units(tmp_path / "whole") == {}
        for file in tmp_path.rglob("*.jsonl"):
            file.unlink()


@pytest.mark.parametrize("walk", WALKS)
def test_a_search_whose_evaluator_fails_keeps_what_it_has_and_goes_on(tmp_path, walk):
    search(tmp_path / "whole", 1, WALKS[walk])
    whole = (tmp_path / "whole" / "search.jsonl").read_bytes()
    made_up, held = MadeUp(1, coarse=False, bumpy=False), set()

    def raising(scores):
        raise RuntimeError("out of memory")

    for at, answer in enumerate([raising, lambda scores: scores[:-1], raising, raising]):
        with pytest.raises(WorkError, match="the search stopped"):
            search(tmp_path / "failed", 1, WALKS[walk], Failing(made_up, at, answer))
        left = (tmp_path / "failed" / "search.jsonl").read_bytes()
        assert whole.startswith(left)
        held.add(len(left))
    assert len(held) > 2
    search(tmp_path / "failed", 1, WALKS[walk])
    assert (tmp_path / "failed" / "search.jsonl").read_bytes() == whole


def test_an_end_without_a_way(tmp_path):
    """A budget that no action comes nearer to, as its metric does not count: it stops, and says so."""
    made_up = MadeUp(0, coarse=False, bumpy=False)
    costs = Costs(made_up)
    objective = Objective({"memory": 1.0, "latency": 0.9 * costs(TOY.whole)["latency"]}, exponents={"latency": 1.0})
    for walk in WALKS.values():
        folder = tmp_path / str(walk.to_dict())
        folder.mkdir()
        with Ledger(None) as ledger:
            trajectory = Trajectory(folder / "s", TOY.whole, costs, objective, made_up, ledger, method=walk)
            assert trajectory.slim() == "no action raises MES"
            trajectory.close()


def test_a_file_of_another_search_is_refused(tmp_path):
    search(tmp_path, 1, Walk())
    for other in ({"walk": Walk(beam=2)}, {"walk": Walk(), "budgets": {"size": 1e5}}):
        with pytest.raises(UserError, match="another search"):
            search(tmp_path, 1, **other)


def test_the_path_of_a_beam_can_be_followed(tmp_path):
    """From the start to what it leaves, every step an action of the state before."""
    trajectory = search(tmp_path, 1, Walk(beam=3))
    states = trajectory.points()
    assert [p.step for p in states] == list(range(len(states)))
    ends = [line for line in trajectory.lines if line["type"] == "end"]
    slimmed = [p for p in states if p.phase == "slim" and trajectory.objective.met(p.costs)]
    best = max(slimmed, key=lambda p: p.score.accuracy)
    assert ends[0]["step"] == best.step
    path = path_to(states, best.step)
    assert path[0].selection == TOY.whole
    lines = {line["step"]: line for line in trajectory.lines if line["type"] == "executed"}
    for before, after in itertools.pairwise(path):
        line = lines[after.step]
        assert line.get("parent", after.step - 1) == before.step
        assert line["before"]["accuracy"] == before.score.accuracy
        assert line["accuracy"] - line["delta_accuracy"] == pytest.approx(before.score.accuracy)
    evaluated = [line for line in trajectory.lines if line["type"] == "evaluated" and line["phase"] == "slim"]
    assert sum(line["chosen"] for line in evaluated) == sum(p.phase == "slim" for p in states[1:])
    grown = [p for p in states if p.phase == "regrow"]
    assert not grown or grown[0].parent == best.step
    assert trajectory.here() == (grown or [best])[-1]
    # The report draws that way, not the states beside it.
    run_folder(tmp_path)
    drawn = [state["step"] for state in states_drawn(read_run(tmp_path))]
    assert drawn == [p.step for p in path_to(states, trajectory.here().step)]
    assert len(drawn) < len(states)


# --- choosing afterwards


def run_folder(folder):
    """What `--pick` finds beside the trajectory."""
    config = {"command": "search", "settings": {}, "versions": {}, "facts": {"space": TOY.to_dict()}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def in_one_unit(folder, states):
    """States of before a correction of the table were written with latencies that it has found wrong."""
    lines = Lines.read(folder / "search.jsonl")
    corrections = [i for i, line in enumerate(lines) if line["type"] == "correction"]
    if not corrections:
        return states
    (place,) = corrections
    factor, late = lines[place]["factor"], [line["step"] for line in lines[place:] if line["type"] == "executed"]
    return [
        p if p.step in late else replace(p, costs={k: v * factor if "latency" in k else v for k, v in p.costs.items()})
        for p in states
    ]


@pytest.mark.parametrize("metric", ["size", "latency", "latency:phone", "macs", "memory", "energy"])
def test_pick_by_each_metric(tmp_path, metric):
    for i, walk in enumerate(WALKS.values()):
        folder = tmp_path / str(i)
        written = search(folder, 1, walk).points()
        states = in_one_unit(folder, written)
        run_folder(folder)
        values = sorted(p.costs[metric] for p in states)
        for budget in (values[len(values) // 2], values[0]):
            found = pick(folder, {metric: Budget(budget)}, None)
            fitting = [p for p in states if p.costs[metric] <= budget]
            best = max(fitting, key=lambda p: (p.score.accuracy, -p.score.loss, -p.step))
            assert (found["step"], found["accuracy"]) == (best.step, best.score.accuracy)
            assert {k: v["value"] for k, v in found["costs"].items()} == best.costs
        assert pick(folder, {metric: Budget(1.0, relative=True)}, None)["step"] == 0
        with pytest.raises(WorkError, match="goes down to"):
            pick(folder, {metric: Budget(values[0] * 0.999)}, None)


def test_pick_by_a_score_and_by_every_device(tmp_path):
    states = in_one_unit(tmp_path, search(tmp_path, 1, Walk()).points())
    run_folder(tmp_path)
    start = Lines.read(tmp_path / "search.jsonl")[0]
    scores = sorted(mes(p.costs, start["units"], start["exponents"]) for p in states)
    assert pick(tmp_path, {}, scores[-1])["mes"] == pytest.approx(scores[-1], rel=1e-12)
    limit = max(sorted(p.costs[name] for p in states)[1] for name in ("latency", "latency:phone"))
    found = pick(tmp_path, {"latency": Budget(limit)}, None)
    assert all(found["costs"][name]["value"] <= limit for name in ("latency", "latency:phone"))
    with pytest.raises(UserError, match="'latency:tablet' is unknown here; known: size, latency, latency:phone"):
        pick(tmp_path, {"latency:tablet": Budget(1.0)}, None)


def test_pick_takes_a_share_of_what_the_search_did(tmp_path):
    """The largest subnet as measured, not the sum of its blocks; of a search that has ended."""
    states = in_one_unit(tmp_path, search(tmp_path, 1, Walk()).points())
    run_folder(tmp_path)
    middle = sorted(p.costs["latency"] for p in states)[len(states) // 2]
    measured = {**states[0].costs, "latency": 2 * middle * 1.001}
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    config["facts"]["largest"] = measured
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    for share, enough in ((0.5, middle * 1.001), (0.6, 1.2 * middle * 1.001)):
        found = pick(tmp_path, {"latency": Budget(share, relative=True)}, None)
        assert found["step"] == pick(tmp_path, {"latency": Budget(enough)}, None)["step"]
    assert Path(found["file"]).is_file()
    log = tmp_path / "search.jsonl"
    log.write_text("".join(line for line in log.read_text().splitlines(keepends=True) if '"end"' not in line))
    with pytest.raises(UserError, match="is not finished"):
        pick(tmp_path, {"latency": Budget(middle)}, None)


def test_files_of_before_are_still_read(tmp_path):
    """Those with parameters, latency and memory alone."""
    search(tmp_path, 1, Walk())
    new = ("macs", "energy", "latency:phone")
    lines = [
        {k: v for k, v in line.items() if k.removeprefix("delta_") not in new}
        for line in Lines.read(tmp_path / "search.jsonl")
    ]
    (tmp_path / "search.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = points(TOY, lines)
    assert all(p.costs.keys() == {"size", "latency", "memory"} for p in found)
    assert len(found) == 1 + sum(line["type"] == "executed" for line in lines)
    for line in lines:
        for name in ("units", "exponents"):
            if name in line:
                line[name] = {k: v for k, v in line[name].items() if k not in new}
    (tmp_path / "search.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run_folder(tmp_path)
    assert pick(tmp_path, {"memory": Budget(0.9, relative=True)}, None)["peak_memory"] <= 0.9 * found[0].costs["memory"]
    with pytest.raises(UserError, match="macs"):
        pick(tmp_path, {"macs": Budget(1.0)}, None)
