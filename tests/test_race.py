"""The race against full evaluation: the same decision whatever the scores, honest bounds, and less work."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perturbed import perturb
from pocketformer import Supernet, ranks
from pocketformer.pipelines.scoring import SearchImages, evaluator
from pocketformer.search import Action, Evaluated, Score, choose, frontier, regrowth
from pocketformer.search.joint import by_price
from pocketformer.search.race import Bound, RacingEvaluator
from processes import Team
from trainings import SPACE, noisy_brightness

torch.set_num_threads(1)
MIDDLE = SPACE.sample_selection(1)
CLASSES, UNSCORED = 3, 2


# --- a made-up network whose answer to each image is known


class MadeUp:
    """Images are their numbers. A network answers an image by its margin, which all networks share, and by noise of
    its own: as neighbours of a trained network do, they differ where the margin is narrow."""

    def __init__(self, seed: int, count: int, noise: float, batch: int = 16):
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(CLASSES, (count,), generator=generator)
        self.base = torch.randn(count, CLASSES, generator=generator, dtype=torch.double)
        self.base[torch.arange(count), self.labels] += 1
        self.seed, self.noise, self.batch, self.ran = seed, noise, batch, 0
        self.known: dict[int, torch.Tensor] = {}

    def images(self, rows=None):
        rows = torch.arange(len(self.labels)) if rows is None else torch.as_tensor(rows)
        for part in rows.split(self.batch):
            ids = torch.cat([torch.full((UNSCORED,), -1), part])
            yield torch.stack([ids, torch.zeros_like(ids)], 1), self.labels[part]

    def run(self, step, x):
        """Column 0 is the image, column 1 stands for the steps so far."""
        self.ran += len(x)
        steps = (int(x[0, 1]) * 31 + hash(step[1:]) + len(step[0])) % 1_000_003
        if step.kind != "head":
            return torch.stack([x[:, 0], torch.full_like(x[:, 0], steps)], 1)
        return self._answers(steps)[x[:, 0]]

    def _answers(self, network: int) -> torch.Tensor:
        if network not in self.known:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + network)
            noise = torch.randn(self.base.shape, generator=generator, dtype=torch.double)
            unscored = torch.zeros(1, CLASSES)
            self.known[network] = torch.cat([self.base + self.noise * noise, unscored])
        return self.known[network]


def raced(made_up: MadeUp, together: int = 6) -> RacingEvaluator:
    def images(rows=None):
        return made_up.images(rows)

    images.readable = lambda: range(len(made_up.labels))
    return RacingEvaluator(made_up.run, images, UNSCORED, together)


def first(scores: list[Score], rank) -> list[int]:
    """The candidates that a rank takes, best first."""
    own, *others = scores
    keys = {i: key for i, score in enumerate(others) if (key := rank(i, own, score)) is not None}
    return sorted(keys, key=keys.get)


gains = st.sampled_from([-1.0, 0.0, 1.0, 1.0, 2.5, 3.0, 7.0, 40.0])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 90),
    noise=st.sampled_from([0.0, 0.02, 0.2, 1.0, 5.0]),
    together=st.integers(1, 40),
    places=st.integers(1, 3),
    reverse=st.booleans(),
    data=st.data(),
)
def test_a_race_decides_as_full_evaluation(seed, count, noise, together, places, reverse, data):
    made_up = MadeUp(seed, count, noise)
    candidates = [selection for _, selection in (regrowth if reverse else frontier)(MIDDLE)]
    amounts = data.draw(st.lists(gains, min_size=len(candidates), max_size=len(candidates)))
    rank = (lambda i, own, score: (-score.accuracy, score.loss, i)) if reverse else by_price(amounts)
    evaluate = raced(made_up, together)
    full = evaluate(MIDDLE, candidates)
    assert evaluate.executed_images == made_up.ran
    scores = evaluate.race(MIDDLE, candidates, rank, places)
    assert evaluate.executed_images == made_up.ran

    winners = first(full, rank)[:places]
    assert first(scores, rank)[: len(winners)] == winners
    assert scores[0] == full[0]
    for i, (found, exact) in enumerate(zip(scores[1:], full[1:], strict=True)):
        if isinstance(found, Bound):
            assert i not in winners
            assert found.images < count
            assert found.accuracy >= exact.accuracy
            assert found.loss <= exact.loss + 1e-9
        else:
            assert found.accuracy == exact.accuracy
            assert found.loss == pytest.approx(exact.loss, rel=1e-12)
        if rank(i, full[0], full[0]) is None:
            assert found == Bound(1.0, 0.0, 0)  # never run


@settings(max_examples=60, deadline=None)
@given(
    own=st.integers(0, 8),
    found=st.lists(st.tuples(st.integers(0, 8), st.sampled_from([0.1, 0.2]), gains), max_size=12),
)
def test_the_order_is_that_of_algorithm_1(own, found):
    current = Score(own / 8, 1.0)
    scores = [Score(correct / 8, loss) for correct, loss, _ in found]
    evaluated = [
        Evaluated(Action(0, i, "depth"), MIDDLE, score, {}, score.accuracy - current.accuracy, {}, gain)
        for i, (score, (_, _, gain)) in enumerate(zip(scores, found, strict=True))
    ]
    chosen = choose(evaluated)
    winners = first([current, *scores], by_price([gain for _, _, gain in found]))
    assert winners[:1] == ([] if chosen is None else [chosen.action.slot])


def test_a_race_saves_work():
    """Where actions cost nothing, only those that run beside the winner are seen at all; where they differ by little,
    few are seen whole. By Algorithm 1's order a later candidate gains more here."""
    candidates = [selection for _, selection in frontier(SPACE.whole)]
    rank = by_price(range(1, len(candidates) + 1))
    for noise, share in ((0.0, 0.35), (0.2, 0.75)):
        made_up = MadeUp(0, 400, noise, batch=100)
        evaluate = raced(made_up)
        scores = evaluate.race(SPACE.whole, candidates, rank)
        found = evaluate.executed_images
        evaluate(SPACE.whole, candidates)
        assert found < share * (evaluate.executed_images - found)
        seen = [score.images for score in scores if isinstance(score, Bound)]
        if not noise:
            assert not isinstance(scores[-1], Bound)
            assert seen.count(0) == len(candidates) - 6


