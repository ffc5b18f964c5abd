"""An exported model behind the command that its card names, and what it says of a run's own rollouts."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import numpy as np
from ports import free_port

from reasoner.rollout_files import read_table, step_path, step_paths

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "OMP_NUM_THREADS": "1",
}
ON_THIS_MACHINE = ["--block-size", "32", "--max-model-len", "512", "--enforce-eager"]


@contextmanager
def served(directory: Path) -> Iterator[httpx.Client]:
    """A client of the server that the card's `vllm serve` starts, where a reader of the card would start it.
    (By its module: in the CPU distribution, vllm-cpu, the command `vllm` does not find itself.)"""
    (arguments,) = re.findall(r"^vllm serve (.*)$", (directory / "README.md").read_text(), re.M)
    port = free_port()
    server = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model"]
    command = [*server, *shlex.split(arguments), *ON_THIS_MACHINE, "--port", str(port)]
    log = directory.with_name("served.log")
    with log.open("w") as out:
        process = subprocess.Popen(
            command,
            cwd=directory.parent,
            env=os.environ | ENVIRONMENT,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            while not _healthy(client):
                assert process.poll() is None, log.read_text()[-2000:]
                time.sleep(0.5)
            yield client
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _healthy(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.HTTPError:
        return False


def check_answers_as_in_training(client: httpx.Client, run_dir: Path, version: int, model: str) -> int:
    """Every rollout that the run's server sampled from this checkpoint (and trained on in the step after it)
    has the log-probabilities that were recorded. Returns their number."""
    rows = [
        row
        for row in read_table(step_path(run_dir, version + 1)).to_pylist()
        if {v for v in row["policy_version"] if v >= 0} == {version}
    ]
    for row in rows:
        asked = {"model": model, "prompt": row["token_ids"], "max_tokens": 1, "prompt_logprobs": 0}
        choice = client.post("/v1/completions", json=asked).raise_for_status().json()["choices"][0]
        said = [
            entry[str(token)]["logprob"] if entry else 0.0
            for token, entry in zip(row["token_ids"], choice["prompt_logprobs"], strict=True)
        ]
        sampled = np.array(row["action_mask"])
        np.testing.assert_allclose(
            np.array(said)[sampled], np.array(row["behaviour_logprobs"])[sampled], atol=1e-3
        )
    return len(rows)


def check_the_cards_request(client: httpx.Client, run_dir: Path, directory: Path) -> None:
    """The request of the card, sent as it stands: the tokens of training, and an answer."""
    (request,) = re.findall(r"-d '(.*)'$", (directory / "README.md").read_text(), re.M)
    sent = json.loads(request.replace("'\\''", "'")) | {"temperature": 0, "return_token_ids": True}
    (choice,) = client.post("/v1/completions", json=sent).raise_for_status().json()["choices"]
    *_, newest = step_paths(run_dir).values()
    assert choice["prompt_token_ids"] == read_table(newest, ("prompt_ids",))["prompt_ids"][0].as_py()
    assert r"\boxed{" in choice["text"]
