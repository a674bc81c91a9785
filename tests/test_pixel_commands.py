"""Pixels through the command: sets of other depths are learned as well as those of 8 bits, by a rule that stays with
the network; what was assumed is said; nothing of Pillow's reaches the screen."""

import io
import json
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from image_files import png, tiff
from pocketformer.architecture import SearchSpace
from pocketformer.training.data import open_data
from workshop import SPACE

torch.set_num_threads(1)
SIDE = 16


def stripes(rng: np.random.Generator, label: int) -> np.ndarray:
    """Lying or standing stripes of 1 or 0, of a place and width of their own, with noise."""
    wave = np.sin(2 * np.pi * (np.arange(SIDE) / rng.uniform(4, 6) + rng.random()))
    lines = np.broadcast_to(wave if label else wave[:, None], (SIDE, SIDE))
    return (lines + rng.normal(0, 0.3, (SIDE, SIDE)) > 0).astype(int)


def clear_png(lines: np.ndarray, colour: int = 0) -> bytes:
    """A drawing in grey `colour` on a transparent ground, which is black too."""
    return png(np.stack([lines * colour] * 3 + [lines * 255], axis=2), 8, 6)


FORMS = {
    "8bit.png": lambda lines: png(lines * 200 + 20),
    "16bit-of-8.png": lambda lines: png(lines * 200 + 20, 16),
    "float-of-1.tif": lambda lines: tiff([(lines * 0.8 + 0.1).astype(np.float32)]),
    "transparent.png": clear_png,
    "white-transparent.png": lambda lines: clear_png(lines, 255),
    "light-grey-and-alpha.png": lambda lines: png(np.stack([lines * 0 + 240, lines * 255], axis=2), 8, 4),
    "wide.tif": lambda lines: tiff([(lines * 200_000).astype(np.uint32)]),
    "colour16-of-8.png": lambda lines: png(np.stack([lines * 200 + 20] * 3, axis=2), 16, 2),
    "signed.tif": lambda lines: tiff([(lines * 2000 - 1000).astype(np.int16)]),
    "mask16.png": lambda lines: png(lines, 16),
    "float-of-4095.tif": lambda lines: tiff([(lines * 4000.0).astype(np.float32)], order=">", packed=True),
    "grey-and-alpha.png": lambda lines: png(np.stack([lines * 0, lines * 255], axis=2), 8, 4),
    "palette-and-alpha.png": lambda lines: png(lines, 1, 3, clear=b"\x00\xff", palette=bytes(6)),
}


def write(folder: Path, form: str, each: int = 24, val: int = 8, make=None) -> Path:
    rng = np.random.default_rng(5)
    for part, count in (("train", each), ("val", val)):
        for label, name in enumerate(("lying", "standing")):
            (folder / part / name).mkdir(parents=True)
            for i in range(count):
                path = folder / part / name / f"{i:02}{Path(form).suffix}"
                path.write_bytes((make or FORMS[form])(stripes(rng, label)))
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    (folder / "tiny.yaml").write_text(SPACE)
    SearchSpace.load(folder / "tiny.yaml").smallest.save(folder / "small.json")
    return folder / "small.json"


@pytest.fixture
def trained(cli, small, tmp_path):
    def call(data: Path, *more, epochs: float = 12, out: str = "run"):
        options = ["--epochs", epochs, "--batch-size", 8, "--workers", 0, "--json"]
        return cli("train", "--architecture", small, "--data", data, "--out", tmp_path / out, *options, *more)

    return call


def note(answer, word: str) -> str:
    """The one line that says it."""
    lines = [line for line in answer.lines if word in line]
    assert len(lines) == 1, answer.err
    return lines[0]


def test_stripes_are_learned_from_images_of_any_depth(trained, tmp_path):
    accuracy = {}
    for form in ("8bit.png", "16bit-of-8.png", "float-of-1.tif", "transparent.png"):
        answer = trained(write(tmp_path / form, form), epochs=5, out=f"run {form}")
        accuracy[form] = answer.json()["test"]["accuracy"]
    assert min(accuracy.values()) >= 0.8, accuracy
    assert accuracy["16bit-of-8.png"] == accuracy["8bit.png"]  # the very same pixels


@pytest.mark.parametrize("form", FORMS)
def test_no_form_hides_the_stripes(form, tmp_path):
    data = open_data(write(tmp_path, form, each=4, val=2), size=(SIDE, SIDE))
    contrast = data.fit.images.amax((1, 2, 3)).int() - data.fit.images.amin((1, 2, 3)).int()
    assert contrast.min() >= 120, (form, contrast.min())
    assert data.warnings == ()
    streamed = open_data(tmp_path, size=(SIDE, SIDE), stream=True)
    rows = torch.arange(8)
    assert torch.equal(streamed.final.take(rows)[0], data.final.take(rows)[0])
    assert (streamed.depth, streamed.notes[-2:]) == (data.depth, data.notes[-2:])


