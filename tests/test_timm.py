"""timm's contract, for every registered model: against timm's own models, its builder, its optimisers and users."""

import copy
import functools
import json
import re

import pytest
import timm
import torch
from timm.data import resolve_model_data_config
from timm.models import group_parameters
from timm.optim import create_optimizer_v2
from torch import nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign

import pocketformer as pf
from layouts import V1, V2
from perturbed import perturb
from pocketformer.architecture.published import NAMES
from pocketformer.errors import UserError
from pocketformer.models.blank import Blank
from pocketformer.training.checkpoint import load_model, save_model

torch.set_num_threads(1)

SIZE = 64  # grids of 2x2 in the last stage of all seven
# Added to the scores of all keys, these cancel in the softmax (and through the talking head in front of it).
DEAD = re.compile(r"\.(talking_head1\.bias|k\.conv\.bias|k\.norm\.bias)$")


@functools.cache
def model_of(name: str) -> nn.Module:
    """A perturbed float32 model in eval mode, of 10 classes and 64 px. Not to be changed: copy it."""
    with Blank():
        model = timm.create_model(f"pocket_{name}", img_size=SIZE, num_classes=10)
    return perturb(model).eval()


SWEPT = ("efficientformer_l1", "efficientformerv2_s0", "efficientformerv2_s2")  # both families, and drop path


@pytest.fixture(params=SWEPT)
def model(request) -> nn.Module:
    return model_of(request.param)


def images(n: int = 2, chans: int = 3, size: tuple[int, int] = (SIZE, SIZE), seed: int = 0) -> torch.Tensor:
    return torch.randn(n, chans, *size, generator=torch.Generator().manual_seed(seed))


def close(found, wanted, tolerance=2e-5) -> bool:
    return found.shape == wanted.shape and torch.allclose(found, wanted, rtol=0, atol=tolerance)


# --- against timm's own models


@pytest.mark.parametrize("name", ["efficientformer_l1", "efficientformerv2_s0"])
@torch.no_grad()
def test_every_method_answers_as_timms_model_does(name):
    prefixed = f"pocket_{name}"
    ours = perturb(timm.create_model(prefixed)).eval()
    with Blank():
        theirs = timm.create_model(name).eval()
    theirs.load_state_dict(ours.export_checkpoint("timm"))
    x = images(1, size=(224, 224))

    features = theirs.forward_features(x)
    assert close(ours.forward_features(x), features)
    for pre_logits in (False, True):
        assert close(ours.forward_head(features, pre_logits=pre_logits), theirs.forward_head(features, pre_logits))
    assert ours.feature_info == theirs.feature_info
    assert (ours.num_features, ours.head_hidden_size) == (theirs.num_features, theirs.head_hidden_size)
    assert len(ours.no_weight_decay()) == len(theirs.no_weight_decay())
    same_data = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
    assert {k: resolve_model_data_config(ours)[k] for k in same_data} == resolve_model_data_config(theirs)
    for key in ("num_classes", "classifier", "fixed_input_size"):
        assert ours.pretrained_cfg[key] == theirs.pretrained_cfg[key]
    first = [m.get_submodule(m.pretrained_cfg["first_conv"]).weight for m in (ours, theirs)]
    assert torch.equal(*first)

    choices = [
        {},
        {"indices": 2},
        {"indices": [-1, 0], "norm": True},
        {"indices": [1], "stop_early": True},
        {"indices": [3], "norm": True, "stop_early": True},
    ]
    for choice in choices:
        (last, maps), (want_last, want) = (m.forward_intermediates(x, **choice) for m in (ours, theirs))
        assert close(last, want_last)
        assert len(maps) == len(want)
        assert all(map(close, maps, want))
        only = ours.forward_intermediates(x, intermediates_only=True, **choice)
        assert all(map(torch.equal, only, maps))
    for indices, prune_norm in ((2, False), ([0, 2], False), ([3], True)):
        pruned = [copy.deepcopy(m) for m in (ours, theirs)]
        assert len({tuple(m.prune_intermediate_layers(indices, prune_norm)) for m in pruned}) == 1
        first, second = (m.forward_intermediates(x, indices=[-1]) for m in pruned)
        assert close(first[1][0], second[1][0])
        assert len({m.num_features for m in pruned}) == 1
        assert len(pruned[0].stages) == len(pruned[1].stages)
        assert len({m.num_classes for m in pruned}) == 1
    for out_indices in ((0, 1, 2, 3), (1, -1), 2):
        with Blank():
            wrappers = [timm.create_model(n, features_only=True, out_indices=out_indices) for n in (prefixed, name)]
        infos = [w.feature_info for w in wrappers]
        assert infos[0].channels() == infos[1].channels()
        assert infos[0].reduction() == infos[1].reduction()


