"""Whose classes are whose, through the commands: weights and teachers that name none, and those that name theirs."""

import json
import random
import string

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from timm.utils.misc import natural_key

from foreign import Config
from layouts import saved
from pocketformer.architecture import SearchSpace
from pocketformer.errors import UserError
from pocketformer.models import create_model, load_checkpoint
from pocketformer.training.checkpoint import load_model
from pocketformer.training.class_order import ClassOrder, rows
from pocketformer.training.teachers import load_teacher
from tiny import TINY

torch.set_num_threads(1)

SPACE = SearchSpace.from_dict(TINY)
NAMES = ("1", "2", "10", "11")  # as timm numbers them; by code point: 1, 10, 11, 2
OTHERS = [("ant", "Bee", "cat", "Dog"), ("img9", "img10", "img11", "z"), NAMES]
STILL = ["--epochs", 1, "--batch-size", 8, "--workers", 0, "--learning-rate", "1e-30"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    root = tmp_path_factory.mktemp("order")
    SPACE.smallest.save(root / "shape.json")
    (root / "timm.txt").write_text("\n".join(NAMES))
    (root / "names.json").write_text(json.dumps({name: row for row, name in enumerate(NAMES)}))
    write(root / "data", NAMES)
    return root


def write(folder, names):
    """Images of even brightness, which rises from class to class."""
    for split in ("train", "val"):
        for row, name in enumerate(names):
            (folder / split / name).mkdir(parents=True)
            for i in range(8):
                pixels = np.full((16, 16, 3), 16 + 70 * row + i + 8 * (split == "val"), np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    return folder


def knowing(order) -> dict:
    """A network that tells the brightness of an image by the classes in this order; perfect on `NAMES`."""
    torch.manual_seed(0)
    model = create_model(SPACE.smallest, len(NAMES), distilled=False, layer_scale=1.0).eval()
    x = torch.stack([torch.full((3, 16, 16), (24 + 70 * row) / 127.5 - 1) for row in range(len(NAMES))])
    with torch.no_grad():
        for _ in range(30):  # norms of these images
            model.train()(x)
        model.eval()
        features = model.forward_head(model.forward_features(x), pre_logits=True)
        features = torch.cat([features, torch.ones(len(x), 1)], 1)
        solved = torch.linalg.pinv(features) @ torch.eye(len(x))  # (C + 1, classes)
        place = [NAMES.index(name) for name in order]
        model.head.weight.copy_(solved[:-1].T[place])
        model.head.bias.copy_(solved[-1][place])
    return model.state_dict()


def accuracy(cli, shop, file, *more) -> float:
    given = ["--architecture", shop / "shape.json", "--data", shop / "data", "--workers", 0, "--json"]
    return cli("evaluate", "--checkpoint", file, *given, *more).json()["accuracy"]


def test_weights_without_names_are_only_judged_in_an_order_that_is_known(cli, shop, tmp_path):
    file = saved(tmp_path / "timm.pth", knowing(NAMES))
    given = ["evaluate", "--architecture", shop / "shape.json", "--data", shop / "data", "--checkpoint", file]
    refused = cli(*given).fails(2, "names no classes", "class 1 would be 2 if trained by timm, 10 by torchvision")
    assert "--class-order timm" in refused.lines[-1]
    for order in ("timm", shop / "timm.txt", shop / "names.json"):
        assert accuracy(cli, shop, file, "--class-order", order) > 0.9
    assert accuracy(cli, shop, file, "--class-order", "sorted") <= 0.5
    other = saved(tmp_path / "torchvision.pth", knowing(sorted(NAMES)))
    assert accuracy(cli, shop, other, "--class-order", "sorted") > 0.9
    for order, words in (("natural", "neither timm nor sorted"), (shop / "shape.json", "holds no names")):
        cli(*given, "--class-order", order).fails(2, "--class-order", words)


STATED = {
    "class_to_idx": lambda s: {"model": s, "class_to_idx": {name: row for row, name in enumerate(NAMES)}},
    "classes in args": lambda s: {"net": s, "args": Config(classes=list(NAMES))},
    "mmlab's meta": lambda s: {"state_dict": s, "meta": {"dataset_meta": {"classes": NAMES}}},
    "another order": lambda s: {"state_dict": s, "id2label": {str(row): name for row, name in enumerate(NAMES)}},
}


@pytest.mark.parametrize("form", STATED)
def test_files_that_name_their_classes(cli, shop, tmp_path, form):
    assert accuracy(cli, shop, saved(tmp_path / "a.pth", STATED[form](knowing(NAMES)))) > 0.9


def test_headers_and_configurations_name_classes(cli, shop, tmp_path):
    state = {name: tensor.contiguous() for name, tensor in knowing(NAMES).items()}
    save_file(state, tmp_path / "a.safetensors", {"classes": json.dumps(NAMES)})
    assert accuracy(cli, shop, tmp_path / "a.safetensors") > 0.9
    for number, config in enumerate(
        ({"pretrained_cfg": {"label_names": NAMES}}, {"id2label": dict(enumerate(NAMES))}, {"classes": NAMES})
    ):
        (tmp_path / str(number)).mkdir()
        save_file(state, tmp_path / str(number) / "model.safetensors")
        (tmp_path / str(number) / "config.json").write_text(json.dumps(config))
        assert accuracy(cli, shop, tmp_path / str(number)) > 0.9


def test_a_training_begins_with_the_rows_in_the_datas_order(cli, shop, tmp_path):
    train = ["train", "--architecture", shop / "shape.json", "--data", shop / "data", *STILL]
    file = saved(tmp_path / "timm.pth", knowing(NAMES))
    cli(*train, "--init", file, "--out", tmp_path / "no").fails(2, "names no classes", "--class-order")
    named = saved(tmp_path / "named.pth", STATED["class_to_idx"](knowing(NAMES)))
    for number, more in enumerate(((file, "--class-order", "timm"), (named,))):
        out = tmp_path / f"run{number}"
        answer = cli(*train, "--out", out, "--init", *more).succeeds()
        assert "the head was put into the data's" in answer.err
        assert torch.allclose(load_model(out)[0].head.weight, knowing(sorted(NAMES))["head.weight"])
    others = write(tmp_path / "others", ("a", "b", "c", "d"))
    train[train.index("--data") + 1] = others
    answer = cli(*train, "--init", tmp_path / "run1", "--out", tmp_path / "new")
    assert "a new head" in answer.err


def test_our_files_carry_their_names_wherever_they_go(cli, shop, tmp_path):
    """The folder's weights and the checkpoint of a training, each moved away from its folder."""
    train = ["train", "--architecture", shop / "shape.json", "--data", shop / "data", *STILL, "--out", tmp_path / "run"]
    cli(*train, "--validate").succeeds()
    for name in ("model.safetensors", "last.ckpt"):
        (tmp_path / "run" / name).rename(tmp_path / name)
        evaluated = ["evaluate", "--checkpoint", tmp_path / name, "--architecture", shop / "shape.json"]
        answer = cli(*evaluated, "--data", shop / "data", "--workers", 0)
        assert "names no classes" not in answer.succeeds().err
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["pocketformer"])["classes"] == sorted(NAMES)


@pytest.mark.parametrize("names", OTHERS, ids=["case", "numbers", "folders"])
def test_teachers_of_files(tmp_path, names):
    """Logits by the data's order, whichever the file is in; without a word, none."""
    classes, size = tuple(sorted(names)), (64, 64)
    if list(classes) == sorted(names, key=natural_key):
        names = names[::-1]
    torch.manual_seed(0)
    network = timm.create_model("mobilenetv3_small_050", num_classes=4).eval()
    state, x = network.state_dict(), torch.randn(2, 3, *size)
    expected = network(x)[:, [names.index(name) for name in classes]]
    named = saved(tmp_path / "named.pth", {"net": {f"module.{n}": t for n, t in state.items()}, "classes": list(names)})
    bare = saved(tmp_path / "bare.pth", state)
    text = tmp_path / "names.txt"
    text.write_text("\n".join(names))
    assert torch.allclose(load_teacher(f"mobilenetv3_small_050={named}", classes, size)(x), expected, atol=1e-5)
    given = (f"mobilenetv3_small_050={bare}", classes, size)
    assert torch.allclose(load_teacher(*given, ClassOrder.parse(str(text)))(x), expected, atol=1e-5)
    if classes != tuple(sorted(classes, key=natural_key)):
        with pytest.raises(UserError, match=r"teacher .*bare.pth names no classes: class \d would be"):
            load_teacher(*given)


def test_commands_with_teachers_ask_for_the_order(cli, shop, tmp_path):
    torch.manual_seed(0)
    state = timm.create_model("mobilenetv3_small_050", num_classes=4).state_dict()
    teacher = f"mobilenetv3_small_050={saved(tmp_path / 'teacher.pth', state)}"
    (tmp_path / "space.yaml").write_text(json.dumps(TINY))
    given = ["--data", shop / "data", "--teacher", teacher, "--epochs", 1, "--batch-size", 8, "--workers", 0, "--out"]
    space = ["--space", tmp_path / "space.yaml"]
    for command in (
        ["train", "--architecture", shop / "shape.json"],
        ["supernet", *space],
        ["design", *space, "--max-parameters", "99%"],
    ):
        cli(*command, *given, tmp_path / "out").fails(2, "teacher", "names no classes", "--class-order")
        assert not (tmp_path / "out").exists()
    known = cli("train", "--architecture", shop / "shape.json", *given, tmp_path / "out", "--class-order", "timm")
    assert "it names no classes; the data's are taken in --class-order timm" in known.succeeds().err


def test_a_published_head_is_matched_by_name_not_by_number(monkeypatch, tmp_path):
    """A thousand folders are not ImageNet's for being a thousand."""
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False: create(name))
    for names in ([f"bird {i:03}" for i in range(1000)], [f"{i:04}" for i in range(1000)]):
        given = ("mobilenetv3_small_050.lamb_in1k", tuple(names), (64, 64))
        with pytest.raises(UserError, match=rf"published with.*\({names[0]}, .*synsets.*--class-order FILE"):
            load_teacher(*given)
    text = tmp_path / "config.json"  # as Hugging Face's
    text.write_text(json.dumps({"id2label": {str(row): name for row, name in enumerate(names)}}))
    for order in (str(text), "sorted"):
        assert load_teacher(*given, ClassOrder.parse(order)).num_classes == 1000


