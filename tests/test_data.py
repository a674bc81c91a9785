"""Images: sources and their refusals, splits, fingerprints and the cache."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pocketformer.errors import UserError
from pocketformer.training import decoding
from pocketformer.training.data import Split, open_data, search_count, stratified, survey
from pocketformer.training.named import HOME_VARIABLE

SIZE = (12, 16)


def picture(seed: int, size: tuple[int, int] = (24, 20)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def fill(folder: Path, counts: dict[str, int], seed: int = 0, backwards: bool = False) -> Path:
    """A folder with `counts` pictures per class; the content of a file depends on its name only."""
    jobs = [(c, i) for c, n in counts.items() for i in range(n)]
    for c, i in reversed(jobs) if backwards else jobs:
        (folder / c).mkdir(parents=True, exist_ok=True)
        number = sum(map(ord, c)) * 1000 + i + seed
        picture(number).save(folder / c / f"{i:03}.png")
    for c in counts:
        (folder / c).mkdir(parents=True, exist_ok=True)
    return folder


def refusal(source, **options) -> str:
    with pytest.raises(UserError) as caught:
        open_data(source, **{"size": SIZE, **options})
    message = str(caught.value)
    assert "\n" not in message
    return message


def rows(split: Split) -> list[int]:
    return split.indices.tolist()


# --- sources --------------------------------------------------------------------------------------


def test_embedded_set_is_balanced_and_whole():
    data = open_data("embedded", size=(28, 28))
    assert (len(data.fit), len(data.search), len(data.final), len(data.test)) == (5400, 600, 6000, 2000)
    for split, each in ((data.fit, 540), (data.search, 60), (data.final, 600), (data.test, 200)):
        assert torch.bincount(split.take(torch.arange(len(split)))[1]).tolist() == [each] * 10
    images, _ = data.test.take(torch.arange(4))
    assert images.shape == (4, 3, 28, 28)
    assert images.dtype == torch.uint8
    assert (images[:, 0] == images[:, 2]).all()
    assert data.classes[0] == "T-shirt/top"
    assert data.notes == ()
    assert data.median_side == 28
    # Committed bytes and splits must not drift: results that were published name these.
    assert (data.fingerprint, data.split_fingerprint) == ("12f950c7bc31dc0d", "6e78bf0e1e55422d")


def test_embedded_licence_is_shipped():
    from pocketformer.training.sources import EMBEDDED

    assert "Zalando" in (EMBEDDED.parent / "LICENSE").read_text()


def test_a_folder_without_train_sets_a_tenth_aside_and_says_so(tmp_path):
    root = fill(tmp_path / "pets", {"cat": 30, "dog": 20, "emu": 10})
    data = open_data(root, size=SIZE)
    assert data.classes == ("cat", "dog", "emu")
    assert len(data.test) == 6
    assert len(data.final) == 54
    assert len(data.search) == 27
    assert "no val/: a stratified tenth (6 images, seed 0) was set aside as the test split" in data.notes
    assert any("search split is half" in note for note in data.notes)
    assert sorted(rows(data.fit) + rows(data.search)) == rows(data.final)
    assert sorted(rows(data.final) + rows(data.test)) == list(range(60))
    assert data.fit.images.shape == (60, 3, *SIZE)
    assert data.median_side == 20


def test_val_is_the_test_split(tmp_path):
    fill(tmp_path / "train", {"a": 8, "b": 6})
    fill(tmp_path / "val", {"a": 3, "b": 2}, seed=500)
    data = open_data(tmp_path, size=SIZE)
    assert rows(data.test) == [14, 15, 16, 17, 18]
    assert data.test.take(torch.arange(5))[1].tolist() == [0, 0, 0, 1, 1]
    assert rows(data.final) == list(range(14))
    assert not any("val/" in note for note in data.notes)
    look = survey(tmp_path)
    assert (look.images, look.test_images, look.classes, look.median_side) == (19, 5, ("a", "b"), 20)


def test_images_are_upright_covered_and_cropped(tmp_path):
    root = fill(tmp_path, {"a": 3, "b": 3})
    smooth = np.zeros((40, 100, 3), np.uint8)
    smooth[:, :30] = 255  # lost to the crop but for a tenth: the middle 40 columns of 100 remain
    smooth[:20, 30:] = (200, 0, 0)
    Image.fromarray(smooth).save(root / "a" / "000.png")
    turned = Image.fromarray(smooth).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise
    turned.save(root / "a" / "001.png", exif=exif)
    Image.fromarray(np.full((20, 20), 40_000, np.uint16)).save(root / "a" / "002.png")
    picture(1).convert("P").save(root / "b" / "000.png")
    picture(2).convert("RGBA").save(root / "b" / "001.png")
    picture(3).convert("CMYK").save(root / "b" / "002.jpg")
    images = open_data(root, size=(20, 20)).fit.images
    expected = Image.fromarray(smooth[:, 30:70]).resize((20, 20), Image.Resampling.BICUBIC)
    np.testing.assert_allclose(images[0, :, :, 2:].permute(1, 2, 0), np.asarray(expected)[:, 2:], atol=1)
    assert torch.equal(images[0], images[1])
    assert (images[2] == 40_000 >> 8).all()


def test_hidden_files_litter_and_loose_files(tmp_path):
    root = fill(tmp_path, {"a": 5, "b": 5})
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._000.png"):
        (root / "a" / name).write_bytes(b"x")
    (root / ".git").mkdir()
    (root / "labels.csv").write_text("x")
    data = open_data(root, size=SIZE)
    assert len(data.final) + len(data.test) == 10
    assert any("labels.csv" in note for note in data.notes)


def test_importing_does_not_import_timm():
    code = "import sys, pocketformer.training.batches; sys.exit('timm' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


# --- refusals -------------------------------------------------------------------------------------


def test_refuses_what_is_no_source(tmp_path):
    assert refusal("no/where") == "no/where: no such folder, and not a dataset name (torch/…, hfds/…, wds/…)"
    (tmp_path / "file.zip").write_bytes(b"")
    assert "is a file" in refusal(tmp_path / "file.zip")
    assert "no class folders" in refusal(fill(tmp_path / "empty", {"x": 0}).joinpath("x"))
    assert "--bad-images" in refusal("embedded", bad_images="maybe")
    assert "seed" in refusal("embedded", size=(28, 28), seed=-1)
    assert "stored size" in refusal("embedded", size=(0, 28))


def test_refuses_bad_class_folders(tmp_path):
    assert "only one class folder (cat)" in refusal(fill(tmp_path / "one", {"cat": 9}))
    assert "dog" in refusal(fill(tmp_path / "hole", {"cat": 9, "dog": 0}))
    message = refusal(fill(tmp_path / "few", {"cat": 9, "dog": 2}))
    assert "dog (2)" in message
    assert "at least 3" in message
    fill(tmp_path / "other" / "train", {"cat": 4, "dog": 4})
    fill(tmp_path / "other" / "val", {"cat": 4, "cow": 4})
    message = refusal(tmp_path / "other")
    assert "only in train/: dog" in message
    assert "only in val/: cow" in message
    fill(tmp_path / "headless" / "val", {"cat": 4, "dog": 4})
    assert "no train/" in refusal(tmp_path / "headless")


@pytest.fixture
def spoiled(tmp_path) -> Path:
    root = fill(tmp_path / "spoiled", {"cat": 12, "dog": 12})
    picture(7, (300, 300)).save(root / "cat" / "a.jpg")
    whole = (root / "cat" / "a.jpg").read_bytes()
    (root / "cat" / "a.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "cat" / "notes.png").write_text("not an image")
    (root / "dog" / "zero.png").write_bytes(b"")
    (root / "dog" / "zzz.png").symlink_to(root / "gone.png")
    return root


@pytest.mark.parametrize("workers", [0, 2])
def test_refuses_unreadable_images_and_names_them(spoiled, workers):
    assert refusal(spoiled, workers=workers) == (
        f"{spoiled}: 4 of 28 files cannot be read as images: cat/a.jpg (truncated), cat/notes.png "
        "(not an image), dog/zero.png (empty file), …; remove them or pass --bad-images skip"
    )


def test_skips_unreadable_images_when_told(spoiled, tmp_path):
    clean = fill(tmp_path / "clean", {"cat": 12, "dog": 12})
    expected = open_data(clean, size=SIZE)
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):
        data = open_data(spoiled, size=SIZE, bad_images="skip", cache=cache)
        assert any(note.startswith("4 images skipped: cat/a.jpg (truncated)") for note in data.notes)
        assert data.fingerprint == expected.fingerprint
        assert data.split_fingerprint == expected.split_fingerprint
        for name in ("fit", "search", "test"):
            ours, theirs = getattr(data, name), getattr(expected, name)
            assert torch.equal(ours.take(torch.arange(len(ours)))[0], theirs.take(torch.arange(len(theirs)))[0])
    assert "4 of 28" in refusal(spoiled, cache=tmp_path / "cache")  # a cache made with skip does not excuse


def test_refusing_leaves_no_cache_and_an_emptied_class_is_refused(spoiled, tmp_path):
    refusal(spoiled, cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    for path in (spoiled / "dog").glob("0*.png"):
        path.write_bytes(b"junk")
    assert "dog (0)" in refusal(spoiled, bad_images="skip")
    for path in spoiled.glob("*/*"):
        path.unlink()
        path.write_bytes(b"junk")
    with pytest.raises(UserError, match="none of the files"):
        survey(spoiled)


def test_a_cache_that_cannot_fit_is_refused(tmp_path, monkeypatch):
    from pocketformer.errors import WorkError

    monkeypatch.setattr(decoding.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(WorkError, match="GB are free"):
        open_data(fill(tmp_path / "d", {"a": 5, "b": 5}), size=SIZE, cache=tmp_path / "cache")


@pytest.mark.parametrize("name", ["torch/mnist", "torch/nonsense", "hfds/nobody/nothing", "wds/nothing"])
def test_a_data_set_that_cannot_be_had_is_one_line(name, tmp_path, monkeypatch):
    def offline(*_, **__):
        raise OSError("no network in tests")

    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("socket.getaddrinfo", offline)
    assert refusal(name).startswith(f"{name}: cannot be obtained")
    assert "folder itself" in refusal("torch/image_folder")


# --- data sets of timm ----------------------------------------------------------------------------


class MapSet(torch.utils.data.Dataset):
    classes = ("red", "green")

    def __init__(self, count: int, seed: int):
        self.items = [(picture(seed + i), i % 2) for i in range(count)]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


class StreamSet(torch.utils.data.IterableDataset):
    def __init__(self, count: int, seed: int, lost: int = 0):
        self.items, self.lost = MapSet(count, seed).items, lost

    def __len__(self):
        return len(self.items)

    def __iter__(self):
        return iter(self.items[self.lost :])


def test_named_data_sets_map_and_stream_agree(tmp_path, monkeypatch):
    import timm.data

    made = {}

    def create(kind, _, split, **__):
        if split not in ("train", "test"):
            raise ValueError(f'Unknown split "{split}"')
        return kind(20, 0) if split == "train" else kind(6, 100)

    for kind in (MapSet, StreamSet):
        monkeypatch.setattr(timm.data, "create_dataset", lambda name, kind=kind, **k: create(kind, name, **k))
        made[kind] = open_data("torch/colours", size=SIZE, workers=2)
        assert len(made[kind].test) == 6
        assert survey("torch/colours").images == 26
    assert torch.equal(made[MapSet].fit.images, made[StreamSet].fit.images)
    assert made[MapSet].classes == ("red", "green")
    assert made[StreamSet].classes == ("0", "1")
    # A stream drops what it cannot read; it is missed all the same.
    monkeypatch.setattr(
        timm.data, "create_dataset", lambda name, **k: create(lambda n, s: StreamSet(n, s, 1), name, **k)
    )
    assert "2 of 26 files cannot be read as images: a train image (left out by" in refusal("torch/colours")


# --- splits ---------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(2, 60), min_size=2, max_size=8),
    share=st.floats(0.01, 0.5),
    seed=st.integers(0, 2**32),
    order=st.randoms(use_true_random=False),
)
def test_stratified_is_proportional_and_a_function_of_the_seed(sizes, share, seed, order):
    labels = [c for c, n in enumerate(sizes) for _ in range(n)]
    order.shuffle(labels)
    labels = np.array(labels)
    count = int(share * len(labels))
    chosen = stratified(labels, count, seed)
    got = np.bincount(labels[chosen], minlength=len(sizes))
    exact = np.array(sizes) * count / len(labels)
    assert (np.abs(got - exact) <= 1 + 1e-6).all()
    assert (got >= 1).all()
    assert (got < np.array(sizes)).all()
    assert got.sum() == max(count, np.maximum(np.floor(exact + 1e-9), 1).sum())
    assert (chosen == stratified(labels, count, seed)).all()


def test_splits_depend_on_the_seed_but_not_on_the_order_of_creation(tmp_path):
    counts = {"cat": 40, "dog": 25, "emu": 12}
    one = open_data(fill(tmp_path / "one", counts), size=SIZE)
    two = open_data(fill(tmp_path / "two", counts, backwards=True), size=SIZE)
    other = open_data(tmp_path / "one", size=SIZE, seed=1)
    assert rows(one.fit) == rows(two.fit)
    assert torch.equal(one.fit.images, two.fit.images)
    assert (one.fingerprint, one.split_fingerprint) == (two.fingerprint, two.split_fingerprint)
    assert one.fingerprint == other.fingerprint
    assert one.split_fingerprint != other.split_fingerprint
    assert rows(one.test) != rows(other.test)
    for split in (one.fit, one.search, one.test):
        assert set(split.take(torch.arange(len(split)))[1].tolist()) == {0, 1, 2}
    (tmp_path / "two" / "cat" / "000.png").write_bytes((tmp_path / "two" / "dog" / "000.png").read_bytes())
    assert open_data(tmp_path / "two", size=SIZE).fingerprint != one.fingerprint


def test_size_of_the_search_split():
    assert [search_count(n) for n in (6, 900, 2000, 6000, 50_000, 200_000)] == [
        3,
        450,
        500,
        600,
        5000,
        10_000,
    ]


# --- cache ----------------------------------------------------------------------------------------


def test_cache_gives_the_same_and_decodes_once(tmp_path, monkeypatch):
    root, cache = fill(tmp_path / "d", {"a": 9, "b": 9}), tmp_path / "cache"
    seen = []
    plain = open_data(root, size=SIZE)
    first = open_data(root, size=SIZE, cache=cache, progress=lambda *p: seen.append(p))
    assert seen[-1] == (18, 18)

    def never(*_):
        raise AssertionError("decoded again")

    with monkeypatch.context() as patch:
        patch.setattr(decoding, "to_pixels", never)
        second = open_data(root, size=SIZE, cache=cache)
    for data in (first, second):
        assert torch.equal(data.fit.images, plain.fit.images)
        assert torch.equal(data.fit.labels, plain.fit.labels)
        assert rows(data.fit) == rows(plain.fit)
        assert (data.fingerprint, data.split_fingerprint) == (plain.fingerprint, plain.split_fingerprint)
        assert (data.notes, data.median_side, data.classes) == (plain.notes, plain.median_side, plain.classes)
    # Another size, or a changed file, is another cache.
    assert open_data(root, size=(8, 8), cache=cache).fit.images.shape[-2:] == (8, 8)
    picture(99).save(root / "a" / "000.png")
    changed = open_data(root, size=SIZE, cache=cache)
    assert changed.fingerprint != plain.fingerprint
    assert len(list(cache.glob("*.npy"))) == 3
    # A damaged cache is made again.
    for file in cache.glob("*.npy"):
        head = file.read_bytes()[:200]
        file.unlink()  # not in place: it is mapped
        file.write_bytes(head)
    assert torch.equal(open_data(root, size=SIZE, cache=cache).fit.images, changed.fit.images)