# --- the sweep


def test_all_are_registered():
    assert set(timm.list_models("pocket_*")) == {"pocket_custom", *(f"pocket_{name}" for name in NAMES)}
    assert not timm.list_models("pocket_*", pretrained=True)
    for name in NAMES:
        assert timm.model_entrypoint(name).__module__.startswith("timm.")  # the bare names are timm's
        with Blank():
            wrapper = timm.create_model(f"pocket_{name}", features_only=True)
        model, published = wrapper.model, pf.Architecture.named(name)
        assert model.architecture == published
        assert wrapper.feature_info.channels() == [stage.width for stage in published.stages]
        rates = [m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath"]
        assert max(rates, default=0) == {"efficientformerv2_s2": 0.02, "efficientformerv2_l": 0.1}.get(name, 0)


@pytest.mark.parametrize("name", SWEPT)
def test_every_parameter_but_the_dead_ones_learns(name):
    model = copy.deepcopy(model_of(name)).double()  # in eval mode: a norm in training cancels the bias before it
    model.stem.act = nn.GELU()  # V1's ReLU may turn a channel off everywhere on both images
    model(images().double()).logsumexp(1).sum().backward()
    dead = 0
    for name, p in model.named_parameters():
        gradient = p.grad.abs()
        if name.endswith("qkv.bias"):
            heads = p.grad.unflatten(0, (8, -1))  # per head: 32 of queries, 32 of keys, 128 of values
            assert heads[:, 32:64].abs().max() < 1e-12, name
            gradient = torch.cat((heads[:, :32], heads[:, 64:]), 1).abs()
            dead += 1
        elif DEAD.search(name):
            assert gradient.max() < 1e-12, name
            dead += 1
            continue
        assert (gradient > 0).all(), name  # every single number
        assert gradient.max() > 1e-9, name
    assert dead


@torch.no_grad()
def test_features_only(model):
    """Raw maps, NCHW in V1's last stage too, of any image size."""
    name = model.pretrained_cfg["architecture"]
    for out_indices in ((0, 1, 2, 3), (0, 2), (-1,)):
        with Blank():
            wrapper = timm.create_model(name, features_only=True, img_size=SIZE, out_indices=out_indices).eval()
        chosen = [model.feature_info[i] for i in out_indices]
        assert wrapper.feature_info.channels() == [info["num_chs"] for info in chosen]
        assert wrapper.feature_info.reduction() == [info["reduction"] for info in chosen]
        own = wrapper.model.state_dict()
        wrapper.model.load_state_dict({k: v for k, v in model.state_dict().items() if k in own})
        assert not any(k.startswith(("head", "norm")) for k in own)
        want = model.forward_intermediates(images(), indices=out_indices, intermediates_only=True)
        assert all(map(torch.equal, wrapper(images()), want))
    for height, width in ((65, 90), (97, 64)):
        (last,) = wrapper(images(1, size=(height, width)))
        assert last.shape == (1, model.num_features, -(-height // 32), -(-width // 32))
        assert last.is_contiguous() or last.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(UserError, match="dynamic=True"):
        model(images(1, size=(100, 64)))


@torch.no_grad()
def test_heads(model):
    model = copy.deepcopy(model)
    x = images()
    features = model.forward_features(x)
    pooled = model.forward_head(features, pre_logits=True)
    head, head_dist = model.get_classifier()
    assert close((head(pooled) + head_dist(pooled)) / 2, model(x), 1e-6)
    trained = copy.deepcopy(model).train()  # a batch's own statistics
    torch.manual_seed(0)  # of the drop path that S2 and L have
    mean = trained(x)
    trained.set_distilled_training(True)
    torch.manual_seed(0)
    both = trained(x)
    assert torch.equal((both[0] + both[1]) / 2, mean)
    assert isinstance(trained.eval()(x), torch.Tensor)

    model.train().reset_classifier(3)
    assert model.num_classes == 3
    assert all(m.weight.shape == (3, model.num_features) and m.training for m in model.get_classifier())
    model.eval().reset_classifier(0)
    assert close(model(x), pooled)
    model.reset_classifier(0, "")
    assert torch.equal(model(x), features)
    model.double().reset_classifier(10, "avg")
    assert model(x.double()).shape == (2, 10)
    with pytest.raises(UserError, match="neither 'avg' nor ''"):
        model.reset_classifier(10, "max")

    name = model.pretrained_cfg["architecture"]
    single = timm.create_model(name, img_size=SIZE, num_classes=10, distillation=False).eval()
    own = single.state_dict()
    single.load_state_dict({k: v for k, v in model_of(name.removeprefix("pocket_")).state_dict().items() if k in own})
    assert single.get_classifier()[1] is None
    assert torch.equal(single(x), single.head(pooled))
    with pytest.raises(UserError, match="distilled=True"):
        single.set_distilled_training(True)


def test_optimiser_groups(model):
    """Weight decay spares biases; layer-wise rates reach every parameter once and rise with the depth."""
    names = {id(p): name for name, p in model.named_parameters()}
    spared = model.no_weight_decay()
    assert spared
    assert all(name.endswith("bias.table") for name in spared)
    assert spared < set(names.values())
    undecayed = {
        names[id(p)]
        for group in create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.1).param_groups
        for p in group["params"]
        if group["weight_decay"] == 0
    }
    assert undecayed == {name for name, p in model.named_parameters() if p.ndim == 1 or name in spared}

    for coarse in (False, True):
        groups = group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
        assert groups.keys() == set(names.values())
        depth = [0, *(groups[n] for n in names.values() if n.startswith("stages"))]
        assert depth == sorted(depth)
        assert groups["head.weight"] == groups["head_dist.bias"] > groups["norm.weight"] == depth[-1]
        modules = len(model.stages) if coarse else sum(len(s.blocks) + (i > 0) for i, s in enumerate(model.stages))
        assert len(set(depth)) == modules + 1
    scaled = create_optimizer_v2(model, "adamw", lr=1.0, weight_decay=0.1, layer_decay=0.9).param_groups
    rates = {names[id(p)]: group["lr_scale"] for group in scaled for p in group["params"]}
    assert rates.keys() == set(names.values())
    in_order = [rates[n] for n in names.values() if n.startswith("stages")]
    assert in_order == sorted(in_order)
    assert rates["stem.conv1.conv.weight"] < min(in_order)
    assert rates["head.weight"] == 1 > max(in_order)


def test_checkpointed_training_is_the_same(model):
    """Gradients, and running statistics, which the second forward must not count again."""
    found, statistics = [], []
    for enable in (False, True):
        twin = copy.deepcopy(model).train()
        twin.set_grad_checkpointing(enable)
        calls = []
        twin.stages[2].blocks[0].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(0)
        twin(images()).logsumexp(1).sum().backward()
        assert len(calls) == 1 + enable
        found.append([p.grad for p in twin.parameters()])
        statistics.append(list(twin.buffers()))
    assert all(map(torch.equal, *found))
    assert all(map(torch.equal, *statistics))
    assert not all(map(torch.equal, model.buffers(), statistics[0]))


@torch.no_grad()
def test_memory_layout_channels_and_rates(model):
    name, x = model.pretrained_cfg["architecture"], images()
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    assert close(last(x.to(memory_format=torch.channels_last)), model(x), 1e-4)
    for chans in (1, 4):
        built = timm.create_model(name, img_size=SIZE, in_chans=chans, num_classes=4).eval()
        assert built(images(1, chans)).shape == (1, 4)
        with pytest.raises(UserError, match=rf"shape \(B, {chans}, 64, 64\), not \(1, 3, 64, 64\)"):
            built(images(1))
    rates = timm.create_model(name, img_size=SIZE, drop_rate=0.5, drop_path_rate=0.2, layer_scale=0.3)
    assert rates.head_drop.p == 0.5
    paths = [m.drop_prob for m in rates.modules() if type(m).__name__ == "DropPath"]
    assert paths == sorted(paths)
    assert paths[-1] == pytest.approx(0.2)
    assert {p.unique().item() for n, p in rates.named_parameters() if n.endswith("gamma")} == {torch.tensor(0.3).item()}


# --- timm's builder


def tiny(design: str = "pocket28", **switches) -> pf.Architecture:
    return pf.SearchSpace.named(design).largest.with_design(**switches)


@torch.no_grad()
def test_any_architecture(tmp_path):
    arch = tiny(stem="large-kernel")
    arch.save(tmp_path / "architecture.json")
    state = perturb(pf.create_model(arch)).state_dict()
    x = images(size=(28, 28))
    answers = []
    for value in (arch, arch.to_dict(), tmp_path / "architecture.json", str(tmp_path)):
        model = timm.create_model("pocket_custom", architecture=value).eval()
        assert model.architecture == arch
        assert model.resolution == (28, 28)  # its own, not ImageNet's
        assert resolve_model_data_config(model)["input_size"] == (3, 28, 28)
        model.load_state_dict(state)
        answers.append(model(x))
    assert all(torch.equal(answers[0], y) for y in answers)
    named = timm.create_model("pocket_custom", architecture="efficientformerv2_s0")
    assert named.architecture == pf.Architecture.named("efficientformerv2_s0")
    wrapper = timm.create_model("pocket_custom", architecture=arch, features_only=True)
    assert [y.shape[1] for y in wrapper(x)] == [stage.width for stage in arch.stages]


def test_names_and_arguments_that_are_none():
    name = "pocket_efficientformerv2_s0"
    for arguments, text in (
        ({"fuse": True}, "unknown argument 'fuse'"),
        ({"resolution": 64}, "unknown argument 'resolution'"),  # timm says img_size
        ({"pretrained": True}, "has no weights to download: .*load_checkpoint"),
        ({"distilled": True, "distillation": False}, "the same argument"),
        ({"global_pool": "max"}, "neither 'avg' nor ''"),
        ({"img_size": 31}, "31x31 px is too small .* 32 px at least"),
        ({"img_size": (224, 16)}, "224x16 px is too small"),
    ):
        with pytest.raises(UserError, match=text) as error:
            timm.create_model(name, **arguments)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="needs architecture="):
        timm.create_model("pocket_custom")
    with pytest.raises(UserError, match="no published architecture 'nonsense'"):
        timm.create_model("pocket_custom", architecture="nonsense")
    with pytest.raises(RuntimeError, match="Unknown model"):
        timm.create_model("pocket_efficientformerv2_s9")
    with pytest.raises(UserError, match="did you mean efficientformerv2_s"):
        pf.create_model("efficientformerv2_s9")
    with pytest.raises(UserError, match="only NCHW"):
        model_of("efficientformerv2_s0").forward_intermediates(images(), output_fmt="NLC")
    with pytest.raises(AssertionError, match="out of range"):  # timm's own
        timm.create_model(name, features_only=True, out_indices=(4,))


@pytest.mark.parametrize(
    ("arguments", "switches"),
    [
        ({"num_classes": 7}, {}),
        ({"num_classes": 7, "resolution": (45, 32), "in_chans": 1, "distilled": False}, {"stem": "large-kernel"}),
        ({"num_classes": 3, "dynamic": True}, {"token_mixer": "dwconv"}),
    ],
    ids=["plain", "other", "dynamic"],
)
@torch.no_grad()
def test_folders_of_ours_are_timms(tmp_path, arguments, switches):
    model = perturb(pf.create_model(tiny(**switches), **arguments)).eval()
    classes = tuple(f"class {i}" for i in range(model.num_classes))
    stored = [side + 5 for side in model.resolution]
    save_model(tmp_path, model, classes, {"stored_size": stored})
    config = json.loads((tmp_path / "config.json").read_text())
    assert {"num_classes", "classes", "resolution", "in_chans", "distilled", "mean", "std", "data"} <= config.keys()
    x = images(2, model.in_chans, model.resolution)

    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(again(x), model(x))
    assert torch.equal(again(x), load_model(tmp_path)[0](x))
    assert again.dynamic == model.dynamic
    assert again.pretrained_cfg["label_names"] == list(classes)
    data = resolve_model_data_config(again)
    assert data["input_size"] == (model.in_chans, *model.resolution)
    assert set(data["mean"]) == set(data["std"]) == {0.5}
    resize = timm.data.create_transform(**data).transforms[0].size
    assert resize == stored[0] if isinstance(resize, int) else all(map(int.__ge__, resize, stored))

    other = copy.deepcopy(model)
    other.set_input_size((40, 50))
    larger = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, img_size=(40, 50)).eval()
    assert close(larger(images(1, model.in_chans, (40, 50))), other(images(1, model.in_chans, (40, 50))))
    if model.in_chans == 3:
        features = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, features_only=True).eval()
        want = model.forward_intermediates(x, intermediates_only=True)
        assert all(map(torch.equal, features(x), want))
        assert len(features(images(1, size=(37, 50)))) == 4
        grey = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, in_chans=1, num_classes=2)
        assert grey(images(1, 1, model.resolution)).shape == (1, 2)
        assert torch.equal(grey.norm.weight, model.norm.weight)


