"""What a person sees while work goes on: never silence, and a line of what is being done."""

import os
import sys
import time

import pytest

from pocketformer import progress
from pocketformer.deploy.quiet import quiet
from pocketformer.progress import stage


@pytest.fixture
def quick(monkeypatch):
    """A line is due every twentieth of a second."""
    monkeypatch.setattr(progress, "_LINE_EVERY", 0.05)


def lines(capsys) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_work_that_reports_nothing_is_not_silent(quick, capsys):
    with stage("export and verify"):
        time.sleep(0.3)
    told = lines(capsys)
    assert told[0] == "export and verify …"
    assert len(told) >= 4
    assert told[1].startswith("export and verify: ")
    assert told[1].endswith(" so far")
    assert told[-1].startswith("export and verify: done in")


def test_a_converter_that_is_kept_quiet_is_not_silent(quick, capfd):
    """Its own words are for its developers; what tells the person that it is at work is not."""
    with stage("export and verify"), quiet():
        print("chatter", file=sys.stderr)
        os.write(2, b"chatter of native code")
        time.sleep(0.3)
    told = capfd.readouterr().err.splitlines()
    assert len(told) >= 4
    assert all(line.startswith("export and verify") for line in told)


def test_the_line_says_what_is_being_done(quick, capsys):
    with stage("profile", 26) as shown:
        shown.update(0, "fit, write model 3 of 14")
        time.sleep(0.12)
        shown.update(13, "check", 26)
        time.sleep(0.12)
    told = lines(capsys)
    assert any(line.startswith("profile: 0/26, fit, write model 3 of 14, ") for line in told)
    assert any(line.startswith("profile: 13/26, check, ") and line.endswith(" left") for line in told)


def test_nothing_is_said_once_a_stage_is_over(quick, capsys):
    with pytest.raises(ValueError, match="broken"), stage("export"):
        raise ValueError("broken")
    time.sleep(0.15)
    assert lines(capsys) == ["export …"]
