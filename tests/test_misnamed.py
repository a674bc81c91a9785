"""Files and folders of runs given where another one of them is meant: each is told what it is, and where to look."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import save_file

from asking import ask
from pocketformer import SearchSpace
from pocketformer.models import create_model, weights
from shop import open_shop

SHORT = ("--epochs", 1, "--batch-size", 8, "--workers", 0)


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    """With a supernet, a search, a trained network, and a training that has not ended."""
    folder = open_shop(tmp_path_factory.mktemp("misnamed"))
    space = SearchSpace.load(folder / "space.yaml")
    space.largest.save(folder / "net.json")
    data = ("--data", folder / "data", *SHORT)
    ask("supernet", "--space", folder / "space.yaml", *data, "--out", folder / "supernet").succeeds()
    search = ("search", "--latency", folder / "table.json", "--max-parameters", "90%", "--workers", 0)
    ask(*search, "--supernet", folder / "supernet", "--out", folder / "search").succeeds()
    for name in ("network", "begun"):
        ask("train", "--architecture", folder / "net.json", *data, "--out", folder / name).succeeds()
    for name in ("model.safetensors", "config.json", "architecture.json", "results.json"):
        (folder / "begun" / name).unlink()
    (folder / "network" / "exported").mkdir()
    (folder / "scenes").mkdir()
    (folder / "scenes" / "config.json").write_text('{"task": "semantic segmentation"}')
    save_file(create_model(space.largest, 3).state_dict(), folder / "alone.safetensors")
    return folder


WRONG = {
    "a file of the run": ("network/config.json", "no file of weights; it lies in a run: give {shop}/network"),
    "its ledger": ("network/work.jsonl", "no file of weights; it lies in a run: give {shop}/network"),
    "of no run": ("table.json", "table.json cannot be read: damaged, cut off, or no file of weights"),
    "weights": ("alone.safetensors", "holds weights alone: say of which --architecture"),
    "a folder in it": ("network/exported", "holds no trained network, but lies in a run: give {shop}/network"),
    "the state of a training": ("network/last.ckpt", "the state of a training, not its network: give its folder"),
    "a search": ("search", "is a search, which trains no network: `train --architecture {shop}/search --init"),
    "a folder of a search": ("search/front", "lies in a run: give {shop}/search"),
    "a training that goes on": ("begun", "run of 'train' that has left no network (yet): its command, repeated"),
    "a segmenter": ("scenes", "holds a model for semantic segmentation, not a classifier: `pocketformer segment`"),
    "images": ("data", "data holds no trained network (no config.json)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_network_is_told_from_one(cli, shop, tmp_path, case):
    path, words = WRONG[case]
    words = words.format(shop=shop)
    given = ("--checkpoint", shop / path)
    cli("evaluate", *given, "--data", shop / "data").fails(2, words, alone=True)
    cli("predict", *given, shop / "data", "--workers", 0).fails(2, words)
    cli("export", *given, "--data", shop / "data", "--out", tmp_path / "new.onnx").fails(2, words, alone=True)
    assert not list(tmp_path.iterdir())


def test_what_a_training_cannot_begin_with(cli, shop, tmp_path):
    command = ("train", "--architecture", shop / "net.json", "--data", shop / "data", *SHORT, "--out", tmp_path / "new")
    for path, words in (("network/exported", "lies in a run"), ("begun", "left no network"), ("data", "no trained")):
        cli(*command, "--init", shop / path).fails(2, words)


def test_the_state_of_a_training_says_how_its_images_were_normalised(cli, shop, tmp_path):
    """0.5 and 0.5 on small images; it was taken for ImageNet's."""
    command = ["predict", "--checkpoint", shop / "begun/last.ckpt", "--architecture", shop / "net.json", "--json"]

    assert weights.read(shop / "begun/last.ckpt").normalisation == ((0.5,) * 3, (0.5,) * 3)
    cli(*command, shop / "data/dark/00.png", "--workers", 0).succeeds()


def test_a_supernet_is_found_by_its_file(cli, shop, tmp_path):
    command = ("search", "--latency", shop / "table.json", "--max-parameters", "90%", "--workers", 0)
    cli(*command, "--supernet", shop / "supernet/model.safetensors", "--out", tmp_path / "new").succeeds()
    assert (tmp_path / "new/architecture.json").read_bytes() == (shop / "search/architecture.json").read_bytes()
    cli(*command, "--supernet", shop / "nothing", "--out", tmp_path / "more").fails(2, "nothing: no such folder")


