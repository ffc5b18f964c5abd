"""Real runs of the command line: Ray, vLLM, verifier processes, learner, on the embedded model."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from served import check_answers_as_in_training, check_the_cards_request, served

from envs.self_correct import RETRY
from reasoner.replay import describe, replay
from reasoner.rollout_files import groups_of, read_table, step_path

pytestmark = pytest.mark.slow

SMALL = [
    "--rollout.groups_per_step=4",
    "--rollout.group_size=4",
    "--rollout.max_tokens=32",
    "--eval.problems=8",
    "--eval.every=2",
    "--checkpoint.every=1",
    "--server.max_num_seqs=16",
    "--server.kv_cache_gib=0.2",
]
STEP_KEYS = {
    "step",
    "policy_version",
    "reward_mean",
    "pass_rate",
    "response_tokens_mean",
    "truncated_rate",
    "unparsed_rate",
    "masked_rate",
    "verifier_timeouts",
    "verifier_errors",
    "self_corrected_rate",
    "filtered_groups",
    "dropped_stale",
    "staleness_mean",
    "staleness_max",
    "entropy",
    "kl_behaviour",
    "clip_rate",
    "ess",
    "grad_norm",
    "learner_tokens_per_s",
    "sampler_tokens_per_s",
    "train_flops",
    "sample_flops",
    "seconds",
}


def command(*args):
    return [sys.executable, "-m", "reasoner.cli", *args]


def run(*args, cwd, timeout=300, **env):
    return subprocess.run(
        command(*args), cwd=cwd, timeout=timeout, capture_output=True, text=True, env={**os.environ, **env}
    )


def metrics(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def leftovers(marker):
    """Processes that still have the run's directory open as their working directory."""
    found = []
    for process in psutil.process_iter(["pid", "name"]):
        try:
            if str(marker) in process.cwd():
                found.append(process)
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


def records(logs):
    """What the processes have logged, as a machine reads it."""
    return [json.loads(line) for file in sorted(logs.glob("*.jsonl")) for line in file.open()]


