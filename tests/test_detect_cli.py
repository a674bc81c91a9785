"""`detect`: four images learned by heart, then judged, drawn and exported; killed trainings end in the same bits."""

import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from pycocotools import mask as reference_masks
from safetensors.torch import load_file

import coco
from asking import ask
from pocketformer.dense.detection import checkpoint
from pocketformer.deploy import facts_path
from pocketformer.errors import UserError, WorkError
from pocketformer.files import Lines
from pocketformer.pipelines import detect_exports, detect_verification
from pocketformer.runs import read_config
from processes import Team, command
from shapes import architecture
from trainings import assert_equal

torch.set_num_threads(1)
LIGHT = {
    "width": 32,
    "hidden": 64,
    "mask_convs": 1,
    "anchor_scale": 6,
    "samples": 32,
    "proposals": 50,
    "candidates": 100,
}
LOOSE = {"warmup_steps": 10, "weight_decay": 0.01, "layer_scale": 0.5, "checkpoint_every": 4}
FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@pytest.fixture
def run(cli):
    return partial(cli, "detect")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("detect")
    coco.write_set(folder / "data")
    architecture().save(folder / "architecture.json")
    return folder


def asked(place: Path, out: Path, data: str = "data", size: tuple = (96, 128), **changes: object) -> list[str]:
    """Arguments of a training that is quick."""
    given = {"--architecture": place / "architecture.json", "--data": place / data, "--out": out, "--workers": 0}
    found = ["train", *(str(x) for pair in given.items() for x in pair), "--size", *map(str, size), "--json"]
    changed = {**LOOSE, **{f"detector.{k}": v for k, v in LIGHT.items()}, **changes}
    options = ("epochs", "batch_size", "learning_rate", "seed", "accumulate", "precision")
    for name, value in changed.items():
        if name in options:
            found += [f"--{name.replace('_', '-')}", str(value)]
        else:
            found += ["--set", f"{name}={value}"]
    return found


@pytest.fixture(scope="module")
def trained(place) -> tuple[Path, dict]:
    """Four images learned by heart: its folder, and what was printed."""
    out = place / "trained"
    arguments = asked(place, out, epochs=110, batch_size=4, learning_rate=2e-3, checkpoint_every=1000)
    return out, ask("detect", *arguments).json()


def test_four_images_are_learned_by_heart(trained):
    folder, found = trained
    assert found["test"]["boxes"]["AP50"] >= 0.95
    assert found["test"]["masks"]["AP50"] >= 0.9
    assert tuple(found["test"]["boxes"]) == tuple(found["test"]["masks"]) == FIGURES
    losses = [line["loss"] for line in Lines.read(folder / "metrics.jsonl")]
    assert losses[-1] < 0.1 * losses[0]
    assert set(Lines.read(folder / "metrics.jsonl")[0]) == {
        *("step", "lr", "loss", "loss_rpn_class", "loss_rpn_box", "loss_class", "loss_box", "loss_mask")
    }
    assert list((folder / "tensorboard").iterdir())
    kept = json.loads((folder / "results.json").read_text())
    assert kept["command"] == "detect train"
    assert kept["test"] == found["test"]


def test_the_folder_says_what_is_needed_to_use_it(trained):
    folder, _ = trained
    config = json.loads((folder / "config.json").read_text())
    assert config["task"] == "detection"
    assert config["classes"] == [{"id": number, "name": name} for number, name in coco.CATEGORIES.items()]
    assert (config["size"], config["mean"], config["std"]) == ([96, 128], [0.5] * 3, [0.5] * 3)
    assert config["heads"]["masks"] is True
    loaded = checkpoint.load_detector(folder)
    assert loaded.classes == coco.CATEGORIES
    assert sum(p.numel() for p in loaded.model.parameters()) == config["parameters"]


