"""Whole networks that are timed: interrupted, they go on; a median stands beside each; one head is what they cost."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from metapaths import TINY as METAPATH
from pocketformer import SearchSpace, Supernet, create_model, files
from pocketformer.devices.measure import Measurement, undisturbed
from pocketformer.devices.whole import WholeMeasurement, measure_whole
from pocketformer.pipelines import design, profiling
from pocketformer.pipelines.settings import ProfileSettings
from pocketformer.pipelines.shipping import Measured
from pocketformer.runs import Ledger
from pocketformer.supernet import MetaPathSupernet
from pocketformer.training.compute import Compute
from pocketformer.training.recipe import Recipe
from pocketformer.training.state import TrainingState
from shop import open_shop

SPACE = SearchSpace.named("pocket28")
TABLE = SimpleNamespace(num_classes=10, resolution=(28, 28))


class Device:
    """Exporters and a clock that are interrupted at one of their calls; `done` is what they were asked for."""

    def __init__(self, monkeypatch, cut):
        self.done, self.cut = [], cut
        monkeypatch.setattr(profiling, "write_network", lambda *a: self._write("export", a[4]))
        monkeypatch.setattr(profiling, "write_reference", lambda *a: self._write("reference", a[3]))
        monkeypatch.setattr(profiling, "measure_whole", self._measure)

    def _did(self, what):
        if len(self.done) == self.cut:
            self.cut = None
            raise KeyboardInterrupt
        self.done.append(what)

    def _write(self, what, path):
        self._did(what)
        files.write_text(path, "model")

    def _measure(self, paths, *_, seed, **__):
        self._did(f"session {seed}")
        found = {}
        for name, path in paths.items():
            assert Path(path).exists()
            ms = 1 + seed + int(path.stem, 16) % 100
            found[name] = WholeMeasurement(Measurement(ms, 0.1, (ms,)), ms, 0.1, ms + 0.5)
        return found


@pytest.mark.parametrize("cut", [0, 1, 3, 4, 7])
def test_an_interrupted_timing_goes_on_where_it_was(tmp_path, monkeypatch, capsys, cut):
    """Neither files nor sessions are made twice, in a first sitting and in a second one."""
    settings = SimpleNamespace(space=SPACE, runtime="onnxruntime", profile=ProfileSettings())
    networks = [SPACE.sample(seed) for seed in range(3)]
    with Ledger(tmp_path / "work.jsonl") as ledger:
        chain = SimpleNamespace(path=tmp_path, settings=settings, run=SimpleNamespace(ledger=ledger))
        whole = Device(monkeypatch, None)
        expected = design._measured(chain, TABLE)(networks)
        (tmp_path / "measured.jsonl").unlink()
        broken = Device(monkeypatch, cut)
        with pytest.raises(KeyboardInterrupt):
            design._measured(chain, TABLE)(networks)
        assert len(broken.done) == cut
        measured = design._measured(chain, TABLE)
        assert measured(networks) == expected
        assert broken.done == whole.done  # each once
        again = measured.again(networks[0])
        assert again["latency"] == expected[0]["latency"]
        assert broken.done[len(whole.done) :] == ["reference", "export", *(f"session {i}" for i in range(5))]
        assert Measured(tmp_path / "measured.jsonl", None, ledger).again(networks[0]) == again
    assert not (tmp_path / "timing").exists()
    assert {found["median"] - found["latency"] for found in expected} == {0.5}


@pytest.mark.parametrize("slow", [1.0, 2.0, 5.0])
def test_the_median_is_that_of_all_calls(monkeypatch, slow):
    """Every second call is slow: budgets are on what a call takes undisturbed, and the median says the rest."""

    class Slow:
        def __init__(self, *_): ...

        __enter__ = lambda self: self  # noqa: E731
        __exit__ = load = lambda *_: None

        def calls(self, names, rounds, *_):
            return {name: [[1.0, slow, slow] for _ in range(rounds)] for name in names}

    monkeypatch.setattr("pocketformer.devices.whole.Bench", Slow)
    monkeypatch.setattr("pocketformer.devices.whole.check_measured_here", lambda *_: None)
    table = SimpleNamespace(fingerprint={}, reference=SimpleNamespace(latency=3.0))
    found = measure_whole({"a": "a.onnx"}, table, "reference.onnx", "onnxruntime", rounds=4)["a"]
    assert (found.latency, found.median) == (3.0, pytest.approx(3.0 * slow))
    assert undisturbed(found.raw.samples) == 1.0


@pytest.mark.parametrize("kind", ["supernet", "metapath", "network"])
def test_attention_biases_are_not_decayed(kind):
    model = {
        "supernet": lambda: Supernet(SPACE, 10),
        "metapath": lambda: MetaPathSupernet(METAPATH, 10),
        "network": lambda: create_model(SPACE.largest, 10),
    }[kind]()
    tables = {id(p) for name, p in model.named_parameters() if name.endswith(".table")}
    optimiser = TrainingState(model, Recipe.small_images(weight_decay=0.05), Compute(), 10).optimiser
    decayed = {id(p) for group in optimiser.param_groups if group["weight_decay"] for p in group["params"]}
    assert tables
    assert decayed
    assert not tables & decayed


@pytest.mark.parametrize("budget", ["one head", "100%", "median"])
def test_a_second_head_counts_against_no_budget(tmp_path, cli, monkeypatch, budget):
    """A teacher has two heads learn, one is deployed: the smallest network with one is within reach."""
    shop = open_shop(tmp_path)
    space = SearchSpace.load(shop / "space.yaml")
    small, large = (a.parameters(3, False) for a in (space.minimum.architecture, space.largest))
    value = {"one head": small, "100%": "100%", "median": (small + large) // 2}[budget]

    def stop(*_args: object, **_more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(design, "train_supernet", stop)
    monkeypatch.setattr(design, "load_teacher", lambda *_: torch.nn.Identity())
    given = ("design", "--data", shop / "data", "--space", shop / "space.yaml", "--latency", shop / "table.json")
    answer = cli(*given, "--teacher", "resnet18", "--max-parameters", value, "--out", shop / "run")
    assert answer.code == 130, answer.err
    assert f"largest:\n    size: {large}" in (shop / "run/config.yaml").read_text()
    too_few = cli(*given, "--teacher", "resnet18", "--max-parameters", small - 1, "--out", shop / "other")
    too_few.fails(1, f"its smallest value is {small:,} parameters")
