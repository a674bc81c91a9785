"""The report: a page of a made-up run that holds everything, of partial runs, and as a browser draws it."""

import html
import json
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from made_up_run import CORRECTION, HOSTILE, costs_of, make_design_run, write_config, write_json, write_metrics
from pocketformer.architecture import Architecture, SearchSpace, Selection
from pocketformer.errors import UserError
from pocketformer.pipelines.segment_folders import TASK
from pocketformer.report import write_figures, write_report
from pocketformer.report.figure import log_axis, share_axis, step_axis
from pocketformer.report.reading import read_run, states
from pocketformer.search import Objective


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
        "no larger neighbour that fits does better",
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


def test_latencies_and_mes_of_a_page_are_in_one_unit(page, design_run):
    record = read_run(design_run)
    trajectory, space = states(record), SearchSpace.named("pocket28")
    start = next(line for line in record.search if line["type"] == "start")
    objective = Objective(units=start["units"], exponents=start["exponents"])
    assert trajectory[0]["latency"] == pytest.approx(CORRECTION * start["latency"])
    for state in trajectory:
        costs = costs_of(Selection.from_dict(space, state["selection"]), CORRECTION)
        assert state["latency"] == pytest.approx(costs["latency"])
        assert state["mes"] == pytest.approx(objective.mes(costs))
    assert f"All latencies are the table&#x27;s × {CORRECTION:.2f}" in page


@pytest.mark.parametrize("last", [1, 2, 3, 7, 40, 999])
def test_no_two_ticks_of_an_axis_read_alike(last):
    """Whole steps, and shares as far apart as the values of few images are."""
    steps = step_axis("Step", range(last + 1))
    assert steps["dtick"] == int(steps["dtick"]) >= 1
    assert last / steps["dtick"] <= 10
    shares = share_axis("Accuracy", [0.2105, 0.2105 + last / 1000])
    digits = int(re.fullmatch(r"\.(\d)%", shares["tickformat"])[1])
    assert shares["dtick"] * 100 * 10**digits >= 1
    assert 2 <= last / 1000 / shares["dtick"] <= 10


def test_best_figures_are_those_of_the_networks_within_budget(page, design_run):
    rows = re.findall(r"<tr><th scope='row'>(.*?)</tr>", page.split("id='comparison'")[1].split("</table>")[0])
    found, largest = rows[0], rows[1]
    assert "class='best'>89.35 %" in found  # the largest's 90.15 % is over budget
    assert "class='best'" not in largest
    assert "over budget: latency, parameters" in largest


def test_supernet_alone(tmp_path):
    run = tmp_path / "super"
    write_config(run, "supernet", data="embedded")
    write_metrics(run / "metrics.jsonl", 90, True, 0)
    reader = Reader(write_report([run]).read_text(encoding="utf-8"))
    assert len(reader.figures) == 1
    assert "Not in this folder" not in reader.visible
    assert "largest subnet" in json.dumps(reader.figures)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    plain = [{k: v for k, v in line.items() if k != "loss_smallest"} for line in lines]  # `--sampling uniform`
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in plain))
    figures = json.dumps(Reader(write_report([run]).read_text(encoding="utf-8")).figures)
    assert "mean of the subnets" in figures
    assert "largest subnet" not in figures
    score = lambda a: {"accuracy": a, "split": "search"}  # noqa: E731
    reached = {name: {"before": score(0.1), "recalibrated": score(a)} for name, a in zip(MEMBERS, SHARES, strict=True)}
    write_json(run / "recalibration.json", reached)
    write_json(run / "config.json", {"space": {"name": "my space"}, "classes": ["a", "b"]})
    visible = Reader(write_report([run]).read_text(encoding="utf-8")).visible
    for words in ("81.25 %", "72.50 %", "63.75 %", "10.00 %", "my space", "smallest subnet trained"):
        assert words in visible


MEMBERS, SHARES = ("largest", "smallest", "random"), (0.8125, 0.725, 0.6375)


