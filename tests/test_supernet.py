"""The supernet against networks that own their weights: outputs, gradients, statistics, counts."""

import copy
import itertools
import json
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from designed import spaces
from perturbed import perturb
from pocketformer import Architecture, SearchSpace, Supernet
from pocketformer.architecture import FFN, Selection
from pocketformer.errors import UserError
from subnets import USERS, images, perturbed_supernet, scattered, shared_names, space_of, subnets

torch.set_num_threads(1)


SMALL = ("pocket28", "pocket32", *USERS)


@pytest.mark.parametrize("name", SMALL)
def test_a_subnet_is_its_extracted_network_in_eval_mode(name):
    supernet = perturbed_supernet(name).eval()
    x = images(supernet.space, 3)
    outputs = []
    chosen = (*subnets(supernet.space, 10), supernet.space.whole, supernet.space.minimum)
    with torch.inference_mode():
        for subnet in {supernet.select(subnet): subnet for subnet in chosen}.values():
            outputs.append(supernet(x, subnet))
            static = supernet.extract(subnet)
            assert torch.allclose(outputs[-1], static(x), rtol=1e-5, atol=1e-5)
            expected = static.architecture.parameters(supernet.num_classes)
            storages = {p.untyped_storage().data_ptr(): p.untyped_storage() for p in static.parameters()}
            assert sum(p.numel() for p in static.parameters()) == expected
            assert sum(storage.nbytes() for storage in storages.values()) == 4 * expected  # copies, not views
    distances = torch.pdist(torch.stack(outputs).flatten(1))
    assert distances.min() > 1e-3  # the comparison can tell subnets apart


@pytest.mark.parametrize("name", SMALL)
def test_a_subnet_is_its_extracted_network_in_training(name):
    supernet = perturbed_supernet(name)
    check_training(supernet, subnets(supernet.space, 4))


@given(spaces(elastic=True), st.booleans())
@settings(max_examples=12, deadline=None, derandomize=True)
def test_a_subnet_is_its_extracted_network_under_any_elastic_design(space, distilled):
    """Other activations, strides, kinds of attention and of downsampling, three to five stages."""
    space = SearchSpace.from_yaml(yaml.safe_dump(space.to_dict()), "made-up.yaml")
    supernet = perturb(Supernet(space, 7, distilled)).double().eval()
    x = images(space, 3).double()
    with torch.inference_mode():
        for subnet in (*subnets(space, 4), space.whole, space.minimum):
            assert torch.allclose(supernet(x, subnet), supernet.extract(subnet)(x), rtol=1e-9, atol=1e-9)
    check_training(supernet, subnets(space, 2))


@pytest.mark.parametrize(
    "switches",
    [
        {"token_mixer": "dwconv"},
        {"attention": "tokens", "local_value": False, "talking_heads": False, "attention_strides": (1, 1, 1, 1)},
        {"norm": "gn"},
        {"stem": "large-kernel"},
    ],
    ids=lambda switches: next(iter(switches)),
)
def test_designs_without_an_elastic_form_are_refused(switches):
    values = SearchSpace.named("pocket28").to_dict()
    space = SearchSpace.from_dict({**values, "design": {**values["design"], **switches}})
    name, value = next(iter(switches.items()))
    with pytest.raises(UserError, match=f"{name.replace('_', ' ')} '.*' only, not '{value}'") as refusal:
        Supernet(space)
    assert "\n" not in str(refusal.value)


