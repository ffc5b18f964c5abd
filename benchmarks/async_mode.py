"""What asynchronous training gains, and how busy it keeps the machine: short real runs of the command line.

The policy is first trained for `LEARN` steps and then held still (a learning rate of nearly 0), so that all
runs do the same work: completions of the same lengths, as many groups with a signal. Four kinds of runs, in
turn, `--repeats` times:
- `alone`: synchronous, one thread for the learner and one for the server. They take turns, so T_generate
  (rollout, verification) and T_learn (update) are each measured with one core to itself.
- `async`: the same threads, `max_staleness = 2`: both work at once; `async_keep_kv`: with `rollout.keep_kv`.
- `sync`: synchronous, both cores for whoever's turn it is: two servers of one thread, two learner threads.

`async_vs_ideal` = max(T_generate, T_learn) / T_async: the speed-up over taking turns on single cores, divided
by the ideal one, (T_generate + T_learn) / max(T_generate, T_learn). It can exceed 1: T_generate has the end
of a step, in which few completions are left; an asynchronous server has begun the next ones by then.
`async_vs_sync` = T_sync / T_async.
`slower_side_busy_share`: the larger of the shares of T_async in which the learner, or the server's engine, is
at work. All T are means over steps after `WARM_UP`; T_async and T_sync are from step to step.

`sync_stall_share`: what a weight sync costs generation, over an asynchronous step (`benchmarks.stall`); with
`--smollm2-window-s SECONDS` also for SmolLM2 and steps of that length (`sync_stall_share_smollm2`).

    python -m benchmarks.async_mode [--steps 12] [--repeats 3] [--smollm2-window-s 60]
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import Figure, ratio, report
from benchmarks.stall import stall

WARM_UP = 3  # steps left out
RUN_S = 3600.0  # for one run
STALENESS = 2
LEARN = 16  # steps of training before: answers are no longer short, and not all are right yet
ASYNC = ["--learner.threads=1", f"--max_staleness={STALENESS}"]
RUNS = {
    "alone": ["--learner.threads=1"],
    "async": ASYNC,
    "async_keep_kv": [*ASYNC, "--rollout.keep_kv=true"],
    "sync": ["--learner.threads=2", "--server.replicas=2"],
}
HELD_STILL = "--learner.lr=1e-12"


def train(directory: Path, steps: int, *flags: str) -> Path:
    """A run in `directory`, evaluated as little as possible."""
    cheap = ["--eval.every=0", "--eval.problems=1", "--eval.samples=1", "--checkpoint.every=0"]
    run = [f"--runs_dir={directory}", "--name=r", f"--steps={steps}"]
    command = [sys.executable, "-m", "reasoner.cli", "train", *run, *cheap, *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_S)
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)} failed:\n{done.stdout}{done.stderr}")
    return directory / "r"


def steps_of(kind: str, policy: Path, steps: int, extra: list[str]) -> list[dict[str, Any]]:
    """The metrics lines, after the warm-up, of one run."""
    with tempfile.TemporaryDirectory() as directory:
        flags = [*RUNS[kind], *extra, f"--model={policy}", HELD_STILL]
        run = train(Path(directory), steps + WARM_UP + 1, *flags)
        lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines][1 + WARM_UP : -1]  # the last step evaluates


def mean(lines: list[dict[str, Any]], *phases: str) -> float:
    return float(np.mean([sum(line["seconds"][phase] for phase in phases) for line in lines]))


def step_s(lines: list[dict[str, Any]]) -> float:
    """Wall-clock seconds from one step to the next, with what is in none of its phases (writing it down)."""
    return (lines[-1]["elapsed_s"] - lines[0]["elapsed_s"]) / (len(lines) - 1)


def busy_shares(lines: list[dict[str, Any]]) -> dict[str, float]:
    """Share of the run's time that the learner and the server were at work."""
    total = step_s(lines) * (len(lines) - 1)
    return {
        "learner": sum(line.get("update_seconds", 0.0) for line in lines[1:]) / total,
        "server": sum(line["sampler_busy_s"] for line in lines[1:]) / total,
    }


def runs(policy: Path, steps: int, repeats: int, extra: list[str]) -> tuple[list[Figure], dict[str, Any]]:
    """Figures and details; the latter have the seconds of every run's step."""
    step: dict[str, list[float]] = {kind: [] for kind in RUNS}
    shares: dict[str, list[dict[str, float]]] = {kind: [] for kind in RUNS}
    tokens: dict[str, list[float]] = {kind: [] for kind in RUNS}
    generate, learn = [], []
    for _ in range(repeats):
        for kind in RUNS:
            lines = steps_of(kind, policy, steps, extra)
            step[kind].append(step_s(lines))
            shares[kind].append(busy_shares(lines))
            tokens[kind].append(float(np.mean([line["response_tokens_mean"] for line in lines])))
            if kind == "alone":
                generate.append(mean(lines, "rollout", "verify"))
                learn.append(mean(lines, "learn"))
    ideal = np.maximum(generate, learn).tolist()
    figures = []
    for kind, suffix in {"async": "", "async_keep_kv": "_keep_kv"}.items():
        busy = [max(share.values()) for share in shares[kind]]
        figures += [
            ratio(f"async_vs_ideal{suffix}", ideal, step[kind]),
            ratio(f"async_vs_sync{suffix}", step["sync"], step[kind]),
            Figure(f"slower_side_busy_share{suffix}", float(np.median(busy)), "share", min(busy), max(busy)),
        ]
    details = {
        "t_generate_s": generate,
        "t_learn_s": learn,
        "t_step_s": step,
        "busy_shares": {kind: shares[kind] for kind in ("async", "async_keep_kv")},
        "response_tokens_mean": tokens,
        "steps": steps,
        "max_staleness": STALENESS,
    }
    return figures, details


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=10, help="windows with and without a sync")
    parser.add_argument("--smollm2-window-s", type=float, default=0.0, help="also for SmolLM2 (minutes)")
    args, extra = parser.parse_known_args()  # the rest are configuration keys for the runs
    with tempfile.TemporaryDirectory() as directory:
        policy = train(Path(directory), LEARN, *RUNS["sync"], *extra) / "checkpoints" / "latest"
        figures, details = runs(policy, args.steps, args.repeats, extra)
    windows = {"embedded": (float(np.median(details["t_step_s"]["async"])), args.pairs)}
    if args.smollm2_window_s:
        windows["smollm2"] = (args.smollm2_window_s, 3)
    for model, (window_s, pairs) in windows.items():
        lost, details[f"stall_{model}"] = stall(model, window_s, pairs)
        figures += lost
    report("async_mode", figures, details)


if __name__ == "__main__":
    main()
