"""Exported files that were moved, renamed and mixed up; names beside them that others hold; calibration's litter."""

import json
import os
import shutil
import zipfile

import onnx
import pytest
from PIL import Image

import shop
from asking import ask
from pocketformer import SearchSpace, UserError
from pocketformer.deploy import Facts, facts_path, read_facts
from pocketformer.errors import WorkError
from pocketformer.pipelines import exporting


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """data/, a trained network in run/, and m.onnx, which was exported from it."""
    folder = tmp_path_factory.mktemp("foreign")
    shop.write_images(folder / "data")
    (folder / "space.yaml").write_text(shop.TINY)
    SearchSpace.load(folder / "space.yaml").smallest.save(folder / "tiny.json")
    given = ["--data", folder / "data", "--epochs", 1, "--batch-size", 16, "--workers", 0, "--out", folder / "run"]
    ask("train", "--architecture", folder / "tiny.json", *given).succeeds()
    ask("export", "--checkpoint", folder / "run", "--workers", 0, "--out", folder / "m.onnx").succeeds()
    return folder


def predict(place, checkpoint, *more):
    image = sorted((place / "data" / "dark").iterdir())[0]
    return ask("predict", "--checkpoint", checkpoint, "--workers", 0, "--json", image, *more)


@pytest.fixture
def moved(place, tmp_path):
    """A copy of the file and its JSON, and what to change in the latter."""

    def changed(**facts):
        values = json.loads(facts_path(place / "m.onnx").read_text())
        facts_path(tmp_path / "m.onnx").write_text(json.dumps(values | facts))
        return tmp_path / "m.onnx"

    shutil.copy(place / "m.onnx", tmp_path)
    return changed


@pytest.mark.parametrize(
    ("fact", "value"),
    [("classes", ["a", "b", "c"]), ("mean", [0.1, 0.2, 0.3]), ("dtype", "uint8"), ("format", "torch")],
)
def test_the_json_of_another_file_is_not_believed(place, moved, fact, value):
    predict(place, moved(**{fact: value})).fails(2, "m.onnx.json is of another file", fact, "remove it")
    facts_path(file := moved()).unlink()
    assert predict(place, file).json()["images"] == predict(place, place / "m.onnx").json()["images"]


def test_what_people_do_to_the_json_is_borne(place, moved):
    """A licence that is added, and the mark with which editors of Windows begin."""
    path = facts_path(moved(licence="MIT"))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    predict(place, path.with_suffix("")).succeeds()


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"classes": ["a", "b"]}, "knows 3 classes, but 2 are named"),
        ({"classes": list("abcd")}, "knows 3 classes, but 4 are named"),
        ({"std": [0, 0.5, 0.5]}, "std cannot be"),
        ({"mean": [float("nan"), 0, 0]}, "mean cannot be"),
    ],
)
def test_a_file_that_says_nothing_of_itself(place, moved, facts, words):
    """Other tools drop the metadata: then the JSON alone counts, as far as it fits."""
    file = moved(**facts)
    model = onnx.load(file)
    del model.metadata_props[:]
    onnx.save(model, file)
    predict(place, file).fails(2, words)
    image = sorted((place / "data" / "dark").iterdir())[0]
    odd = moved(classes=["a\nb", "c", "d"])
    assert len(ask("predict", "--checkpoint", odd, "--workers", 0, image).succeeds().out.splitlines()) == 1


def test_a_name_in_capitals_is_read(place, tmp_path):
    predict(place, shutil.copy(place / "m.onnx", tmp_path / "M.ONNX")).succeeds()


def within(path, facts: Facts):
    """The least that looks like a file of its format with these facts in it."""
    texts = facts.metadata()
    if path.suffix == ".pte":
        path.write_bytes(b"\x10\0\0\0ET12" + b"\0" * 9 + json.dumps(texts).encode() + b'\0\0}\0{"')
    elif path.suffix == ".xml":
        inner = "".join(f"<{name} value='{json.dumps(text)[1:-1]}' />" for name, text in texts.items())
        path.write_text(f"<net><rt_info><pocketformer>{inner}</pocketformer></rt_info></net>".replace('\\"', "&quot;"))
    else:
        name, value = ("m/extra/facts.json", texts)
        if ".aoti" in path.name:
            name, value = ("m/data/wrapper_metadata.json", {"facts": json.dumps(texts)})
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, json.dumps(value))


