"""The figures of a few minutes: a short real run, rollout against vLLM's own, sync against a memory copy,
learner and whole step against TRL (which is installed into .bench/trl on first use).

    python -m benchmarks.quick

The short run gives `start_to_first_step_s` (from the command to the first optimizer step, the first
evaluation included) and where a step's time goes. Lone seconds describe this machine only; the ratios are
measured side by side in one run.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.figures import Figure, report
from reasoner.metrics import PHASES

STEPS = 8
RUN_S = 1800.0
WARM_UP = 2  # steps left out of the shares


def short_run() -> tuple[list[Figure], dict[str, object]]:
    """A run of the default configuration, cut to `STEPS` steps."""
    with tempfile.TemporaryDirectory() as directory:
        flags = ["--name=quick", f"--steps={STEPS}", "--eval.every=0", "--checkpoint.every=0"]
        command = [sys.executable, "-m", "reasoner.cli", "train", f"--runs_dir={directory}", *flags]
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        metrics = Path(directory) / "quick" / "metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and '"step": 1,' in metrics.read_text()):
            time.sleep(0.05)
        first_step_s = time.perf_counter() - started
        output = process.communicate(timeout=RUN_S)[0]
        if process.returncode != 0:
            raise RuntimeError(f"the short run failed:\n{output}")
        lines = [json.loads(line) for line in metrics.read_text().splitlines()][1 + WARM_UP :]
    figures = [Figure("start_to_first_step_s", first_step_s, "s")]
    for phase in PHASES:
        shares = [line["seconds"][phase] / line["seconds"]["total"] for line in lines]
        figures.append(Figure(f"{phase}_share", float(np.mean(shares)), "of step", min(shares), max(shares)))
    totals = [line["seconds"]["total"] for line in lines]
    figures.append(Figure("step_s", float(np.median(totals)), "s", min(totals), max(totals)))
    return figures, {"steps": len(lines), "seconds": [line["seconds"] for line in lines]}


def main() -> None:
    figures, details = short_run()
    report("short_run", figures, details)
    others = (
        ("rollout", ["--repeats", "3"]),
        ("sync", ["--repeats", "10"]),
        ("trl_learner", ["--models", "embedded", "--repeats", "3"]),
        ("trl_step", ["--pairs", "1", "--per-device", "64"]),
    )
    for benchmark, arguments in others:
        subprocess.run([sys.executable, "-m", f"benchmarks.{benchmark}", *arguments], check=True)


if __name__ == "__main__":
    main()
