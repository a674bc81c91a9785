"""`benchmark`: which networks it times, what it says of them, and which of the paper's observations it finds."""

import json
import os
import random
import statistics
from pathlib import Path

import onnx
import pytest
import timm
import torch

from pocketformer.architecture import NAMES, Architecture, SearchSpace
from pocketformer.architecture.results import peers, published_results
from pocketformer.cli import benchmark_text
from pocketformer.deploy.formats import onnx as onnx_format
from pocketformer.devices.bench import Bench
from pocketformer.devices.opening import open_all
from pocketformer.devices.operators import OBSERVATIONS, Comparison, Operator, Reshaped, comparisons
from pocketformer.devices.peers import costs, inference_form, write_peer
from pocketformer.errors import UserError, WorkError
from pocketformer.models import create_model
from pocketformer.pipelines import benchmarking, lineup
from pocketformer.pipelines import operators as analysis
from pocketformer.report import benchmarks as plots
from pocketformer.search import mes
from pocketformer.training.checkpoint import save_model

# --- which networks


def test_every_peer_is_a_network_of_timm():
    known, names = set(timm.list_models()), [peer.name for peer in peers()]
    assert {peer.timm for peer in peers()} <= known
    assert len(set(names)) == len(names)
    rows = {result.name for result in published_results()}
    assert all((peer.result is not None) == (peer.name in rows) for peer in peers())
    assert all(peer.top1 and peer.source and peer.kind for peer in peers())
    newer = " ".join(peer.name for peer in peers() if peer.result is None)
    for family in ("RepViT", "FastViT", "MobileNetV4", "SwiftFormer", "StarNet", "MobileOne", "EdgeNeXt"):
        assert family in newer


def test_what_the_table_leaves_out_is_not_in_timm():
    timed = {entrant.result.name for entrant in lineup.table() if entrant.result}
    missing = {r.name for r in published_results()} - timed
    missing = {name for name in missing if not name.endswith("_retrained")}  # the same networks once more
    assert missing == {
        *("EdgeViT-XXS", "EdgeViT-XS", "EdgeViT-S", "Hydra Attention", "MobileFormer-508M", "UniNet-B1"),
        *("PVT-Small", "T2T-ViT-14", "CSwin-T", "NasViT-Supernet"),
    }
    for word in ("edgevit", "hydra", "mobileformer", "uninet", "t2t", "cswin", "nasvit", "pvt_small"):
        assert not timm.list_models(f"{word}*")


@pytest.mark.parametrize(
    "name", ["mobilenetv2_140", "fbnetc_100", "mobilenetv3_large_100", "deit_tiny_distilled_patch16_224", "levit_128s"]
)
def test_costs_of_peers_are_those_of_the_papers_table(name):
    peer = next(peer for peer in peers() if peer.timm == name)
    found = costs(inference_form(name).to("cpu"), (peer.resolution, peer.resolution))
    assert found.parameters / 1e6 == pytest.approx(peer.result.parameters, rel=0.02)
    assert found.macs / 1e9 == pytest.approx(peer.result.gmacs, rel=0.06)


def test_costs_of_ours_are_counted_alike():
    """The closed form, and the counter that the peers are counted by."""
    architecture = Architecture.named("efficientformerv2_s0")
    network = timm.create_model("efficientformerv2_s0").eval()
    found = costs(network, (224, 224))
    assert found.parameters == architecture.parameters()
    assert found.macs == pytest.approx(architecture.macs(), rel=0.005)


def test_inference_forms_are_reparameterised():
    trained = sum(p.numel() for p in timm.create_model("mobileone_s0").parameters())
    deployed = costs(inference_form("mobileone_s0"), (64, 64))
    assert deployed.parameters < 0.45 * trained
    assert not any("BatchNorm" in type(m).__name__ for m in inference_form("repvit_m0_9").modules())


