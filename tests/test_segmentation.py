"""Semantic segmentation: the head, the loss, and trainings that resume bit for bit."""

import io
import json
import math
from dataclasses import replace

import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

import pocketformer.dense.segmentation.fused  # noqa: F401
import shapes
from pocketformer import Architecture, SearchSpace, Supernet, create_model, fuse
from pocketformer.dense.fused import ExactGroupNorm
from pocketformer.dense.recipe import DenseRecipe
from pocketformer.dense.segmentation import evaluation
from pocketformer.dense.segmentation.census import read_census
from pocketformer.dense.segmentation.folders import find_masks
from pocketformer.dense.segmentation.labels import IGNORE, Coding
from pocketformer.dense.segmentation.presets import small
from pocketformer.dense.segmentation.task import SegmentationTask
from pocketformer.errors import UserError
from pocketformer.files import Lines
from pocketformer.pipelines import segmenting
from pocketformer.pipelines.backbones import open_backbone
from pocketformer.pipelines.segment_folders import load_segmenter, save_segmenter
from pocketformer.pipelines.segmenting import SegmentSettings, evaluate_segmenter, train_segmenter
from pocketformer.training import checkpoint
from pocketformer.training.compute import Compute
from pocketformer.training.pixels import OURS
from pocketformer.training.state import TrainingState
from shapes import asked, segmenter

torch.set_num_threads(1)


# --- the network


@torch.no_grad()
def test_the_head_is_the_papers_where_sizes_are_multiples_of_32():
    """Against a literal reading: k convolutions, each doubled, for the level of stride 4 * 2**k; all added up."""
    model = segmenter((64, 96)).eval()
    x = torch.randn(2, 3, 64, 96)
    pyramid = list(model.head.neck({str(i): y for i, y in enumerate(model.backbone(x))}).values())
    total = 0
    for level, (branch, y) in enumerate(zip(model.head.branches, pyramid, strict=True)):
        assert len(branch) == max(level, 1)
        for layer in branch:
            y = layer(y)
            if level:
                y = F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False)
        assert y.shape == (2, 128, 16, 24)
        total = total + y
    wanted = F.interpolate(model.head.classifier(total), size=(64, 96), mode="bilinear", align_corners=False)
    torch.testing.assert_close(model(x), wanted, rtol=0, atol=1e-5)
    assert [layer.out_channels for layer in model.head.modules() if isinstance(layer, nn.Conv2d)][:2] == [256, 256]


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 80), (65, 79), (33, 100), (50, 50)])
def test_any_size(size):
    assert segmenter().eval()(torch.randn(1, 3, *size)).shape == (1, 4, *size)


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 80), (50, 75)])
@pytest.mark.parametrize("family", ["v2", "v1"])
def test_the_deployed_form_computes_the_same(family, size):
    described = Architecture.named("efficientformer_l1") if family == "v1" else shapes.architecture()
    model = segmenter(size, described=described)
    model.train()(torch.randn(4, 3, *size))  # statistics of its own
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_()
    model.eval()
    deployed = fuse(model)
    x = torch.randn(2, 3, *size)
    wanted = model(x)
    assert (deployed(x) - wanted).abs().max() < 1e-4 * wanted.std()
    assert not [m for m in deployed.modules() if isinstance(m, nn.BatchNorm2d | nn.Dropout2d)]


@torch.no_grad()
def test_a_group_norm_keeps_its_digits_in_onnx_runtime():
    norm = nn.GroupNorm(1, 48)
    x = torch.randn(1, 48, 80, 128) * 5 + 300
    session = onnxruntime.InferenceSession(converted(ExactGroupNorm(norm), x))
    assert (torch.from_numpy(session.run(None, {"x": x.numpy()})[0]) - norm.double()(x.double())).abs().max() < 1e-4


def converted(module: nn.Module, x: torch.Tensor) -> bytes:
    buffer = io.BytesIO()
    torch.onnx.export(module.eval(), (x,), buffer, input_names=["x"], dynamo=False)
    return buffer.getvalue()


