"""`reasoner train` on a vLLM server that somebody else started."""

import json
import os
import signal
import subprocess
import sys

import pytest
from test_http_server import ROOT, documented_command, free_port, wait_for_health

from reasoner.models import embedded_path

pytestmark = pytest.mark.slow


def test_trains_on_a_server_by_its_address_and_leaves_it_running(tmp_path):
    port = free_port()
    environment, command = documented_command(str(embedded_path()), port)
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(
            [*command, "--api-key", "sesame"],
            env=os.environ | environment,
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for_health(url, server, tmp_path / "server.log")
        flags = ["--rollout.groups_per_step=4", "--rollout.group_size=4", "--rollout.max_tokens=32"]
        flags += ["--eval.problems=8", "--eval.every=0", "--steps=2", "--name=h", f"--server.addresses={url}"]
        done = subprocess.run(
            [sys.executable, "-m", "reasoner.cli", "train", *flags],
            cwd=tmp_path,
            env=os.environ | {"VLLM_API_KEY": "sesame"},
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        lines = [json.loads(line) for line in (tmp_path / "runs/h/metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == [0, 1, 2]
        assert all(line["probe_max_abs_diff"] < 1e-3 and line["staleness_max"] == 0 for line in lines[1:])
        wait_for_health(url, server, tmp_path / "server.log")
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