def test_evaluate_gives_the_tables_again(trained, place, run):
    folder, found = trained
    again = run("evaluate", "--checkpoint", folder, "--data", place / "data", "--json").json()
    assert again == {"split": "val", "images": 4, **found["test"]}
    given = ("--annotations", place / "data/annotations/instances_val.json", "--images", place / "data/val")
    text = run("evaluate", "--checkpoint", folder / "model.safetensors", *given, "--workers", 0).succeeds().out
    lines = text.splitlines()
    assert len(lines) == 13
    assert lines[0].split() == ["instances_val.json,", "4", "images", "boxes", "masks"]
    assert lines[6].split() == ["APl", "-", "-"]


def test_predict_draws_and_lists(trained, place, run, tmp_path):
    folder, _ = trained
    shutil.copy(place / "data/val/1.png", tmp_path / "one.png")
    answer = run(
        "predict", "--checkpoint", folder, "--out", tmp_path / "drawn", place / "data/val", tmp_path / "one.png"
    )
    assert "1 disc" in answer.succeeds().out
    assert sorted(p.name for p in (tmp_path / "drawn").iterdir()) == [
        *("1.png", "2.png", "3.png", "4.png", "one.png", "results.json")
    ]
    found = json.loads((tmp_path / "drawn/results.json").read_text())
    truth = coco.read_json(place / "data", "val")
    for image in truth["images"]:
        wanted = {a["category_id"] for a in truth["annotations"] if a["image_id"] == image["id"]}
        number = next(i["id"] for i in found["images"] if i["file_name"].endswith(f"val/{image['file_name']}"))
        mine = [entry for entry in found["results"] if entry["image_id"] == number]
        assert {entry["category_id"] for entry in mine} == wanted
        for entry in mine:
            assert entry["category"] == coco.CATEGORIES[entry["category_id"]]
            assert reference_masks.decode(entry["segmentation"]).shape == (image["height"], image["width"])
        drawn = Image.open(tmp_path / "drawn" / image["file_name"])
        assert drawn.size == (image["width"], image["height"])
        assert (np.asarray(drawn) != np.asarray(Image.open(place / "data/val" / image["file_name"]))).any()
    none = run("predict", "--checkpoint", folder, "--out", tmp_path / "none", "--threshold", 1, tmp_path / "one.png")
    assert f"{tmp_path / 'one.png'}: nothing" in none.succeeds().out


@pytest.fixture(scope="module")
def exported(trained, place) -> tuple[Path, dict, onnx.ModelProto]:
    """The file, what was told of it, and the graph with the inner values among its outputs."""
    out = place / "exported/detector.onnx"
    given = ("--checkpoint", trained[0], "--data", place / "data", "--out", out, "--json")
    graphs = []
    with pytest.MonkeyPatch.context() as patch:
        convert = detect_exports._convert
        patch.setattr(detect_exports, "_convert", lambda *given: graphs.append(convert(*given)) or graphs[0])
        found = ask("detect", "export", *given).json()
    return out, found, graphs[0]


def test_export_writes_the_whole_detector(trained, exported):
    path, found, _ = exported
    facts, config = (json.loads(f.read_text()) for f in (facts_path(path), trained[0] / "config.json"))
    assert facts["classes"] == [entry["name"] for entry in config["classes"]]
    assert {n: facts[n] for n in ("task", "mean", "std")}.items() <= config.items()
    assert (facts["shape"], facts["outputs"], facts["first_label"]) == (found["input"], found["outputs"], 1)
    assert facts["fingerprint"] == read_config(trained[0])["facts"]["data_fingerprint"]
    assert found["verified"]["images"] == 4
    assert found["verified"]["objects"] >= 16  # both ways
    assert found["verified"]["agreement"] == found["verified"]["proposals"] == 1
    assert 0 < found["verified"]["inner"] < 1e-4
    assert not any(node.op_type == "BatchNormalization" for node in onnx.load(path).graph.node)
    session = onnxruntime.InferenceSession(path)
    assert [o.name for o in session.get_outputs()] == found["outputs"] == ["boxes", "labels", "scores", "masks"]
    model, counts = checkpoint.load_detector(trained[0]).model, set()
    for seed in range(6):  # any number of objects, and none
        image = torch.rand(1, 3, 96, 128, generator=torch.Generator().manual_seed(seed)) * seed
        image[..., 20:60, 30:80] -= seed / 2
        with torch.no_grad():
            wanted = model(image, ((96, 128),))[0]
        mine = session.run(None, {"image": image.numpy()})
        counts.add(len(mine[0]))
        assert mine[0].shape == tuple(wanted["boxes"].shape)
        assert np.allclose(mine[0], wanted["boxes"], atol=0.05)
        assert mine[3].shape == tuple(wanted["masks"].shape)
    assert 0 in counts
    assert len(counts) > 1


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for branch in node.attribute:
            yield from nodes(branch.g)