def test_frozen_norms_stay_frozen_when_they_are_synchronised():
    model = segmenter(frozen_norms=True)
    nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model.train()
    norms = [m for m in model.backbone.modules() if isinstance(m, nn.SyncBatchNorm)]
    assert norms
    assert not [m for m in norms if m.training or m.weight.requires_grad]
    assert [m.training for m in model.head.modules() if isinstance(m, nn.SyncBatchNorm)] == [True] * 7


def test_every_weight_decays_and_frozen_ones_are_not_given_to_the_optimiser():
    model = segmenter(frozen_norms=True)
    state = TrainingState(model, small(), Compute(), 10)
    assert {group["weight_decay"] for group in state.optimiser.param_groups} == {small().weight_decay}
    given = sum(len(group["params"]) for group in state.optimiser.param_groups)
    assert given == sum(p.requires_grad for p in model.parameters()) < sum(1 for _ in model.parameters())


# --- the loss


def test_ignored_pixels_count_as_without_error_in_whatever_part_they_are():
    logits = torch.randn(4, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 3, (4, 5, 6))
    targets[0, :4], targets[3] = IGNORE, IGNORE  # the last image has none
    task = SegmentationTask(lambda images: images)
    figures = task.run(logits, targets, 0, lambda loss: loss.backward())
    share = logits.detach().log_softmax(1)
    wanted = -sum(
        share[i, targets[i, y, x], y, x] for i in range(4) for y in range(5) for x in range(6) if targets[i, y, x] >= 0
    )
    assert math.isclose(figures["loss"], wanted / 120, rel_tol=1e-12)
    whole, logits.grad = logits.grad, None
    for part, wanted in zip(logits.chunk(2), targets.chunk(2), strict=True):
        task.run(part, wanted, 0, lambda loss: (loss / 2).backward())
    torch.testing.assert_close(logits.grad, whole)
    nothing = task.run(logits[3:], targets[3:], 0, lambda loss: None)
    assert nothing["loss"] == nothing["accuracy"] == 0


# --- trainings


def settings(folder, **changes) -> SegmentSettings:
    shapes.architecture().save(folder / "tiny.json")
    recipe = replace(small(), size=(32, 40), batch_size=2, epochs=3, warmup_steps=2, checkpoint_every=2, ema=0.5)
    recipe = replace(recipe, **{k: v for k, v in changes.items() if hasattr(recipe, k)})
    rest = {k: v for k, v in changes.items() if not hasattr(recipe, k)}
    return asked(folder / "tiny.json", folder / "data", recipe, **rest)


