"""An activation a stage: which blocks have it, how it is written, and everything that is made of such a network."""

import json

import pytest
import torch
from torch import nn

from perturbed import perturb
from pocketformer import Architecture, SearchSpace, create_model, fuse
from pocketformer.architecture import Design
from pocketformer.devices import space_blocks
from pocketformer.errors import UserError
from pocketformer.models import load_checkpoint
from subnets import USERS

torch.set_num_threads(1)

EACH = ("hardswish", "relu", "gelu", "relu")
S0 = Architecture.named("efficientformerv2_s0").with_design(resolution=64)
MIXED = S0.with_design(activation=EACH)
MODULES = {"gelu": nn.GELU, "relu": nn.ReLU, "hardswish": nn.Hardswish}


def kinds(module):
    return {name for m in module.modules() for name, kind in MODULES.items() if isinstance(m, kind)}


def test_every_stage_has_its_own():
    """The stem has that of stage 1, a downsampling that of the stage it leads to."""
    model = create_model(MIXED, 5)
    assert kinds(model.stem) == {"hardswish"}
    for stage, name in zip(model.stages, EACH, strict=True):
        assert kinds(stage) == {name}
    assert kinds(model.stages[3].downsample) == {"relu"}  # the dual path's attention
    other = create_model(MIXED.with_design(stem_activation="gelu"), 5)
    assert kinds(other.stem) == {"gelu"}
    assert kinds(other.stages[0]) == {"hardswish"}
    places = [(b.kind, b.activation) for b in MIXED.blocks() if hasattr(b, "activation")]
    blocks = [(str(b).rstrip("0123456789"), name) for s, name in zip(MIXED.stages, EACH, strict=True) for b in s.blocks]
    last = len(blocks) - len(MIXED.stages[3].blocks)
    assert places == [("stem", "hardswish"), *blocks[:last], ("downsampling", "relu"), *blocks[last:]]


def test_a_plain_name_stays_one():
    assert S0.to_dict()["design"]["activation"] == "gelu"
    assert Design(activation=["relu"] * 4) == Design(activation="relu")
    assert S0.with_design(activation=["gelu"] * 4) == S0
    assert S0.with_design(activation=["gelu"] * 4).to_dict() == S0.to_dict()
    assert hash(MIXED) != hash(S0)
    written = json.loads(json.dumps(MIXED.to_dict()))
    assert written["design"]["activation"] == list(EACH)
    assert Architecture.from_dict(written) == MIXED
    assert Design(activation=EACH, stem_activation="").activation_of_stem == "hardswish"


@pytest.mark.parametrize(
    ("activation", "words"),
    [
        (["gelu", "relu"], "one a stage: 4, not 2"),
        ([], "one a stage: 4, not 0"),
        (["gelu", "relu", "gelu", "swish"], "activation 'swish' is not one of gelu, relu, hardswish"),
        ("swish", "activation 'swish' is not one of"),
        (["gelu", ["relu"], "gelu", "gelu"], "is not one of"),
        ({"stem": "relu"}, "is not one of"),
    ],
)
def test_what_is_no_activation_is_refused(activation, words):
    with pytest.raises(UserError, match=words):
        S0.with_design(activation=activation)


def test_the_deployed_graph():
    torch.manual_seed(0)
    small = SearchSpace.from_yaml(USERS["32px"], "space.yaml").smallest
    model = perturb(create_model(small, 5)).eval()
    x = torch.nn.functional.interpolate(torch.randn(4, 3, 5, 5), size=(32, 32), mode="bilinear")
    fused = fuse(model)
    assert kinds(fused) == set(small.design.activation) == set(EACH)
    with torch.no_grad():
        other = loaded(small.with_design(activation="gelu"), model)
        assert not torch.allclose(model(x), other(x), atol=1e-2)  # it can tell
        torch.testing.assert_close(fused(x), model(x), rtol=1e-3, atol=1e-4)


def loaded(architecture, model):
    """The same weights under other activations, which have none."""
    other = create_model(architecture, 5).eval()
    other.load_state_dict(model.state_dict())
    return other


def test_layouts_of_others_cannot_hold_it(tmp_path):
    model = create_model(MIXED, 5)
    for layout in ("official", "timm"):
        with pytest.raises(UserError, match=f"the {layout} layout cannot hold another activation in each stage"):
            model.export_checkpoint(layout)
        create_model(S0.with_design(activation="relu"), 5).export_checkpoint(layout)  # an argument of theirs
    assert model.export_checkpoint("pocketformer").keys() == model.state_dict().keys()
    # Weights of theirs may well start one.
    torch.save(create_model(S0, 5).export_checkpoint("official"), tmp_path / "s0.pth")
    load_checkpoint(model, tmp_path / "s0.pth")


def test_table_keys_tell_them_apart():
    for text in USERS.values():
        space = SearchSpace.from_yaml(text, "space.yaml")
        keys = set(space_blocks(space, 10))
        for seed in range(20):
            assert {b.key() for b in space.sample(seed).blocks(num_classes=10, distilled=False)} <= keys
    one, other = (
        {b.key() for b in S0.with_design(activation=a).blocks()} for a in (EACH, ("relu", "relu", "gelu", "relu"))
    )
    assert {key.split()[0] for key in one - other} == {"stem", "ffn"}
