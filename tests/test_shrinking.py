"""After a search: weights of the blocks that were kept, and progressive shrinking through the trajectory's states."""

import json
from types import SimpleNamespace

import pytest
import torch

from pocketformer import Selection, files
from pocketformer.errors import UserError
from pocketformer.pipelines import shrinking
from pocketformer.pipelines.networks import FinalTraining
from pocketformer.pipelines.shrinking import Searched, Walk, load_searched, shrink
from pocketformer.pipelines.trainings import TrainSettings
from pocketformer.runs import Ledger, Run
from pocketformer.search import Objective, Score, joint_search
from pocketformer.search.trajectory import move_lines, start_line
from pocketformer.supernet import Supernet
from pocketformer.training import checkpoint, engine
from pocketformer.training.recipe import Recipe
from pocketformer.training.tasks import SingleTask
from trainings import SPACE, go, noisy_brightness

PLAIN = Recipe.small_images(epochs=2, batch_size=32, ema=0)
LOSING = 2, 3  # stage and slot: the last FFN of stage 3, which the made-up evaluator finds worthless


def supernet() -> Supernet:
    torch.manual_seed(1)
    return Supernet(SPACE, 3, distilled=False, layer_scale=0.5)


def costs(selection) -> dict:
    return {"size": selection.architecture.parameters(3, False), "latency": len(selection.steps) / 10}


def searched_folder(tmp_path):
    """A search on a saved supernet that first gives up that FFN, then more."""

    def evaluator(current, candidates):
        worth = (1.0 - 0.1 * (LOSING[1] in s.kept[LOSING[0]]) - 1e-9 * costs(s)["size"] for s in (current, *candidates))
        return [Score(value / 2, 1 - value / 2) for value in worth]

    net = supernet()
    checkpoint.save_tensors(tmp_path / "supernet" / "model.safetensors", net)
    files.write_json(tmp_path / "supernet" / "config.json", {"space": SPACE.to_dict(), "num_classes": 3})
    objective = Objective({"latency": costs(SPACE.whole)["latency"] - 0.25})
    moves = list(joint_search(SPACE.whole, costs, evaluator, objective))
    plain = costs(SPACE.whole)
    lines = [start_line(SPACE.whole, plain, objective.mes(plain), {})]
    for move in moves:
        lines += move_lines(move, objective.mes)
    with Run(tmp_path / "search", "search", {"supernet": str(tmp_path / "supernet")}):
        file = files.Lines(tmp_path / "search" / "search.jsonl")
        file.write(*lines)
        file.close()
    return tmp_path / "search", [SPACE.whole, *(move.chosen.selection for move in moves)], net


@pytest.fixture
def final(tmp_path):
    """A final training by a recipe."""
    split = noisy_brightness()
    data = SimpleNamespace(final=split, fit=split, classes=["a", "b", "c"])
    with Ledger(tmp_path / "work.jsonl") as ledger:
        yield lambda recipe=PLAIN: FinalTraining(data, recipe, 3, ledger)


def test_a_search_hands_on_the_blocks_that_it_kept(tmp_path, final):
    folder, states, net = searched_folder(tmp_path)
    found = states[-1]
    assert SPACE.select(found.architecture) != found  # as an architecture alone it would take other blocks
    searched = load_searched(folder, found.architecture)
    assert searched.states == tuple(states)
    x = torch.randn(2, 3, 16, 16)
    given = final().inherit(searched.supernet, searched.found).eval()
    with torch.no_grad():
        torch.testing.assert_close(given(x), net.eval()(x, found))


