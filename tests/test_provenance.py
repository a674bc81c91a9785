"""A search belongs to the supernet, images and tables that it began with: what has changed since is refused."""

import itertools
import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from asking import ask
from pocketformer import files
from pocketformer.errors import UserError
from pocketformer.pipelines import images
from pocketformer.pipelines.trained import learned_from
from pocketformer.training.data import open_data
from shop import open_shop

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = open_shop(tmp_path_factory.mktemp("provenance"))
    known = ("--data", folder / "data", "--space", folder / "space.yaml", "--epochs", 1, "--batch-size", 8)
    ask("supernet", *known, "--out", folder / "supernet").succeeds()
    return folder


@pytest.fixture
def shop(trained, tmp_path) -> Path:
    """A copy that a test may change."""
    folder = shutil.copytree(trained, tmp_path / "shop")
    config = files.read_json(folder / "supernet/config.json")
    files.write_json(folder / "supernet/config.json", {**config, "data": str(folder / "data")})
    return folder


@pytest.fixture
def search(shop, cli):
    given = ("search", "--supernet", shop / "supernet", "--latency", shop / "table.json")
    return partial(cli, *given, "--out", shop / "found", "--max-parameters", "60%", "--calibration", 8)


def another_pixel(file: Path) -> None:
    image = Image.open(file).convert("RGB")
    image.putpixel((0, 0), (255, 0, 0))
    image.save(file)


def renamed(folder: Path) -> None:
    (folder / "data/light").rename(folder / "data/aaa")


def one_more_class(folder: Path) -> None:
    shutil.copytree(folder / "data/light", folder / "data/more")


def one_image_less(folder: Path) -> None:
    next((folder / "data/dark").glob("*.png")).unlink()


def another_picture(folder: Path) -> None:
    first, second, *_ = sorted((folder / "data/dark").glob("*.png"))
    shutil.copy(first, second)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (renamed, ["knows the classes dark, grey, light", "has aaa, dark, grey"]),
        (one_more_class, ["knows the classes dark, grey, light", "has dark, grey, light, more"]),
        (one_image_less, ["images of", "have changed since"]),
        (another_picture, ["images of", "have changed since"]),
    ],
)
def test_other_images_than_the_supernets_are_refused(shop, search, cli, change, words):
    change(shop)
    search().fails(2, *words)
    assert not (shop / "found").exists()
    given = ("--supernet", shop / "supernet", "--subnets", 4, "--epochs", 1, "--out", shop / "correlation")
    cli("correlate", *given).fails(2, *words)
    assert not (shop / "correlation").exists()


def other_weights(folder: Path) -> None:
    file = folder / "supernet/model.safetensors"
    save_file({name: tensor * 1.01 for name, tensor in load_file(file).items()}, file)


def other_times(folder: Path) -> None:
    table = json.loads((folder / "table.json").read_text())
    next(iter(table["entries"].values()))["latency"] *= 2
    (folder / "table.json").write_text(json.dumps(table))


@pytest.mark.parametrize(("change", "what"), [(other_weights, "supernet"), (other_times, "latency table")])
@pytest.mark.parametrize("finished", [True, False])
def test_a_search_goes_on_with_the_files_it_began_with(shop, search, change, what, finished):
    search().succeeds()
    log = shop / "found/search.jsonl"
    if not finished:
        log.write_text("".join(log.read_text().splitlines(keepends=True)[:2]))
    before = log.read_bytes()
    change(shop)
    search().fails(2, "found", f"the {what} changed since this run began")
    assert log.read_bytes() == before


@pytest.mark.parametrize("own_test", [False, True])
def test_weights_are_not_tested_on_what_they_have_seen(shop, cli, own_test):
    """By another seed the same images are split otherwise, but for a test split that the folder has of its own."""
    data = shop / "data"
    if own_test:
        shutil.move(data, shop / "all")
        for part in ("train", "val"):
            shutil.copytree(shop / "all", data / part)
        for image in sorted((data / "val").rglob("*.png")):
            another_pixel(image)
    splits = [open_data(data, size=(16, 16), seed=seed) for seed in (0, 1)]
    streamed = open_data(data, size=(16, 16), seed=0, stream=True)  # known by its files, the others by their pixels
    for validate, seen in itertools.product((False, True), map(images.identity, (splits[0], streamed))):
        images.refuse_seen("runs/x", seen, 0, splits[0], validate)
        other = partial(images.refuse_seen, "runs/x", seen, 0, splits[1], validate)
        if own_test and not validate:
            other()
        else:
            with pytest.raises(UserError, match="held out by" if own_test else "tested on here: give --seed 0"):
                other()


