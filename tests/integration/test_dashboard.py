"""Ray's dashboard, on a cluster that was started with it: a run's processes are listed there by names that a
person knows from the run's own messages and logs."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import Request, urlopen
from uuid import uuid4

import pytest
from ports import free_port

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / ".bench" / "peers"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not (PEERS / "aiohttp_cors").is_dir(), reason="ray[default] is not there: make peers"),
]

HEAD = """
import sys, ray
started = ray.init(
    address="local", num_cpus=8, include_dashboard=True, dashboard_host="127.0.0.1",
    dashboard_port=int(sys.argv[1]), object_store_memory=100 * 2**20, log_to_driver=False,
)
print(started.address_info["gcs_address"], started.dashboard_url, flush=True)
sys.stdin.read()
"""
TOKEN = uuid4().hex
FLAGS = [
    "--steps=5000",
    "--rollout.groups_per_step=4",
    "--rollout.group_size=4",
    "--rollout.max_tokens=32",
    "--eval.problems=4",
    "--eval.every=0",
    "--server.max_num_seqs=16",
    "--server.kv_cache_gib=0.2",
]


@pytest.fixture
def head(tmp_path):
    """A Ray of its own: its address for a run, the URL of its dashboard, and the environment to use it in."""
    path = os.pathsep.join([str(ROOT), str(PEERS), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, "RAY_raylet_start_wait_time_s": "180"}
    env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    with open(tmp_path / "head.log", "w") as log:
        ray = subprocess.Popen(
            [sys.executable, "-c", HEAD, str(free_port())],
            cwd=tmp_path,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        said = ray.stdout.readline().split()
        assert len(said) == 2, (tmp_path / "head.log").read_text()
        yield said[0], f"http://{said[1]}", env
    finally:
        ray.stdin.close()
        ray.wait(timeout=60)


def alive(url):
    """What the dashboard lists of actors that live: pid by (class, name)."""
    authorised = {"Authorization": f"Bearer {TOKEN}"}
    request = Request(f"{url}/api/v0/actors?detail=1&limit=1000", headers=authorised)
    with urlopen(request, timeout=30) as answer:
        found = json.load(answer)
    assert found["result"], found
    actors = found["data"]["result"]["result"]
    return {(a["class_name"], a["name"]): a["pid"] for a in actors if a["state"] == "ALIVE"}


def until(condition, what, run, seconds=180):
    deadline = time.monotonic() + seconds
    while not condition():
        assert run.poll() is None and time.monotonic() < deadline, f"waited for {what}"
        time.sleep(0.2)


def test_the_dashboard_lists_a_runs_processes_by_name(head, tmp_path):
    address, url, env = head
    with urlopen(url, timeout=60) as page:
        assert b"Ray Dashboard" in page.read()
    command = [sys.executable, "-m", "reasoner.cli", "train", "--name=mine", f"--cluster.address={address}"]
    with open(tmp_path / "run.log", "w") as log:
        run = subprocess.Popen([*command, *FLAGS], cwd=tmp_path, env=env, stdout=log, stderr=log)
    metrics = tmp_path / "runs" / "mine" / "metrics.jsonl"
    try:
        until(lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 2, "two steps", run)
        first = alive(url)
        assert first.keys() == {
            ("VLLMServer", "mine/server-0"),
            ("WorkerActor", "mine/worker-0"),
            ("LearnerActor", "mine/learner"),
        }
        worker = ("WorkerActor", "mine/worker-0")
        os.kill(first[worker], signal.SIGKILL)
        until(lambda: alive(url).get(worker) not in (None, first[worker]), "the next worker", run)
        run.send_signal(signal.SIGTERM)
        assert run.wait(timeout=120) == 130
    except BaseException:
        run.kill()
        print((tmp_path / "run.log").read_text())
        raise
    finally:
        run.wait()
    deadline = time.monotonic() + 60
    while alive(url) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not alive(url)