def test_of_siblings_the_one_that_was_found_is_taken(tmp_path):
    """A beam keeps two of one architecture with other blocks; the later of them is the worse."""
    folder, states, _ = searched_folder(tmp_path)
    file = folder / "search.jsonl"
    *others, last = files.Lines.read(file)
    assert last["type"] == "executed"
    found = states[-1]
    kept = [list(slots) for slots in found.kept]
    assert kept[2] == [1]  # of stage 3 the first FFN is left: the sibling kept the last
    sibling = Selection.from_dict(SPACE, found.to_dict() | {"kept": [*kept[:2], [3], *kept[3:]]})
    assert sibling.architecture == found.architecture
    worse = {**last, "step": last["step"] + 1, "parent": last["step"] - 1, "selection": sibling.to_dict()}
    end = {"type": "end", "step": last["step"], "status": "all budgets hold"}
    for lines, wanted in (([last, worse, end], found), ([last, worse], sibling)):
        file.write_text("".join(json.dumps(line) + "\n" for line in (*others, *lines)))
        assert load_searched(folder, found.architecture).found == wanted
    file.unlink()
    with pytest.raises(UserError, match="holds no search"):
        load_searched(folder, found.architecture)


def test_an_architecture_that_the_search_never_saw_is_told(tmp_path, capfd):
    folder, _, _ = searched_folder(tmp_path)
    assert load_searched(folder, SPACE.smallest).states == (SPACE.select(SPACE.smallest),)
    assert "no state" in capfd.readouterr().err


def test_shrinking_needs_a_search():
    with pytest.raises(UserError, match="--shrink follows a search"):
        TrainSettings("efficientformerv2_s0", "photos", PLAIN, init="nowhere", shrink=3)


def test_every_state_is_trained_in_order(tmp_path, final, monkeypatch):
    folder, states, _ = searched_folder(tmp_path)
    searched, ran = load_searched(folder, states[-1].architecture), []
    forward = Supernet.forward
    monkeypatch.setattr(Supernet, "forward", lambda self, x, subnet: ran.append(subnet) or forward(self, x, subnet))
    shrink(searched, final(), tmp_path / "run", 2)
    assert ran == [state for state in states for _ in range(2)]
    assert Walk(tuple(states), 2).subnets(10**6) == (states[-1],)


def test_shrinking_that_stays_where_it_is_is_ordinary_training(tmp_path, final):
    """Independent of the supernet: the largest network alone, trained by the engine on the same batches."""
    net = supernet()
    static = net.extract(SPACE.whole)
    shrink(Searched(net, {"num_classes": 3}, (SPACE.whole,)), final(), tmp_path / "run", 6)
    go(tmp_path / "alone", SingleTask(static, PLAIN.label_smoothing), PLAIN)
    x = torch.randn(8, 3, 16, 16)
    with torch.no_grad():
        before, after = supernet().eval()(x, SPACE.whole), static.eval()(x)
        torch.testing.assert_close(net.eval()(x, SPACE.whole), after, rtol=0, atol=0.01 * float((after - before).std()))


def test_a_killed_shrinking_ends_in_the_same_bytes(tmp_path, final, monkeypatch):
    folder, states, _ = searched_folder(tmp_path)
    recipe = Recipe.small_images(epochs=2, batch_size=32, checkpoint_every=2)
    results = []
    for name, killed_at in (("unbroken", None), ("killed", 3)):
        searched = load_searched(folder, states[-1].architecture)
        step = engine._step

        def dies(task, state, *rest, at=killed_at, step=step):
            if state.step == at:
                raise KeyboardInterrupt
            return step(task, state, *rest)

        monkeypatch.setattr(engine, "_step", dies)
        if killed_at is not None:
            with pytest.raises(KeyboardInterrupt):
                shrink(searched, final(recipe), tmp_path / name, 2)
            searched = load_searched(folder, states[-1].architecture)
        monkeypatch.setattr(engine, "_step", step)
        shrink(searched, final(recipe), tmp_path / name, 2)
        results.append((tmp_path / name / "shrunk.safetensors").read_bytes())
    assert results[0] == results[1]
    monkeypatch.setattr(shrinking, "train", None)  # what is done is not done again
    shrink(load_searched(folder, states[-1].architecture), final(recipe), tmp_path / "killed", 2)
