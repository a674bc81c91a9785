"""Folders of runs: what killed processes leave there, files that were cut short, and the lock."""

import fcntl
import os
import subprocess
import sys
import time

import pytest
import torch

from pocketformer import files
from pocketformer.errors import UserError
from pocketformer.runs import Run
from pocketformer.training import checkpoint, log


def test_an_interrupted_event_writer_is_not_waited_for(tmp_path, monkeypatch):
    def interrupted() -> None:
        raise KeyboardInterrupt

    def train() -> None:
        with log._tensorboard(tmp_path, 0) as board, monkeypatch.context() as patch:
            # Ctrl-C between an event's way into the writer's queue and the word to the writer's thread.
            queue = board.file_writer.event_writer._async_writer._byte_queue
            board.flush()
            patch.setattr(queue.not_empty, "notify", interrupted)
            board.add_scalar("loss", 1.0, 1)

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        train()
    assert time.monotonic() - began < 15  # the writer's thread would wake up after 30


@pytest.mark.parametrize("size", [0, 1, 10, 1000, -1])
def test_a_checkpoint_cut_short_is_told_in_one_line(tmp_path, size):
    path = tmp_path / "last.ckpt"
    checkpoint.save_last(path, {"model": {"weight": torch.ones(1000)}})
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match=r"^checkpoint .*last\.ckpt is damaged; delete it [^\n]*$"):
        checkpoint.load_last(path)


def test_lines_cut_within_a_character(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_bytes('{"text": "a"}\n{"text": "é'.encode()[:-1])
    assert files.Lines.read(path) == [{"text": "a"}]
    with files.Lines(path) as lines:
        lines.write({"text": "é"}, {"text": "c"})
    assert files.Lines.read(path) == [{"text": "a"}, {"text": "é"}, {"text": "c"}]


def test_unfinished_files_of_killed_processes_go_away(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / "run").mkdir()
    stale = tmp_path / "run" / f".config.yaml.{dead.pid}.tmp.yaml"
    living = tmp_path / "run" / f".config.yaml.{os.getppid()}.tmp.yaml"
    for path in (stale, living):
        path.write_text("comm")
    Run(tmp_path / "run", "design", {"seed": 0}).close()  # not "holds no run"
    assert not stale.exists()
    assert living.exists()


def test_a_folder_taken_while_waiting_for_its_lock_is_checked_again(tmp_path, monkeypatch):
    flock = fcntl.flock

    def late(*given) -> None:  # the other run begins and ends between our check and our lock
        monkeypatch.setattr(fcntl, "flock", flock)
        Run(tmp_path / "run", "design", {"seed": 1}).close()
        flock(*given)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(UserError, match="seed was 1, now 0"):
        Run(tmp_path / "run", "design", {"seed": 0})