@pytest.mark.parametrize("name", ["m.pte", "m.xml", "m.pt2", "m.aoti.pt2"])
def test_facts_within_and_beside(tmp_path, name):
    if name in ("m.pte", "m.xml"):
        pytest.importorskip({"m.pte": "executorch", "m.xml": "openvino"}[name])
    facts = Facts(task="t", architecture="a", size=(8, 9), mean=(0.5,) * 3, std=(0.2,) * 3, classes=("ü", "{b}", "c d"))
    within(tmp_path / name, facts)
    assert read_facts(tmp_path / name) == facts
    facts_path(tmp_path / name).write_text(json.dumps(facts.to_dict()))
    assert read_facts(tmp_path / name) == facts
    facts_path(tmp_path / name).write_text(json.dumps(facts.to_dict() | {"size": [9, 8]}))
    with pytest.raises(UserError, match="is of another file: there size is"):
        read_facts(tmp_path / name)
    facts_path(tmp_path / name).unlink()
    (tmp_path / name).write_bytes(b"<html>")
    with pytest.raises(UserError, match="is no"):
        read_facts(tmp_path / name)


@pytest.mark.parametrize(
    ("there", "format", "out", "words"),
    [
        ("w.bin", "openvino", "w.xml", "w.bin is there"),
        ("v.onnx.json", "onnx", "v.onnx", "v.onnx.json is there and not ours"),
        ("f.onnx.json/notes", "onnx", "f.onnx", "f.onnx.json is there and not ours"),
        ("mine.mlpackage/notes", "coreml", "mine.mlpackage", "is a folder"),
        ("notes", "onnx", ".onnx", "such as model.onnx"),
        ("notes", "onnx", "M.ONNX", "such as model.onnx"),
        ("notes", "onnx", "m.xml", "--format openvino"),
        ("notes", "torch", "m.aoti.pt2", "--format aotinductor"),
        ("notes", "onnx", os.fsdecode(b"caf\xe9.onnx"), "no UTF-8"),
        ("notes", "onnx", "notes/m.onnx", "notes is not a folder"),
    ],
)
def test_nothing_is_written_over_what_nobody_named(place, tmp_path, there, format, out, words):
    (tmp_path / there).parent.mkdir(exist_ok=True)
    (tmp_path / there).write_text('{"somebody": "else"}')
    before = sorted(tmp_path.rglob("*"))
    ask("export", "--checkpoint", place / "run", "--format", format, "--out", tmp_path / out).fails(2, words)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / there).read_text() == '{"somebody": "else"}'


def test_what_can_be_exported(place, tmp_path):
    """A file is no run; weights that a run kept are described by the files beside them; memory has an end."""
    out = ("--workers", 0, "--out", tmp_path / "m.onnx")
    ask("export", "--checkpoint", place / "m.onnx", *out).fails(2, "is an exported file", "give the run")
    run = shutil.copytree(place / "run", tmp_path / "run")
    (run / "model.safetensors").rename(run / "best.safetensors")
    assert predict(place, run / "best.safetensors").json()["classes"] == list(shop.CLASSES)
    ask("export", "--checkpoint", place / "run", "--size", "20000", *out).fails(1, "out of memory")
    assert not (tmp_path / "m.onnx").exists()


@pytest.fixture
def calibrated(place, tmp_path, monkeypatch):
    """The images that int8 is calibrated on, and the answer; nothing is converted."""

    def ask_with(source):
        seen = []

        def watched(*_, calibration, **__):
            seen.append(calibration)
            raise WorkError("seen")

        monkeypatch.setattr(exporting, "export", watched)
        given = ("--int8", "--calibration", source, "--workers", 0, "--out", tmp_path / "m.onnx")
        answer = ask("export", "--checkpoint", place / "run", *given)
        return (seen[0] if seen else None), answer

    return ask_with


def test_calibration_takes_what_predict_does(place, tmp_path, calibrated):
    folder = tmp_path / "photos"
    for name in ("@eaDir/a.jpg", ".thumbnails", "__MACOSX", "2024"):
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (16, 16), "black").save(folder / name / ("._a.png" if "MAC" in name else "a.png"))
    Image.new("LA", (30, 20), (255, 255)).save(folder / "2024" / "a.png")
    Image.new("CMYK", (20, 20)).save(folder / "white.jpg")
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / "list.csv").write_text("a,b")
    images, answer = calibrated(folder)
    assert images.shape == (2, 3, 16, 16)
    assert images.min() > 0.9
    for words in ("passed over: ", "@eaDir", "broken.jpg", "calibrated on 2 image(s) alone"):
        assert words in answer.err
    images, answer = calibrated(folder / "2024" / "a.png")
    assert images.shape == (1, 3, 16, 16)


def test_calibration_leaves_what_is_tested_on(place, calibrated):
    for source, words in ((place, "holds"), (place / "data" / "dark", "lies within")):
        calibrated(source)[1].fails(2, words, "tested on")
