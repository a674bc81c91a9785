"""The command line with files of weights alone, official, timm's and ours: evaluated, exported, trained on, refused."""

import json
from pathlib import Path

import pytest
import timm
import torch
from timm.models.efficientformer_v2 import EfficientFormerV2

from perturbed import perturb
from pocketformer.architecture import Architecture
from pocketformer.models import create_model, load_checkpoint
from pocketformer.training.checkpoint import load_model, save_model, save_tensors
from pocketformer.training.data import open_data
from workshop import Payload, executed, fill, write_data

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def files_of_weights(tmp_path_factory) -> dict[str, Path]:
    """A small network under the published design, in files of three and of ten classes."""
    root = tmp_path_factory.mktemp("weights")
    stages = [{"width": width, "blocks": ["ffn1", "attention", "ffn1"][-depth:]} for width, depth in
              ((8, 1), (8, 1), (8, 3), (16, 3))]  # fmt: skip
    architecture = Architecture.from_dict({"stages": stages, "design": {"resolution": [64, 64]}})
    architecture.save(root / "shape.json")
    torch.manual_seed(0)
    found = {"data": write_data(root / "data"), "shape": root / "shape.json"}
    for classes in (3, 10):
        model = perturb(create_model(architecture, classes))
        for layout in ("official", "timm"):
            found[f"{layout}{classes}"] = root / f"{layout}{classes}.pth"
            torch.save({"model": model.export_checkpoint(layout)}, found[f"{layout}{classes}"])
    found["ours"] = root / "ours.safetensors"
    save_tensors(found["ours"], perturb(create_model(architecture, 3)))
    for classes, size, safe in ((3, (64, 64), True), (10, (96, 64), False)):
        other = perturb(EfficientFormerV2(depths=(1, 1, 2, 2), embed_dims=(8, 8, 8, 16), num_vit=1, img_size=size,
            mlp_ratios=((1,), (1,), (1, 1), (1, 1)), num_classes=classes))  # fmt: skip
        other.pretrained_cfg = {**timm.get_pretrained_cfg("efficientformerv2_s0").to_dict(), "input_size": (3, *size)}
        found[f"folder{classes}"] = root / f"folder{classes}"
        timm.models.save_for_hf(other, found[f"folder{classes}"], safe_serialization=safe)
    found["cut"], found["code"] = root / "cut.pth", root / "code.pth"
    found["cut"].write_bytes(found["official3"].read_bytes()[:9999])
    torch.save({"model": Payload()}, found["code"])
    return found


@pytest.mark.parametrize("file", ["official3", "timm3", "ours", "folder3"])
def test_weights_alone_are_evaluated_and_exported(cli, files_of_weights, tmp_path, file):
    """Official and timm's weights see ImageNet's mean and std, ours our own: in PyTorch and in the exported file."""
    import onnxruntime

    shape = files_of_weights["shape"]
    common = ("--checkpoint", files_of_weights[file], "--architecture", shape, "--data", files_of_weights["data"])
    answer = cli("evaluate", *common, "--json")
    assert "the data's are taken in sorted order" in answer.err
    model = create_model(Architecture.load(shape), 3).eval()
    load_checkpoint(model, files_of_weights[file])
    data = open_data(files_of_weights["data"], size=(64, 64))
    pixels = data.test.images[data.test.indices].float() / 255
    mean, std = ((0.5,) * 3, (0.5,) * 3)
    if file != "ours":
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    images = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    labels = data.test.labels[data.test.indices]
    with torch.no_grad():
        logits = model(images)
    loss = torch.nn.functional.cross_entropy(logits, labels).item()
    found = answer.json()
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["correct"] == int((logits.argmax(1) == labels).sum())

    exported = cli("export", *common, "--out", tmp_path / "model.onnx")
    assert exported.code == 0, exported.err
    assert f"mean {mean[0]:g}, " in exported.err
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (first,) = session.run(None, {"image": images[:1].numpy()})
    assert torch.allclose(torch.from_numpy(first), logits[:1], atol=1e-4)


