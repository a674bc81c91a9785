"""Dense tasks see images of more than 8 bits as they see those of 8: by one rule, which stays with the network."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import coco
import shapes
from asking import ask
from image_files import png

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The same scenes in 8 bits, and in 12 of 16."""
    folder = tmp_path_factory.mktemp("dense")
    shapes.architecture().save(folder / "tiny.json")
    for name in ("eight", "twelve"):
        shapes.write(folder / name, {"train": 4, "val": 2})
    for path in (folder / "twelve").glob("[tv]*[nl]/*.png"):
        path.write_bytes(png(np.asarray(Image.open(path)).astype(int) * 16, 16, 2))
    for name in ("eight", "twelve"):
        arguments = ["segment", "train", "--architecture", folder / "tiny.json", "--data", folder / name]
        arguments += ["--preset", "small", "--size", 64, 80, "--epochs", 2, "--batch-size", 2, "--workers", 0]
        answer = ask(*arguments, "--out", folder / f"run-{name}").succeeds()
        (folder / f"{name}.txt").write_text(answer.err)
    return folder


def test_a_segmenter_learns_the_same_from_images_of_12_bits(place):
    eight, twelve = (load_file(place / f"run-{name}" / "model.safetensors") for name in ("eight", "twelve"))
    assert all(torch.equal(eight[name], twelve[name]) for name in eight)
    said = "6 images (train/00.png, train/01.png, train/02.png, …) with more than 8 bits a channel: integers from 0 to"
    assert f"{said} 4095 (12 bits)" in (place / "twelve.txt").read_text()
    assert "8 bits" not in (place / "eight.txt").read_text()


def test_its_rule_holds_for_what_it_sees_later(cli, place, tmp_path):
    depth = json.loads((place / "run-twelve" / "config.json").read_text())["data"]["depth"]
    assert depth == {"bits": 12, "signed": False, "real": None}
    assert "depth" not in json.loads((place / "run-eight" / "config.json").read_text())["data"]
    dark = tmp_path / "dark.png"
    dark.write_bytes(png(np.random.default_rng(0).integers(0, 200, (64, 80, 3)), 16, 2))
    predict = ("segment", "predict", "--out", tmp_path / "drawn", dark, "--checkpoint")
    assert "integers from 0 to 4095 (12 bits)" in cli(*predict, place / "run-twelve").succeeds().err
    assert "integers from 0 to 255 (8 bits)" in cli(*predict, place / "run-eight").succeeds().err
    judged = cli("segment", "evaluate", "--checkpoint", place / "run-twelve", "--data", place / "twelve")
    assert "integers from 0 to 4095 (12 bits)" in judged.succeeds().err


def test_a_detector_learns_the_same_from_images_of_12_bits(cli, place, tmp_path):
    learned = {}
    for name in ("eight", "twelve"):
        data = coco.write_set(tmp_path / name, train=2)
        if name == "twelve":
            for path in data.glob("*/*.png"):
                path.write_bytes(png(np.asarray(Image.open(path).convert("RGB")).astype(int) * 16, 16, 2))
        arguments = ["detect", "train", "--architecture", place / "tiny.json", "--data", data, "--size", 64, 80]
        arguments += ["--epochs", 1, "--batch-size", 2, "--workers", 0, "--set", "detector.width=16"]
        answer = cli(*arguments, "--set", "detector.hidden=16", "--out", tmp_path / f"run-{name}").succeeds()
        assert ("integers from 0 to 4095 (12 bits)" in answer.err) == (name == "twelve")
        learned[name] = load_file(tmp_path / f"run-{name}" / "model.safetensors")
    assert all(torch.equal(learned["eight"][name], learned["twelve"][name]) for name in learned["eight"])
    assert json.loads((tmp_path / "run-twelve" / "config.json").read_text())["depth"]["bits"] == 12