def check_training(supernet, chosen, batch=4):
    """Outputs, running statistics and gradients; what the subnet does not use has no gradient at all."""
    supernet.double().train()
    x = images(supernet.space, batch).double()
    labels = torch.tensor([0, 1, 2, 6])[:batch]
    for i, subnet in enumerate(chosen):
        selection = supernet.select(subnet)
        static = supernet.extract(subnet)
        assert static.training
        for model in (supernet, static):
            model.zero_grad()
            model.distilled_training = supernet.distilled and i % 4 > 1
        outputs = [supernet(x, subnet), static(x)]
        if not static.distilled_training:
            outputs = [(y,) for y in outputs]
        for ours, theirs in zip(*outputs, strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-9)
        for heads in outputs:
            sum(F.cross_entropy(y, (labels + j) % 7) for j, y in enumerate(heads)).backward()

        shared = {name: p.grad for name, p in supernet.named_parameters()}
        names = shared_names(selection, [name for name, _ in static.named_parameters()])
        for name, p in static.named_parameters():
            wanted = scattered(p.grad, supernet.get_parameter(names[name]))
            assert torch.allclose(shared.pop(names[name]), wanted, rtol=1e-7, atol=1e-9), name
        assert shared  # something is always left over: other switches at the least
        assert all(gradient is None for gradient in shared.values())

        buffers = dict(supernet.named_buffers())
        statistics = {n: b for n, b in static.named_buffers() if ".index" not in n}
        for name, other in shared_names(selection, statistics).items():
            assert torch.allclose(buffers[other], statistics[name], rtol=1e-9, atol=1e-9), name


def test_forward_builds_no_module(monkeypatch):
    supernet = perturbed_supernet("pocket28").eval()
    chosen = subnets(supernet.space, 10)
    built = []
    monkeypatch.setattr(nn.Module, "__init__", lambda self, *args, **kwargs: built.append(type(self)))
    x = images(supernet.space, 2)
    for training in (False, True):
        supernet.train(training)
        for subnet in chosen:
            supernet(x, subnet).sum().backward()
    assert not built


PUBLISHED = {"s0": 3_600_256, "s1": 6_185_560, "s2": 12_710_112, "l": 26_322_288}


def test_the_papers_space():
    """224 px: the published networks and a random member; that one in training too."""
    supernet = perturbed_supernet("efficientformerv2", 1000).eval()
    space = supernet.space
    x = images(space, 1)
    networks = {Architecture.named(f"efficientformerv2_{name}"): count for name, count in PUBLISHED.items()}
    with torch.inference_mode():
        for subnet in (*networks, space.sample_selection(3)):
            static = supernet.extract(subnet)
            parameters = sum(p.numel() for p in static.parameters())
            assert parameters == networks.get(subnet, static.architecture.parameters())
            assert torch.allclose(supernet(x, subnet), static(x), rtol=1e-5, atol=2e-5)
    assert all(map(space.contains, networks))
    check_training(supernet, [space.sample_selection(3)], batch=2)


def test_one_head():
    supernet = Supernet(SearchSpace.named("pocket32"), 10, distilled=False)
    static = supernet.extract(supernet.space.largest)
    assert sum(p.numel() for p in static.parameters()) == supernet.space.largest.parameters(10, distilled=False)


# --- spaces as users write them


@pytest.mark.parametrize("name", USERS)
def test_membership(name):
    space = space_of(name)
    for seed in range(50):
        member, selection = space.sample(seed), space.sample_selection(seed)
        assert space.contains(member)
        assert selection.architecture == member
        assert Architecture.from_dict(json.loads(json.dumps(member.to_dict()))) == member
    assert SearchSpace.from_dict(json.loads(json.dumps(space.to_dict()))) == space
    changed = space.design.activations[::-1] if isinstance(space.design.activation, tuple) else "relu"
    assert not space.contains(space.largest.with_design(activation=changed))
    wider = replace(space.largest.stages[1], width=space.stages[1].widths[-1] + 1)
    stages = space.largest.stages
    assert not space.contains(replace(space.largest, stages=(stages[0], wider, *stages[2:])))
    longer = replace(stages[0], blocks=(*stages[0].blocks, FFN(1)))
    assert not space.contains(replace(space.largest, stages=(longer, *stages[1:])))


def test_a_published_smallest_takes_the_spaces_design():
    values = SearchSpace.named("efficientformerv2").to_dict()
    space = SearchSpace.from_dict({**values, "design": {"resolution": [160, 128]}, "smallest": "efficientformerv2_s0"})
    assert space.smallest == Architecture.named("efficientformerv2_s0").with_design(resolution=(160, 128))


# --- norms