@pytest.mark.parametrize("layout", ["official", "timm", "pocketformer"])
@pytest.mark.parametrize("name", ["V1", "V2"])
@torch.no_grad()
def test_files_of_any_layout_through_timms_loaders(tmp_path, name, layout):
    side = SIZE if name == "V2" else 224  # V1's layouts hold no other
    shape = {"V1": V1, "V2": V2}[name]
    build = functools.partial(timm.create_model, "pocket_custom", architecture=shape)
    model = perturb(build(img_size=side, num_classes=10)).eval()
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": model.export_checkpoint(layout)}, path)
    arguments, x = {"img_size": side, "num_classes": 10}, images(1, size=(side, side))
    built = build(checkpoint_path=path, **arguments).eval()
    assert torch.equal(built(x), model(x))
    source = {"file": str(path), "num_classes": 10, "input_size": (3, side, side)}
    load = functools.partial(build, pretrained=True, pretrained_cfg_overlay=source)
    assert torch.equal(load().eval()(x), model(x))
    single = load(distilled=False, num_classes=4, in_chans=1).eval()
    assert torch.equal(single.norm.weight, model.norm.weight)
    assert torch.allclose(single.stem.conv1.conv.weight, model.stem.conv1.conv.weight.sum(1, keepdim=True))
    other = copy.deepcopy(model)
    other.set_input_size((96, 128))
    larger = load(img_size=(96, 128)).eval()
    assert close(larger(images(1, size=(96, 128))), other(images(1, size=(96, 128))))
    wrapper = load(features_only=True).eval()
    assert all(map(torch.equal, wrapper(x), model.forward_intermediates(x, intermediates_only=True)))
    with pytest.raises((UserError, RuntimeError), match=r"do not fit|fit neither|size mismatch"):
        timm.create_model("pocket_efficientformerv2_s1", checkpoint_path=path, **arguments)


