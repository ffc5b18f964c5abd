"""The figures of a few minutes: a short real run, rollout against vLLM's own, sync against a memory copy,
the learner against the machine (product rate, where its time goes, memory), learner and whole step against
TRL (which is installed into .bench/trl on first use).

    python -m benchmarks.quick

The short run gives `start_to_first_step_s` (from the command to the first optimizer step, the first
evaluation included) and where a step's time goes. What the loop itself costs are `wait_share`, the seconds
in which it neither waited for sampling, verification or the learner nor for a sync, and
`loop_python_share`, CPU seconds of the driver's main thread between two steps over the seconds between
them: most of that runs while the others work, so it is more than what the loop adds to a step. Not in it
are Ray's threads and processes and the thread that writes Parquet. What Python costs inside the learner is
`learner_python_share` of `benchmarks.learner_profile`. Lone seconds describe this machine only; the ratios
are measured side by side in one run.

What `make bench` measures at greater length goes to `results/BENCHMARK_quick.json` here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from benchmarks.figures import SUFFIX, Figure, report
from reasoner.metrics import PHASES

STEPS = 8
RUN_S = 1800.0  # after which the short run hangs
WARM_UP = 2  # steps left out of the shares
SHORTENED = (
    ("sync", "--repeats", "10"),
    ("learner_gemm", "--models", "embedded"),
    ("learner_profile", "--models", "embedded"),
    ("learner_memory", "--tokens", "1024,4096", "--vocabularies", "1000,150000"),
    ("trl_learner", "--models", "embedded", "--repeats", "3"),
    ("trl_step", "--pairs", "1", "--per-device", "16"),
)


def short_run() -> tuple[list[Figure], dict[str, object]]:
    """A run of the default configuration, cut to `STEPS` steps."""
    with tempfile.TemporaryDirectory() as directory, tempfile.TemporaryFile("w+") as output:
        flags = ["--name=quick", f"--steps={STEPS}", "--eval.every=0", "--checkpoint.every=0"]
        command = [sys.executable, "-m", "reasoner.cli", "train", f"--runs_dir={directory}", *flags]
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, text=True)
        metrics = Path(directory) / "quick" / "metrics.jsonl"
        seen = _watch(process, metrics)
        if process.returncode != 0:
            output.seek(0)
            raise RuntimeError(f"the short run failed:\n{output.read()}")
        lines = [json.loads(line) for line in metrics.read_text().splitlines()][1 + WARM_UP :]
    wall, cpu = np.diff(seen[WARM_UP:-1], axis=0).T  # the last step ends with an evaluation
    shares = cpu / wall
    figures = [
        Figure("start_to_first_step_s", seen[1][0] - started, "s"),
        Figure("loop_python_share", float(shares.mean()), "share", shares.min(), shares.max()),
    ]
    for phase in PHASES:
        parts = [line["seconds"][phase] / line["seconds"]["total"] for line in lines]
        figures.append(Figure(f"{phase}_share", float(np.mean(parts)), "share", min(parts), max(parts)))
    totals = [line["seconds"]["total"] for line in lines]
    figures.append(Figure("step_s", float(np.median(totals)), "s", min(totals), max(totals)))
    return figures, {"steps": len(lines), "seconds": [line["seconds"] for line in lines]}


def _watch(process: subprocess.Popen[str], metrics: Path) -> list[tuple[float, float]]:
    """(time, CPU seconds of the process's main thread so far) when each line of `metrics` appeared, until the
    process ends."""
    driver = psutil.Process(process.pid)
    seen: list[tuple[float, float]] = []
    deadline = time.perf_counter() + RUN_S
    while process.poll() is None:
        if time.perf_counter() > deadline:
            process.terminate()
            raise subprocess.TimeoutExpired(process.args, RUN_S)
        lines = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
        if lines > len(seen):
            (main,) = (t for t in driver.threads() if t.id == process.pid)
            seen += [(time.perf_counter(), main.user_time + main.system_time)] * (lines - len(seen))
        time.sleep(0.02)
    return seen


def run(benchmark: str, *arguments: str, suffix: str = "") -> None:
    command = [sys.executable, "-m", f"benchmarks.{benchmark}", *arguments]
    subprocess.run(command, check=True, env=os.environ | {SUFFIX: suffix})


def main() -> None:
    figures, details = short_run()
    report("short_run", figures, details)
    run("rollout", "--repeats", "3")
    for benchmark, *arguments in SHORTENED:
        run(benchmark, *arguments, suffix="_quick")


if __name__ == "__main__":
    main()
