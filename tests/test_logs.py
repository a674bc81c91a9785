"""Times that are brought along: cells of CSV files, and the logs of benchmark tools."""

from pathlib import Path

import pytest

from pocketformer.devices.logs import read_csv, read_log
from pocketformer.errors import UserError

CSV = {
    "passes": ("a,1,2\nb,3,4\n", [{"a": [1], "b": [3]}, {"a": [2], "b": [4]}]),
    "empty cells": ("reference,1,2,\na,3,,\nb,,4,\n,,\n", [{"reference": [1], "a": [3]}, {"reference": [2], "b": [4]}]),
    "a mark and spaces": ("\ufeffa , 1\n\n# b,2\n", [{"a": [1]}]),
    "nothing": ("", []),
}


@pytest.mark.parametrize("name", CSV)
def test_cells_of_a_csv(tmp_path, name):
    text, wanted = CSV[name]
    (tmp_path / "times.csv").write_text(text, encoding="utf-8")
    assert read_csv(tmp_path / "times.csv") == wanted


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a,1\na,2\n", r"'a' is there twice"),
        (b"a,1 ms\n", r"'a' has a time that is not a number: '1 ms'"),
        ("a,1\n".encode("utf-16"), "not text in UTF-8"),
        (b"a,1\n\xff", "not text in UTF-8"),
        (b"a," + b"1" * 200_000, "not a table of comma-separated values"),
    ],
)
def test_csv_files_that_cannot_be_read(tmp_path, data, message):
    (tmp_path / "times.csv").write_bytes(data)
    with pytest.raises(UserError, match=rf"times\.csv: {message}") as caught:
        read_csv(tmp_path / "times.csv")
    assert "\n" not in str(caught.value)


LOGS = {
    "litert.txt": (
        "INFO: count=50 first=32891 curr=33978 min=32641 max=34005 avg=33209.4 std=450\n"
        "INFO: Inference timings in us: Init: 855, First inference: 49060, Warmup (avg): 34825.1, "
        "Inference (avg): 33209.4\n",
        [33.2094],
    ),
    "older-litert.txt": (
        "Average inference timings in us: Warmup: 76605.9, Init: 9933, no stats: 66767.6\n",
        [66.7676],
    ),
    "executorch.txt": (
        "I 00:00:00.1 executorch:executor_runner.cpp:133] Model loaded in 3.500000 ms.\n"
        "I ExecuTorch: Iteration 1 of 3: 9.000000 ms\nI ExecuTorch: Iteration 2 of 3: 2.500000 ms\n"
        "I ExecuTorch: Iteration 3 of 3: 2.600000 ms\n"
        "I ExecuTorch: Model executed successfully 3 time(s) in 14.100000 ms.\n",
        [2.5, 2.6],
    ),
    "older-executorch.txt": ("I x] Model executed successfully 10 time(s) in 25.000000 ms.\n", [2.5]),
    "trtexec.txt": (
        "[I] Latency: min = 1.2 ms, max = 2 ms, mean = 1.5 ms, median = 1.4 ms, percentile(99%) = 2 ms\n"
        "[I] GPU Compute Time: min = 0.9 ms, max = 1.7 ms, mean = 1.1 ms, median = 1.05 ms, percentile(99%) = 1.6 ms\n",
        [1.05],
    ),
    "trtexec.json": (
        '[\n  { "startEnqMs" : 1, "computeMs" : 1.5 }\n, { "startEnqMs" : 2, "computeMs" : 1.25 }\n]',
        [1.5, 1.25],
    ),
}


@pytest.mark.parametrize("name", LOGS)
def test_logs_of_benchmark_tools(tmp_path, name):
    text, wanted = LOGS[name]
    (tmp_path / name).write_text(text)
    assert read_log(tmp_path / name) == pytest.approx(wanted)


def test_a_log_of_no_calls(tmp_path):
    (tmp_path / "a.txt").write_text("I x] Model executed successfully 0 time(s) in 0.000000 ms.\n")
    with pytest.raises(UserError, match=r"a\.txt: its times are not numbers, or of no calls at all"):
        read_log(tmp_path / "a.txt")


@pytest.mark.parametrize("text", ["", "error: could not open the model\n", "Inference (avg): \n"])
def test_logs_without_times(tmp_path, text):
    path = Path(tmp_path / "chain_000.txt")
    path.write_text(text)
    with pytest.raises(UserError, match=r"chain_000\.txt: no times"):
        read_log(path)
