"""The lines of `make chaos` say FAILED when something failed, and what a run leaves running is found."""

import sqlite3
import subprocess
from functools import partial

import harness
import pytest
from harness import Run, chaos


class PaperRun(Run):
    """A run of which nothing exists but the groups that it says it has accepted."""

    def __init__(self):
        self.failures, self.groups = [], {1, 2, 3}

    def accepted(self):
        if self.groups is None:
            raise sqlite3.DatabaseError("file is not a database")
        return self.groups

    def kill(self):
        raise AssertionError("left running: ['ray::VLLMServer']")


def test_every_fault_has_a_line_also_after_one_that_failed():
    run, lines = PaperRun(), []
    with chaos("survived", run, lines.append) as fault:
        fault.recovered_s = 1.25
    with chaos("stuck", run, lines.append):
        raise AssertionError("waited 240 s")
    with chaos("two_lost", run, lines.append) as fault:
        run.groups = {1}
        fault.recovered_s = 2.0
    with chaos("journal_destroyed", run, lines.append) as fault:
        run.groups = None
        fault.recovered_s = 2.0
    assert lines == [
        "chaos survived ok lost=0 recovered_s=1.2",
        "chaos stuck FAILED lost=0 recovered_s=nan",
        "chaos two_lost FAILED lost=8 recovered_s=2.0",
        "chaos journal_destroyed FAILED lost=4 recovered_s=2.0",
    ]
    with pytest.raises(ExceptionGroup, match="4 faults"):  # and what it leaves running
        run.close()


def test_what_is_left_running_is_named_and_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "wait_until_gone", partial(harness.wait_until_gone, seconds=0))
    run = PaperRun()
    run.home, run.family = tmp_path, lambda: []
    (tmp_path / "runs").mkdir()
    with subprocess.Popen(["sleep", "60"], cwd=tmp_path / "runs") as left:
        with pytest.raises(AssertionError, match="left running: .'sleep 60'"), run.leaving_nothing():
            pass
    assert left.returncode == -9
    with run.leaving_nothing():
        pass
