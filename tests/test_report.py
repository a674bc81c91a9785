"""The report: a page of a made-up run that holds everything, of partial runs, and as a browser draws it."""

import html
import json
import math
import random
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from hypothesis import given, settings

import designed
from pocketformer.architecture import Architecture, SearchSpace, Selection
from pocketformer.errors import UserError
from pocketformer.report import write_figures, write_report
from pocketformer.report.diagram import diagram
from pocketformer.report.reading import read_run, states
from pocketformer.search import Objective, Score, joint_search, regrow
from pocketformer.search.trajectory import end_line, move_lines, start_line

HOSTILE = '<script>alert("x")</script>'
CLASSES = ["T-shirt", "a<b & 'c'", HOSTILE, *(f"class {i}" for i in range(7))]
CORRECTION = 1.07


def _latency(architecture: Architecture) -> float:
    return sum(0.004 + b.macs() / 2.5e7 for b in architecture.blocks(None, 10, False))


def _costs(selection: Selection, factor: float = 1.0) -> dict[str, float]:
    network = selection.architecture
    return {
        "size": network.parameters(10, False),
        "latency": factor * _latency(network),
        "memory": network.peak_memory(num_classes=10),
    }


def _accuracy(selection: Selection) -> float:
    """Made up: more multiply-adds are better with diminishing returns, plus noise of the selection."""
    noise = random.Random(str(selection.to_dict())).gauss(0, 0.004)
    return 0.9 - 0.25 * math.exp(-selection.architecture.macs(None, 10, False) / 1.5e6) + noise


def _evaluate(current: Selection, candidates) -> list[Score]:
    return [Score(_accuracy(s), 1.2 - _accuracy(s)) for s in (current, *candidates)]


def _search(space: SearchSpace, objective: Objective) -> tuple[list[dict], Selection, int]:
    lines, selection, step = [], space.whole, 0
    settings = {"budgets": dict(objective.budgets), "min_mes": None, "form": objective.form}
    settings |= {"units": dict(objective.units), "exponents": dict(objective.exponents)}
    costs = _costs(selection)
    lines.append(start_line(selection, costs, objective.mes(costs), settings))
    phases = [(joint_search, 1.0), (joint_search, CORRECTION), (regrow, CORRECTION)]
    for i, (phase, factor) in enumerate(phases):
        if i == 1:
            lines.append({"type": "correction", "step": step, "factor": factor})
        moves = phase(selection, lambda s, f=factor: _costs(s, f), _evaluate, objective, step=step)
        while True:
            try:
                move = next(moves)
            except StopIteration as stop:
                lines.append(end_line(step, stop.value))
                break
            lines += move_lines(move, objective.mes)
            selection, step = move.chosen.selection, move.step
    return lines, selection, step


def _row(name: str, title: str, selection: Selection, objective: Objective, correct: int) -> dict:
    costs, share = _costs(selection, CORRECTION), correct / 2000
    half = 1.96 * math.sqrt(share * (1 - share) / 2000)
    interval = [share - half, share + half]
    return {
        "name": name,
        "title": title,
        "parameters": costs["size"],
        "macs": selection.architecture.macs(None, 10, False),
        "latency_predicted": costs["latency"],
        "latency_measured": None if name == "smallest" else costs["latency"] * 0.985,
        "mes": objective.mes(costs),
        "accuracy_search": _accuracy(selection),
        "test": {
            "accuracy": share,
            "interval95": interval,
            "correct": correct,
            "images": 2000,
            "split": "test",
        },
    }


