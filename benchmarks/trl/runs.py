"""Whole training runs of either side, as processes, and what their metrics say."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.trl.environment import ROOT, interpreter, variables
from reasoner.models import embedded_path

OURS = Path(__file__).with_name("reasoner.toml")
TRL = Path(__file__).with_name("trl.toml")


@dataclass(frozen=True)
class Step:
    """One training step: its wall-clock seconds without evaluation, and pass@1 where it was evaluated."""

    number: int
    seconds: float
    held_out: float | None


def ours(
    name: str,
    runs_dir: Path,
    flags: Sequence[str],
    threads: int,
    enough: Callable[[list[Step]], bool] = lambda steps: False,
) -> list[Step]:
    """Trains or resumes our run `name`, until its steps are `enough`; they, with step 0 (the base model)."""
    run = runs_dir / name
    what = ["--resume", str(run)]
    if not (run / "checkpoints" / "latest").exists():
        shutil.rmtree(run, ignore_errors=True)  # interrupted before there was anything to resume
        what = [str(OURS), f"--name={name}"]
    where = [f"--runs_dir={runs_dir}", f"--learner.threads={threads}"]
    command = [sys.executable, "-m", "reasoner.cli", "train", *what, *where, *flags]
    _call(command, threads, runs_dir, name, lambda: enough(our_steps(run)))
    return our_steps(run)


def our_steps(run: Path) -> list[Step]:
    steps = []
    for line in _lines(run / "metrics.jsonl"):
        held_out = line.get("eval", {}).get("held_out", {}).get("pass@1")
        steps.append(Step(line["step"], line["seconds"]["total"] if line["step"] else 0.0, held_out))
    return steps


def trl(name: str, runs_dir: Path, flags: Sequence[str], threads: int) -> list[Step]:
    """Trains or resumes TRL's run `name`; its steps."""
    out = runs_dir / name
    command = [str(interpreter()), "-m", "benchmarks.trl.peer", "train", "--model", str(embedded_path())]
    _call([*command, "--out", str(out), "--threads", str(threads), *flags], threads, runs_dir, name)
    return trl_steps(out)


def trl_steps(run: Path) -> list[Step]:
    return [Step(s["step"], s.get("seconds", 0.0), s.get("pass@1")) for s in _lines(run / "progress.jsonl")]


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _call(
    command: Sequence[str],
    threads: int,
    directory: Path,
    name: str,
    enough: Callable[[], bool] = lambda: False,
) -> None:
    """Runs the command to its end, or interrupts it when it has done `enough`."""
    directory.mkdir(parents=True, exist_ok=True)
    log = directory / f"{name}.txt"
    with (
        open(log, "a") as output,
        subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=variables(threads), cwd=ROOT
        ) as process,
    ):
        interrupted = False
        while process.poll() is None:
            time.sleep(1.0)
            if not interrupted and enough():
                process.send_signal(signal.SIGINT)  # it saves and exits 130
                interrupted = True
    if process.returncode and not interrupted:
        raise RuntimeError(f"{name} ended with {process.returncode}:\n{log.read_text()[-3000:]}")