@pytest.mark.parametrize("name", [*SMALL, "pocket64", "efficientformerv2"])
def test_norms_are_those_of_the_switches_that_can_occur(name):
    """Counted from the space's plain data: (what, channels) of every norm."""
    space = space_of(name).to_dict()
    design, stages, expected = space["design"], space["stages"], Counter()
    keys, values = design["heads"] * design["key_dim"], design["heads"] * design["value_dim"]
    for width in stages[0]["widths"]:
        expected.update({("stem", width // 2): 1, ("stem", width): 1})
    for j, stage in enumerate(stages):
        for width in stage["widths"]:
            for hidden in (int(width * e) for e in space["expansions"]):
                expected.update({("stages", hidden): 2 * stage["depth"]})
                expected.update({("stages", width): stage["depth"]})
            for _ in stages[j - 1]["widths"] if j else ():
                kind = design["downsampling"][j - 1]
                if kind != "attention":  # the convolution
                    expected.update({("downsamples", width): 1})
                if kind != "conv":  # q, k; v, its local part; the projection
                    expected[("downsamples", design["downsampling_heads"] * design["downsampling_key_dim"])] += 2
                    expected[("downsamples", design["downsampling_heads"] * design["downsampling_value_dim"])] += 2
                    expected[("downsamples", width)] += 1
            if stage["attention"]:
                strided = design["attention_strides"][j] > 1
                for channels, count in ((keys, 2), (values, 2), (width, 1 + strided)):
                    expected[("stages", channels)] += count * stage["depth"]
    expected.update({("norms", width): 1 for width in stages[-1]["widths"]})
    with torch.device("meta"):
        supernet = Supernet(space_of(name))
    norms = {n: m for n, m in supernet.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert Counter((n.partition(".")[0], m.num_features) for n, m in norms.items()) == expected


def test_every_norm_is_run_by_some_member():
    """All members of a small space, found by brute force, run one after another."""
    values = {**yaml.safe_load(USERS["32px"]), "expansions": [1, 2], "smallest": None}
    values["stages"] = [
        {"depth": 1, "widths": [4]},
        {"depth": 1, "widths": [6, 8], "attention": True},
        {"depth": 1, "widths": [8]},
        {"depth": 1, "widths": [8, 10], "attention": True},
    ]
    supernet = Supernet(SearchSpace.from_dict(values)).eval()
    offers = []  # of each stage: (width, kept slots, expansions)
    for stage in values["stages"]:
        kept = [(0, 1), (1,)] if stage.get("attention") else [(0,)]
        offers.append(list(itertools.product(stage["widths"], kept, [(1,), (2,)])))
    run, x = set(), images(supernet.space, 1)
    norms = {n: m for n, m in supernet.named_modules() if isinstance(m, nn.BatchNorm2d)}
    for name, norm in norms.items():
        norm.register_forward_hook(lambda *_, name=name: run.add(name))
    with torch.inference_mode():
        for choice in itertools.product(*offers):
            supernet(x, Selection(supernet.space, *zip(*choice, strict=True)))
    assert run == norms.keys()


def recalibrated(model, x):
    """Norm after norm in order of execution, each with its predecessors already calibrated: running statistics
    of nn.BatchNorm2d over one batch."""
    norms = []
    handles = [
        m.register_forward_hook(lambda norm, *_: norms.append(norm))
        for m in model.modules()
        if isinstance(m, nn.BatchNorm2d)
    ]
    model.eval()(x)
    for handle in handles:
        handle.remove()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the average over what it has seen: this batch
        norm.train()
        model(x)
        norm.eval()
    return model


@torch.no_grad()
def test_calibration_is_that_of_an_extracted_copy():
    supernet = perturbed_supernet("pocket28").double().eval()
    x = images(supernet.space, 9).double()
    subnet = supernet.space.sample_selection(1)
    before = supernet(x, subnet)
    with supernet.calibrated(5):
        scores = supernet(x, subnet)
        # The rest of the batch has no say in the statistics.
        assert torch.allclose(supernet(x[:7], subnet), scores[:7], rtol=0, atol=1e-9)
    static = supernet.extract(subnet)
    assert torch.allclose(recalibrated(copy.deepcopy(static), x[:5])(x), scores, rtol=0, atol=1e-9)
    assert not torch.allclose(before, scores, atol=1e-2)
    assert torch.equal(supernet(x, subnet), before)  # nothing stays behind
    assert torch.equal(static(x), before) or torch.allclose(static(x), before, rtol=0, atol=1e-9)
