"""Names of classes and folders in any encoding and normal form, wherever they are written."""

import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pocketformer import files
from pocketformer.architecture import SearchSpace
from pocketformer.training.data import open_data
from tiny import TINY

NFC, NFD = "caf\u00e9", "cafe\u0301"
ODD = [os.fsdecode(b"caf\xe9"), "-dash", "0", "new\nline", "日本", "a b 😀", "\u00e9" * 100]


def fill(folder: Path, classes: list[str], count: int = 4) -> Path:
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            seed = zlib.crc32(os.fsencode(folder / name)) + i
            pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            with open(folder / name / f"{i}.png", "wb") as file:
                Image.fromarray(pixels).save(file, "PNG")
    return folder


def opened(root: Path):
    return open_data(root, size=(8, 8))


@pytest.mark.parametrize(("train", "val"), [(NFC, NFD), (NFD, NFC), ("\u1e69", "s\u0323\u0307"), ("Dog", "dog")])
def test_one_class_in_two_forms_is_one_class(tmp_path, train, val):
    fill(tmp_path / "train", [train, "x"])
    fill(tmp_path / "val", [val, "x"], 2)
    data = opened(tmp_path)
    assert set(data.classes) == {train if train == "Dog" else files.as_text(sorted([train, val], key=len)[0]), "x"}
    assert len(data.test) == 4
    if train == "Dog":
        assert any("dog (Dog)" in note for note in data.notes)


def test_names_that_look_alike_in_one_folder_are_told(tmp_path):
    data = opened(fill(tmp_path / "a", [NFC, NFD, "x"], 5))
    assert data.classes == (NFC, "x")
    assert len(data.fit.labels) == 15
    assert any("is there 2 times" in note for note in data.notes)
    data = opened(fill(tmp_path / "b", ["Cat", "cat"]))
    assert data.classes == ("Cat", "cat")
    assert any("Cat and cat" in note for note in data.notes)


def test_odd_names_through_the_command(tmp_path, cli):
    """Trained in a locale that knows ASCII only; resumed and judged in UTF-8."""
    root, out = fill(tmp_path / "d\u00e4t", ODD), tmp_path / "r\u00fcn"
    SearchSpace.from_dict(TINY).smallest.save(tmp_path / "tiny.json")
    shared = ("--data", root, "--workers", 0, "--json")
    train = ("train", "--architecture", tmp_path / "tiny.json", "--epochs", 1, "--batch-size", 8, "--out", out, *shared)
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    call = [sys.executable, "-m", "pocketformer", *map(str, train)]
    done = subprocess.run(call, env={**os.environ, **ascii_only}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    told = r"7 classes: -dash, 0, a b 😀, caf\xe9, new\nline"
    assert told in done.stderr.decode()
    assert json.loads(done.stdout)["folder"] == str(out)
    again = cli(*train)
    assert told in again.err
    assert again.json() == json.loads(done.stdout)
    wanted = sorted([r"caf\xe9", *ODD[1:]])
    assert json.loads((out / "config.json").read_text(encoding="utf-8"))["classes"] == wanted
    assert cli("evaluate", "--checkpoint", out, *shared).json()["images"] == 7


def test_names_of_other_encodings_are_written_or_refused(tmp_path, cli):
    odd = os.fsdecode(b"o\xff")
    files.write_json(tmp_path / "a.json", {odd: [odd, r"\x"]})
    assert files.read_json(tmp_path / "a.json") == {r"o\xff": [r"o\xff", r"\x"]} == files.as_json({odd: (odd, r"\x")})
    fill(tmp_path / odd / "data", ["a", "b"])
    SearchSpace.from_dict(TINY).smallest.save(tmp_path / "tiny.json")
    train = (
        "train",
        "--architecture",
        tmp_path / "tiny.json",
        "--epochs",
        1,
        "--data",
        tmp_path / odd / "data",
        "--out",
    )
    for _ in range(2):  # also resumed
        cli(*train, tmp_path / "run", "--workers", 0).succeeds()
    cli(*train, tmp_path / odd).fails(2, r"o\xff cannot be written: the name is no UTF-8", alone=True)
