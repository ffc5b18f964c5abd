"""Wall-clock seconds of training to 90 % held-out pass@1 on the embedded task: TRL's over ours.

Both start from the same base model and see the same tasks, reward function, batch and loss (configurations
in benchmarks/trl/), and are evaluated every 5 steps on the same 256 problems × 2 samples; evaluation and
start-up are not counted. TRL runs once for each given learning rate, and its best one counts. Hours;
interrupt it at any time, the same command goes on where it was. Runs are kept in .bench/time_to_90/.

`--staleness N` trains our side asynchronously (`time_to_90_vs_trl_async`): the learner and one server at
once, with half of the threads each, and completions under way keep their KV cache.

    python -m benchmarks.trl_time_to_90 [--seeds 0 1 2] [--trl-lr 3e-4 1e-3 1e-4] [--staleness 2]
                                        [--report-only]
"""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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


def without_head_start(steps: Sequence[Step], staleness: int) -> list[Step]:
    """Groups that are under way are sampled on during an evaluation, whose seconds are not counted: the steps
    they may serve, `staleness` + 1 after each, count as the median of the others at least."""
    evaluated = [s.number for s in steps if s.held_out is not None]
    served = {n + i for n in evaluated for i in range(1, staleness + 2)}
    others = [s.seconds for s in steps if s.number > 0 and s.number not in served]
    least = float(np.median(others)) if others else 0.0
    return [replace(s, seconds=max(s.seconds, least)) if s.number in served else s for s in steps]


def figures(
    ours: Mapping[int, Reached], trl: Mapping[float, Mapping[int, Reached]], suffix: str = ""
) -> list[Figure]:
    """The ratio with TRL's best learning rate over the seeds both sides finished. A run of TRL that did not
    get there enters with the time it spent: the ratio is then a lower bound. One of ours makes it void."""
    seeds = [s for s in ours if all(s in runs_of for runs_of in trl.values())]
    if not seeds or not trl:
        return []
    best = min(trl, key=lambda lr: (_missing(trl[lr], seeds), _median(trl[lr], seeds)))
    sides = {f"ours{suffix}": ours, "trl": trl[best]}
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
        found.insert(0, _spread(f"time_to_90_vs_trl{suffix}", ratios, bound))
    return found


def _missing(side: Mapping[int, Reached], seeds: Sequence[int]) -> int:
    return sum(not side[s].reached for s in seeds)


def _median(side: Mapping[int, Reached], seeds: Sequence[int]) -> float:
    return float(np.median([side[s].seconds for s in seeds]))


def _spread(name: str, values: Sequence[float], unit: str) -> Figure:
    return Figure(name, float(np.median(values)), unit, float(min(values)), float(max(values)))


def finished(steps: Sequence[Step], total: int) -> bool:
    return bool(steps) and (reached(steps).reached or steps[-1].number >= total)


def our_run(seed: int, args: argparse.Namespace, total: int) -> list[Step]:
    """Our run of a seed, gone on with unless it is finished; its steps as they count."""
    staleness, threads = args.staleness, args.threads
    name = f"ours_seed{seed}" + (f"_staleness{staleness}_keep_kv" if staleness else "")
    flags = [f"--seed={seed}", f"--eval.every={EVAL_EVERY}", f"--checkpoint.every={EVAL_EVERY}"]
    if staleness:
        threads = max(1, threads // 2)
        flags += [f"--max_staleness={staleness}", "--rollout.keep_kv=true"]
        flags += ["--server.replicas=1", f"--server.threads={threads}"]
    steps = runs.our_steps(args.directory / name)
    if not args.report_only and not finished(steps, total):
        enough = lambda steps: reached(steps).reached  # noqa: E731
        steps = runs.ours(name, args.directory, flags, threads, enough)
    return without_head_start(steps, staleness) if staleness else steps


def trl_run(seed: int, lr: float, args: argparse.Namespace, total: int) -> list[Step]:
    name = f"trl_seed{seed}_lr{lr:g}_batch{args.per_device}"
    steps = runs.trl_steps(args.directory / name)
    if not args.report_only and not finished(steps, total):
        flags = [f"--seed={seed}", f"--lr={lr}", f"--eval-every={EVAL_EVERY}", f"--target={TARGET}"]
        flags += [f"--per-device={args.per_device}"]
        steps = runs.trl(name, args.directory, flags, args.threads)
    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--trl-lr", type=float, nargs="+", default=[3e-4, 1e-3, 1e-4])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--staleness", type=int, default=0, help="max_staleness of our side, 0 to 3")
    per_device = tomllib.loads(runs.TRL.read_text())["per_device_train_batch_size"]
    parser.add_argument("--per-device", type=int, default=per_device, help="TRL's rollouts of a forward pass")
    parser.add_argument("--directory", type=Path, default=ROOT / ".bench" / "time_to_90")
    parser.add_argument("--report-only", action="store_true", help="run nothing, report what is there")
    args = parser.parse_args()
    if not 0 <= args.staleness <= EVAL_EVERY - 2:
        parser.error("--staleness: 0 to 3, so that some steps owe nothing to an evaluation before them")
    total = load_config(runs.OURS).steps
    ours: dict[int, Reached] = {}
    trl: dict[float, dict[int, Reached]] = {lr: {} for lr in args.trl_lr}
    for seed in args.seeds:
        steps = our_run(seed, args, total)
        if finished(steps, total):
            ours[seed] = reached(steps)
        _say(f"ours, seed {seed}", steps, total)
        for lr in args.trl_lr:
            steps = trl_run(seed, lr, args, total)
            if finished(steps, total):
                trl[lr][seed] = reached(steps)
            _say(f"TRL, seed {seed}, lr {lr:g}", steps, total)
    details = {
        "staleness": args.staleness,
        "per_device": args.per_device,
        "ours": {seed: found.__dict__ for seed, found in ours.items()},
        "trl": {lr: {seed: r.__dict__ for seed, r in found.items()} for lr, found in trl.items()},
    }
    suffix = "_async" if args.staleness else ""
    report(f"trl_time_to_90{suffix}", figures(ours, trl, suffix), details)


def _say(name: str, steps: Sequence[Step], total: int) -> None:
    state = "" if finished(steps, total) else "  (unfinished)"
    print(f"{name:28} {reached(steps).text()}{state}", flush=True)


if __name__ == "__main__":
    main()