def test_a_training_that_is_killed_ends_in_the_same_bits(tmp_path, monkeypatch):
    """Also with other workers, and accumulating in two parts; masks are not looked at again."""
    shapes.write(tmp_path / "data", {"train": 4, "val": 1, "test": 2})
    asked = settings(tmp_path, compute=Compute(accumulate=2))
    whole = train_segmenter(asked, tmp_path / "whole")
    assert whole["split"] == "test"
    update = TrainingState.update

    def stop(state, rate):
        if state.step == 3:
            raise KeyboardInterrupt
        update(state, rate)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "update", stop)
        with pytest.raises(KeyboardInterrupt):
            train_segmenter(asked, tmp_path / "killed")
    assert not (tmp_path / "killed/model.safetensors").exists()
    with pytest.raises(UserError, match="a training that is not done has none yet"):
        load_segmenter(tmp_path / "killed")
    with monkeypatch.context() as patch:
        patch.setattr(segmenting, "take_census", None)
        again = train_segmenter(replace(asked, workers=2), tmp_path / "killed")
    assert again == {**whole, "folder": str(tmp_path / "killed")}
    for name in ("model.safetensors", "best.safetensors", "metrics.jsonl", "config.json"):
        a, b = ((tmp_path / run / name).read_bytes() for run in ("whole", "killed"))
        assert a == b, name
    lines = Lines.read(tmp_path / "whole/metrics.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == list(range(6))
    scored = [line for line in lines if "mIoU_search_ema" in line]
    assert len(scored) == 3
    assert train_segmenter(asked, tmp_path / "whole") == whole  # done: judged again, not trained

    found = evaluate_segmenter(str(tmp_path / "whole"), str(tmp_path / "data"), Compute(), 0)
    assert {name: whole[name] for name in found} == found
    trained = load_segmenter(tmp_path / "whole")
    assert trained.classes == shapes.CLASSES
    best = max(line["mIoU_search_ema"] for line in scored)
    val = find_masks(str(tmp_path / "data"), Coding()).splits["val"]
    assert evaluation.evaluate(trained.model, val, Coding(), (32, 40), OURS).miou == best


def test_another_command_on_the_folder_is_refused(tmp_path):
    shapes.write(tmp_path / "data", {"train": 2, "val": 1})
    asked = settings(tmp_path, epochs=1)
    train_segmenter(asked, tmp_path / "run")
    with pytest.raises(UserError, match="holds another run"):
        train_segmenter(replace(asked, seed=1), tmp_path / "run")
    shapes.scene(9)[0].save(tmp_path / "data/train/00.png")
    with pytest.raises(UserError, match="the data fingerprint changed since this run began"):
        train_segmenter(asked, tmp_path / "run")


def test_without_names_classes_are_counted(tmp_path, capsys):
    shapes.write(tmp_path / "data", {"train": 2}, names=False)
    result = train_segmenter(settings(tmp_path, epochs=1), tmp_path / "run")
    assert list(result["iou"]) == ["class 0", "class 1", "class 2", "class 3"]
    assert result["split"] == "train"
    assert "by their masks there are 4" in capsys.readouterr().err
    assert (tmp_path / "run/census.json").exists()
    (tmp_path / "run/census.json").write_text("{}")
    assert read_census(tmp_path / "run/census.json", "x") is None


def test_backbones_start_from_a_classifier(tmp_path):
    """Its weights and its normalisation are taken, its norms stay as they are."""
    shapes.write(tmp_path / "data", {"train": 2})
    torch.manual_seed(3)
    source = create_model(shapes.architecture(), num_classes=7, distilled=False)
    source.pretrained_cfg |= {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    checkpoint.save_model(tmp_path / "classifier", source, tuple("abcdefg"), {})
    train_segmenter(settings(tmp_path, epochs=1, init=str(tmp_path / "classifier")), tmp_path / "run")
    trained = load_segmenter(tmp_path / "run")
    assert trained.normalisation == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    state = load_file(tmp_path / "run/model.safetensors")
    for name, tensor in source.state_dict().items():
        if "norm" in name and not name.startswith("norm") and tensor.is_floating_point():
            torch.testing.assert_close(state[f"backbone.network.{name}"], tensor, msg=name)
    assert any(not torch.equal(state[f"backbone.network.{n}"], t) for n, t in source.state_dict().items() if "fc1" in n)


@pytest.mark.parametrize("own", [True, False])
def test_norms_that_a_supernet_shared_are_not_frozen(tmp_path, capsys, own):
    """Their running statistics are of many subnets, and wrong for each."""
    supernet = Supernet(SearchSpace.from_dict(shapes.SPACE), 4, distilled=False)
    if own:
        checkpoint.save_model(tmp_path, supernet.extract(shapes.architecture()), tuple("abcd"), {})
    else:
        config = {"space": supernet.space.to_dict(), "num_classes": 4}
        (tmp_path / "config.json").write_text(json.dumps(config))
        checkpoint.save_tensors(tmp_path / "model.safetensors", supernet)
    backbone = open_backbone(shapes.architecture(), str(tmp_path), DenseRecipe.segmentation(size=(64, 64)))
    norms = [m for m in backbone.network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) > 10
    assert {norm.training for norm in norms} == {norm.weight.requires_grad for norm in norms} == {not own}
    assert ("here they learn" in capsys.readouterr().err) is not own


def test_folders_of_other_networks_are_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"classes": []}')
    for folder, words in ((tmp_path, "another network than a segmenter"), (tmp_path / "no", "no such folder")):
        with pytest.raises(UserError, match=words):
            load_segmenter(folder)
    model = segmenter((32, 40))
    save_segmenter(tmp_path / "ok", model, shapes.CLASSES, (32, 40), Coding(3), "here")
    found = load_segmenter(tmp_path / "ok")
    assert (found.size, found.coding, found.source) == ((32, 40), Coding(3), "here")
    (tmp_path / "ok/config.json").write_text('{"task": "semantic segmentation"}')
    with pytest.raises(UserError, match="is not a segmenter's configuration"):
        load_segmenter(tmp_path / "ok")
