"""Commands that are stopped leave no process and no temporary file behind. (Runs: tests/chaos.)"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest

from reasoner.config import Config, config_toml


def marked(mark: str) -> list[str]:
    """The living processes that have inherited the mark in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get("MARK") == mark:
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("command", "stop", "code"),
    [("verify", signal.SIGINT, 130), ("verify", signal.SIGTERM, 143), ("view", signal.SIGTERM, 143)],
)
def test_nothing_is_left(tmp_path: Path, command: str, stop: signal.Signals, code: int) -> None:
    (tmp_path / "temporary").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text(config_toml(Config(), {}))
    line = json.dumps({"id": 0, "gold": "84", "pred": "\\boxed{84}"}) + "\n"
    (tmp_path / "in.jsonl").write_text(line * 50_000)
    arguments = {
        "verify": ["in.jsonl", "--out", "out.jsonl", "--workers", "2"],
        "view": ["run", "--no-browser"],
    }
    mark = uuid.uuid4().hex
    process = subprocess.Popen(
        [sys.executable, "-m", "reasoner.cli", command, *arguments[command]],
        cwd=tmp_path,
        env={**os.environ, "MARK": mark, "TMPDIR": str(tmp_path / "temporary")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 60
    while len(marked(mark)) < (3 if command == "verify" else 1) or not _started(tmp_path, command):
        assert process.poll() is None and time.monotonic() < deadline, "it did not start"
        time.sleep(0.1)
    process.send_signal(stop)
    said = process.communicate(timeout=30)[0]
    assert process.returncode == code and "Traceback" not in said, said
    time.sleep(0.5)  # killed processes take a moment to go
    assert marked(mark) == []
    assert list((tmp_path / "temporary").iterdir()) == []


def _started(tmp_path: Path, command: str) -> bool:
    if command == "verify":
        return True
    return any((tmp_path / "temporary").iterdir())


@pytest.mark.parametrize("after_s", [0.0, 4.0])  # while Ray starts; while servers do
def test_ctrl_c_before_a_run_begins(tmp_path: Path, after_s: float) -> None:
    mark = uuid.uuid4().hex
    process = subprocess.Popen(
        [sys.executable, "-m", "reasoner.cli", "train", "--name", "early"],
        cwd=tmp_path,
        env={**os.environ, "MARK": mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    run = tmp_path / "runs" / "early"
    deadline = time.monotonic() + 60
    while not (run / "logs" / "driver.log").exists():
        assert process.poll() is None and time.monotonic() < deadline, "it did not start"
        time.sleep(0.05)
    time.sleep(after_s)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=100)[0]
    assert process.returncode == 130 and "stopped before the run began" in said, said
    assert not run.exists(), "the name is free again"
    deadline = time.monotonic() + 20
    while (left := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == []
