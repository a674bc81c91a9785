"""Images that are not held in memory: the bits of those that are, what goes wrong, and sources of every kind."""

import copy
import io
import json
import multiprocessing
import os
import pickle
import signal
import tarfile
from pathlib import Path

import pytest
import torch

from photographs import CLASSES, FULL, SIZE, copied, equal, made, one_line, photo, stream, write_photos
from pocketformer.errors import UserError, WorkError
from pocketformer.training import data as data_module
from pocketformer.training import transformed
from pocketformer.training.batches import Augmentation, eval_batches, train_batches
from pocketformer.training.data import open_data
from pocketformer.training.strings import Strings


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"))


# --- streamed and in memory -----------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_images_evaluate_to_the_same_bits(photos, workers):
    memory, streamed = open_data(photos, size=SIZE), stream(photos, workers=workers)
    assert (streamed.classes, streamed.notes, streamed.median_side) == (
        memory.classes,
        memory.notes,
        memory.median_side,
    )
    for name in ("fit", "search", "final", "test"):
        ours, theirs = getattr(streamed, name), getattr(memory, name)
        assert ours.streamed
        assert not theirs.streamed
        assert torch.equal(ours.indices, theirs.indices)
        assert ours.stored_size == theirs.stored_size == SIZE
        expected = list(eval_batches(theirs, 4, (16, 18)))
        batches = eval_batches(ours, 4, (16, 18), workers=workers)
        assert len(batches) == len(expected)
        assert equal(list(batches), expected)
        assert equal(list(batches.at([1, 0])), [expected[1], expected[0]])
        everything = torch.arange(len(ours)).flip(0)
        assert equal([ours.take(everything)], [theirs.take(everything)])
    with pytest.raises(UserError, match="stored at 20×24 px"):
        eval_batches(streamed.test, 4, (21, 16))
    centre = made(streamed.fit, augmentation=None)
    assert equal(centre, made(memory.fit, augmentation=None))


def test_many_images_are_streamed_unless_told_otherwise(photos, monkeypatch):
    assert not open_data(photos, size=SIZE).fit.streamed
    monkeypatch.setattr(data_module, "IN_MEMORY", 1000)
    data = open_data(photos, size=SIZE)
    assert data.fit.streamed
    assert data.notes[0].startswith("the images would take 0.0 GB in memory")
    assert not open_data(photos, size=SIZE, stream=False).fit.streamed


def test_fingerprints_of_streams_are_of_names_and_sizes(photos, tmp_path):
    data = stream(photos)
    other = copied(photos, tmp_path)
    for file in other.rglob("*.jpg"):
        os.utime(file, (1, 1))
    again = stream(other)
    assert (again.fingerprint, again.split_fingerprint) == (data.fingerprint, data.split_fingerprint)
    assert stream(other, seed=1).fingerprint == data.fingerprint
    assert stream(other, seed=1).split_fingerprint != data.split_fingerprint
    (other / "train" / "cat" / "001.jpg").rename(other / "train" / "cat" / "001.jpeg")
    assert stream(other).fingerprint != data.fingerprint
    photo(77).save(other / "train" / "cat" / "001.jpg", quality=95)
    (other / "train" / "cat" / "001.jpeg").unlink()
    assert stream(other).fingerprint != data.fingerprint


def test_strings_are_as_they_were():
    words = ["", "a/b.jpg", "größe/ü.png", os.fsdecode(b"\xff\xfe"), "x" * 300]
    strings = pickle.loads(pickle.dumps(Strings(words)))
    assert [strings[i] for i in range(len(strings))] == words


# --- what goes wrong ------------------------------------------------------------------------------


