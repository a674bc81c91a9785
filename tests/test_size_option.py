"""`train --size` and `export --size`: networks for images of another size than the architecture's."""

import json

import onnx
import pytest
import torch

from pocketformer.models.bias import resample
from pocketformer.training.checkpoint import load_model
from workshop import Workshop, open_workshop

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Workshop:
    return open_workshop(tmp_path_factory.mktemp("size"))


def train(cli, shop, out, *more):
    options = ["--data", shop.data, "--epochs", "0.1", "--batch-size", 8, "--workers", 0, "--out", out]
    return cli("train", "--architecture", shop.small, *options, *more)


def test_a_network_is_trained_evaluated_and_exported_at_the_size_asked_for(cli, shop, tmp_path):
    out, text, size = tmp_path / "run", "20X28", (20, 28)
    train(cli, shop, out, "--size", text).succeeds()
    config = json.loads((out / "config.json").read_text())
    assert (config["resolution"], config["data"]["stored_size"]) == (list(size), list(size))
    assert config["pretrained_cfg"]["input_size"] == [3, *size]
    results = json.loads((out / "results.json").read_text())["test"]
    assert cli("evaluate", "--checkpoint", out, "--data", shop.data, "--json").json()["correct"] == results["correct"]
    train(cli, shop, out, "--size", text).succeeds()  # the same command again
    train(cli, shop, out).fails(2, "run holds another run")
    file = out / "exported" / "model.onnx"
    cli("export", "--checkpoint", out, "--data", shop.data, "--out", file).succeeds()
    assert input_of(file) == [1, 3, *size]
    said = cli("evaluate", "--checkpoint", out, "--data", shop.data, "--runtime", "onnxruntime", "--json").json()
    assert said["correct"] == results["correct"]


def input_of(file) -> list[int]:
    return [axis.dim_value for axis in onnx.load(file).graph.input[0].type.tensor_type.shape.dim]


def tables_of(model) -> dict:
    return {name: tensor for name, tensor in model.state_dict().items() if name.endswith("bias.table")}


@pytest.mark.parametrize("start", ["network", "supernet"])
def test_weights_of_another_size_are_resampled(cli, shop, tmp_path, start):
    """At a rate of nothing the tables stay what they began as."""
    init = {"network": shop.network, "supernet": shop.supernet}[start]
    still = ["--learning-rate", "1e-30", "--set", "ema=0", "--set", "weight_decay=0", "--set", "min_lr=0"]
    train(cli, shop, tmp_path / "same", "--init", init, *still).succeeds()
    train(cli, shop, tmp_path / "large", "--init", init, "--size", "48", *still).succeeds()
    (small, _), (large, _) = load_model(tmp_path / "same"), load_model(tmp_path / "large")
    assert large.resolution == (48, 48)
    grids = {f"{name}.table": module.grid for name, module in small.named_modules() if hasattr(module, "grid")}
    new = {f"{name}.table": module.grid for name, module in large.named_modules() if hasattr(module, "grid")}
    assert tables_of(small)
    for name, table in tables_of(small).items():
        torch.testing.assert_close(tables_of(large)[name], resample(table, grids[name], new[name]))
    # And back: the network of 48 px is of the same architecture.
    train(cli, shop, tmp_path / "back", "--init", tmp_path / "large").succeeds()


def test_export_at_another_size(cli, shop, tmp_path):
    file = tmp_path / "model.onnx"
    options = ["--checkpoint", shop.network, "--data", shop.data, "--out", file]
    answer = cli("export", *options, "--size", "24x40").succeeds()
    assert "trained at 16x16 px, exported for 24x40: its accuracy there is another" in answer.err
    assert input_of(file) == [1, 3, 24, 40]
    assert cli("evaluate", "--checkpoint", file, "--data", shop.data, "--json").json()["images"] == 12


def test_what_is_no_size_is_one_line(cli, shop, tmp_path):
    export = ["export", "--checkpoint", shop.network, "--data", shop.data, "--out", tmp_path / "m.onnx"]
    for wrong in ("0", "-5", "24x", "axb", "24x24x3", "1e3", "99999999"):
        train(cli, shop, tmp_path / "run", "--size", wrong).fails(2, "give a number of px", alone=True)
        cli(*export, "--size", wrong).fails(2, "give a number of px", alone=True)
    too_small = "an image of 2x16 px is too small for the strides of its stages"
    train(cli, shop, tmp_path / "run", "--size", "2x16").fails(2, too_small, alone=True)
    cli(*export, "--size", "2x16").fails(2, too_small)
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "m.onnx").exists()
