"""Difficulty control against fixed difficulty, after the same number of samples and at the same FLOPs.

Three streams: `arithmetic` (1 to 4 operations, all within reach of the embedded model), `deep`, the same
generator with 1 to 7 operations, of which it never solves the longest: fixed difficulty wastes their groups,
and `chain_sum`, reasoning-gym's, with five of its levels. Each with `tasks.curriculum` none and adaptive,
interleaved, `--seeds` times. Runs that are there are not repeated, so that a stopped benchmark goes on.

`…_gain_at_equal_flops` is held-out pass@1 under the adaptive curriculum less that under none, where both have
spent the FLOPs (rollouts and updates) that the cheaper of the two spent in all: a line between evaluations.

    python -m benchmarks.curriculum [--steps 30] [--seeds 2] [--runs-dir runs] [--streams arithmetic,deep]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import Figure, report
from envs.arithmetic import LEVELS, OOD_LEVELS, ArithmeticTasks
from reasoner.metrics import read_metrics
from reasoner.types import Task

BAND = (0.2, 0.8)
GROUPS = 32
STREAMS = {
    "arithmetic": "arithmetic",
    "deep": "benchmarks.curriculum:deep",
    "chain_sum": "rg:chain_sum(levels=0-4)",
}
ARMS = ("none", "adaptive")


class DeepArithmetic(ArithmeticTasks):
    """All lengths there are, trained on and held out; nothing is left that would be out of distribution."""

    def __post_init__(self) -> None:
        """The levels are what is different here: there is nothing to check."""

    @property
    def eval_splits(self) -> tuple[str, ...]:
        return ("held_out",)

    def split(self, name: str, n: int) -> list[Task]:
        return super().split(name, n) if name == "held_out" else []


def deep(seed: int) -> DeepArithmetic:
    return DeepArithmetic(seed, (*LEVELS, *OOD_LEVELS), name="deep")


def metrics_of(run: Path, stream: str, arm: str, seed: int, steps: int) -> list[dict[str, Any]]:
    """The metrics of a run, which is made or gone on with when it is not finished."""
    lines = read_metrics(run)
    if not lines or lines[-1]["step"] < steps:
        new = [f"--runs_dir={run.parent}", f"--name={run.name}", f"--seed={seed}", f"--steps={steps}"]
        new += [f"--tasks.source={STREAMS[stream]}", f"--tasks.curriculum={arm}", "--eval.every=5"]
        new += [f"--rollout.groups_per_step={GROUPS}", "--eval.problems=140", "--checkpoint.every=0"]
        flags = ["--resume", str(run)] if lines else new
        subprocess.run([sys.executable, "-m", "reasoner.cli", "train", *flags], check=True)
    return read_metrics(run)


def summary(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """What is compared, of one run."""
    steps = [line for line in lines if line["step"]]
    rates = np.array([line["pass_rate"] for line in steps])
    held_out = {line["step"]: line["eval"]["held_out"] for line in lines if "eval" in line}
    last = held_out[max(held_out)]
    spent = np.cumsum([(line["train_flops"] or 0) + (line["sample_flops"] or 0) for line in lines])
    flops = {line["step"]: float(total) for line, total in zip(lines, spent, strict=True)}
    return {
        "held_out": {step: found["pass@1"] for step, found in held_out.items()},
        "held_out_by_level": {level: found["pass@1"] for level, found in last["by_difficulty"].items()},
        "groups_with_signal": 1 - np.mean([line["filtered_groups"] for line in steps]) / GROUPS,
        "steps_in_band": np.mean((rates >= BAND[0]) & (rates <= BAND[1])),
        "stream_pass_rate": rates[[0, len(rates) // 2, -1]].tolist(),
        "flops": {step: flops[step] for step in held_out},
    }


def gain_at_equal_flops(none: dict[str, Any], adaptive: dict[str, Any]) -> float:
    """Of two summaries, see the module's docstring."""
    arms = [
        [np.array([run[key][step] for step in sorted(run["flops"])]) for key in ("flops", "held_out")]
        for run in (none, adaptive)
    ]
    budget = min(flops[-1] for flops, _ in arms)
    at_none, at_adaptive = (np.interp(budget, flops, held_out) for flops, held_out in arms)
    return float(at_adaptive - at_none)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("--streams", default=",".join(STREAMS))
    given = parser.parse_args()
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for stream in given.streams.split(","):
        runs = found[stream] = {arm: [] for arm in ARMS}
        for seed in range(given.seeds):
            for arm in ARMS:
                run = given.runs_dir / f"curriculum-{stream}-{arm}-{seed}"
                runs[arm].append(summary(metrics_of(run, stream, arm, seed, given.steps)))
                print(stream, arm, seed, runs[arm][-1], flush=True)
    figures = [
        Figure(f"curriculum_{stream}_{arm}_{name}", float(np.mean(values)), "share", min(values), max(values))
        for stream, arms in found.items()
        for arm, runs_ in arms.items()
        for name in ("held_out", "groups_with_signal", "steps_in_band")
        if (values := [_final(run[name]) for run in runs_])
    ]
    for stream, arms in found.items():
        gains = [gain_at_equal_flops(*pair) for pair in zip(arms["none"], arms["adaptive"], strict=True)]
        name = f"curriculum_{stream}_gain_at_equal_flops"
        figures.append(Figure(name, float(np.mean(gains)), "pass@1", min(gains), max(gains)))
    report("curriculum", figures, found)


def _final(value: Any) -> float:
    return float(value[max(value)] if isinstance(value, dict) else value)


if __name__ == "__main__":
    main()