def softmax_is_another(graph: onnx.GraphProto) -> None:
    [n for n in graph.node if n.op_type == "Softmax"][-1].op_type = "LogSoftmax"


def proposals_suppress_less(graph: onnx.GraphProto) -> None:
    node = next(n for n in nodes(graph) if n.op_type == "NonMaxSuppression")
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([0.95], np.float32), "wrong"))
    node.input[3] = "wrong"


def scaled(part: str):
    """The largest of a part's weights, ten percent larger."""

    def spoil(graph: onnx.GraphProto) -> None:
        weights = next(w for w in graph.initializer if part in w.name and "weight" in w.name)
        values = onnx.numpy_helper.to_array(weights).copy()
        values[np.unravel_index(np.abs(values).argmax(), values.shape)] *= 1.1
        weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (softmax_is_another, "objects are the same as PyTorch's, wanted are 98%"),
        (proposals_suppress_less, "proposals are the same as PyTorch's, wanted are 98%"),
        (scaled("fpn"), "map_0 differs from PyTorch's by up to"),
        (scaled("rpn.head.cls"), "objectness_0 differs from PyTorch's by up to"),
        (scaled("box_predictor.bbox_pred"), "box_deltas differs from PyTorch's by up to"),
    ],
)
def test_whatever_part_of_an_export_is_wrong_it_is_found(spoil, what, trained, exported, place):
    detector, graph = checkpoint.load_detector(trained[0]), exported[2]
    images = detect_exports._images(detector, (96, 128), place / "data")[:2]
    names = [output.name for output in graph.graph.output]

    def ran(model: onnx.ModelProto) -> list[dict]:
        session = onnxruntime.InferenceSession(model.SerializeToString())
        return [dict(zip(names, session.run(None, {"image": i[None].numpy()}), strict=True)) for i in images]

    assert detect_verification.verify(detector.model, images, ran(graph)).agreement == 1
    wrong = onnx.ModelProto()
    wrong.CopyFrom(graph)
    spoil(wrong.graph)
    with pytest.raises(WorkError, match=what):
        detect_verification.verify(detector.model, images, ran(wrong))


def test_a_wrong_export_is_refused(trained, exported, place, run, tmp_path, monkeypatch):
    def convert_wrong(module, example, opset) -> onnx.ModelProto:
        model = onnx.ModelProto()
        model.CopyFrom(exported[2])
        softmax_is_another(model.graph)
        return model

    monkeypatch.setattr(detect_exports, "_convert", convert_wrong)
    given = ("--checkpoint", trained[0], "--data", place / "data", "--out", tmp_path / "detector.onnx")
    run("export", *given).fails(1, "export refused:", "of", "objects are the same as PyTorch's, wanted are 98%")
    assert list(tmp_path.iterdir()) == []


