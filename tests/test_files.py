"""Files and folders that are written whole or not at all, and files of two parts."""

import os
from pathlib import Path

import pytest

from pocketformer import files
from pocketformer.errors import UserError, WorkError


def write_new(path, error=None):
    with files.whole(path, ".bin") as temporary:
        temporary.write_text("new")
        temporary.with_suffix(".bin").write_text("new")
        if error is not None:
            raise error


def test_two_parts_are_replaced_together(tmp_path):
    path = tmp_path / "model.xml"
    for version in ("old", "new"):
        with files.whole(path, ".bin") as temporary:
            temporary.write_text(version)
            temporary.with_suffix(".bin").write_text(version)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"model.xml": "new", "model.bin": "new"}


def test_a_write_that_fails_keeps_the_older_pair(tmp_path):
    path = tmp_path / "model.xml"
    path.write_text("old")
    path.with_suffix(".bin").write_text("old")
    with pytest.raises(WorkError):
        write_new(path, WorkError("refused"))
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"model.xml": "old", "model.bin": "old"}


@pytest.mark.parametrize("at", [0, 1])
def test_a_kill_between_the_renames_leaves_no_mixed_pair(tmp_path, monkeypatch, at):
    path = tmp_path / "model.xml"
    path.write_text("old")
    path.with_suffix(".bin").write_text("old")
    replace, done = os.replace, []

    def killed(source, target):
        if len(done) == at:
            raise KeyboardInterrupt
        done.append(target)
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_new(path)
    assert not path.exists()  # the part that people name


def write_folder(path):
    with files.whole(path) as temporary:
        temporary.mkdir()
        (temporary / "new").write_text("new")


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(5, "broken")])
def test_a_folder_is_never_half_replaced(tmp_path, monkeypatch, stop):
    path = tmp_path / "model.mlpackage"
    path.mkdir()
    (path / "old").write_text("old")
    replace = os.replace

    def failing(source, target):
        if Path(target) == path and "old" not in Path(source).name:
            assert not list(path.glob("*"))
            raise stop
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", failing)
    with pytest.raises((KeyboardInterrupt, OSError)):
        write_folder(path)
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")] == [path.name, f"{path.name}/old"]


def test_targets_are_checked_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    files.check_target(tmp_path / "new" / "deep" / "x.json")
    files.check_target(tmp_path / "file")
    for wrong, message in ((tmp_path, "is a folder"), (tmp_path / "file" / "x.json", "file is not a folder")):
        with pytest.raises(UserError, match=message):
            files.check_target(wrong)


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "model.mlpackage"
    for version in ("old", "new"):
        with files.whole(path) as temporary:
            temporary.mkdir()
            (temporary / version).write_text(version)
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")] == [
        "model.mlpackage",
        "model.mlpackage/new",
    ]
