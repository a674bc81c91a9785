"""A run goes on where its images, tables and weights lie somewhere else by then, and with nothing else than them."""

import json
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import coco
import shapes
from asking import ask
from pocketformer import SearchSpace, create_model, files
from shop import open_shop

CUT = {  # what a kill is made to come before, once the images have been read
    "train": "pocketformer.pipelines.networks.FinalTraining.run",
    "supernet": "pocketformer.pipelines.supernets.train_supernet",
    "design": "pocketformer.pipelines.design.train_supernet",
    "search": "pocketformer.pipelines.searches.Trajectory",
    "correlate": "pocketformer.pipelines.correlations._train_alone",
    "segment": "pocketformer.pipelines.segmenting._train",
    "detect": "pocketformer.pipelines.detecting._train",
}
SHORT = ("--epochs", 1, "--batch-size", 8, "--workers", 0)


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    folder = open_shop(tmp_path_factory.mktemp("moved"))
    SearchSpace.load(folder / "space.yaml").largest.save(folder / "net.json")
    shapes.architecture().save(folder / "dense.json")
    shapes.write(folder / "scenes", {"train": 2, "val": 1})
    coco.write_set(folder / "coco", train=2)
    given = ("--data", folder / "data", "--space", folder / "space.yaml")
    ask("supernet", *given, *SHORT, "--out", folder / "supernet").succeeds()
    return folder


@pytest.fixture
def cut(cli, monkeypatch):
    """Runs a command that is interrupted when it begins to work."""

    def stop(*_args: object, **_more: object) -> None:
        raise KeyboardInterrupt

    def call(*arguments: object):
        with monkeypatch.context() as patch:
            patch.setattr(CUT[str(arguments[0])], stop)
            return cli(*arguments)

    return call


def another_picture(folder: Path) -> None:
    """Of the same name and size."""
    first = sorted((folder / "train" if (folder / "train").is_dir() else folder).rglob("*.png"))[0]
    with Image.open(first) as image:
        image.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(first)


COMMANDS = {
    "train": ("train", "--architecture", "net.json", *SHORT),
    "supernet": ("supernet", "--space", "space.yaml", *SHORT),
    "design": ("design", "--space", "space.yaml", "--latency", "table.json", "--max-parameters", "90%"),
    "segment": ("segment", "train", "--architecture", "dense.json", *SHORT),
    "detect": ("detect", "train", "--architecture", "dense.json", "--size", 96, 128, *SHORT),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_images_at_another_path_resume_and_other_images_do_not(shop, cut, tmp_path, monkeypatch, command):
    """Named from another folder, copied to another disk, reached by a link; and then with one picture changed."""
    images = {"segment": "scenes", "detect": "coco"}.get(command, "data")
    monkeypatch.chdir(shop)
    begun = (*COMMANDS[command], "--out", tmp_path / "run", "--data")
    assert cut(*begun, images).code == 130
    settings = (tmp_path / "run/config.yaml").read_text()
    copy = shutil.copytree(shop / images, tmp_path / "node")
    (tmp_path / "link").symlink_to(shop / images)
    for place in (shop / images, copy, tmp_path / "link"):
        again = cut(*begun, place)
        assert again.code == 130, again.err
        assert f"note: data: this run began with {images} and goes on with {place}" in again.err
    another_picture(copy)
    cut(*begun, copy).fails(2, "run", "fingerprint changed since this run began")
    cut(*begun, images, "--seed", 1).fails(2, "another run (seed was 0, now 1)")
    assert (tmp_path / "run/config.yaml").read_text() == settings


def test_shards_at_another_path_resume(shop, cut, tmp_path, monkeypatch):
    folder, images = tmp_path / "shards", sorted((shop / "data").rglob("*.png"))
    folder.mkdir()
    with tarfile.open(folder / "a.tar", "w") as tar:
        for i, image in enumerate(images):
            (tmp_path / "label").write_text(
                str(sorted(p.name for p in (shop / "data").iterdir()).index(image.parent.name))
            )
            tar.add(tmp_path / "label", f"{i:03}.cls")
            tar.add(image, f"{i:03}.png")
    split = {"name": "train", "filenames": ["a.tar"], "num_samples": len(images), "shard_lengths": [len(images)]}
    (folder / "_info.json").write_text(json.dumps({"splits": {"train": split}}))
    monkeypatch.chdir(tmp_path)
    begun = ("train", "--architecture", shop / "net.json", *SHORT, "--out", "run", "--data")
    assert cut(*begun, "wds/shards").code == 130
    folder.rename(tmp_path / "moved")
    for place in ("wds/moved", f"wds/{tmp_path / 'moved'}"):
        again = cut(*begun, place)
        assert again.code == 130, again.err
        assert f"this run began with wds/shards and goes on with {place}" in again.err


def other_weights(file: Path, seed: int = 1) -> Path:
    torch.manual_seed(seed)
    described = SearchSpace.load(file.parent / "space.yaml").largest
    save_file(create_model(described, 3, distilled=False).state_dict(), file)
    return file


@pytest.mark.parametrize("option", ["--init", "--latency", "--teacher"])
def test_files_at_another_path_resume_and_others_do_not(shop, cut, tmp_path, monkeypatch, option):
    for name in ("space.yaml", "net.json", "table.json"):
        shutil.copy(shop / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    if option == "--latency":
        command, given = ("design", "--space", "space.yaml", "--max-parameters", "90%"), "table.json"
        other = json.loads(Path(given).read_text())
        next(iter(other["entries"].values()))["latency"] *= 2
        Path("other.json").write_text(json.dumps(other))
        names = ("table.json", "moved.json", "other.json")
    else:
        command = ("train", "--architecture", "net.json", *SHORT)
        other_weights(tmp_path / "first.safetensors", 0)
        other_weights(tmp_path / "other.safetensors", 1)
        names = ("first.safetensors", "moved.safetensors", "other.safetensors")
        if option == "--teacher":
            monkeypatch.setattr("pocketformer.pipelines.trainings.load_teacher", lambda *_: create_teacher(tmp_path))
            names = tuple(f"pocket_efficientformerv2_s0={name}" for name in names)
    given, moved, other = names
    begun = (*command, "--data", shop / "data", "--out", "run", option)
    assert cut(*begun, given).code == 130
    shutil.move(given.rpartition("=")[2], moved.rpartition("=")[2])
    again = cut(*begun, moved)
    assert again.code == 130, again.err
    assert f"this run began with {given} and goes on with {moved}" in again.err
    cut(*begun, other).fails(2, f"{option.strip('-')} was ", "which holds something else")
    shutil.copy(other.rpartition("=")[2], moved.rpartition("=")[2])
    cut(*begun, moved).fails(2, "another run" if moved != given else "changed since")


def create_teacher(folder: Path):
    return create_model(SearchSpace.load(folder / "space.yaml").largest, 3, distilled=False)


def test_a_search_finds_supernet_table_and_images_again(shop, cut, cli, tmp_path, monkeypatch):
    """On another disk than the one that they lay on, and by the relative names of another folder."""
    place = shutil.copytree(shop, tmp_path / "here")
    monkeypatch.chdir(place)
    (place / "supernet").rename(place / "own")
    about = files.read_json("own/config.json")
    assert about["place"] == str(shop / "data")
    files.write_json("own/config.json", {**about, "data": "data", "place": str(place / "data")})
    common = ("--max-parameters", "60%", "--calibration", 8, "--out", tmp_path / "found")
    asked = ("search", "--supernet", "own", "--latency", "table.json", *common)
    assert cut(*asked).code == 130
    monkeypatch.chdir(tmp_path)  # the supernet's images are not at `data` from here
    elsewhere = ("search", "--supernet", place / "own", "--latency", place / "table.json", *common)
    again = cut(*elsewhere)
    assert again.code == 130, again.err
    assert f"they are taken from {place / 'data'}" in again.err
    (place / "data").rename(tmp_path / "images")
    cut(*elsewhere).fails(2, "data, from which", "is not there: say where they are now (--data)")
    again = cut(*elsewhere, "--data", tmp_path / "images")
    assert again.code == 130, again.err
    cli("search", *elsewhere[1:], "--data", tmp_path / "images").succeeds()
    correlate = ("correlate", "--supernet", place / "own", "--subnets", 4, "--epochs", 1, "--out", tmp_path / "c")
    cut(*correlate).fails(2, "say where they are now (--data)")
    assert cut(*correlate, "--data", tmp_path / "images").code == 130
    other = shutil.copytree(place / "own", tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    save_file({name: tensor * 1.01 for name, tensor in tensors.items()}, other / "model.safetensors")
    cut("search", "--supernet", other, *elsewhere[3:]).fails(2, "supernet was", "which holds something else")
    another_picture(tmp_path / "images")
    cut(*elsewhere, "--data", tmp_path / "images").fails(2, "have changed since")


def test_a_finished_training_is_found_from_anywhere(shop, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(shop)
    given = ("train", "--architecture", "net.json", *SHORT, "--out", tmp_path / "net", "--json")
    first = cli(*given, "--data", "data").json()
    assert cli(*given, "--data", shop / "data").json() == first