@pytest.mark.parametrize(
    ("task", "config", "results", "expected"),
    [
        (
            "segment",
            {"task": TASK, "num_classes": 2, "classes": ["sky", "<road>"]},
            {"mIoU": 0.625, "images": 12, "split": "test", "iou": {"sky": 0.75, "<road>": 0.5}, "pixels": {"sky": 3}},
            ("62.50 %", "Mean IoU", "12 images", "<road>50.00 %", "sky75.00 %", "Semantic FPN, 2 classes"),
        ),
        (
            "detect",
            {"task": "detection", "classes": [{"id": 7, "name": "cat"}], "heads": {"masks": True}},
            {"test": {"bbox": {"AP": 0.375, "AP50": 0.5}, "segm": {"AP": 0.25}}, "images": 9, "split": "val"},
            ("Box AP", "37.50 %", "Mask AP", "25.00 %", "50.00 %", "9 images", "boxes and masks, 1 class"),
        ),
    ],
)
def test_dense_trainings(tmp_path, task, config, results, expected):
    run = tmp_path / task
    write_config(run, f"{task} train", data="photos")
    write_metrics(run / "metrics.jsonl", 15, False, 0)
    Architecture.named("efficientformerv2_s0").save(run / "architecture.json")
    write_json(run / "config.json", config)
    write_json(run / "results.json", {"command": f"{task} train", "parameters": 123456, **results})
    visible = re.sub(r"\s+", " ", Reader(write_report([run]).read_text(encoding="utf-8")).visible)
    for words in expected:
        assert words in visible, words
    assert "mean of 7" not in visible  # a classifier's head
    assert "Not in this folder" not in visible


def test_a_training_of_one_step_is_to_be_seen_and_large_scores_are_written_out(tmp_path):
    run = tmp_path / "run"
    write_config(run, "train", data="photos")
    write_metrics(run / "metrics.jsonl", 1, False, 0)
    assert '"markers"' in json.dumps(Reader(write_report([run]).read_text(encoding="utf-8")).figures)
    assert log_axis("MES", [16_000, 39_000])["ticktext"] == ["20,000", "25,000", "30,000", "40,000"]


def test_search_alone(tmp_path, design_run):
    run = tmp_path / "found"
    write_config(run, "search", space="pocket28")
    lines = (design_run / "search.jsonl").read_text()
    (run / "search.jsonl").write_text(lines + '{"type": "evalu')  # cut by a kill
    reader = Reader(write_report([run], tmp_path / "page.html").read_text(encoding="utf-8"))
    assert len(reader.figures) == 3
    assert "Stage 4" in reader.visible
    assert "Parameters" in reader.visible


def test_single_training(tmp_path):
    run = tmp_path / "s0"
    write_config(run, "train", data="embedded")
    write_metrics(run / "metrics.jsonl", 15, False, 0)
    Architecture.named("efficientformerv2_s0").save(run / "architecture.json")
    reader = Reader(write_report([run]).read_text(encoding="utf-8"))
    assert len(reader.figures) == 1
    assert "Stage 3: grid 14 × 14" in reader.visible
    assert "to classes" in reader.visible  # how many nobody said
    test = {"accuracy": 0.8765, "interval95": [0.86, 0.89], "correct": 1753, "images": 2000, "split": "test"}
    write_json(run / "results.json", {"command": "train", "parameters": 123456, "test": test})
    write_json(run / "config.json", {"classes": ["a", "b", "c"]})
    visible = Reader(write_report([run]).read_text(encoding="utf-8")).visible
    for words in ("87.65 %", "Accuracy, test split", "123,456", "to 3 classes"):
        assert words in visible
    assert "Not in this folder" not in visible
    assert Reader(write_report([run, run], tmp_path / "both.html").read_text()).visible.count("87.65 %") == 4


def test_run_that_has_only_begun_and_damaged_files(tmp_path):
    run = tmp_path / "new"
    write_config(run, "design", data="embedded")
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
        write_json(run / "results.json", {k: v for k, v in results.items() if k != name})
        Reader(write_report([run]).read_text(encoding="utf-8"))
    for name in results["shipped"]:
        shipped = {k: v for k, v in results["shipped"].items() if k != name}
        write_json(run / "results.json", {**results, "shipped": shipped})
        write_report([run])


@pytest.mark.parametrize("wrong", [None, "x", -1, [], {}])
def test_pieces_of_another_kind_are_left_out(wrong, tmp_path, design_run):
    run = tmp_path / "run"
    shutil.copytree(design_run, run)
    results = json.loads((run / "results.json").read_text())
    write_json(run / "results.json", {**dict.fromkeys(results, wrong), "comparison": [wrong], "random": [wrong]})
    write_json(run / "latency_table.json", {"check": wrong, "fingerprint": wrong, "unit": wrong})
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
