"""`reasoner eval --endpoint` against a plain vLLM server that this project did not start."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent))
from ports import free_port

from reasoner.cli import main
from reasoner.models import embedded_path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
BLOCK = 32
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "OMP_NUM_THREADS": "1",
}


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """vLLM's own server with the embedded model, none of our extensions, and its own statistics."""
    log = tmp_path_factory.mktemp("vllm") / "log"
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(embedded_path())]
    command += ["--served-model-name", "served", "--port", str(port), "--dtype", "float32", "--enforce-eager"]
    command += ["--max-model-len", "512", "--block-size", str(BLOCK), "--generation-config", "vllm"]
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env=os.environ | ENVIRONMENT, stdout=output, stderr=output, start_new_session=True
        )
    try:
        base = f"http://127.0.0.1:{port}"
        while not _healthy(base):
            assert process.poll() is None, log.read_text()[-2000:]
            time.sleep(0.5)
        yield base
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _healthy(base):
    try:
        return httpx.get(f"{base}/health").status_code == 200
    except httpx.HTTPError:
        return False


def counter(url, name):
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"vllm:{name}_total"))


def run(url, out, *arguments):
    command = ["eval", "--endpoint", url, "--model", "served", "--template", "base", "--out", str(out)]
    done = CliRunner().invoke(main, [*command, *arguments])
    return done, json.loads((out / "eval.json").read_text()) if (out / "eval.json").exists() else None


def test_curves_and_budgets_of_a_served_model(url, tmp_path):
    arguments = ("--problems", "12", "--samples", "8", "--budgets", "8,24", "--extend", "no,")
    done, result = run(url, tmp_path / "eval", *arguments)
    assert done.exit_code == 0, done.output
    curve = result["splits"]["held_out"]["pass@k"]
    assert 0.05 < curve["1"] < 0.5 and curve["8"] > 2 * curve["1"], "a base model, see docs/base_model.md"
    assert result["splits"]["held_out"]["weighted_maj@k"], "vLLM gives logprobs"
    short, _, longer, full = result["budgets"]["splits"]["held_out"]["points"]
    assert short["kind"] == "cut" and 0 < short["applied_rate"] < 1
    assert short["thinking_tokens_mean"] <= 8 < full["tokens_mean"] < longer["tokens_mean"]
    assert longer["accuracy"] > full["accuracy"], "asked to look again, the base model works step by step"


def test_samples_of_one_prompt_share_its_prefill(url, tmp_path):
    """300 tokens, 16 samples: vLLM finds all whole blocks of all prompts but the first in its cache."""
    prompt, samples = "1+" * 149 + "1", 16
    tasks = tmp_path / "long.jsonl"
    tasks.write_text(json.dumps({"prompt": prompt, "reference": "150"}) + "\n")
    before = {name: counter(url, name) for name in ("prefix_cache_queries", "prefix_cache_hits")}
    done, result = run(
        url, tmp_path / "eval", "--tasks", str(tasks), "--samples", str(samples), "--max-tokens", "4"
    )
    assert done.exit_code == 0, done.output
    asked, hits = (counter(url, name) - before[name] for name in before)
    length = 300  # with the template's newline
    assert asked == samples * length
    assert hits == (samples - 1) * (length // BLOCK) * BLOCK
    assert result["splits"]["long"]["samples"] == samples


def test_ctrl_c_keeps_what_finished(url, tmp_path):
    command = [sys.executable, "-m", "reasoner.cli", "eval", "--endpoint", url, "--model", "served"]
    command += ["--template", "base", "--samples", "1000", "--out", str(tmp_path / "eval")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not stored(tmp_path / "eval"):
        assert process.poll() is None
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command goes on" in said
    assert 0 < stored(tmp_path / "eval") < 100_000


def stored(directory):
    path = directory / "samples.sqlite"
    if not path.exists():
        return 0
    with sqlite3.connect(path) as db:
        tables = db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'samples'").fetchone()
        return db.execute("SELECT count(*) FROM samples").fetchone()[0] if tables[0] else 0


def test_a_context_shorter_than_the_budget_is_said(url, tmp_path):
    done, _ = run(url, tmp_path / "eval", "--problems", "1", "--budgets", "500")
    assert done.exit_code == 2 and "do not fit the context of 512 tokens" in done.output


def test_a_base_model_has_no_chat_template(url, tmp_path):
    command = [
        "eval",
        "--endpoint",
        url,
        "--model",
        "served",
        "--problems",
        "1",
        "--out",
        str(tmp_path / "eval"),
    ]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 2 and "--template base" in done.output
