"""Wall-clock seconds of training to 90 % held-out pass@1 on the embedded task: TRL's over ours.

Both start from the same base model and see the same tasks, reward function, batch and loss (configurations
in benchmarks/trl/), and are evaluated every 5 steps on the same 256 problems × 2 samples; evaluation and
start-up are not counted. TRL runs once for each given learning rate, and its best one counts. Hours;
interrupt it at any time, the same command goes on where it was. Runs are kept in .bench/time_to_90/.

    python -m benchmarks.trl_time_to_90 [--seeds 0 1 2] [--trl-lr 3e-4 1e-3 1e-4] [--report-only]
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.figures import Figure, report
from benchmarks.trl import runs
from benchmarks.trl.environment import ROOT
from benchmarks.trl.runs import Step
from reasoner.config import load_config

TARGET = 0.9
EVAL_EVERY = 5


@dataclass(frozen=True)
class Reached:
    """How a run came to the target; `reached` false: not within the steps it made."""

    reached: bool
    steps: int
    seconds: float
    best: float  # highest held-out pass@1

    @property
    def step_s(self) -> float:
        return self.seconds / max(1, self.steps)

    def text(self) -> str:
        mark = "" if self.reached else "  NOT REACHED"
        return (
            f"{self.steps:4} steps × {self.step_s:7.2f} s = {self.seconds:8.0f} s, best {self.best:.3f}{mark}"
        )


def reached(steps: Sequence[Step], target: float = TARGET) -> Reached:
    """Steps and seconds up to the first evaluation at or above `target`, or all there are."""
    seconds, best = 0.0, 0.0
    for step in steps:
        seconds += step.seconds
        best = max(best, step.held_out or 0.0)
        if best >= target:
            return Reached(True, step.number, seconds, best)
    return Reached(False, steps[-1].number if steps else 0, seconds, best)


def figures(ours: Mapping[int, Reached], trl: Mapping[float, Mapping[int, Reached]]) -> list[Figure]:
    """The ratio with TRL's best learning rate over the seeds both sides finished. A run of TRL that did not
    get there enters with the time it spent: the ratio is then a lower bound. One of ours makes it void."""
    seeds = [s for s in ours if all(s in runs_of for runs_of in trl.values())]
    if not seeds or not trl:
        return []
    best = min(trl, key=lambda lr: (_missing(trl[lr], seeds), _median(trl[lr], seeds)))
    sides = {"ours": ours, "trl": trl[best]}
    found = [Figure("time_to_90_trl_lr", best, "lr"), Figure("time_to_90_seeds", len(seeds), "runs")]
    for name, side in sides.items():
        found += [
            _spread(f"time_to_90_{name}", [side[s].seconds for s in seeds], "s"),
            _spread(f"steps_to_90_{name}", [side[s].steps for s in seeds], "steps"),
            _spread(f"time_to_90_step_{name}", [side[s].step_s for s in seeds], "s"),
            Figure(f"runs_not_at_90_{name}", _missing(side, seeds), "runs"),
        ]
    if not _missing(ours, seeds):
        bound = "ratio" if not _missing(trl[best], seeds) else "ratio_at_least"
        ratios = [trl[best][s].seconds / ours[s].seconds for s in seeds]
        found.insert(0, _spread("time_to_90_vs_trl", ratios, bound))
    return found


def _missing(side: Mapping[int, Reached], seeds: Sequence[int]) -> int:
    return sum(not side[s].reached for s in seeds)


def _median(side: Mapping[int, Reached], seeds: Sequence[int]) -> float:
    return float(np.median([side[s].seconds for s in seeds]))


def _spread(name: str, values: Sequence[float], unit: str) -> Figure:
    return Figure(name, float(np.median(values)), unit, float(min(values)), float(max(values)))


def finished(steps: Sequence[Step], total: int) -> bool:
    return bool(steps) and (reached(steps).reached or steps[-1].number >= total)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--trl-lr", type=float, nargs="+", default=[3e-4, 1e-3, 1e-4])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--directory", type=Path, default=ROOT / ".bench" / "time_to_90")
    parser.add_argument("--report-only", action="store_true", help="run nothing, report what is there")
    args = parser.parse_args()
    directory, total = args.directory, load_config(runs.OURS).steps
    ours: dict[int, Reached] = {}
    trl: dict[float, dict[int, Reached]] = {lr: {} for lr in args.trl_lr}
    for seed in args.seeds:
        name = f"ours_seed{seed}"
        steps = runs.our_steps(directory / name)
        if not args.report_only and not finished(steps, total):
            flags = [f"--seed={seed}", f"--eval.every={EVAL_EVERY}", f"--checkpoint.every={EVAL_EVERY}"]
            steps = runs.ours(name, directory, flags, args.threads)
        if finished(steps, total):
            ours[seed] = reached(steps)
        _say(f"ours, seed {seed}", steps, total)
        for lr in args.trl_lr:
            name = f"trl_seed{seed}_lr{lr:g}"
            steps = runs.trl_steps(directory / name)
            if not args.report_only and not finished(steps, total):
                flags = [f"--seed={seed}", f"--lr={lr}", f"--eval-every={EVAL_EVERY}", f"--target={TARGET}"]
                steps = runs.trl(name, directory, flags, args.threads)
            if finished(steps, total):
                trl[lr][seed] = reached(steps)
            _say(f"TRL, seed {seed}, lr {lr:g}", steps, total)
    details = {
        "ours": {seed: found.__dict__ for seed, found in ours.items()},
        "trl": {lr: {seed: r.__dict__ for seed, r in found.items()} for lr, found in trl.items()},
    }
    report("trl_time_to_90", figures(ours, trl), details)


def _say(name: str, steps: Sequence[Step], total: int) -> None:
    state = "" if finished(steps, total) else "  (unfinished)"
    print(f"{name:28} {reached(steps).text()}{state}", flush=True)


if __name__ == "__main__":
    main()