def test_faster_rcnn_where_there_are_no_masks(place, run):
    coco.write_set(place / "plain", masks=False)
    changes = {"epochs": 2, "batch_size": 4, "accumulate": 2, "precision": "bfloat16", "ema": 0.9}
    by_data = run(*asked(place, place / "by_data", "plain", **changes)).json()
    by_choice = run(*asked(place, place / "by_choice", "data", (128, 96), **changes), "--no-masks").json()
    assert list(by_data["test"]) == list(by_choice["test"]) == ["boxes"]
    assert by_data["parameters"] == by_choice["parameters"]
    assert_equal(*(load_file(place / name / "model.safetensors") for name in ("by_data", "by_choice")))
    run("predict", "--checkpoint", place / "by_data", "--out", place / "d", place / "data/val").succeeds()
    # A detector of boxes is judged on them alone, also where there are masks.
    again = run("evaluate", "--checkpoint", place / "by_data", "--data", place / "data", "--json").json()
    assert list(again) == ["split", "images", "boxes"]


def test_the_best_of_the_search_split_is_kept(place, run):
    out = place / "validated"
    run(*asked(place, out, epochs=3, batch_size=3), "--validate").succeeds()
    lines = Lines.read(out / "metrics.jsonl")
    assert [line["step"] for line in lines if "AP_search" in line] == [0, 1, 2]
    assert_equal(load_file(out / "best.safetensors"), load_file(out / "model.safetensors"))


