"""`evaluate` on folders as they lie around, and the figures of classes, against what is worked out by hand."""

import csv
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from asking import ask
from pocketformer.cli.class_text import told
from pocketformer.training.confusion import class_figures, confused, confusion_matrix
from shop import CLASSES, TINY, write_images


def test_figures_of_classes_are_those_counted_by_hand():
    rng = np.random.default_rng(0)
    names = ["a", "b", "c", "never there", "never answered"]
    labels, answers = rng.choice([0, 1, 2, 4], 300, p=[0.7, 0.1, 0.1, 0.1]), rng.choice([0, 1, 2, 3], 300)
    found = class_figures(confusion_matrix(torch.from_numpy(answers), torch.from_numpy(labels), 5), names)
    pairs = Counter(zip(labels.tolist(), answers.tolist(), strict=True))
    recalls = []
    for c, row in enumerate(found["per_class"]):
        images, given = int((labels == c).sum()), int((answers == c).sum())
        assert row["images"] == images
        assert row["recall"] == (pairs[c, c] / images if images else None)
        assert row["precision"] == (pairs[c, c] / given if given else None)
        recalls += [pairs[c, c] / images] if images else []
    assert found["balanced_accuracy"] == pytest.approx(sum(recalls) / 4)
    assert found["largest_class"] == {"name": "a", "share": int((labels == 0).sum()) / 300}
    counted = {(names[t], names[a]): n for (t, a), n in pairs.items()}
    assert {(t, a): n for t, row in found["confusion"].items() for a, n in row.items()} == counted
    wrong = confused(found["confusion"])
    assert wrong[0][2] == max(n for (t, a), n in counted.items() if t != a)
    assert sum(n for *_, n in wrong) == int((labels != answers).sum())
    text = told({**found, "accuracy": 0.5})
    assert "always answering a would have" in text
    assert text.index("never answered") < text.index("\n  a ")  # worst first


