"""`predict`: one answer an image, the same as `evaluate`'s, in PyTorch and through files; tables and a page."""

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from asking import ask
from pocketformer import SearchSpace
from pocketformer.pipelines import predictions
from shop import CLASSES, TINY, write_images


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A network, its exported file, and folders of images as they lie around."""
    folder = tmp_path_factory.mktemp("predict")
    write_images(folder / "data", 60)
    (folder / "space.yaml").write_text(TINY)
    SearchSpace.load(folder / "space.yaml").largest.save(folder / "tiny.json")
    given = ["--epochs", 3, "--batch-size", 16, "--workers", 0, "--out", folder / "run"]
    ask("train", "--architecture", folder / "tiny.json", "--data", folder / "data", *given).succeeds()
    ask("export", "--checkpoint", folder / "run", "--data", folder / "data", "--out", folder / "m.onnx").succeeds()
    write_images(folder / "new", 48, dark=72, step=59)
    rng = np.random.default_rng(1)
    for name, size in (("wide.jpg", (90, 40)), ("tall.webp", (20, 61)), ("deep.png", (16, 16))):  # of any size and kind
        image = Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
        (image.convert("I;16") if name == "deep.png" else image).save(folder / "new" / "grey" / name)
    return folder


def asked(place: Path, *images: object, checkpoint: str = "run"):
    return ask("predict", "--checkpoint", place / checkpoint, "--workers", 0, *images)


def test_answers_are_those_of_the_evaluation(place):
    """Of every image of a folder, in PyTorch and through the file: the same classes, and probabilities to 1e-4."""
    given = (place / "new", "--json", "--top", 3)
    found = {name: asked(place, *given, checkpoint=name).json() for name in ("run", "m.onnx")}
    for name, answers in found.items():
        judged = ask("evaluate", "--checkpoint", place / name, "--data", place / "new", "--workers", 0, "--json").json()
        assert len(answers["images"]) == judged["images"] == 51
        confusion: dict = {}
        for row in answers["images"]:
            truth, answer = Path(row["image"]).parent.name, row["top"][0]["class"]
            confusion.setdefault(truth, dict.fromkeys(CLASSES, 0))[answer] += 1
        assert {t: {a: n for a, n in row.items() if n} for t, row in confusion.items()} == judged["confusion"]
        assert answers["classes"] == list(CLASSES)
        assert answers["skipped"] == []
        for row in answers["images"]:
            chances = [entry["probability"] for entry in row["top"]]
            assert chances == sorted(chances, reverse=True)
            assert sum(chances) == pytest.approx(1, abs=1e-5)
    for one, other in zip(found["run"]["images"], found["m.onnx"]["images"], strict=True):
        assert one["image"] == other["image"]
        chances = [{e["class"]: e["probability"] for e in row["top"]} for row in (one, other)]
        assert chances[0] == pytest.approx(chances[1], abs=1e-4)


def test_images_of_any_kind_as_they_are_given(place, tmp_path):
    shutil.copytree(place / "new", tmp_path / "a" / "b")
    (tmp_path / "a" / ".hidden").mkdir()
    shutil.copy(place / "new" / "dark" / "00.png", tmp_path / "a" / ".hidden")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    os.symlink(tmp_path / "a", tmp_path / "a" / "b" / "loop")
    named = place / "new" / "dark" / "00.png"
    answer = asked(place, tmp_path / "a", named, named, "--top", 1)
    assert len(answer.succeeds().out.splitlines()) == 52
    assert answer.out.splitlines()[-1].startswith(f"{named}: ")
    assert answer.out.splitlines()[-1].endswith("%")
    assert "passed over" in answer.err
    assert "more than 8 bits" in answer.err


def test_tables_and_page(place, tmp_path, monkeypatch):
    out = tmp_path / "out"
    answer = asked(place, place / "new", "--top", 2, "--out", out, "--page", tmp_path / "p.html").succeeds()
    written = [out / "predictions.csv", out / "predictions.json", tmp_path / "p.html"]
    assert answer.out.splitlines()[-3:] == list(map(str, written))
    rows = json.loads((out / "predictions.json").read_text())["images"]
    with open(out / "predictions.csv", newline="") as text:
        lines = list(csv.DictReader(text))
    assert list(lines[0]) == ["image", "class_1", "probability_1", "class_2", "probability_2"]
    for line, row in zip(lines, rows, strict=True):
        assert line["image"] == row["image"]
        assert [line["class_1"], line["class_2"]] == [entry["class"] for entry in row["top"]]
        assert float(line["probability_2"]) == row["top"][1]["probability"]
    page = (tmp_path / "p.html").read_text()
    assert page.count("<img ") == page.count("data:image/jpeg;base64,") == len(rows)
    assert "http" not in page.replace("http-equiv", "")
    best = [row for row in rows if row["top"][0]["class"] == "light"]
    best.sort(key=lambda row: -row["top"][0]["probability"])
    places = [page.index(f"<br>{row['image']}") for row in (best[0], best[-1])]
    assert page.index(f"light ({len(best)})</h2>") < places[0] < places[1]
    monkeypatch.setattr(predictions, "_PICTURES", 20)
    few = asked(place, place / "new", "--page", tmp_path / "few.html").succeeds()
    assert (tmp_path / "few.html").read_text().count("<img ") == 17
    assert "shows 17 of the 51 images" in few.err


BAD = {
    "nothing": ([], "Missing argument"),
    "no such image": (["{place}/none.jpg"], "none.jpg"),
    "empty folder": (["{tmp}"], "holds no images"),
    "no format": (["{place}/new", "--out", "{tmp}/x.txt"], "x.txt", ".csv or .json"),
    "page": (["{place}/new", "--page", "{tmp}/page"], ".html"),
    "top": (["{place}/new", "--top", "0"], "--top"),
    "unreadable": (["{place}/new", "{place}/m.onnx"], "1 of 52", "m.onnx", "--bad-images skip"),
    "all unreadable": (["{place}/m.onnx", "--bad-images", "skip"], "none of the 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_mistakes_are_one_line(place, tmp_path, name):
    given, *words = BAD[name]
    asked(place, *(text.format(place=place, tmp=tmp_path) for text in given)).fails(2, *words)
    assert not list(tmp_path.iterdir())


def test_unreadable_images_are_skipped_when_told(place, tmp_path):
    shutil.copytree(place / "new" / "dark", tmp_path / "d")
    (tmp_path / "d" / "cut.png").write_bytes((place / "new" / "dark" / "00.png").read_bytes()[:150])
    found = asked(place, tmp_path / "d", "--bad-images", "skip", "--json")
    assert len(found.json()["images"]) == 16
    assert [Path(row["image"]).name for row in found.json()["skipped"]] == ["cut.png"]
    assert "1 image skipped" in found.err


def test_a_network_that_names_no_classes_gives_numbers(place, tmp_path):
    from pocketformer.training import checkpoint

    torch.save(checkpoint.load_model(place / "run")[0].state_dict(), tmp_path / "w.pth")
    given = ["--checkpoint", tmp_path / "w.pth", "--architecture", place / "tiny.json", "--json", "--workers", 0]
    found = ask("predict", *given, place / "new" / "dark")
    assert found.json()["classes"] is None
    assert {entry["class"] for row in found.json()["images"] for entry in row["top"]} == {"0", "1", "2"}
    assert "names no classes" in found.err
