"""The supernet against networks that own their weights: outputs, gradients, statistics, counts."""

import copy

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
from pocketformer.errors import UserError
from pocketformer.supernet.sampling import Sandwich

torch.set_num_threads(1)


def shared_names(selection, static_names):
    """{static name: supernet name}, spelled out: which slot and which switch's norms a static tensor is from."""
    width = selection.widths
    prefixes = {"stem.": ("stem.", f"{width[0]}"), "head.": ("head.", ""), "head_dist.": ("head_dist.", "")}
    prefixes["norm."] = (f"norms.{width[-1]}.", "")
    for j in range(len(width)):
        prefixes[f"stages.{j}.downsample."] = (f"downsamples.{j - 1}.", f"{width[j - 1]}-{width[j]}")
        ratios = iter(selection.expansions[j])
        for i, slot in enumerate(selection.kept[j]):
            attention = selection.space.stages[j].is_attention(slot)
            switch = f"{width[j]}" if attention else f"{width[j]}x{next(ratios)}".replace(".", "_")
            prefixes[f"stages.{j}.blocks.{i}."] = (f"stages.{j}.{slot}.", switch)
    result = {}
    for name in static_names:
        (prefix,) = (p for p in prefixes if name.startswith(p))
        place, switch = prefixes[prefix]
        result[name] = place + name.removeprefix(prefix).replace(".norm.", f".norms.{switch}.")
    return result


def perturbed_supernet(name, num_classes=7, **options):
    return perturb(Supernet(SearchSpace.named(name), num_classes, **options))


def images(space, n, seed=0):
    return torch.randn(n, 3, *space.resolution, generator=torch.Generator().manual_seed(seed))


def subnets(space, n):
    """Architectures and selections other than the default ones in turn."""
    return [space.sample(seed) if seed % 2 else space.sample_selection(seed) for seed in range(n)]


@pytest.mark.parametrize("name", ["pocket28", "pocket32"])
def test_a_subnet_is_its_extracted_network_in_eval_mode(name):
    supernet = perturbed_supernet(name).eval()
    x = images(supernet.space, 3)
    outputs = []
    with torch.inference_mode():
        for subnet in (*subnets(supernet.space, 100), supernet.space.whole, supernet.space.minimum):
            outputs.append(supernet(x, subnet))
            static = supernet.extract(subnet)
            assert torch.allclose(outputs[-1], static(x), rtol=1e-5, atol=1e-5)
            expected = static.architecture.parameters(supernet.num_classes)
            storages = {p.untyped_storage().data_ptr(): p.untyped_storage() for p in static.parameters()}
            assert sum(p.numel() for p in static.parameters()) == expected
            assert sum(storage.nbytes() for storage in storages.values()) == 4 * expected  # copies, not views
    distances = torch.pdist(torch.stack(outputs).flatten(1))
    assert distances.min() > 1e-3  # the comparison can tell subnets apart


@pytest.mark.parametrize("name", ["pocket28", "pocket32"])
def test_a_subnet_is_its_extracted_network_in_training(name):
    check_training(perturbed_supernet(name), 100)


@given(spaces(elastic=True), st.booleans())
@settings(max_examples=25, deadline=None, derandomize=True)
def test_a_subnet_is_its_extracted_network_under_any_elastic_design(space, distilled):
    """Other activations, strides, kinds of attention and of downsampling, three to five stages."""
    space = SearchSpace.from_yaml(yaml.safe_dump(space.to_dict()), "made-up.yaml")
    supernet = perturb(Supernet(space, 7, distilled)).double().eval()
    x = images(space, 3).double()
    with torch.inference_mode():
        for subnet in (*subnets(space, 4), space.whole, space.minimum):
            assert torch.allclose(supernet(x, subnet), supernet.extract(subnet)(x), rtol=1e-9, atol=1e-9)
    check_training(supernet, 2)


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


def check_training(supernet, n):
    """Outputs, running statistics and gradients; what the subnet does not use has no gradient at all."""
    supernet.double().train()
    x = images(supernet.space, 4).double()
    labels = torch.tensor([0, 1, 2, 6])
    for i, subnet in enumerate(subnets(supernet.space, n)):
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
            scattered = torch.zeros_like(supernet.get_parameter(names[name]))
            scattered[tuple(slice(n) for n in p.shape)] = p.grad
            assert torch.allclose(shared.pop(names[name]), scattered, rtol=1e-7, atol=1e-9), name
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


def test_published_networks_extract_from_the_default_supernet():
    supernet = perturbed_supernet("efficientformerv2", 1000).eval()
    x = images(supernet.space, 1)
    published = {"s0": 3_600_256, "s1": 6_185_560, "s2": 12_710_112, "l": 26_322_288}
    for name, parameters in published.items():
        network = Architecture.named(f"efficientformerv2_{name}")
        with torch.inference_mode():
            static = supernet.extract(network)
            assert sum(p.numel() for p in static.parameters()) == parameters
            assert torch.allclose(supernet(x, network), static(x), rtol=1e-5, atol=2e-5)
    largest = Supernet(SearchSpace.named("pocket32"), 10, distilled=False)
    static = largest.extract(largest.space.largest)
    assert sum(p.numel() for p in static.parameters()) == largest.space.largest.parameters(10, distilled=False)


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
    for seed in range(3):
        subnet = supernet.space.sample_selection(seed)
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


def test_sandwich():
    space = SearchSpace.named("pocket28")
    rule = Sandwich(space, random=3, seed=5)
    steps = [rule.subnets(step) for step in range(200)]
    assert [Sandwich(SearchSpace.named("pocket28"), random=3, seed=5).subnets(i) for i in (199, 0)] == [
        steps[199],
        steps[0],
    ]
    for largest, smallest, *sampled in steps:
        assert largest.architecture == space.largest
        assert smallest.architecture == space.smallest
        assert len(sampled) == 3
    drawn = [selection for step in steps for selection in step[2:]]
    assert len({selection.architecture for selection in drawn}) > 590  # new ones in each step
    assert [s for i in range(20) for s in Sandwich(space, 3, seed=6).subnets(i)[2:]] != drawn[:60]
    assert len({len(s.kept[2]) for s in drawn}) == 6  # every depth of a stage with three pairs: 1 to 6 blocks