def test_a_thousand_classes_stay_a_short_text():
    labels = torch.arange(2000) % 1000
    answers = torch.where(labels < 30, labels + 1, labels)
    found = {**class_figures(confusion_matrix(answers, labels, 1000), [f"n{c}" for c in range(1000)]), "accuracy": 0.97}
    lines = told(found).splitlines()
    assert len(lines) < 30
    assert "980 classes with more right" in lines[-2]
    assert lines[-1].startswith("most confused: n0 taken for n1 2 of 2;")
    assert len(json.dumps(found["confusion"])) < 30_000


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A network trained on `data/CLASS`, of which seed 3 set a tenth aside, by groups, and its exported file."""
    folder = tmp_path_factory.mktemp("judging")
    write_images(folder / "data", 96)
    (folder / "space.yaml").write_text(TINY)
    from pocketformer import SearchSpace

    SearchSpace.load(folder / "space.yaml").largest.save(folder / "tiny.json")
    groups = ["--group-by", r"(\d)[0-4]\.|(\d)[5-9]\."]
    given = [*groups, "--epochs", 4, "--batch-size", 16, "--seed", 3, "--workers", 0, "--out", folder / "run"]
    ask("train", "--architecture", folder / "tiny.json", "--data", folder / "data", *given).succeeds()
    out = folder / "run" / "exported" / "model.onnx"
    ask("export", "--checkpoint", folder / "run", "--data", folder / "data", "--seed", 3, "--out", out).succeeds()
    write_images(folder / "new", 60, dark=72, step=59)
    return folder


def judged(place: Path, data: object, *more: object):
    return ask("evaluate", "--checkpoint", place / "run", "--data", data, "--workers", 0, *more)


LAYOUTS = {  # what a folder holds: from the new images -> to
    "classes": {c: c for c in CLASSES},
    "val alone": {c: f"val/{c}" for c in CLASSES},
    "Test alone": {c: f"Test/{c}" for c in CLASSES},
    "two of three": {"light": "light", "dark": "dark"},
    "one class": {"grey": "images/validation/grey"},
    "train and test": {**{c: f"test/{c}" for c in CLASSES}, "dark/00.png": "train/dark/x.png"},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_any_labelled_folder_is_judged_in_full(place, tmp_path, name):
    """Every image, under the name of its class: as many are right as in the whole, class by class."""
    for source, target in LAYOUTS[name].items():
        (tmp_path / "d" / target).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if "." not in source else shutil.copy
        copy(place / "new" / source, tmp_path / "d" / target)
    answer = judged(place, tmp_path / "d", "--json")
    found, whole = answer.json(), judged(place, place / "new", "--json").json()
    names = [c for c in CLASSES if c in LAYOUTS[name]]
    assert whole["images"] == 60
    assert found["images"] == 20 * len(names)
    assert {c: whole["confusion"][c] for c in names} == found["confusion"]
    assert found["correct"] == sum(row.get(c, 0) for c, row in found["confusion"].items())
    assert found["source"].startswith(str(tmp_path / "d"))
    if len(names) < 3:
        assert "no images of" in answer.err
    text = judged(place, tmp_path / "d").succeeds().out
    assert f"({found['correct']} of {found['images']} images" in text
    assert found["source"] in text


@pytest.mark.parametrize("classes", [("dark", "wolf"), ("Dunkel", "grau"), ("light", "grey", "dark", "black")])
def test_classes_that_the_network_does_not_know_are_one_line(place, tmp_path, classes):
    for name in classes:
        shutil.copytree(place / "new" / "dark", tmp_path / name)
    unknown = next(name for name in classes if name not in CLASSES)
    judged(place, tmp_path).fails(2, unknown)


def test_the_images_of_the_training_are_known_again(place, tmp_path):
    """The split that the training set aside, by its own seed; and what it learned from is told, wherever it lies."""
    trained = json.loads((place / "run" / "results.json").read_text())["test"]
    for data in (place / "data", shutil.copytree(place / "data", tmp_path / "copy")):
        answer = judged(place, data, "--json")
        assert answer.json()["confusion"] == trained["confusion"]
        assert "set aside" in answer.err
        assert "warning" not in answer.err
    assert "trained with another --seed" in judged(place, place / "data", "--seed", 4).succeeds().err
    shutil.copytree(place / "new", tmp_path / "mixed")
    for i in range(0, 96, 3):  # under other names; a tenth was set aside
        shutil.copy(place / "data" / "dark" / f"{i:02}.png", tmp_path / "mixed" / "dark" / f"other{i}.png")
    told = judged(place, tmp_path / "mixed").succeeds().err
    assert f"learned from {32 - sum(trained['confusion']['dark'].values())} of these 92 images" in told


def test_an_exported_file_is_judged_anywhere(place, tmp_path):
    file = place / "run" / "exported" / "model.onnx"
    asked = ("--data", place / "new", "--workers", 0, "--json")
    inside = ask("evaluate", "--checkpoint", place / "run", "--runtime", "onnxruntime", *asked).json()
    in_pytorch = judged(place, place / "new", "--json").json()
    assert inside["confusion"] == in_pytorch["confusion"]
    assert inside["loss"] == pytest.approx(in_pytorch["loss"], abs=1e-5)
    moved = shutil.copy(file, tmp_path / "moved.onnx")
    shutil.copy(f"{file}.json", tmp_path / "moved.onnx.json")
    assert ask("evaluate", "--checkpoint", moved, *asked).json() == inside
    again = ask("evaluate", "--checkpoint", moved, "--data", place / "data", "--workers", 0, "--json")
    trained = json.loads((place / "run" / "results.json").read_text())["test"]
    assert again.json()["confusion"] == trained["confusion"]  # its facts know the images of the training again
    assert "must be the training's" not in again.err
    assert "images are 20 groups" in again.err  # else it would be judged on groups that it learned from
    other = ask("evaluate", "--checkpoint", moved, "--data", place / "data", "--workers", 0, "--seed", 4).succeeds()
    assert "warning: this network was trained with another --seed" in other.err
    bare = tmp_path / "bare.onnx"
    strip(file, bare)
    ask("evaluate", "--checkpoint", bare, *asked).fails(2, "bare.onnx.json", "--checkpoint RUN --file", alone=True)
    assert ask("evaluate", "--checkpoint", place / "run", "--file", bare, *asked).json() == inside
    (tmp_path / "weights.onnx").write_bytes(b"no model")
    (tmp_path / "weights.onnx.json").write_text((tmp_path / "moved.onnx.json").read_text())
    ask("evaluate", "--checkpoint", tmp_path / "weights.onnx", *asked).fails(2, "weights.onnx")
    ask("evaluate", "--checkpoint", place / "run", "--runtime", "openvino", *asked).fails(2, "--out", "model.xml")
    ask("evaluate", "--checkpoint", place / "run", "--file", tmp_path / "no.onnx", *asked).fails(2, "no.onnx")
    ask("evaluate", "--checkpoint", place / "run", "--file", place / "tiny.json", *asked).fails(2, "tiny.json", ".onnx")


def strip(file: Path, bare: Path) -> None:
    """The same model without what it says of itself."""
    import onnx

    model = onnx.load(file)
    del model.metadata_props[:]
    onnx.save(model, bare)


def test_figures_as_files(place, tmp_path):
    found = judged(place, place / "new", "--json", "--out", tmp_path / "f.json").json()
    assert json.loads((tmp_path / "f.json").read_text()) == found
    judged(place, place / "new", "--out", tmp_path / "f.csv").succeeds()
    with open(tmp_path / "f.csv", newline="") as text:
        rows = list(csv.DictReader(text))
    assert [row["name"] for row in rows] == list(CLASSES)
    assert [float(row["recall"]) for row in rows] == [row["recall"] for row in found["per_class"]]
    judged(place, place / "new", "--out", tmp_path / "f.txt").fails(2, "f.txt", ".json or .csv", alone=True)


def test_the_page_shows_the_classes(place):
    page = Path(ask("report", place / "run", "--figures", place / "figures").succeeds().out.splitlines()[0]).read_text()
    test = json.loads((place / "run" / "results.json").read_text())["test"]
    for row in test["per_class"]:
        assert f"<th scope='row'>{row['name']}</th><td>{row['images']}</td>" in page
    for truth, answers in test["confusion"].items():
        for answer, n in answers.items():
            assert f"{truth} taken for {answer}: {n} of {sum(answers.values())}" in page
    assert (place / "figures" / "confusion.svg").read_text().startswith("<svg")
