"""kill -9 of parts of a real run: nothing survives its parent, and the run stays resumable."""

import subprocess
import sys
import time

import psutil
import pytest

pytestmark = pytest.mark.slow

FLAGS = [
    "--steps=5000",
    "--rollout.groups_per_step=4",
    "--rollout.group_size=4",
    "--rollout.max_tokens=32",
    "--eval.problems=4",
    "--eval.every=0",
    "--checkpoint.every=2",
    "--server.max_num_seqs=16",
    "--server.kv_cache_gib=0.2",
]


@pytest.fixture
def run(tmp_path):
    """A run that has trained a few steps: (driver process, run directory)."""
    log = open(tmp_path / "driver.log", "w")
    driver = subprocess.Popen(
        [sys.executable, "-m", "reasoner.cli", "train", "--name=k", *FLAGS],
        cwd=tmp_path,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    path = tmp_path / "runs" / "k"
    deadline = time.monotonic() + 180
    while not (path / "checkpoints" / "latest").exists():
        assert driver.poll() is None and time.monotonic() < deadline, (tmp_path / "driver.log").read_text()
        time.sleep(0.2)
    yield driver, path
    for process in family(driver.pid):
        process.kill()
    driver.kill()


def family(pid):
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def alive(processes):
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def wait_until_gone(processes, seconds):
    deadline = time.monotonic() + seconds
    while alive(processes) and time.monotonic() < deadline:
        time.sleep(0.2)
    return alive(processes)


def test_killed_driver_leaves_nothing_behind(run):
    driver, _ = run
    everything = family(driver.pid)
    assert len(everything) > 5
    driver.kill()
    driver.wait()
    left = wait_until_gone(everything, 30)
    assert not left, [p.cmdline() for p in left]