def dim(rng: np.random.Generator, most: int) -> np.ndarray:
    values = rng.integers(0, most + 1, (SIDE, SIDE))
    values[0, 0] = most
    return values


@pytest.mark.parametrize("form", ["grey", "colour", "real"])
def test_one_rule_holds_for_all_images_and_stays_with_the_network(cli, trained, tmp_path, form):
    """Of 12 bits as a set; one of its images alone would be taken for 10 bits, or for 8."""
    rng = np.random.default_rng(0)
    make = {
        "grey": lambda values: png(values, 16),
        "colour": lambda values: png(np.stack([values] * 3, axis=2), 16, 2),
        "real": lambda values: tiff([values.astype(np.float32)]),
    }[form]
    data = write(tmp_path / "data", "x.png" if form != "real" else "x.tif", 6, 4, lambda _: make(dim(rng, 4000)))
    dark = sorted((data / "train" / "lying").iterdir())[0]
    dark.write_bytes(make(dim(rng, 200)))
    said = "real numbers from 0 to 4000" if form == "real" else "integers from 0 to 4095 (12 bits)"
    answer = trained(data, epochs=1)
    assert said in note(answer, "more than 8 bits")
    recorded = json.loads((tmp_path / "run" / "config.json").read_text())["data"]["depth"]
    assert (recorded["bits"], recorded["real"]) == ((None, [0.0, 4000.0]) if form == "real" else (12, None))
    found = open_data(data, size=(SIDE, SIDE))
    assert found.final.take(torch.tensor([0]))[0].max() == (200 * 255 + 2000) // 4000 if form == "real" else 200 >> 4

    night = write(tmp_path / "night", "x.png" if form != "real" else "x.tif", 3, 4, lambda _: make(dim(rng, 200)))
    assert said in note(cli("evaluate", "--checkpoint", tmp_path / "run", "--data", night), "more than 8 bits")
    if form == "grey":  # the rule is among the facts of an exported file, which is far from the run
        file = tmp_path / "far" / "model.onnx"
        cli("export", "--checkpoint", tmp_path / "run", "--data", data, "--out", file).succeeds()
        assert said in note(cli("evaluate", "--checkpoint", file, "--data", night), "more than 8 bits")
    bright = sorted((night / "val" / "lying").iterdir())[0]
    bright.write_bytes(make(dim(rng, 9000)))
    told = note(cli("evaluate", "--checkpoint", tmp_path / "run", "--data", night), "more than 8 bits")
    assert said in told
    assert "1 image (val/lying/00." in told
    assert "beyond, which are cut off" in told


def flat(path: Path) -> bytes:
    """Of one colour, another for each file: equal ones would be copies of one image."""
    return png(np.full((SIDE, SIDE, 3), 70 + int(path.stem)), 8, 2)


def test_images_of_one_colour_are_told(cli, trained, tmp_path):
    data = write(tmp_path / "data", "8bit.png", 8, 4)
    for path in sorted((data / "train" / "lying").iterdir())[:2]:
        path.write_bytes(flat(path))
    answer = trained(data, epochs=0.1, out="two")
    assert "2 images (train/lying/00.png, train/lying/01.png) of one colour" in note(answer, "one colour")
    for path in (data / "train" / "lying").iterdir():
        path.write_bytes(flat(path))
    rng = np.random.default_rng(1)
    for path in (data / "val" / "lying").iterdir():
        path.write_bytes(clear_png(stripes(rng, 0) * 0))  # nothing but ground
    answer = trained(data, epochs=0.1, out="class")
    assert "warning: 12 of 24 images are of one colour" in note(answer, "warning:")
    write(tmp_path / "more", "8bit.png", 20, 4)
    for path in (tmp_path / "more").glob("*/lying/*"):
        path.write_bytes(b"" if path.stem == "19" else png(stripes(rng, 0)))  # 0 and 1 of 255
    answer = trained(tmp_path / "more", "--bad-images", "skip", epochs=0.1, out="last")
    assert "warning: all images of lying are of one colour" in note(answer, "warning:")