def test_a_file_of_lower_precision_is_judged_in_the_order_that_is_known(cli, shop, tmp_path):
    file = saved(tmp_path / "timm.pth", knowing(NAMES))
    given = ["export", "--architecture", shop / "shape.json", "--data", shop / "data", "--workers", 0]
    given += ["--precision", "float16", "--format", "openvino", "--checkpoint", file, "--json", "--out"]
    found = cli(*given, tmp_path / "known.xml", "--class-order", "timm").json()["compared"]
    assert found["accuracy"]["float32"]["accuracy"] > 0.9


def test_random_names_against_timms_and_torchvisions_orders():
    """Accepted without a word exactly where both agree; permuted right where one is named."""
    draw, counts = random.Random(0), {True: 0, False: 0}
    for _ in range(300):
        names = {"".join(draw.choices("abAB01_ " + string.digits, k=draw.randint(1, 4))) for _ in range(4)}
        classes = tuple(sorted(names))
        timms = sorted(classes, key=natural_key)
        if len({str(natural_key(name)) for name in classes}) < len(classes):
            continue
        same = list(classes) == timms
        counts[same] += 1
        if same:
            assert rows(None, len(classes), classes, None, "x") == list(range(len(classes)))
        else:
            with pytest.raises(UserError, match="--class-order"):
                rows(None, len(classes), classes, None, "x")
        found = rows(None, len(classes), classes, ClassOrder.parse("timm"), "x")
        assert [timms[row] for row in found] == list(classes)
        assert rows(timms, len(classes), classes, None, "x") == found
    assert min(counts.values()) > 30
    synsets = tuple(f"n{i:08d}" for i in draw.sample(range(10**8), 1000))
    assert rows(None, 1000, tuple(sorted(synsets)), None, "x") == list(range(1000))


def test_a_loaded_file_goes_on_with_torchs_own_names(shop, tmp_path):
    model = create_model(SPACE.smallest, 4, distilled=False)
    load_checkpoint(model, saved(tmp_path / "a.pth", STATED["class_to_idx"](knowing(NAMES))))
    assert torch.equal(model.head.weight, knowing(NAMES)["head.weight"])