def test_a_table_that_cannot_be_is_refused_before_anything_is_trained(cli, shop, tmp_path):
    values = json.loads((shop / "table.json").read_text())
    (tmp_path / "table.json").write_text(json.dumps({**values, "constant": -5}))
    more = ("--latency", tmp_path / "table.json", "--max-latency", "50%", "--out", tmp_path / "new")
    words = ("ms of the smallest network of space tiny", "profile again")
    cli("design", "--data", shop / "data", "--space", shop / "space.yaml", *more).fails(2, *words)
    cli("search", "--supernet", shop / "supernet", *more).fails(2, *words)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_what_is_no_architecture_is_told(cli, shop, tmp_path):
    command = ("train", "--data", shop / "data", "--out", tmp_path / "new", "--architecture")
    for path in ("network/last.ckpt", "space.yaml", "nothing/s0"):
        cli(*command, shop / path).fails(2, f"{shop / path} is no architecture: give a published name", alone=True)


def test_messages_name_what_the_command_has(cli, shop, tmp_path):
    design = ("design", "--data", shop / "data", "--space", shop / "space.yaml", "--out", tmp_path / "new")
    assert "--max-energy" not in cli(*design).fails(2, "give a budget: --max-latency").err
    larger = (shop / "space.yaml").read_text().replace("resolution: 16", "resolution: 24")
    (tmp_path / "larger.yaml").write_text(larger)
    design = (*design[:4], tmp_path / "larger.yaml", *design[5:], "--max-parameters", "90%")
    answer = cli(*design, "--latency", shop / "table.json")
    answer.fails(2, "space tiny with 3 classes at 16x16 px; this job needs space tiny with 3 classes at 24x24 px")


def test_a_run_finds_its_images_from_another_folder(cli, shop, tmp_path, monkeypatch):
    """They were named from the folder that the training was begun in."""
    monkeypatch.chdir(shop)
    cli("train", "--architecture", "net.json", "--data", "data", *SHORT, "--out", tmp_path / "run").succeeds()
    monkeypatch.chdir(tmp_path)
    export = ("export", "--checkpoint", "run", "--int8", "--out")

    def stop(*_arguments: object, **_more: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pocketformer.pipelines.exporting.calibration_images", stop)
        answer = cli(*export, "a.onnx")
    assert answer.code == 130
    assert f"run has its images from data; they are taken from {shop / 'data'}" in answer.err
    (tmp_path / "run/config.json").write_text((tmp_path / "run/config.json").read_text().replace('"place"', '"x"'))
    cli(*export, "b.onnx").fails(2, "data, from which run has its images, is not there", "--data")


DAMAGED = {
    "no line of a search": ('{"a": 1}\n', "line 1"),
    "a list": ("[1]\n", "line 1"),
    "begun in its middle": ('{"type": "end", "step": 1}\n', "line 1"),
    "parts are missing": ('{"type": "start", "step": 0, "mes": 1}\n{"type": "end"}\n', "search.jsonl is damaged"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_search_is_told(cli, shop, tmp_path, case):
    text, words = DAMAGED[case]
    shutil.copytree(shop / "search", tmp_path / "search")
    (tmp_path / "search/search.jsonl").write_text(text)
    cli("search", "--pick", tmp_path / "search", "--max-parameters", "90%").fails(2, words, "damaged", alone=True)
    train = ("train", "--architecture", tmp_path / "search", "--data", shop / "data", *SHORT, "--init")
    cli(*train, tmp_path / "search", "--out", tmp_path / "new").fails(2, words, "damaged")
    if case != "parts are missing":
        assert words in cli("report", tmp_path / "search").succeeds().err


def test_a_page_tells_what_it_could_not_read_and_is_html(cli, shop, tmp_path):
    shutil.copytree(shop / "network", tmp_path / "run")
    (tmp_path / "run/results.json").write_text("[]")
    (tmp_path / "run/architecture.json").write_text('{"format": 1}')
    said = cli("report", tmp_path / "run").succeeds().lines
    assert len([line for line in said if line.startswith("warning: ")]) == 2, said
    kept = (shop / "network/architecture.json").read_bytes()
    for name in (shop / "network/architecture.json", tmp_path / "page.pdf", tmp_path / "page"):
        cli("report", shop / "network", "--out", name).fails(2, str(name), "ends in .html", alone=True)
    assert (shop / "network/architecture.json").read_bytes() == kept


def test_files_of_another_runtime(cli, shop, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"")
    words = "model.onnx: openvino runs openvino files (.xml), not this one"
    cli("benchmark", tmp_path / "model.onnx", "--runtime", "openvino").fails(2, words)
    given = ("--checkpoint", tmp_path / "model.onnx", "--runtime", "openvino")
    cli("predict", *given, shop / "data").fails(2, words)
    cli("evaluate", *given, "--data", shop / "data").fails(2, words)