def jpeg_with_broken_exif() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), "red").save(file, "JPEG")
    exif = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\1\3\0\1\0\0\0\x06"
    return file.getvalue()[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + file.getvalue()[2:]


def test_nothing_of_pillow_reaches_the_screen(trained, tmp_path, monkeypatch):
    """Its warnings of odd metadata, palettes and large images, its log, and what libtiff prints."""
    data = write(tmp_path / "data", "palette-and-alpha.png", 6, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", SIDE * SIDE - 1)
    rng = np.random.default_rng(0)
    damaged = bytearray(tiff([rng.integers(0, 65536, (40, 40)).astype(np.uint16)], packed=True))
    damaged[30:200] = bytes(170)
    lying = data / "train" / "lying"
    (lying / "exif.jpg").write_bytes(jpeg_with_broken_exif())
    (lying / "zip.tif").write_bytes(damaged)
    (lying / "nine.tif").write_bytes(tiff([rng.integers(0, 99, (6, 6, 9)).astype(np.uint16)], 1, (0,) * 8))
    answer = trained(data, "--bad-images", "skip", epochs=0.1)
    assert answer.code == 0, answer.err
    stages = ("read the images", "train network", "note: ", "2 classes: ")
    assert [line for line in answer.lines if line and not line.startswith(stages)] == []
    assert "2 images skipped" in note(answer, "skipped")
    assert "9 channels of 16 bits" in note(answer, "skipped")


@pytest.mark.parametrize(
    ("name", "raw", "why"),
    [
        ("a.heic", bytes(4) + b"ftypheic" + bytes(60), "HEIC: install pocketformer[heic]"),
        ("a.HIF", bytes(4) + b"ftypmif1" + bytes(60), "HEIC: install pocketformer[heic]"),
        ("a.jxl", b"\xff\x0a" + bytes(60), "JPEG XL, which is not read"),
        ("a.bmp", bytes(128) + b"DICM" + bytes(60), "DICOM, which is not read"),
        ("a.tif", tiff([np.ones((4, 4, 3), np.float32)], 2), "a TIFF of 3 channels of 32 bits (floating point)"),
        ("a.tiff", tiff([np.full((4, 4), np.nan, np.float32)]), "holds values that are not numbers (NaN, infinity)"),
        ("a.png", png(np.zeros((20, 20), np.uint8)), "400 pixels, more than 300; POCKETFORMER_MAX_PIXELS=400 lets"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.startswith("a.") else "",
)
def test_what_cannot_be_read_is_named_for_what_it_is(trained, cli, tmp_path, monkeypatch, name, raw, why):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 150)
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    data = write(tmp_path / "data", "8bit.png", 4, 2)
    (data / "train" / "lying" / name).write_bytes(raw)
    trained(data).fails(2, f"1 of 13 files cannot be read as images: train/lying/{name} ({why}")
    if name == "a.png":
        monkeypatch.setenv("POCKETFORMER_MAX_PIXELS", "400")
        assert trained(data, epochs=0.1).code == 0
        monkeypatch.setenv("POCKETFORMER_MAX_PIXELS", "many")
        trained(data, out="new").fails(2, "POCKETFORMER_MAX_PIXELS is 'many'; give a number of pixels")


def test_heic_is_read_where_its_package_is_installed(trained, tmp_path, monkeypatch):
    """A stand-in for pillow-heif: it is asked to register itself when the first such file is met."""

    class Heif(ImageFile.ImageFile):
        format = "HEIF"

        def _open(self) -> None:
            self.fp.seek(16)
            inner = Image.open(io.BytesIO(self.fp.read())).convert("RGB")
            self._mode, self._size, self.im, self.tile = "RGB", inner.size, inner.im, []

    def register() -> None:
        Image.register_open("HEIF", Heif, lambda head: head[4:12] == b"ftypheic")

    monkeypatch.setitem(sys.modules, "pillow_heif", SimpleNamespace(register_heif_opener=register))
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: True)
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    data = write(tmp_path / "data", "x.heic", 4, 2, lambda lines: bytes(4) + b"ftypheic" + bytes(4) + png(lines * 200))
    answer = trained(data, epochs=0.1)
    assert answer.succeeds()
    assert open_data(data, size=(SIDE, SIDE)).fit.images.amax() == 200


def test_shards_hold_images_of_any_suffix(trained, tmp_path):
    folder = write(tmp_path / "data", "8bit.png", 4, 2)
    names = ("jpg", "jpeg", "JPG", "image.jpeg", "webp", "PNG", "tif", "bmp")
    (tmp_path / "shards").mkdir()
    splits = {}
    for part in ("train", "val"):
        files = sorted((folder / part).glob("*/*"))
        with tarfile.open(tmp_path / "shards" / f"{part}.tar", "w") as tar:
            for number, path in enumerate(files):
                suffix, file = names[number % len(names)], io.BytesIO()
                kind = Image.registered_extensions()[f".{suffix.lower().rpartition('.')[2]}"]
                Image.open(path).save(file, kind)
                members = (("cls", str(int(path.parent.name == "standing")).encode()), (suffix, file.getvalue()))
                for end, raw in members:
                    member = tarfile.TarInfo(f"{number:03}.{end}")
                    member.size = len(raw)
                    tar.addfile(member, io.BytesIO(raw))
        splits[part] = {"filenames": [f"{part}.tar"], "num_samples": len(files)}
    (tmp_path / "shards" / "_info.json").write_text(json.dumps({"splits": splits}))
    assert trained(f"wds/{tmp_path / 'shards'}", epochs=0.1).code == 0
