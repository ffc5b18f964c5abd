"""A whole training step of TRL's GRPOTrainer with its own CPU generation, over one of ours.

Same base model, tasks in the same order, reward function, batch (512 completions of up to 128 tokens),
loss and threads; both configurations are in benchmarks/trl/, and TRL runs with the fastest of the given
batch sizes of a forward pass, tried first. Short runs alternate; a pair's ratio is that of the median
seconds of a step, the first ones of each run left out. Evaluation and start-up are in neither.

    python -m benchmarks.trl_step [--pairs 3] [--per-device 16 32 64 128] [--threads 2]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.figures import Figure, ratio, report
from benchmarks.trl import runs

OUR_STEPS, OUR_WARM_UP = 6, 2
TRL_STEPS, TRL_WARM_UP = 3, 1


def trl_seconds(name: str, directory: Path, per_device: int, seed: int, threads: int) -> list[float]:
    flags = [f"--seed={seed}", f"--steps={TRL_STEPS}", f"--per-device={per_device}"]
    return [s.seconds for s in runs.trl(name, directory, flags, threads) if s.number > TRL_WARM_UP]


def pair(number: int, directory: Path, per_device: int, threads: int) -> tuple[list[float], list[float]]:
    """Seconds of the steps of our run and of TRL's; which one goes first alternates."""

    def ours() -> list[float]:
        small = ["--eval.every=0", "--eval.problems=8", "--checkpoint.every=0", f"--steps={OUR_STEPS}"]
        steps = runs.ours(f"ours_{number}", directory, [*small, f"--seed={number}"], threads)
        return [s.seconds for s in steps if s.number > OUR_WARM_UP]

    def trl() -> list[float]:
        return trl_seconds(f"trl_{number}", directory, per_device, number, threads)

    if number % 2:
        theirs = trl()
        return ours(), theirs
    return ours(), trl()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--per-device", type=int, nargs="+", default=[16, 32, 64, 128])
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory, tried = Path(name), {}
        for size in args.per_device if len(args.per_device) > 1 else ():
            tried[size] = float(np.median(trl_seconds(f"try_{size}", directory, size, 0, args.threads)))
        best = min(tried, key=lambda size: tried[size]) if tried else args.per_device[0]
        found = [pair(i, directory, best, args.threads) for i in range(args.pairs)]
    ours, trl = ([float(np.median(seconds[side])) for seconds in found] for side in (0, 1))
    figures = [
        ratio("step_vs_trl", trl, ours),
        Figure("step_s_ours", float(np.median(ours)), "s", min(ours), max(ours)),
        Figure("step_s_trl", float(np.median(trl)), "s", min(trl), max(trl)),
    ]
    details = {
        "threads": args.threads,
        "per_device": best,
        "per_device_seconds": tried,
        "seconds": [{"ours": a, "trl": b} for a, b in found],
    }
    report("trl_step", figures, details)


if __name__ == "__main__":
    main()