def test_names():
    assert lineup.named("efficientformerv2_s0").architecture == Architecture.named("efficientformerv2_s0")
    theirs = lineup.named("timm:efficientformerv2_s0")
    assert (theirs.timm, theirs.architecture) == ("efficientformerv2_s0", None)
    assert lineup.named("repvit_m0_9") == lineup.named("timm:repvit_m0_9")
    assert lineup.named("repvit_m0_9").top1 == (78.7, 79.1)
    assert lineup.named("resnet18").resolution == (224, 224)
    assert lineup.named("some/model.onnx").file == Path("some/model.onnx")
    for name, near in (("repvit_m0_8", "repvit_m0_9"), ("timm:resnet51", "resnet50"), ("efficientformer_l2", "_l1")):
        with pytest.raises(UserError, match=near):
            lineup.named(name)


# --- ReLU


@pytest.mark.parametrize("name", ["mobilenetv3_large_100", "levit_128s", "efficientformerv2_s0", "efficientformer_l1"])
def test_relu_variants_hold_no_other_activation(name, tmp_path):
    entrant, nodes = lineup.named(name), {}
    small = entrant.resolution if entrant.timm == "levit_128s" else (64, 64)
    for relu in (False, True):
        path = tmp_path / f"{relu}.onnx"
        found = type(entrant)(name, small, entrant.architecture, entrant.timm).write(onnx_format, path, 1, relu)
        nodes[relu] = {node.op_type for node in onnx.load(path).graph.node}
        assert bool(found["activations"]) != relu
    others = {"Gelu", "Erf", "HardSwish", "Tanh"}
    assert nodes[False] & others
    assert not nodes[True] & others
    assert "Relu" in nodes[True]


def test_gates_are_no_activations(tmp_path):
    path = tmp_path / "m.onnx"
    write_peer(onnx_format, "mobilenetv3_large_100", 10, (32, 32), path, relu=True)
    assert "HardSigmoid" in {node.op_type for node in onnx.load(path).graph.node}


