"""What an exported file says of itself: every fact against config.json, and damaged ones in one line."""

import json
from importlib.metadata import version

import pytest

import shop
import told
from asking import ask
from pocketformer import SearchSpace, UserError
from pocketformer.deploy import Facts, facts_path, format_of, read_facts
from pocketformer.runs import read_config

CLASSES = ["dark grün", 'the "grey" & <one>', "明るい"]  # as people name folders
MEAN, STD = [0.4, 0.5, 0.55], [0.2, 0.25, 0.3]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A trained network whose images are larger than what it sees, of another normalisation than ours."""
    folder = tmp_path_factory.mktemp("facts")
    shop.write_images(folder / "data", 24)
    (folder / "space.yaml").write_text(shop.TINY)
    shape = SearchSpace.load(folder / "space.yaml").smallest.with_design(resolution=(72, 64))
    shape.save(folder / "shape.json")
    common = ["--data", folder / "data", "--epochs", 1, "--batch-size", 8, "--workers", 0]
    ask("train", "--architecture", folder / "shape.json", *common, "--out", folder / "network").succeeds()
    config = json.loads((folder / "network/config.json").read_text())
    named = {"classes": CLASSES, "mean": MEAN, "std": STD}
    (folder / "network/config.json").write_text(json.dumps(config | named))
    return folder


@pytest.fixture(scope="module")
def exported(place):
    """A file of the network, and what the command said."""

    def export(name, *arguments):
        source = ["--checkpoint", place / "network", "--data", place / "data", "--workers", 0]
        return place / name, ask("export", *source, "--out", place / name, *arguments, "--json").json()

    return export


def test_every_fact_is_that_of_the_training(place, exported):
    path, _ = exported("model.onnx", "--licence", "CC BY 4.0")
    config = json.loads((place / "network/config.json").read_text())
    stored = config["data"]["stored_size"]
    assert stored == [82, 73]
    assert json.loads(facts_path(path).read_text()) == {
        "task": "classification",
        "architecture": config["architecture"],
        "classes": config["classes"],
        "first_label": 0,
        "input": "image",
        "outputs": ["logits"],
        "layout": "NCHW",
        "dtype": "float32",
        "colour": "RGB",
        "shape": [1, 3, *config["resolution"]],
        "size": config["resolution"],
        "stored_size": stored,
        "crop": min(72 / 82, 64 / 73),
        "framing": "crop",
        "interpolation": "bicubic",
        "mean": MEAN,
        "std": STD,
        "dynamic_batch": False,
        "format": "onnx",
        "precision": "float32",
        "licence": "CC BY 4.0",
        "fingerprint": read_config(place / "network")["facts"]["data_fingerprint"],
        "seed": 0,
        "group_by": None,
        "depth": None,
        "pocketformer": version("pocketformer"),
    }
    assert read_facts(path) == Facts.from_dict(json.loads(facts_path(path).read_text()))
    texts = told.metadata("onnx", path)
    assert json.loads(texts["classes"]) == CLASSES
    assert texts == read_facts(path).metadata()
    facts_path(path).unlink()  # then the file itself is asked
    assert read_facts(path).metadata() == texts


def test_openvinos_own_tools_find_what_they_know(exported):
    openvino = pytest.importorskip("openvino")
    path, _ = exported("model.xml", "--format", "openvino")
    assert told.metadata("openvino", path) == read_facts(path).metadata() == format_of("openvino").read_metadata(path)
    info = {name: value.astype(str) for name, value in openvino.Core().read_model(path).rt_info["model_info"].items()}
    assert info.pop("labels").split() == ["_".join(name.split()) for name in CLASSES]
    assert [float(value) / 255 for value in info.pop("mean_values").split()] == pytest.approx(MEAN)
    assert [float(value) / 255 for value in info.pop("scale_values").split()] == pytest.approx(STD)
    assert info == {"model_type": "Classification", "resize_type": "crop", "reverse_input_channels": "True"}


def test_a_refused_export_keeps_file_and_facts(place, exported):
    path, _ = exported("kept.onnx")
    before = path.read_bytes(), facts_path(path).read_bytes()
    source = ["--checkpoint", place / "network", "--data", place / "none", "--out", path]
    ask("export", *source).fails(2, "none")
    assert before == (path.read_bytes(), facts_path(path).read_bytes())


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("{", "not valid JSON"),
        ("[]", "not written by pocketformer"),
        ('{"name": "another tool\'s"}', "not written by pocketformer"),
        ({"mean": None}, "mean cannot be null"),
        ({"size": [0, 8]}, "size cannot be"),
        ({"classes": [1, 2]}, "classes cannot be"),
        ({"std": [1.0]}, "different lengths"),
        ({"mean": [{}]}, "mean cannot be"),
        ({"size": "72"}, "size cannot be"),
    ],
)
def test_damaged_facts_are_told_in_one_line(tmp_path, change, what):
    values = Facts(task="t", architecture="a", size=(8, 8), mean=(0.5,) * 3, std=(0.5,) * 3).to_dict()
    text = change if isinstance(change, str) else json.dumps(values | change)
    facts_path(tmp_path / "model.onnx").write_text(text)
    with pytest.raises(UserError, match=what) as refusal:
        read_facts(tmp_path / "model.onnx")
    assert str(refusal.value).count("\n") == 0
    assert "model.onnx.json" in str(refusal.value)


def test_a_newer_versions_facts_are_read(tmp_path):
    facts = Facts(task="t", architecture="a", size=(8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)
    facts_path(tmp_path / "a.pte").write_text(json.dumps(facts.to_dict() | {"new": {"of": 1}}))
    assert read_facts(tmp_path / "a.pte") == facts
    assert read_facts(tmp_path / "b.pte") is None