def test_timms_own_folders_of_our_models(tmp_path):
    model = timm.create_model("pocket_efficientformerv2_s0", img_size=SIZE, num_classes=4, distilled=False).eval()
    perturb(model).set_input_size((96, 64))
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert again.resolution == (96, 64)
    assert torch.equal(again(images(size=(96, 64))), model(images(size=(96, 64))))


# --- those who use features


@pytest.mark.parametrize("name", ["efficientformer_l1", "efficientformerv2_s0"])
def test_feature_pyramids_of_torchvision(name):
    """Images whose size changes from batch to batch, as in detection; gradients reach the stem."""
    backbone = timm.create_model(f"pocket_{name}", features_only=True, out_indices=(1, 2, 3))
    pyramid = FeaturePyramidNetwork(backbone.feature_info.channels(), 16)
    pooler = MultiScaleRoIAlign(["0", "1", "2"], 3, 2)
    for height, width in ((96, 128), (97, 65), (64, 64)):
        x = images(1, size=(height, width))
        maps = pyramid({str(i): y for i, y in enumerate(backbone(x))})
        for y, reduction in zip(maps.values(), backbone.feature_info.reduction(), strict=True):
            assert y.shape == (1, 16, -(-height // reduction), -(-width // reduction))
        boxes = pooler(maps, [torch.tensor([[3.0, 4.0, 40.0, 50.0]])], [(height, width)])
        assert boxes.shape == (1, 16, 3, 3)
        backbone.zero_grad()
        boxes.sum().backward()
        assert backbone.model.stem.conv1.conv.weight.grad.abs().min() > 0

    listed = timm.create_model(f"pocket_{name}", features_only=True, feature_cls="list")
    layers = {f"stages_{i}": str(i) for i in range(4)}
    maps = BackboneWithFPN(listed, layers, listed.feature_info.channels(), 16)(images(1, size=(65, 97)))
    assert [tuple(y.shape) for y in maps.values()][:4] == [
        (1, 16, 17, 25),
        (1, 16, 9, 13),
        (1, 16, 5, 7),
        (1, 16, 3, 4),
    ]


@pytest.mark.parametrize("name", SWEPT)
def test_encoders_of_segmentation_models_pytorch(name):
    import segmentation_models_pytorch as smp

    model = smp.Unet(f"tu-pocket_{name}", encoder_weights=None, classes=2, in_channels=4)
    for size in ((64, 96), (96, 64)):  # it takes multiples of 32 only
        y = model(images(2, 4, size))
        assert y.shape == (2, 2, *size)
    y.sum().backward()