@pytest.fixture
def spoiled(photos, tmp_path) -> Path:
    root = copied(photos, tmp_path)
    for name in ("train/cat/003.jpg", "val/dog/001.jpg"):
        raw = (root / name).read_bytes()
        (root / name).write_bytes(raw[: len(raw) // 2])
    (root / "train" / "dog" / "notes.png").write_text("not an image")
    (root / "train" / "emu" / "zero.jpg").write_bytes(b"")
    (root / "train" / "emu" / "zzz.jpg").symlink_to(root / "gone.jpg")
    return root


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_refused_before_a_stream_begins(spoiled, workers):
    seen = []
    with pytest.raises(UserError) as memory:
        open_data(spoiled, size=SIZE)
    with pytest.raises(UserError) as streamed:
        stream(spoiled, workers=workers, progress=lambda *p: seen.append(p))
    assert one_line(streamed) == one_line(memory)
    assert "5 of 36 files cannot be read as images: train/cat/003.jpg (truncated), " in one_line(streamed)
    assert seen[-1] == (36, 36)
    with pytest.raises(UserError, match=r"2 of 36 .* train/emu/zero.jpg \(empty file\), train/emu/zzz.jpg \(missing\)"):
        stream(spoiled, check=False)


def test_skipped_images_are_replaced_in_training_and_left_out_of_evaluation(spoiled):
    results = []
    for workers in (0, 2):
        data = stream(spoiled, bad_images="skip")
        assert data.notes[0] == "2 images skipped: train/emu/zero.jpg (empty file), train/emu/zzz.jpg (missing)"
        assert data.late_note() is None
        results.append(made(data.final, workers, last=12, augmentation=Augmentation()))
        assert data.late_note() == (
            "2 images skipped: train/cat/003.jpg (truncated), train/dog/notes.png (not an image)"
        )
    assert equal(*results)
    images, labels = data.final.take(torch.arange(len(data.final)))
    cat = data.final.indices.tolist().index(3)
    assert equal([(images[cat], labels[cat])], [(images[cat + 1], labels[cat + 1])])
    for workers in (0, 2):
        data = stream(spoiled, bad_images="skip")
        batches = list(eval_batches(data.test, 1, (16, 18), workers=workers))
        assert torch.cat([y for _, y in batches]).tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
        assert data.late_note() == "1 image skipped: val/dog/001.jpg (truncated)"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_that_is_met_in_the_work_ends_it_in_one_line(photos, tmp_path, workers):
    root = copied(photos, tmp_path)
    data = stream(root)
    for file in root.rglob("00[1-9].jpg"):
        file.write_bytes(file.read_bytes()[:200])
    for use in (lambda: made(data.final, workers), lambda: list(eval_batches(data.test, 4, (16, 18), workers=workers))):
        with pytest.raises(WorkError) as caught:
            use()
        assert "00" in one_line(caught)
        assert ".jpg cannot be read as an image (truncated); put a readable one there" in one_line(caught)
    skipping = stream(root, bad_images="skip")
    for file in root.rglob("*.*"):
        file.write_bytes(b"x" * file.stat().st_size)
    with pytest.raises(WorkError, match="24 images in a row cannot be read, from train/"):
        made(skipping.final, workers)


@pytest.mark.parametrize("policy", ["refuse", "skip"])
def test_a_folder_that_vanishes_ends_the_work_in_one_line(photos, tmp_path, policy):
    root = copied(photos, tmp_path)
    data = stream(root, bad_images=policy)
    (root / "train" / "cat").rename(tmp_path / "cat")
    with pytest.raises(WorkError) as caught:
        made(data.final, 2)
    assert "was there when the work began and cannot be read now (No such file or directory)" in one_line(caught)
    root.rename(tmp_path / "elsewhere")
    with pytest.raises(WorkError) as caught:
        made(data.final, 2)
    assert one_line(caught) == (
        f"{root}: the images were there when the work began and are gone; put it back and run the same command to "
        "continue"
    )
    (tmp_path / "elsewhere").rename(root)
    (tmp_path / "cat").rename(root / "train" / "cat")
    assert equal(made(data.final, 2), made(stream(photos).final))


def test_a_dead_worker_is_told_in_one_line(photos):
    handler = signal.getsignal(signal.SIGCHLD)
    steps = train_batches(stream(photos).final, 6, (16, 18), FULL, 3, workers=2).steps(0, 10_000)
    next(steps)
    assert signal.getsignal(signal.SIGCHLD) == handler
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    with pytest.raises(WorkError) as caught:
        list(steps)  # torch looks every five seconds
    assert one_line(caught).startswith("a process that prepares images died (")


def test_a_failing_transform_names_the_image(photos, monkeypatch):
    def fail(*_):
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(transformed, "transform", lambda *_: fail)
    for workers in (0, 1):
        with pytest.raises(WorkError) as caught:
            made(stream(photos).final, workers)
        assert one_line(caught).startswith("train/")
        assert one_line(caught).endswith(".jpg cannot be augmented: first line")


# --- other sources --------------------------------------------------------------------------------


def shards(folder: Path, photos: Path, each: int = 10) -> Path:
    """The photographs of train/ and val/ as tar shards in WebDataset's layout."""
    folder.mkdir()
    info = {}
    for split, part in (("train", "train"), ("validation", "val")):
        files = [(label, p) for label, name in enumerate(CLASSES) for p in sorted((photos / part / name).iterdir())]
        names = []
        for first in range(0, len(files), each):
            names.append(f"photos-{split}-{first // each:02}.tar")
            with tarfile.open(folder / names[-1], "w") as tar:
                for label, path in files[first : first + each]:
                    for suffix, raw in (("cls", str(label).encode()), (path.suffix[1:], path.read_bytes())):
                        member = tarfile.TarInfo(f"./{path.parent.name}/{path.stem}.{suffix}")
                        member.size = len(raw)
                        tar.addfile(member, io.BytesIO(raw))
        info[split] = {"name": split, "filenames": names, "num_samples": len(files), "shard_lengths": []}
    (folder / "_info.json").write_text(json.dumps({"splits": info}))
    return folder


def test_shards_are_read_at_random_and_hold_what_the_folder_does(photos, tmp_path):
    source = f"wds/{shards(tmp_path / 'shards', photos)}"
    for streamed in (False, True):
        data, folder = open_data(source, size=SIZE, stream=streamed), stream(photos)
        assert data.fit.streamed == streamed
        assert data.classes == ("0", "1", "2")
        assert torch.equal(data.fit.indices, folder.fit.indices)
        for name in ("fit", "test"):
            ours, theirs = getattr(data, name), getattr(folder, name)
            assert equal(list(eval_batches(ours, 4, (16, 18))), list(eval_batches(theirs, 4, (16, 18))))
    expected = made(folder.final, 0, 2, 9)
    assert equal(made(data.final, 0, 2, 9), expected)
    assert equal(made(data.final, 3, 2, 9), expected)


@pytest.mark.parametrize("streamed", [False, True])
def test_of_three_splits_of_shards_the_middle_one_is_for_the_search(photos, tmp_path, streamed):
    folder = shards(tmp_path / "shards", photos)
    info = json.loads((folder / "_info.json").read_text())
    count = info["splits"]["validation"]["num_samples"]
    for name in info["splits"]["validation"]["filenames"]:
        with tarfile.open(folder / name) as old, tarfile.open(folder / name.replace("validation", "test"), "w") as new:
            for member in old:
                raw = old.extractfile(member).read()
                member.size = len(raw) + member.name.endswith(".jpg")  # copies would be left out
                new.addfile(member, io.BytesIO(raw + b" "))
    names = [name.replace("validation", "test") for name in info["splits"]["validation"]["filenames"]]
    info["splits"]["test"] = {"filenames": names, "num_samples": count}
    (folder / "_info.json").write_text(json.dumps(info))
    data = open_data(f"wds/{folder}", size=SIZE, stream=streamed)
    assert [len(split) for split in (data.fit, data.search, data.test)] == [24, count, count]
    assert any("scored on validation, test is the test split" in note for note in data.notes)
    (folder / names[0]).unlink()
    data = open_data(f"wds/{folder}", size=SIZE, stream=streamed)
    assert len(data.test) == count
    assert any("test was not read: its shards are not there" in note for note in data.notes)


def test_damaged_shards_are_refused_in_one_line(photos, tmp_path):
    folder = shards(tmp_path / "shards", photos)
    source, info = f"wds/{folder}", (folder / "_info.json").read_bytes()
    shard = folder / "photos-train-01.tar"
    whole = shard.read_bytes()

    def refusal(**options) -> str:
        with pytest.raises(UserError) as caught:
            open_data(source, size=SIZE, **options)
        return one_line(caught)

    (folder / "_info.json").write_bytes(info.replace(b'"num_samples": 24', b'"num_samples": 25'))
    assert f"the shards of train hold 24 images, not 25 as {folder} says" in refusal()
    (folder / "_info.json").write_bytes(b"{}")
    assert "_info.json: names no splits" in refusal()
    (folder / "_info.json").write_bytes(info)
    shard.write_bytes(whole[: len(whole) // 2])
    assert "photos-train-01.tar" in refusal()
    shard.unlink()
    assert refusal() == f"{shard}: this shard is missing"
    with tarfile.open(fileobj=io.BytesIO(whole)) as source_tar, tarfile.open(shard, "w") as tar:
        for member in source_tar:
            raw = source_tar.extractfile(member)
            member.name = member.name.replace("dog/003.cls", "dog/003.txt")
            tar.addfile(member, raw)
    for streamed in (False, True):
        assert "1 of 33 files cannot be read as images: photos-train-01.tar: ./dog/003 (no label)" in refusal(
            stream=streamed
        )
        assert open_data(source, size=SIZE, bad_images="skip", stream=streamed).notes[0].startswith("1 image skipped")


class MapSet(torch.utils.data.Dataset):
    classes = ("red", "green")

    def __init__(self, count: int, seed: int):
        self.items = [(photo(seed + i).resize((30, 30)), i % 2) for i in range(count)]
        self.targets = torch.tensor([label for _, label in self.items])

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


class StreamSet(torch.utils.data.IterableDataset):
    def __len__(self):
        return 20

    def __iter__(self):
        return iter([(photo(i), i % 2) for i in range(20)])


def test_data_sets_of_timm_are_streamed_where_they_have_random_access(monkeypatch):
    import timm.data

    def create(name, split, **_):
        if split not in ("train", "test"):
            raise ValueError(f'Unknown split "{split}"')
        return MapSet(20, 0) if split == "train" else MapSet(6, 100)

    monkeypatch.setattr(timm.data, "create_dataset", create)
    memory, streamed = open_data("torch/colours", size=SIZE), stream("torch/colours")
    for name in ("fit", "search", "test"):
        ours, theirs = getattr(streamed, name), getattr(memory, name)
        assert torch.equal(ours.indices, theirs.indices)
        assert equal(list(eval_batches(ours, 4, (16, 18))), list(eval_batches(theirs, 4, (16, 18))))
    assert equal(made(streamed.final, 2), made(copy.copy(streamed.final)))
    monkeypatch.setattr(timm.data, "create_dataset", lambda *_, **__: StreamSet())
    for source, why in (
        ("tfds/birds", "tfds/ reads images in one order only"),
        ("wds/https://example.org/birds", "its shards are on the web: download them into a folder and give wds/FOLDER"),
    ):
        with pytest.raises(UserError) as caught:
            stream(source)
        assert one_line(caught) == f"{source}: cannot be streamed: {why}"


def test_embedded_images_can_be_streamed():
    memory, streamed = open_data("embedded", size=(28, 28)), stream("embedded", size=(28, 28))
    assert torch.equal(streamed.search.indices, memory.search.indices)
    rows = torch.arange(0, 600, 50)
    assert equal([streamed.search.take(rows)], [memory.search.take(rows)])