def _metrics(path: Path, steps: int, supernet: bool, seed: int) -> None:
    rng = random.Random(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for step in range(steps):
        loss = 0.35 + 2 * math.exp(-4 * step / steps)
        line = {"step": step, "lr": 1e-3 * (1 + math.cos(math.pi * step / steps)) / 2}
        line |= {"loss": loss * rng.uniform(0.85, 1.15), "accuracy": 1 - loss / 3}
        if supernet:
            line["loss_smallest"] = 1.4 * loss * rng.uniform(0.85, 1.15)
            line |= {f"loss_random_{i}": 1.2 * loss * rng.uniform(0.8, 1.2) for i in (1, 2)}
        lines.append(json.dumps(line) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


def _config(run: Path, command: str, **settings) -> None:
    run.mkdir(parents=True, exist_ok=True)
    config = {"command": command, "settings": settings, "versions": {"python": "3.12.1", "torch": "2.15.0"}}
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "facts": {}}), encoding="utf-8")


def _write(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def make_design_run(run: Path) -> Path:
    """A whole `design` run with made-up figures; the search is Algorithm 1 on a made-up evaluator."""
    space = SearchSpace.named("pocket28")
    whole = _costs(space.whole)
    budgets = {"latency": 0.62 * whole["latency"], "size": round(0.55 * whole["size"])}
    objective = Objective(budgets, units={"size": 3e6, "latency": 0.9, "memory": whole["memory"]})
    lines, found, step = _search(space, objective)
    _config(run, "design", data="embedded", seed=3, max_latency=budgets["latency"], note=HOSTILE)
    (run / "search.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines), encoding="utf-8")
    rng, random_rows = random.Random(1), []
    while len(random_rows) < 30:
        selection = space.sample_selection(rng)
        costs = _costs(selection, CORRECTION)
        if 0.4 * budgets["latency"] <= costs["latency"] <= budgets["latency"]:
            figures = {"parameters": costs["size"], "latency": costs["latency"], "mes": objective.mes(costs)}
            random_rows.append({"accuracy": _accuracy(selection), **figures, "selection": selection})
    best = max(random_rows, key=lambda r: r["accuracy"])
    comparison = [
        _row("found", "found by the search", found, objective, 1787),
        _row("largest", "largest subnet", space.whole, objective, 1803),
        _row("smallest", "smallest subnet", space.minimum, objective, 1622),
        _row("random", "best of 30 random subnets", best["selection"], objective, 1764),
    ]
    random_rows = [{k: v for k, v in r.items() if k != "selection"} | {"chosen": r is best} for r in random_rows]
    (run / "exported").mkdir()
    (run / "exported/model.onnx").write_bytes(b"x" * 654_321)
    costs = _costs(found, CORRECTION)
    measured = costs["latency"] * 0.985
    results = {
        "command": "design",
        "seed": 3,
        "data": {
            "source": f"/images/{HOSTILE}",
            "classes": CLASSES,
            "images": {"fit": 5400, "search": 600, "test": 2000},
            "fingerprint": "sha256:0123abcd",
            "split_fingerprint": "sha256:4567ef01",
            "notes": ["3 images skipped: not readable", f"a folder named {HOSTILE}"],
        },
        "space": {"name": "pocket28", "resolution": [28, 28], "description": space.to_dict()},
        "runtime": {"name": "onnxruntime", "threads": 1, "batch": 1},
        "budgets": budgets,
        "min_mes": None,
        "binding": "latency",
        "shipped": {
            "name": "found",
            "step": step,
            "architecture": found.architecture.to_dict(),
            "selection": found.to_dict(),
            "parameters": costs["size"],
            "macs": found.architecture.macs(None, 10, False),
            "peak_memory": costs["memory"],
            "file": "exported/model.onnx",
            "file_bytes": 654_321,
            "latency": {
                "predicted": costs["latency"],
                "measured": measured,
                "raw": measured,
                "spread": 0.0123,
                "rounds": 40,
            },
            "usage": {"latency": measured / budgets["latency"], "size": costs["size"] / budgets["size"]},
            "mes": objective.mes(costs),
            "export": {"max_difference": 3.1e-6, "logits_std": 2.17, "details": "ONNX opset 17", "images": 256},
            "training": {"epochs": 14, "steps": 322, "init": "supernet", "teacher": None},
        },
        "comparison": comparison,
        "random": random_rows,
        "verdict": {
            "difference": 0.0115,
            "half_width": 0.0109,
            "text": "The found network is better than the best random one on the test split.",
        },
        "search": {
            "status": "the binding budget is used",
            "steps": step,
            "evaluations": 1234,
            "block_executions": 24_680,
            "naive_block_executions": 98_765,
        },
        "versions": {"python": "3.12.1", "torch": "2.15.0", "onnxruntime": "1.30.0"},
        "trainings": {"supernet": "supernet/metrics.jsonl", "found": "networks/found/metrics.jsonl"}
        | {name: f"networks/{name}/metrics.jsonl" for name in ("largest", "smallest", "random")},
    }
    _write(run / "results.json", results)
    _metrics(run / "supernet/metrics.jsonl", 600, True, 0)
    for i, name in enumerate(("found", "largest", "smallest", "random")):
        _metrics(run / f"networks/{name}/metrics.jsonl", 322, False, i + 1)
    networks = []
    for i in range(6):
        predicted = _latency(space.sample(i))
        networks.append({"name": f"check {i}", "predicted": predicted, "measured": predicted * (0.94 + 0.03 * i)})
    fingerprint = {"device": "Cortex-X99", "os": "Linux 6", "runtime": "onnxruntime 1.30.0", "threads": 1}
    table = {
        "format": "pocketformer.latency-table/1",
        "space": "pocket28",
        "num_classes": 10,
        "resolution": [28, 28],
        "constant": 0.01,
        "unit": 0.9,
        "reference": {"name": "largest", "latency": whole["latency"]},
        "fingerprint": {**fingerprint, "date": "2025-01-02", "packages": {"torch": "2.15.0"}},
        "check": {"mean": 0.0312, "worst": 0.0871, "networks": networks},
        "entries": {},
    }
    _write(run / "latency_table.json", table)
    return run


@pytest.fixture(scope="module")
def design_run(tmp_path_factory) -> Path:
    return make_design_run(tmp_path_factory.mktemp("runs") / "shirts <1>")


@pytest.fixture(scope="module")
def page(design_run) -> str:
    return write_report([design_run]).read_text(encoding="utf-8")


class Reader(HTMLParser):
    """Checks nesting, and collects text, resources and scripts."""

    void = ("meta", "link", "br", "hr", "img", "input")

    def __init__(self, text: str):
        super().__init__()
        self.open, self.text, self.resources, self.ids, self.figures = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.resources += [v for k, v in attrs.items() if k in ("src", "href", "action", "data") and v]
        self.ids += [attrs["id"]] if "id" in attrs else []
        if tag not in self.void:
            self.open.append((tag, attrs))

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open[-1][0] == tag, f"</{tag}> closes <{self.open[-1][0]}>"
        self.open.pop()

    def handle_data(self, data):
        tag, attrs = self.open[-1] if self.open else ("", {})
        if attrs.get("type") == "application/json":
            self.figures.append(json.loads(data))
        elif tag not in ("script", "style"):
            self.text.append(data)

    @property
    def visible(self) -> str:
        return " ".join("".join(self.text).split())


def test_page_shows_every_figure_of_the_results(page, design_run):
    text = Reader(page).visible
    results = json.loads((design_run / "results.json").read_text())
    shipped, search = results["shipped"], results["search"]
    expected = [
        results["verdict"]["text"],
        "+1.15 ± 1.09",
        "the binding budget is used",
        "5,400",
        "600",
        "2,000",
    ]
    expected += [
        f"{shipped['parameters']:,}",
        f"{shipped['latency']['measured']:.3f} ms",
        "0.012 ms",
        "40 rounds",
    ]
    expected += [f"{100 * share:.1f} %" for share in shipped["usage"].values()]
    expected += [f"{results['budgets']['size']:,}", f"{results['budgets']['latency']:.3f} ms"]
    expected += [
        "exported/model.onnx",
        "654 kB",
        "3.1e-06",
        "2.17",
        "opset 17",
        "256 images",
        "14 epochs",
        "322 steps",
    ]
    expected += [f"{search[k]:,}" for k in ("steps", "evaluations", "block_executions", "naive_block_executions")]
    for row in results["comparison"]:
        low, high = row["test"]["interval95"]
        expected += [row["title"], f"{row['parameters']:,}", f"{row['macs'] / 1e6:,.2f} M"]
        expected += [f"{row['latency_predicted']:.3f} ms", f"{100 * row['accuracy_search']:.2f} %"]
        expected += [f"{100 * row['test']['accuracy']:.2f} %", f"{100 * low:.2f} to {100 * high:.2f} %"]
        if row["latency_measured"]:
            expected.append(f"{row['latency_measured']:.3f} ms")
    expected += ["3.1 %", "8.7 %", "Cortex-X99", "onnxruntime 1.30.0", "2025-01-02", "check 5", "pocket28"]
    expected += [
        "sha256:0123abcd",
        "sha256:4567ef01",
        "3 images skipped: not readable",
        "config.yaml",
        "max_latency",
    ]
    missing = [figure for figure in expected if figure not in text]
    assert not missing


def test_page_is_well_formed_and_loads_nothing(page):
    reader = Reader(page)
    assert [r for r in reader.resources if not r.startswith("#")] == ["exported/model.onnx"]
    assert len(reader.ids) == len(set(reader.ids))
    assert page.count("plotly.js v") == 1  # inlined, and once
    assert not re.search(r"@import|url\(\s*['\"]?http", page.split("<script>")[0])
    assert "prefers-color-scheme:dark" in page
    assert "NaN" not in "".join(json.dumps(f) for f in reader.figures)


def test_hostile_text_is_escaped(page):
    assert HOSTILE not in page
    assert html.escape(HOSTILE) in page
    assert "a&lt;b &amp; &#x27;c&#x27;" in page


def test_plots_are_what_plotly_accepts(page):
    import plotly.graph_objects as go

    figures = Reader(page).figures
    assert len(figures) == 6
    for figure in figures:
        text = re.sub(r'"@[a-z]+"', '"#123456"', json.dumps(figure))
        go.Figure(json.loads(text))


def test_plots_hold_the_trajectory_the_random_subnets_and_the_budgets(page, design_run):
    by_mes, by_latency, steps = Reader(page).figures[:3]
    trajectory = states(read_run(design_run))
    results = json.loads((design_run / "results.json").read_text())
    assert by_mes["layout"]["xaxis"]["type"] == "log"
    traces = {trace["name"].split(" (")[0]: trace for trace in by_latency["data"]}
    assert traces["search"]["x"] == pytest.approx([s["latency"] for s in trajectory], rel=1e-4)
    assert traces["search"]["y"] == pytest.approx([s["accuracy"] for s in trajectory], rel=1e-4)
    assert traces["random subnets"]["y"] == pytest.approx([r["accuracy"] for r in results["random"]], rel=1e-4)
    assert traces["found network"]["x"] == pytest.approx([trajectory[-1]["latency"]], rel=1e-4)
    assert math.log10(by_mes["layout"]["shapes"][0]["x0"]) == by_mes["layout"]["annotations"][0]["x"]
    assert by_latency["layout"]["shapes"][0]["x0"] == results["budgets"]["latency"]
    assert {s["y0"] for s in steps["layout"]["shapes"]} >= set(results["budgets"].values())
    assert "remove block" in "".join(traces["search"]["text"])
    assert "on the search split, with the weights of the supernet" in page


def test_best_figures_are_those_of_the_networks_within_budget(page, design_run):
    rows = re.findall(r"<tr><th scope='row'>(.*?)</tr>", page.split("id='comparison'")[1].split("</table>")[0])
    found, largest = rows[0], rows[1]
    assert "class='best'>89.35 %" in found  # the largest's 90.15 % is over budget
    assert "class='best'" not in largest
    assert "over budget: latency, parameters" in largest


def test_diagram_shows_kept_and_removed_slots():
    space = SearchSpace.named("pocket28")
    selection = space.whole.without(2, 1).without(3, 0)
    drawn = diagram(selection.architecture, selection, 10)
    assert drawn.count('class="gone"') == 2 + 1  # and in the legend
    assert drawn.count("<title>") == sum(s.slots for s in space.stages)
    whole = Architecture.named("efficientformerv2_l")
    assert diagram(whole).count("<title>") == sum(len(s.blocks) for s in whole.stages)


@given(designed.architectures())
@settings(max_examples=50, deadline=None, derandomize=True)
def test_diagram_draws_any_design(architecture):
    drawn = diagram(architecture)
    ElementTree.fromstring(drawn)
    assert drawn.count("<title>") == sum(len(s.blocks) for s in architecture.stages)


def test_diagram_names_the_blocks_of_other_designs():
    l1 = Architecture.named("efficientformer_l1")
    for network, words in (
        (l1, ["pooling and MLP by expansion", "attention (tokens)", ": attention on tokens<", ": MLP on tokens, exp"]),
        (l1.with_design(token_mixer="dwconv", attention="map"), ["3×3 convolution and MLP, expansion 4", ": MLP, exp"]),
        (l1.with_design(stem="large-kernel"), ["48 channels, one 7 × 7 convolution"]),
        (
            l1.with_design(downsampling=("conv", "attention", "dual-path")),
            ["g: attention, s", "g: dual-path attention"],
        ),
    ):
        for word in words:
            assert word in diagram(network)


def test_supernet_alone(tmp_path):
    run = tmp_path / "super"
    _config(run, "supernet", data="embedded")
    _metrics(run / "metrics.jsonl", 90, True, 0)
    reader = Reader(write_report([run]).read_text(encoding="utf-8"))
    assert len(reader.figures) == 1
    assert "Not in this folder (yet): comparison, the search" in reader.visible


def test_search_alone(tmp_path, design_run):
    run = tmp_path / "found"
    _config(run, "search", space="pocket28")
    lines = (design_run / "search.jsonl").read_text()
    (run / "search.jsonl").write_text(lines + '{"type": "evalu')  # cut by a kill
    reader = Reader(write_report([run], tmp_path / "page.html").read_text(encoding="utf-8"))
    assert len(reader.figures) == 3
    assert "Stage 4" in reader.visible
    assert "Parameters" in reader.visible


def test_single_training(tmp_path):
    run = tmp_path / "s0"
    _config(run, "train", data="embedded")
    _metrics(run / "metrics.jsonl", 15, False, 0)
    Architecture.named("efficientformerv2_s0").save(run / "architecture.json")
    reader = Reader(write_report([run]).read_text(encoding="utf-8"))
    assert len(reader.figures) == 1
    assert "Stage 3: grid 14 × 14" in reader.visible


def test_run_that_has_only_begun_and_damaged_files(tmp_path):
    run = tmp_path / "new"
    _config(run, "design", data="embedded")
    assert "Not in this folder" in Reader(write_report([run]).read_text()).visible
    (run / "results.json").write_text("{")
    (run / "search.jsonl").write_text("nonsense\n")
    (run / "latency_table.json").write_text("[]")
    assert Reader(write_report([run]).read_text()).visible.count("Could not be read") == 3
    with pytest.raises(UserError, match="nothing to draw"):
        write_figures([run], tmp_path / "figures")


@pytest.mark.parametrize("key", ["results.json", "latency_table.json", "search.jsonl", "config.yaml", "supernet"])
def test_any_piece_may_be_missing(key, tmp_path, design_run):
    run = tmp_path / "run"
    shutil.copytree(design_run, run)
    shutil.rmtree(run / key) if (run / key).is_dir() else (run / key).unlink()
    Reader(write_report([run]).read_text(encoding="utf-8"))


def test_any_result_may_be_missing(tmp_path, design_run):
    run = tmp_path / "run"
    shutil.copytree(design_run, run)
    results = json.loads((run / "results.json").read_text())
    for name in results:
        _write(run / "results.json", {k: v for k, v in results.items() if k != name})
        Reader(write_report([run]).read_text(encoding="utf-8"))
    for name in results["shipped"]:
        shipped = {k: v for k, v in results["shipped"].items() if k != name}
        _write(run / "results.json", {**results, "shipped": shipped})
        write_report([run])


@pytest.mark.parametrize("wrong", [None, "x", -1, [], {}])
def test_pieces_of_another_kind_are_left_out(wrong, tmp_path, design_run):
    run = tmp_path / "run"
    shutil.copytree(design_run, run)
    results = json.loads((run / "results.json").read_text())
    _write(run / "results.json", {**dict.fromkeys(results, wrong), "comparison": [wrong], "random": [wrong]})
    _write(run / "latency_table.json", {"check": wrong, "fingerprint": wrong, "unit": wrong})
    Reader(write_report([run]).read_text(encoding="utf-8"))


def test_not_a_run(tmp_path):
    (tmp_path / "photo.jpg").write_text("")
    for path in (tmp_path, tmp_path / "photo.jpg", tmp_path / "nowhere"):
        with pytest.raises(UserError):
            write_report([path])
    (tmp_path / "config.yaml").write_text("colour: blue")
    with pytest.raises(UserError, match="not a run"):
        write_report([tmp_path])
    with pytest.raises(UserError):
        write_report([])
    assert not (tmp_path / "report.html").exists()


def test_several_runs_side_by_side(tmp_path, design_run):
    other = tmp_path / design_run.name
    shutil.copytree(design_run, other)
    reader = Reader(write_report([design_run, other], tmp_path / "both.html").read_text(encoding="utf-8"))
    assert len(reader.figures) == 13
    assert len(reader.ids) == len(set(reader.ids))
    assert "Runs side by side" in reader.visible


def test_figures_stand_alone(tmp_path, design_run):
    from xml.etree import ElementTree

    paths = write_figures([design_run], tmp_path / "figures")
    names = {p.name for p in paths}
    assert {"mes_accuracy.html", "mes_accuracy.svg", "architecture.svg", "supernet_loss.html"} <= names
    assert set(paths) == set((tmp_path / "figures").iterdir())
    for path in paths:
        if path.suffix == ".svg":
            ElementTree.parse(path)
        elif path.suffix == ".html":
            assert len(Reader(path.read_text(encoding="utf-8")).figures) == 1


def test_report_imports_no_torch():
    code = "import pocketformer.report, sys; assert not {'torch', 'pocketformer.supernet'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_browser_draws_every_plot(tmp_path, design_run):
    names = ("chromium", "google-chrome", "chromium-browser")
    browser = next((path for name in names if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no browser: none of " + ", ".join(names))
    page = write_report([design_run], tmp_path / "page.html")
    text = page.read_text(encoding="utf-8")
    # Errors must show in the DOM: the listener goes in front of everything else.
    listener = "addEventListener('error', e => document.documentElement.append('JSERROR ' + e.message))"
    page.write_text(text.replace("<head>", f"<head><script>{listener}</script>", 1), encoding="utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [
        f"--user-data-dir={tmp_path / 'profile'}",
        "--virtual-time-budget=8000",
        "--window-size=1200,900",
    ]
    command += [f"--screenshot={tmp_path / 'page.png'}", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr[-500:]
    dom = done.stdout
    shown = re.sub(r"<script.*?</script>", "", dom, flags=re.DOTALL)
    assert "JSERROR" not in shown
    assert "Download plot" in shown
    assert "Share chart" not in shown  # plotly's button that uploads
    assert shown.count('class="main-svg"') >= 6
    assert shown.count('class="xtick"') > 6
    assert len(re.findall(r'class="trace scatter', shown)) >= 15
    assert (tmp_path / "page.png").stat().st_size > 10_000
