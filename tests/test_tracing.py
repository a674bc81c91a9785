"""Symbolic traces (torch.fx) of the published networks under timm's names: torch's own, torchvision's, timm's."""

import warnings

import pytest
import timm
import torch
from timm.models._features_fx import FeatureGraphNet
from torchvision.models.feature_extraction import create_feature_extractor

import pocketformer.models  # noqa: F401 (registers the networks)
from layouts import V1, V2, tiny
from pocketformer.architecture import NAMES

torch.set_num_threads(1)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_published_networks_are_traced(name):
    torch.manual_seed(0)
    model = timm.create_model(f"pocket_{name}", img_size=64, num_classes=5).eval()
    x = torch.randn(2, 3, 64, 64)
    traced = torch.fx.symbolic_trace(model)
    assert torch.equal(traced(x), model(x))


@torch.no_grad()
@pytest.mark.parametrize("architecture", [V1, V2], ids=["V1", "V2"])
def test_maps_are_taken_out_of_a_trace(architecture):
    """In training mode, too, with drop path and two heads; and at a size that changes from call to call."""
    model = tiny(architecture, resolution=64, drop_path=0.2)
    x = torch.randn(2, 3, 64, 64)
    maps = model.forward_intermediates(x, intermediates_only=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of nodes that training has more
        found = create_feature_extractor(model, {"stages.1": "a", "stages.3": "b"})(x)
        listed = FeatureGraphNet(model, (0, 2))(x)
    assert torch.equal(found["a"], maps[1])
    assert torch.equal(found["b"], maps[3])
    assert all(map(torch.equal, listed, (maps[0], maps[2])))

    model.train().set_distilled_training(True)
    traced = torch.fx.symbolic_trace(model)
    answers = []
    for network in (model, traced):
        torch.manual_seed(0)
        answers.append(network(x))
    assert all(map(torch.allclose, *answers))

    model.eval().set_dynamic()
    traced, larger = torch.fx.symbolic_trace(model), torch.randn(1, 3, 96, 70)
    assert torch.equal(traced(larger), model(larger))