# --- a supernet


def scored(seed: int = 0):
    """The evaluator of a supernet, on 96 images in batches of 32 or fewer."""
    torch.manual_seed(0)
    net = perturb(Supernet(SPACE, 3, distilled=False), seed)
    split = noisy_brightness("search")
    return evaluator(net, SimpleNamespace(fit=noisy_brightness(), search=split), 0, calibration=8, race=True)


RULES = {
    "slim": (SPACE.whole, frontier, by_price([1 + i % 5 for i in range(40)])),
    "regrow": (SPACE.minimum, regrowth, lambda i, own, score: (-score.accuracy, score.loss, i)),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_supernet_is_raced_as_it_is_evaluated(rule):
    current, moves, rank = RULES[rule]
    candidates = [selection for _, selection in moves(current)]
    for seed in range(2):
        with scored(seed) as evaluate:
            full, scores = evaluate(current, candidates), evaluate.race(current, candidates, rank, 2)
        winners = first(full, rank)[:2]
        assert first(scores, rank)[:2] == winners
        for i in winners:
            assert scores[1 + i].accuracy == full[1 + i].accuracy
            assert scores[1 + i].loss == pytest.approx(full[1 + i].loss, rel=1e-6)
        for score, exact in zip(scores, full, strict=True):
            assert score.accuracy >= exact.accuracy
        assert scores[0] == full[0]  # bit for bit


def race_and_tell(folder: Path) -> None:
    with ranks.joined():
        found = []
        for current, moves, rank in RULES.values():
            with scored() as evaluate:
                evaluate.images.batch_size = 10
                found.append(evaluate.race(current, [s for _, s in moves(current)], rank))
        (folder / f"{ranks.count()}_{ranks.rank()}.json").write_text(json.dumps(found, default=vars))


def test_processes_race_as_one_does(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.syspath_prepend(Path(__file__).parent)
    for count in (1, 2):
        team = Team(tmp_path / f"output_{count}", count, race_and_tell, tmp_path)
        assert team.end() == [0] * count, team.errors
    one, *others = (path.read_bytes() for path in sorted(tmp_path.glob("*.json")))
    assert others == [one] * 2
    assert b'"images"' in one


def test_the_search_split_in_any_order(monkeypatch):
    split, unlabelled = noisy_brightness("search"), torch.zeros(3, 3, 16, 16)
    images = SearchImages(split, unlabelled, 40, (16, 16), torch.device("cpu"))
    assert images.readable() == list(range(96))
    assert [len(x) for x, _ in images()] == [35, 35, 35]
    assert images.work == 96 + 9
    rows = torch.randperm(96)[:50]
    x, labels = zip(*images(rows.tolist()), strict=True)
    assert [len(part) for part in labels] == [25, 25]
    assert all(torch.equal(part[:3], unlabelled) for part in x)
    found, expected = torch.cat([part[3:] for part in x]), torch.cat([part[3:] for part, _ in images()])[rows]
    assert torch.equal(found, expected)
    assert torch.equal(torch.cat(labels), split.labels[rows])
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    ((second, _),) = images(rows.tolist())
    assert torch.equal(second, x[1])