def test_training_begins_with_weights_alone(cli, files_of_weights, tmp_path):
    """A rate of next to nothing: what was loaded is still there; the head of ten classes is not."""
    train = ["train", "--architecture", files_of_weights["shape"], "--data", files_of_weights["data"]]
    train += ["--epochs", "1", "--learning-rate", "1e-30"]
    for file, kept in (("official3", True), ("timm10", False), ("folder10", False)):
        out = tmp_path / file
        answer = cli(*train, "--init", files_of_weights[file], "--out", out)
        assert answer.code == 0, answer.err
        assert ("of 10 classes were dropped" in answer.err) is not kept
        model = create_model(Architecture.load(files_of_weights["shape"]), 3)
        load_checkpoint(model, files_of_weights[file])
        trained = create_model(model.architecture, 3, distilled=False)
        load_checkpoint(trained, out)
        pairs = {name: (p, dict(model.named_parameters())[name]) for name, p in trained.named_parameters()}
        for name, (found, expected) in pairs.items():
            assert torch.allclose(found, expected) == (kept or not name.startswith("head.weight")), name
        # It goes on seeing images as ImageNet's are normalised: the norms were re-calibrated on them.
        assert json.loads((out / "config.json").read_text())["mean"] == [0.485, 0.456, 0.406]
        data = open_data(files_of_weights["data"], size=(64, 64))
        pixels = data.final.images[data.final.indices].float() / 255
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        with torch.no_grad():
            first = trained.stem.conv1.conv((pixels - mean) / std).mean((0, 2, 3))
        assert torch.allclose(trained.stem.conv1.norm.running_mean, first, atol=2e-2)
        again = cli(*train, "--init", files_of_weights[file], "--out", out, "--json")  # resumed: done
        assert again.json()["parameters"] == sum(p.numel() for p in trained.parameters())


def test_training_begins_with_a_folder_of_ours(cli, files_of_weights, tmp_path):
    """Another size, other classes, two heads: as of weights alone, and images as that training saw them."""
    shape = Architecture.load(files_of_weights["shape"])
    train = ["train", "--architecture", files_of_weights["shape"], "--data", files_of_weights["data"]]
    train += ["--epochs", "1", "--learning-rate", "1e-30"]
    for classes, words in ((3, "head_dist was dropped"), (4, "head and head_dist of 4 classes were dropped")):
        source = perturb(create_model(shape, classes, (96, 64)))
        source.pretrained_cfg |= {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
        folder, out = tmp_path / f"source{classes}", tmp_path / f"out{classes}"
        save_model(folder, source, ("dark", "grey", "light", "white")[:classes], {})
        answer = cli(*train, "--init", folder, "--out", out)
        assert answer.code == 0, answer.err
        assert words in answer.err
        assert "re-sampled" in answer.err
        trained, config = load_model(out)
        assert (config["mean"], config["resolution"]) == ([0.1, 0.2, 0.3], [64, 64])
        source.set_input_size(64)
        expected = dict(source.named_parameters())
        for name, found in trained.named_parameters():
            same = found.shape == expected[name].shape and torch.allclose(found, expected[name])
            assert same == (classes == 3 or not name.startswith("head.weight")) or name == "head.bias", name


WEIGHTS_MISTAKES = {
    "no architecture": (["evaluate", "--checkpoint", "{official3}"], "--architecture"),
    "folder, no architecture": (["evaluate", "--checkpoint", "{folder3}"], "weights alone", "--architecture"),
    "folder, runtime": (["evaluate", "--checkpoint", "{folder3}", "--runtime", "onnxruntime"], "weights alone"),
    "export, no architecture": (["export", "--out", "{new}.onnx", "--checkpoint", "{ours}"], "--architecture"),
    "another": (["evaluate", "--checkpoint", "{official3}", "--architecture", "efficientformerv2_s0"], "do not fit"),
    "unknown": (["evaluate", "--checkpoint", "{official3}", "--architecture", "efficientformerv2_s9"], "v2_s2"),
    "classes": (["evaluate", "--checkpoint", "{timm10}", "--architecture", "{shape}"], "knows 10", "has 3"),
    "runtime": (
        ["evaluate", "--checkpoint", "{timm3}", "--architecture", "{shape}", "--runtime", "onnxruntime"],
        "weights alone",
    ),
    "cut": (["evaluate", "--checkpoint", "{cut}", "--architecture", "{shape}"], "cut.pth", "cannot be read"),
    "code": (
        ["export", "--checkpoint", "{code}", "--architecture", "{shape}", "--out", "{new}.onnx"],
        "mkdir",
        "not loaded",
    ),
    "init cut": (["train", "--architecture", "{shape}", "--out", "{new}", "--init", "{cut}"], "cannot be read"),
    "init code": (["train", "--architecture", "{shape}", "--out", "{new}", "--init", "{code}"], "not loaded"),
    "init of another": (
        ["train", "--architecture", "efficientformerv2_s0", "--out", "{new}", "--init", "{timm3}"],
        "timm layout",
        "do not fit",
    ),
}


@pytest.mark.parametrize("name", WEIGHTS_MISTAKES)
def test_mistakes_with_weights_alone(cli, files_of_weights, tmp_path, name):
    arguments, *words = WEIGHTS_MISTAKES[name]
    arguments = [*fill(arguments, files_of_weights, tmp_path / "new"), "--data", files_of_weights["data"]]
    cli(*arguments).fails(2, *words)
    assert list(tmp_path.iterdir()) == []
    assert not executed().exists()
