"""Prefix sharing: many neighbouring subnets scored in one pass, as each on its own."""

import math
from functools import partial

import pytest
import torch

from perturbed import perturb
from pocketformer import SearchSpace, Supernet
from pocketformer.search import Objective, frontier, joint_search
from pocketformer.search.evaluation import NaiveEvaluator, PrefixEvaluator, block_executions
from searched import run

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def supernet():
    return perturb(Supernet(SearchSpace.named("pocket28"), 10)).eval()


def batches():
    generator = torch.Generator().manual_seed(0)
    for n in (6, 9):
        x = torch.randn(n, 3, 28, 28, generator=generator)
        yield x, torch.randint(10, (n - 2,), generator=generator)  # two without label


def trie(current, candidates):
    """Distinct activations that have to be computed: distinct beginnings of all step sequences."""
    return len({s.steps[: i + 1] for s in (current, *candidates) for i in range(len(s.steps))})


@pytest.mark.parametrize("state", ["whole", "sampled", "small"])
@pytest.mark.parametrize("calibrated", [0, 2])
def test_prefix_evaluation_is_naive_evaluation(supernet, state, calibrated):
    space = supernet.space
    states = {"whole": space.whole, "sampled": space.sample_selection(3), "small": space.select(space.smallest)}
    current = states[state]
    candidates = [selection for _, selection in frontier(current)] + [current]
    ran = []

    def step(step, x):
        ran.append(step)
        return supernet.run(step, x)

    prefix = PrefixEvaluator(step, batches, unscored=2)
    naive = NaiveEvaluator(supernet.run, batches, unscored=2)
    with supernet.calibrated(calibrated):
        scores = prefix(current, candidates)
        assert scores == naive(current, candidates)  # bit for bit
    assert prefix.executed == len(ran) == 2 * block_executions(current, candidates) == 2 * trie(current, candidates)
    assert naive.executed == 2 * sum(len(s.steps) for s in (current, *candidates))
    assert len({score.loss for score in scores[:-1]}) == len(candidates)  # the candidates differ
    # The scores themselves, from extracted networks.
    if not calibrated:
        model = supernet.extract(current)
        logits, labels = zip(*((model(x)[2:], y) for x, y in batches()), strict=True)
        logits, labels = torch.cat(logits), torch.cat(labels)
        assert scores[0].accuracy == (logits.argmax(1) == labels).sum().item() / 11
        assert scores[0].loss == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)


def test_prefix_and_naive_search_decide_alike(supernet):
    def costs(selection):
        blocks = selection.architecture.blocks(num_classes=10)
        return {
            "size": selection.architecture.parameters(10),
            "latency": sum(0.01 + block.macs() / 1e8 for block in blocks),
        }

    start = supernet.space.select(supernet.space.smallest)
    objective = Objective({"latency": costs(supernet.space.minimum)["latency"] * 1.03})
    trajectories = []
    for kind in (PrefixEvaluator, NaiveEvaluator):
        evaluator = kind(partial(Supernet.run, supernet), batches, unscored=2)
        trajectories.append(run(joint_search(start, costs, evaluator, objective)))
    assert trajectories[0] == trajectories[1]
    assert len(trajectories[0][0]) > 1
    assert all(math.isfinite(m.state.score.loss) for m in trajectories[0][0])
