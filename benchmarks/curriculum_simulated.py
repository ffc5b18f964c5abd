"""What the adaptive curriculum does to the stream of a simulated policy, against plain sampling.

The policy solves a task of difficulty d with probability 1 / (1 + exp(1.5 (d - ability))). Its ability grows
evenly over 40 steps, from solving a quarter of the easiest level to half of the hardest (`improving`), or
stays in the middle of that, or at the beginning, where no choice of tasks gives more than a quarter.
16 groups of 8 rollouts a step; the first three steps, before anything is known, are left out.

    python -m benchmarks.curriculum_simulated
"""

from __future__ import annotations

import sys

import numpy as np

from benchmarks.curriculum import BAND, deep
from envs.tasks import TaskSource, load_tasks
from reasoner.curriculum import Curriculum
from reasoner.types import Group, Rollout, Task, Verdict

STEPS, GROUPS, SIZE, LEFT_OUT = 40, 16, 8, 3
SOURCES = ("arithmetic", "number_theory", "rg:chain_sum(levels=0-4)", "rg:chain_sum(levels=0-9)", "deep")
_NOTHING = np.zeros(1, np.float32)


def simulate(source: TaskSource, adaptive: bool, policy: str, seed: int) -> np.ndarray:
    """(2, STEPS): the stream's pass rate, and the share of its groups with different rewards."""
    levels = {source.train(i).difficulty for i in range(200)}
    first, last = min(levels) - 0.7, max(levels)
    curriculum, rng, index, found = Curriculum(seed), np.random.default_rng(seed), 0, []
    for step in range(STEPS):
        progress = {"improving": step / STEPS, "middle": 0.5, "beginning": 0.0}[policy]
        ability = first + (last - first) * progress
        taken: list[Group] = []
        while len(taken) < GROUPS:
            task = source.train(index)
            if not adaptive or curriculum.accepts(task, index):
                p = 1 / (1 + np.exp(1.5 * (task.difficulty - ability)))
                taken.append(_group(task, rng.random(SIZE) < p, index))
            index += 1
        curriculum.update(taken)
        rates = [np.mean([r.verdict is not None and r.verdict.is_correct for r in g.rollouts]) for g in taken]
        found.append((np.mean(rates), np.mean([0 < rate < 1 for rate in rates])))
    return np.array(found).T


def _group(task: Task, right: np.ndarray, index: int) -> Group:
    verdicts = [Verdict.correct() if r else Verdict.wrong() for r in right]
    z = _NOTHING
    return Group(task, tuple(Rollout(task, z, z > 0, z, z - 1, "", True, False, v) for v in verdicts), index)


def main() -> None:
    seeds = range(int(sys.argv[1]) if sys.argv[1:] else 3)
    print("| source | policy | plain: in band, with signal | adaptive: the same |\n|---|---|---|---|")
    for spec in SOURCES:
        for policy in ("improving", "middle", "beginning"):
            cells = []
            for adaptive in (False, True):
                source = deep(0) if spec == "deep" else load_tasks(spec)
                runs = np.stack([simulate(source, adaptive, policy, seed) for seed in seeds])[:, :, LEFT_OUT:]
                rates, signal = runs[:, 0], runs[:, 1]
                inside = np.mean((rates >= BAND[0]) & (rates <= BAND[1]))
                cells.append(f"{inside:.2f}, {signal.mean():.2f}")
            print(f"| `{spec}` | {policy} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
