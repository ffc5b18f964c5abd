"""Whole training runs of either side, as processes, and what their metrics say."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
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


def ours(name: str, runs_dir: Path, flags: Sequence[str], threads: int) -> list[Step]:
    """Trains or resumes our run `name`; its steps, step 0 (the base model) among them."""
    run = runs_dir / name
    what = ["--resume", str(run)]
    if not (run / "checkpoints" / "latest").exists():
        shutil.rmtree(run, ignore_errors=True)  # interrupted before there was anything to resume
        what = [str(OURS), f"--name={name}"]
    where = [f"--runs_dir={runs_dir}", f"--learner.threads={threads}"]
    _call([sys.executable, "-m", "reasoner.cli", "train", *what, *where, *flags], threads, runs_dir, name)
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


def _call(command: Sequence[str], threads: int, directory: Path, name: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    log = directory / f"{name}.txt"
    with open(log, "a") as output:
        done = subprocess.run(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=variables(threads),
            cwd=ROOT,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"{name} ended with {done.returncode}:\n{log.read_text()[-3000:]}")