def test_a_training_does_not_start_from_what_has_seen_its_test(shop, search, cli):
    search().succeeds()
    given = ("train", "--data", shop / "data", "--architecture", shop / "found", "--epochs", 1, "--batch-size", 8)
    start = (*given, "--seed", 1, "--out", shop / "new", "--init")
    for weights in ("found", "supernet"):
        cli(*start, shop / weights).fails(2, f"{weights} learned from these images as --seed 0 splits them")
    cli(*given, "--out", shop / "network", "--init", shop / "found").succeeds()
    for weights in ("network", "network/model.safetensors"):
        cli(*start, shop / weights).fails(2, f"{weights} learned from these images as --seed 0", "give --seed 0")
    assert not (shop / "new").exists()


def test_somebody_elses_settings_beside_the_weights_are_passed_over(tmp_path):
    """A `config.yaml` is nothing rare in a folder of projects."""
    weights = tmp_path / "project/weights/s0.pth"
    for text in ("model: s0\n", "- 1\n", "a: [", "command: train\nsettings: {}\nfacts: {}\n"):
        weights.parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "project/config.yaml").write_text(text)
        assert learned_from(weights) is None
    config = {"command": "train", "versions": {}, "settings": {"seed": 3}}
    facts = {"data_fingerprint": "a", "split_fingerprint": "b"}
    (tmp_path / "project/config.yaml").write_text(json.dumps({**config, "facts": facts}))
    assert learned_from(weights) == ({"fingerprint": "a", **facts}, 3)


def test_a_table_says_what_it_lacks(shop, search):
    table = json.loads((shop / "table.json").read_text())
    first = next(iter(table["entries"]))
    del table["entries"][first]
    (shop / "table.json").write_text(json.dumps(table))
    search().fails(2, "does not answer for every member of space tiny", "1 of its blocks", first)


def test_what_would_be_passed_over_is_refused(shop, search, cli):
    search("--energy", "phone=2W").fails(2, "phone", "--latency names no device")
    search("--max-energy", "2mJ").fails(2, "--max-energy 2mJ: give --energy too")
    assert "note: fit has but" in search("--calibration", 10_000, "--out", shop / "all").succeeds().err
    search().succeeds()
    extra = ("--race", "--method", "random", "--alpha", "size=1", "--beam", 2)
    picked = cli("search", "--pick", shop / "found", "--max-parameters", "90%", *extra)
    picked.fails(2, "leave out --alpha, --method, --beam, --race")
    given = ("supernet", "--data", shop / "data", "--out", shop / "new")
    cli(*given, "--space", shop / "space.yaml", "--distillation", "soft").fails(2, "give --teacher")
    train = ("train", "--data", shop / "data", "--out", shop / "new", "--architecture", "efficientformerv2_s0")
    cli(*train, "--distillation", "soft").fails(2, "give --teacher")
    cli(*given, "--space", "metapath32", "--plain").fails(2, "--plain", "metapath32")
    assert not (shop / "new").exists()


def test_of_two_spaces_the_difference_is_told(shop, cli):
    text = (shop / "space.yaml").read_text()
    (shop / "space.yaml").write_text(text.replace("widths: [6, 8]", "widths: [6, 10]"))
    known = ("--data", shop / "data", "--space", shop / "space.yaml", "--epochs", 1, "--batch-size", 8)
    first = cli("supernet", *known, "--out", shop / "other")
    assert first.code == 0, first.err
    (shop / "space.yaml").write_text(text)
    cli("supernet", *known, "--out", shop / "other").fails(2, "space stages[2] widths[1] was 10, now 8")