def test_killed_and_resumed_it_ends_in_the_same_bits_whatever_the_workers(place, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.syspath_prepend(Path(__file__).parent)
    changes = {"epochs": 8, "batch_size": 2, "ema": 0.9, "learning_rate": 1e-3}
    killed, unbroken = tmp_path / "killed", tmp_path / "unbroken"
    team = Team(tmp_path / "first", 1, command, "detect", *asked(place, killed, **changes))
    team.wait(lambda: (killed / "work.jsonl").exists() and len(Lines.read(killed / "work.jsonl")) > 5)
    team.kill()
    team.end()
    assert (killed / "last.ckpt").exists()
    assert not (killed / "model.safetensors").exists()
    arguments = asked(place, killed, **changes)
    arguments[arguments.index("--workers") + 1] = "2"
    for out, given in ((killed, arguments), (unbroken, asked(place, unbroken, **changes))):
        team = Team(tmp_path / f"{out.name}_again", 1, command, "detect", *given)
        assert team.end() == [0], team.errors
    assert_equal(*(load_file(out / "model.safetensors") for out in (killed, unbroken)))
    tests = [json.loads((out / "results.json").read_text())["test"] for out in (killed, unbroken)]
    assert tests[0] == tests[1]


def test_two_processes_share_the_work(place, trained, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.syspath_prepend(Path(__file__).parent)
    out = tmp_path / "run"
    team = Team(tmp_path / "train", 2, command, "detect", *asked(place, out, epochs=2, batch_size=4))
    assert team.end() == [0, 0], team.errors
    assert [line["unit"] for line in Lines.read(out / "work.jsonl")] == [0, 1]
    folder, found = trained
    given = ("evaluate", "--checkpoint", folder, "--data", place / "data", "--workers", 0, "--json")
    team = Team(tmp_path / "evaluate", 2, command, "detect", *given)
    assert team.end() == [0, 0], team.errors
    assert json.loads(team.said) == {"split": "val", "images": 4, **found["test"]}
    team = Team(tmp_path / "predict", 2, command, "detect", "predict", "--checkpoint", folder, "--out", out, "x.png")
    assert team.end() == [2, 2]
    assert "detect predict runs in one process" in team.errors


# --- mistakes


def test_mistakes_are_told_in_one_line(place, trained, run, tmp_path, monkeypatch):
    folder, _ = trained
    run(*asked(place, tmp_path / "a", "nothing")).fails(2, "nothing: no such folder")
    run(*asked(place, tmp_path / "a", anchor=3)).fails(2, "unknown entry 'anchor'")
    run(*asked(place, tmp_path / "a"), "--set", "detector.depth=3").fails(2, "--set detector.depth=3", "known: width")
    run(*asked(place, folder)).fails(2, "holds another run")
    run("evaluate", "--checkpoint", place, "--data", place / "data").fails(2, "model configuration not found")
    run("evaluate", "--checkpoint", folder).fails(2, "--data, or --annotations with --images")
    run("predict", "--checkpoint", folder, "--out", tmp_path / "p", tmp_path / "no.png").fails(2, "no such image")
    (tmp_path / "text.png").write_text("no image")
    shutil.copy(tmp_path / "text.png", tmp_path / "more.png")
    predict = ("predict", "--checkpoint", folder, "--out", tmp_path / "p", place / "data/val/1.png")
    run(*predict, tmp_path / "text.png").fails(2, "text.png cannot be read as an image (not an image)")
    answer = run(*predict, tmp_path / "text.png", tmp_path / "more.png")
    answer.fails(2, "2 of 3 images cannot be read", "text.png", "more.png")
    assert not (tmp_path / "p").exists()  # not even the picture of the first
    run("export", "--checkpoint", folder, "--data", place / "data", "--out", tmp_path / "a.pt").fails(2, ".onnx")
    shutil.copytree(place / "data/val", tmp_path / "own")
    before = {p.name: p.read_bytes() for p in (tmp_path / "own").iterdir()}
    run("predict", "--checkpoint", folder, "--out", tmp_path / "own", tmp_path / "own").fails(2, "is the folder of the")
    one = sorted((tmp_path / "own").iterdir())[0]
    run("predict", "--checkpoint", folder, "--out", tmp_path / "own", one).fails(2, one.name, "to be looked at")
    assert before == {p.name: p.read_bytes() for p in (tmp_path / "own").iterdir()}
    (tmp_path / "none").mkdir()
    run("export", "--checkpoint", folder, "--data", tmp_path / "none", "--out", tmp_path / "a.onnx").fails(
        2, "no images"
    )
    content = coco.read_json(coco.write_set(tmp_path / "other"), "val")
    content["categories"][0]["name"] = "cat"
    coco.write_json(tmp_path / "other", "val", content)
    again = run("evaluate", "--checkpoint", folder, "--data", tmp_path / "other")
    again.fails(2, "other categories", "1 differ, first id 3 ('disc' and 'cat')")
    run(*asked(tmp_path, tmp_path / "a", "other", architecture="x")).fails(2)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    run(*asked(place, tmp_path / "a")).fails(2, "pip install 'pocketformer[detection]'")


def test_a_training_set_without_objects_is_told(place, run, tmp_path):
    content = coco.read_json(coco.write_set(tmp_path / "empty"), "train")
    coco.write_json(tmp_path / "empty", "train", {**content, "annotations": []})
    given = asked(place, tmp_path / "run")
    given[given.index("--data") + 1] = str(tmp_path / "empty")
    run(*given).fails(2, "no image has an object: the split is empty")


def test_an_image_that_breaks_while_it_is_trained_on_is_one_line(place, run, tmp_path, monkeypatch):
    from pocketformer.pipelines import detecting

    coco.write_set(tmp_path / "data")
    opened = detecting._open

    def spoiled(settings):
        found = opened(settings)
        (tmp_path / "data/train/2.png").write_text("no longer")
        return found

    monkeypatch.setattr(detecting, "_open", spoiled)
    given = asked(place, tmp_path / "run", epochs=1, batch_size=4)
    given[given.index("--data") + 1] = str(tmp_path / "data")
    run(*given).fails(1, "2.png cannot be read as an image (not an image)")


def test_folders_of_other_networks_are_refused(trained, tmp_path):
    folder, _ = trained
    shutil.copytree(folder, tmp_path / "copy")
    config = json.loads((tmp_path / "copy/config.json").read_text())
    for change, why in (
        ({"task": "semantic segmentation"}, "holds a model for semantic segmentation"),
        ({"task": None}, "holds no detector"),
        ({"size": "large"}, "is not a detector's configuration"),
        ({"heads": {**config["heads"], "width": 8}}, "do not fit this model"),
        ({"heads": {"colour": 1}}, "unknown entry 'colour'"),
    ):
        (tmp_path / "copy/config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(UserError, match=why):
            checkpoint.load_detector(tmp_path / "copy")