def test_a_run_keeps_the_contract_and_resumes(tmp_path):
    done = run("train", "--name=r", "--steps=2", *SMALL, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    path = tmp_path / "runs" / "r"
    lines = metrics(path)
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert all(line.keys() >= STEP_KEYS for line in lines)
    assert {"held_out", "ood"} <= lines[0]["eval"].keys() & lines[2]["eval"].keys()
    assert lines[0]["eval"]["held_out"].keys() >= {"pass@1", "response_tokens_mean", "problems", "samples"}
    for line in lines[1:]:
        seconds = dict(line["seconds"])
        assert seconds.pop("total") == pytest.approx(sum(seconds.values()), abs=1e-6)
        assert line["staleness_max"] == 0
        assert line["probe_max_abs_diff"] < 1e-3
    checkpoint = path / "checkpoints" / "step_000002"
    assert (checkpoint / "model.safetensors").is_file() and (checkpoint / "trainer").is_dir()
    assert (path / "checkpoints" / "best").resolve().name in ("step_000000", "step_000002"), "those evaluated"
    assert (path / "config.toml").is_file()
    assert "<html" in (path / "report.html").read_text()
    assert list((path / "rollouts").iterdir())
    kinds = {"driver": "driver", "learner": "learner", "worker_0": "worker", "server_server-0": "server"}
    logged = records(path / "logs")
    assert {record["process"]: record["kind"] for record in logged} == kinds
    assert {file.stem for file in (path / "logs").glob("*.log")} == kinds.keys()
    assert len({record["pid"] for record in logged}) == 4
    assert {record["level"] for record in logged} <= {"INFO", "WARNING"}

    more = run("train", "--resume", str(path), "--steps=7", cwd=tmp_path)
    assert more.returncode == 0, more.stdout + more.stderr
    lines = metrics(path)
    assert [line["step"] for line in lines] == list(range(8)), (
        "also after retention removed what it came from"
    )
    assert lines[3]["policy_version"] == 2
    assert (path / "checkpoints" / "step_000007" / "tokenizer.json").is_file()

    replayed = run("replay", str(path), "--json=replay.json", cwd=tmp_path)
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr
    assert "reproduced, bit for bit" in replayed.stdout
    found = json.loads((tmp_path / "replay.json").read_text())
    assert found["rewards"]["checked"] == 7 * 4 * 4 and found["rewards"]["disagreements"] == []
    assert found["updates"]["checkpoints"] == dict.fromkeys(map(str, range(8)), "identical")

    evaluated = run("eval", str(path), "--samples=2", "--json=eval.json", cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stdout + evaluated.stderr
    split = json.loads((tmp_path / "eval.json").read_text())["splits"]["held_out"]
    assert (split["problems"], split["samples"]) == (8, 2), "problems are the run's, samples the option's"
    assert split.keys() >= {"pass@k", "ci95", "flops_per_sample", "flops_per_correct", "self_corrected_rate"}
    (logs,) = (path / "eval").glob("*/logs")
    assert {record["kind"] for record in records(logs)} == {"driver", "server"}

    exported = run("export", str(path), "--checkpoint=6", "--out=served-model", cwd=tmp_path)
    assert exported.returncode == 0, exported.stdout + exported.stderr
    with served(tmp_path / "served-model") as client:
        assert check_answers_as_in_training(client, path, 6, "served-model") >= 4 * 4
        check_the_cards_request(client, path, tmp_path / "served-model")
    assert not leftovers(tmp_path), "nothing is left running"


def test_asynchronous_run_has_bounded_staleness(tmp_path):
    flags = ["--name=a", "--steps=5", "--max_staleness=2", *SMALL, "--checkpoint.every=0"]
    done = run("train", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    staleness = [line["staleness_max"] for line in metrics(tmp_path / "runs" / "a")[1:]]
    assert max(staleness) <= 2 and max(staleness) > 0
    result = replay(tmp_path / "runs" / "a")
    assert result.reproduced and result.updates.exact, list(describe(result))
    assert result.updates.checkpoints == {0: "identical", 5: "identical"}


def test_a_run_of_several_turns_trains_on_what_was_sampled_only(tmp_path):
    tasks = "--tasks=self_correct(arithmetic:levels=1),tool_use(arithmetic:levels=1)"
    done = run("train", "--name=t", "--steps=2", tasks, *SMALL, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    path = tmp_path / "runs" / "t"
    groups = [g for step in (1, 2) for g in groups_of(read_table(step_path(path, step)))]
    rollouts = [r for group in groups for r in group.rollouts]
    assert {r.reward for r in rollouts} == {0.0, 1.0}
    found = set()  # (environment, whether it has instructions, tokens of observations)
    for r in rollouts:
        prompt = int(r.action_mask.argmax())
        observed = ~r.action_mask & (np.arange(len(r.token_ids)) > prompt)
        assert (r.behaviour_logprobs[observed] == 0).all() and (r.behaviour_logprobs[r.action_mask] < 0).all()
        found.add((r.task.metadata["source"], prompt > 200, int(observed.sum())))
    retry = len(RETRY)  # the embedded model's tokens are characters; it calls no tools
    assert found == {(0, False, 0), (0, False, retry), (1, True, 0)}
    assert replay(path).reproduced


def test_adapters_on_two_ranks_go_on_in_one(tmp_path):
    flags = ["--name=l", "--steps=2", "--learner.ranks=2", "--learner.lora_rank=4", *SMALL]
    done = run("train", *flags, "--learner.zero_variance=keep", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    more = run("train", "--resume", "runs/l", "--steps=3", "--learner.ranks=1", cwd=tmp_path)
    assert more.returncode == 0, more.stdout + more.stderr
    path = tmp_path / "runs" / "l"
    assert all(line["probe_max_abs_diff"] < 1e-3 for line in metrics(path)[1:]), "servers have merged weights"
    model = path / "checkpoints" / "step_000003" / "model.safetensors"
    assert all(line["sync_bytes"] < 0.1 * model.stat().st_size for line in metrics(path)[1:]), "adapters only"
    for step, ranks in ((2, 2), (3, 1)):
        saved = path / "checkpoints" / f"step_{step:06d}"
        assert (saved / "model.safetensors").is_file() and (saved / "adapter").is_dir()
        assert len(list((saved / "trainer").glob(f"optimizer-*-of-{ranks:05d}.safetensors"))) == ranks


@pytest.mark.parametrize(("stop", "after_lines"), [(signal.SIGINT, 3), (signal.SIGTERM, 1)])
def test_stopping_saves_and_exits_130(tmp_path, stop, after_lines):
    process = subprocess.Popen(
        command("train", "--name=c", "--steps=5000", *SMALL, "--checkpoint.every=0"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    path = tmp_path / "runs" / "c"
    deadline = time.monotonic() + 180
    while not (path / "metrics.jsonl").exists() or len(metrics(path)) < after_lines:
        assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
        time.sleep(0.2)
    if stop == signal.SIGINT:
        os.killpg(process.pid, stop)  # as a terminal does: to the whole foreground group
    else:
        process.send_signal(stop)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 130, output
    saved = int(re.fullmatch(r"step_(\d+)", Path(path / "checkpoints" / "latest").resolve().name)[1])
    assert saved >= after_lines - 1
    assert f"--resume {path.relative_to(tmp_path)}" in output
    time.sleep(2)
    assert not leftovers(tmp_path)
    more = run("train", "--resume", "runs/c", f"--steps={saved + 1}", cwd=tmp_path)
    assert more.returncode == 0, more.stdout + more.stderr
    assert [line["step"] for line in metrics(path)] == list(range(saved + 2))


def test_a_verifier_that_raises_stops_saved_with_its_message(tmp_path):
    (tmp_path / "broken.py").write_text(
        "def check(completion, task):\n    raise RuntimeError('no such luck')\n"
    )
    flags = ["--name=v", "--steps=3", "--verifier", "broken:check", *SMALL]
    done = run("train", *flags, cwd=tmp_path)
    assert done.returncode == 1
    assert "no such luck" in done.stderr and "Traceback" not in done.stderr
    (failed,) = (r for r in records(tmp_path / "runs" / "v" / "logs") if r["level"] == "ERROR")
    assert (failed["process"], failed["step"]) == ("driver", 0), "it is found out as step 0 is evaluated"
    assert failed["traceback"].startswith("Traceback") and "no such luck" in failed["traceback"]
    (tmp_path / "broken.py").write_text("def check(completion, task):\n    return len(completion) < 12\n")
    more = run("train", "--resume", "runs/v", "--steps=1", cwd=tmp_path)
    assert more.returncode == 0, more.stdout + more.stderr


def test_a_plug_in_verifier_decides_the_reward_and_what_it_cannot_judge_is_said(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def short(completion, task):\n"
        "    if len(completion) > 16:\n"
        "        raise ValueError('too long for me')\n"
        "    return len(completion) < 12\n"
    )
    flags = ["--name=p", "--steps=1", "--verifier", "mine:short", *SMALL]
    done = run("train", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = metrics(tmp_path / "runs" / "p")[1:]
    assert 0 < line["reward_mean"] <= 1 and line["verifier_errors"] > 0
    said = " ".join((done.stdout + done.stderr).split())
    assert said.count("could not be judged") == 1
    assert "error: ValueError: too long for me (mine.py:3)" in said


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--lerner.lr=1"], "learner.lr"),
        (["--rollout.group_size=1"], "at least 2"),
        (["--rollout.max_tokens=100000"], "tokens"),
        (["--rollout.top_p=0.9"], "top_p"),
        (["--learner.device=cuda"], "no GPU"),
        (["--tasks.source=no_such_module:tasks"], "no_such_module"),
        (["--model=/nowhere/model"], "/nowhere/model"),
        (["--tasks.template=chat"], "chat template"),
        (["--tasks.source=arithmetics"], "arithmetic"),
        (["--name=../x"], "inside runs"),
        (["--verifier", "no_module:f"], "no_module"),
        (["--cluster.address=127.0.0.1:1"], "127.0.0.1:1"),
        (["--resume", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_exits_2_with_one_message(tmp_path, args, message):
    done = run("train", *args, cwd=tmp_path, timeout=120)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())