def test_activations_called_as_functions_are_found():
    class Called(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return torch.nn.functional.silu(self.conv(x))

    found = costs(Called(), (8, 8))
    assert found.activations == ("silu",)
    assert found.macs == 4 * 27 * 36


# --- a run


def test_two_networks_end_to_end(cli, tmp_path):
    out, plot, page = tmp_path / "result.json", tmp_path / "plot.svg", tmp_path / "plot.html"
    given = ("mobilenetv3_small_050", "mobilenetv2_100", "--rounds", 7, "--out", out, "--plot", plot)
    text = cli("benchmark", *given).succeeds().out
    assert "MobileNetV2x1.0" in text
    assert "mobilenetv3_small_050" in text
    result = json.loads(out.read_text())
    base = next(row for row in result["networks"] if row["name"] == "MobileNetV2x1.0")
    for row in result["networks"]:
        ratios = sorted(a / b for a, b in zip(row["samples"], base["samples"], strict=True))
        assert len(ratios) == 7
        assert row["ratio"] == pytest.approx(ratios[3], rel=1e-4)
        assert row["ratio95"] == pytest.approx([ratios[0], ratios[-1]], rel=1e-4)
        assert row["median_ms"] == pytest.approx(statistics.median(row["samples"]), rel=1e-4)
        cost = {"size": row["parameters"], "latency": row["ratio"] * base["median_ms"]}
        assert row["mes"] == pytest.approx(mes(cost, {"latency": base["median_ms"]}))
    assert base["ratio95"] == [1, 1]
    assert base["paper_ratios"] == {"pixel6": 1, "iphone12": 1, "a100": 1}
    known = result["fingerprint"]
    assert {"device", "runtime", "version", "threads", "precision", "date", "batch", "packages"} <= known.keys()
    assert plot.read_text().startswith("<svg")
    assert "MobileNetV2x1.0" in plot.read_text()
    plots.save_plot(plots.accuracy_latency(result), page)
    assert "plotly" in page.read_text().lower()
    assert not list(tmp_path.glob(".*"))


def test_a_trained_folder_is_timed_with_its_own_head(cli, tmp_path):
    model = create_model(SearchSpace.named("pocket32").smallest, num_classes=7, resolution=32)
    save_model(tmp_path / "run", model, tuple("abcdefg"), {})
    result = json.loads(cli("benchmark", tmp_path / "run", "--rounds", 5, "--json").succeeds().out)
    row = next(row for row in result["networks"] if row["name"] == str(tmp_path / "run"))
    assert (row["classes"], row["parameters"]) == (7, sum(p.numel() for p in model.parameters()))
    told = cli("benchmark", tmp_path / "run", "--rounds", 5).succeeds().out
    assert f"1000 classes in all, but for: {tmp_path / 'run'} (7)" in told
    assert " 0.0 " not in told  # no network of no multiply-adds


@pytest.mark.parametrize(
    ("shape", "batch", "words"),
    [
        ((1, 3, 32, 32), 8, ["1 image(s)", "--batch is 8", "--batch 1"]),
        ((4, 3, 32, 32), 1, ["4 image(s)", "--batch is 1", "--batch 4"]),
        ((1, 9, 6), 1, ["(1, 9, 6)", "not images"]),
    ],
)
def test_a_file_for_another_number_of_images_is_refused(cli, tmp_path, shape, batch, words):
    path = tmp_path / "model.onnx"
    onnx_format.write_quick(torch.nn.Flatten(), torch.randn(shape), path)
    cli("benchmark", path, "--batch", batch).fails(2, *words)


def test_the_table_is_printed_before_it_is_written(cli, tmp_path, monkeypatch):
    from pocketformer import files

    def full(*_):
        raise OSError(28, "No space left on device", "x.json")

    monkeypatch.setattr(files, "write_json", full)
    answer = cli("benchmark", "mobilenetv3_small_050", "--rounds", 5, "--out", tmp_path / "x.json")
    assert answer.code == 1
    assert "mobilenetv3_small_050" in answer.out
    assert "No space left" in answer.err


def made_up(samples, base):
    """The rows of networks of which only the samples are known."""
    field = benchmarking._Field.__new__(benchmarking._Field)
    field.entrants = {name: lineup.named(name) for name in samples}
    field.costs, field.units = {}, dict.fromkeys(samples, base)
    samples = samples | {base: samples[next(iter(samples))]}
    field.printed = next(r for r in published_results() if r.name == "MobileNetV2x1.0")
    return {name: field.row(name, samples) for name in field.entrants}


def test_ratios_to_the_paper_and_ranks():
    names = ["efficientformerv2_s0", "efficientformerv2_s1", "efficientformerv2_s2", "efficientformerv2_l"]
    drift = [1 + 0.1 * i for i in range(9)]  # of the device: cancels in the ratios
    samples = {name: [(i + 1) * d for d in drift] for i, name in enumerate(names)}
    rows = made_up(samples, "MobileNetV2x1.0")
    assert [row["ratio"] for row in rows.values()] == pytest.approx([1, 2, 3, 4])
    assert rows[names[1]]["ratio95"] == pytest.approx([2, 2])
    assert rows[names[0]]["paper_ratios"]["pixel6"] == pytest.approx(20.8 / 25.3)
    assert benchmarking.agreement(list(rows.values()))["pixel6"] == {"networks": 4, "correlation": pytest.approx(1)}
    other = made_up(samples, "MobileNetV2x1.0 at 64x64 px")  # the paper's ratios are to that at 224 px
    assert {ratio for row in other.values() for ratio in row["paper_ratios"].values()} == {None}
    reverse = [{**row, "ratio": -row["ratio"]} for row in rows.values()]
    assert benchmarking.agreement(reverse)["a100"]["correlation"] == pytest.approx(-1)


def test_what_crashes_the_runtime_is_left_out(tmp_path, monkeypatch):
    good, bad = tmp_path / "good.onnx", tmp_path / "bad.onnx"
    onnx_format.write_quick(torch.nn.Conv2d(3, 4, 3).eval(), torch.randn(1, 3, 8, 8), good)
    bad.write_bytes(b"no model")
    files = {"a": good, "broken": bad, "b": good, "killer": good}
    load = Bench.load

    def fatal(self, name, path):
        if name == "killer":
            self.worker.call(os._exit, 3, what="crashed while it loaded killer")
        return load(self, name, path)

    monkeypatch.setattr(Bench, "load", fatal)
    with Bench("onnxruntime") as bench:
        failed = open_all(bench, files)
        assert {type(failed["broken"]), type(failed["killer"])} == {UserError, WorkError}
        assert "killer" in str(failed["killer"])
        assert set(failed) == {"broken", "killer"}
        assert set(bench.interleave(["a", "b"], 2, 1)) == {"a", "b"}


def test_a_network_that_cannot_be_exported_is_left_out(cli, monkeypatch):
    def write(self, format, path, batch, relu):
        if "repvit" in str(self.timm):
            raise RuntimeError("no such operator\nand more")
        return whole(self, format, path, batch, relu)

    whole = lineup.Entrant.write
    monkeypatch.setattr(lineup.Entrant, "write", write)
    answer = cli("benchmark", "repvit_m0_9", "mobilenetv2_100", "--rounds", 5)
    assert "Left out: RepViT-M0.9: no such operator" in answer.succeeds().out
    assert "left out: RepViT-M0.9" in answer.err
    answer = cli("benchmark", "repvit_m0_9", "--rounds", 5, "--json").fails(1)
    assert answer.lines[-1].endswith("no such operator")


# --- operators


def test_operators_keep_their_shapes_and_compute_the_same_sizes():
    found = comparisons()
    assert {c.observation for c in found} == set(OBSERVATIONS) == {1, 2, 3, 4}
    operators = {o.name: o for c in found for o in (*c.slower, *c.faster)}
    with torch.no_grad():
        for operator in operators.values():
            x = torch.randn(1, *operator.shape)
            y = operator.chain(4)(x)
            assert operator.parallel or y.shape == x.shape, operator.name
            assert 0.01 < y.std() < 10, operator.name  # values that grew would saturate the softmax of the next
    for comparison in (c for c in found if c.observation == 1):
        shapes = {tuple(o.chain(1)(torch.randn(1, *o.shape)).shape) for o in (*comparison.slower, *comparison.faster)}
        assert len(shapes) == 1


def test_reshaped_attention_computes_what_its_parts_compute():
    torch.manual_seed(0)
    both, x = Reshaped(16, (3, 5)).eval(), torch.randn(2, 16, 3, 5)
    pooled = both.pool(x)
    tokens = both.attention(pooled.flatten(2).mT)
    torch.testing.assert_close(both(x), tokens.mT.reshape(2, 16, 3, 5))


def noisy(mean, spread=0.01, rounds=30, seed=0):
    rng = random.Random(seed)
    return [mean * (1 + rng.gauss(0, spread)) for _ in range(rounds)]


@pytest.mark.parametrize(
    ("slower", "faster", "hardly", "spread", "expected"),
    [
        (2.0, 1.0, False, 0.01, analysis.HOLDS),
        (0.5, 1.0, False, 0.01, analysis.FAILS),
        (1.0, 1.0, False, 0.05, analysis.UNDECIDED),
        (1.02, 1.0, True, 0.005, analysis.HOLDS),
        (0.5, 1.0, True, 0.01, analysis.HOLDS),
        (1.3, 1.0, True, 0.01, analysis.FAILS),
        (1.05, 1.0, True, 0.05, analysis.UNDECIDED),
    ],
)
def test_observations_are_decided_by_intervals(slower, faster, hardly, spread, expected):
    a, b = (Operator(name, (1,), torch.nn.Identity) for name in "ab")
    row = analysis.judge(
        Comparison(4, "a vs b", "", (a,), (b,), hardly),
        {"a": noisy(slower, spread, seed=1), "b": noisy(faster, spread, seed=2)},
    )
    assert row["verdict"] == expected
    assert row["ratio"] == pytest.approx(slower / faster, rel=0.05)
    assert row["ratio95"][0] <= row["ratio"] <= row["ratio95"][1]


def test_differences_of_chains_have_no_session_in_them():
    per_op, session = 0.3, [1.0, 2.0, 5.0]
    samples = {analysis._session("x", n): [n * per_op + s for s in session] for n in (analysis._SHORT, analysis._LONG)}
    assert analysis.differences(samples, "x") == pytest.approx([per_op] * 3)


def test_sums_and_intervals_of_nothing(tmp_path):
    a, b, c = (Operator(name, (1,), torch.nn.Identity) for name in "abc")
    costs_of = {"a": noisy(3.0), "b": noisy(1.0), "c": noisy(1.0)}
    assert analysis.judge(Comparison(2, "", "", (a,), (b, c)), costs_of)["ratio"] == pytest.approx(1.5, rel=0.02)
    for hardly in (False, True):
        for nothing in ([-0.001, 0.001, 0.0] * 10, [-0.001, -0.002, 0.0] * 10):
            comparison = Comparison(2, "a vs b", "", (a,), (b,), hardly)
            free = analysis.judge(comparison, {**costs_of, "b": nothing})
            assert (free["ratio"], free["ratio95"][1], free["verdict"]) == (None, None, analysis.UNDECIDED)
            json.dumps(free, allow_nan=False)
            found = {"comparisons": [free], "observations": analysis.observations([free]), "left_out": []}
            found["fingerprint"] = dict.fromkeys(
                ("device", "on", "runtime", "version", "threads", "batch", "rounds"), 1
            )
            assert "undecided" in benchmark_text.operators_text(found)
            plots.save_plot(plots.operator_ratios(found), tmp_path / "o.svg")


def test_operators_end_to_end(tmp_path):
    chosen = [c for c in comparisons() if "7x7, width 448" in c.title and c.observation in (2, 3)][:2]
    found = analysis.measure_operators("onnxruntime", rounds=6, chosen=chosen)
    assert [row["comparison"] for row in found["comparisons"]] == [c.title for c in chosen]
    for row in found["comparisons"]:
        slower = [sum(parts) for parts in zip(*(found["operators"][name] for name in row["slower"]), strict=True)]
        assert row["slower_ms"] == pytest.approx(statistics.median(slower), abs=1e-5)
    text = benchmark_text.operators_text(found)
    assert chosen[0].title in text
    assert "Observation 2" in text
    plots.save_plot(plots.operator_ratios(found), tmp_path / "o.svg")
    assert chosen[0].title in (tmp_path / "o.svg").read_text()


# --- refusals


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mobilenetv2_10"], ["mobilenetv2_10", "mobilenetv2_100"]),
        (["efficientformerv2_s9"], ["efficientformerv2_s"]),
        (["timm:efficientformer_l2"], ["efficientformer_l1"]),
        (["none.onnx"], ["none.onnx"]),
        (["none.onnx", "--activation", "relu"], ["--activation"]),
        (["efficientformerv2_s0", "--activation", "swish"], ["swish", "relu"]),
        (["efficientformerv2_s0", "--device", "tpu"], ["tpu", "cuda"]),
        (["efficientformerv2_s0", "--plot", "x.png"], ["x.png", ".svg"]),
        (["efficientformerv2_s0", "--out", "."], ["folder"]),
        (["efficientformerv2_s0", "--out", "pyproject.toml/x.json"], ["pyproject.toml is not a folder"]),
        (["resnet18", "--plot", "x.svg"], ["nothing to draw"]),
        (["--operators", "efficientformerv2_s0"], ["--operators"]),
        (["efficientformerv2_s0", "--rounds", "2"], ["--rounds"]),
    ],
)
def test_mistakes(cli, arguments, words):
    cli("benchmark", *arguments).fails(2, *words)


def test_published_names_come_first():
    assert [e.name for e in lineup.table() if e.architecture][:1] == ["efficientformerv2_s0"]
    assert {e.name for e in lineup.table()} >= set(NAMES)
