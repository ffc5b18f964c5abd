"""Which tasks of the stream are sampled: an adaptive curriculum over families and difficulties.

A cell is a (family, difficulty). Each keeps a pool of what was seen of it lately: its pass rate and its
signal, the mean variance of the rewards within a group, p(1-p) for a task with pass rate p (arXiv
2509.19803, which judges single tasks by it): what a group-relative gradient is made of, largest for tasks
that are solved half of the time. A task of the stream is taken with the probability `(signal / largest
signal)²`, at least `FLOOR`; the others are passed over. The square, the floor and the memory were chosen by
simulated policies (tests/unit/test_curriculum.py): where some level is within reach, the stream's pass rate
then stays between 0.2 and 0.8. The pools forget exponentially, towards "unknown", and what is unknown counts
as full of signal: a cell that was rarely taken is tried again.

Deterministic: whether a task is taken depends on the seed, its position in the stream and the pools, which
change between steps only.
Left out: curricula over single tasks (solved ones of a finite set are retired, `learner.retire_pass_rate`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

from reasoner.types import UNSCORED, Group, Task

FLOOR = 0.05  # smallest probability of being taken: exploration
MEMORY = 0.8  # what a pool keeps from step to step: it remembers about 5 steps
_PRIOR_TASKS = 0.5  # weight of "unknown" in a pool, tasks
_MOST = 0.25  # largest variance of a reward that is 0 or 1


@dataclass(frozen=True)
class Pool:
    """What was seen of a cell, forgetting: sums over tasks, each with a weight that fades."""

    tasks: float = 0.0
    passed: float = 0.0  # sum of the pass rates
    variance: float = 0.0  # sum of the variances within the groups

    @property
    def pass_rate(self) -> float | None:
        return self.passed / self.tasks if self.tasks else None

    @property
    def signal(self) -> float:
        """Expected variance within a group over the largest there is, 0 to 1; 1 while nothing is known."""
        seen = self.variance + _PRIOR_TASKS * _MOST
        return min(1.0, seen / (self.tasks + _PRIOR_TASKS) / _MOST)

    def forget(self) -> Pool:
        return Pool(MEMORY * self.tasks, MEMORY * self.passed, MEMORY * self.variance)

    def add(self, pass_rate: float, variance: float) -> Pool:
        return Pool(self.tasks + 1, self.passed + pass_rate, self.variance + variance)


class Curriculum:
    """The pools of a run. `update` once a step; `accepts` decides about one position of the stream."""

    def __init__(self, seed: int, pools: Mapping[str, Pool] | None = None) -> None:
        self.seed = seed
        self.pools = dict(pools or {})

    def accepts(self, task: Task, index: int) -> bool:
        """Whether the task at position `index` of the stream is sampled."""
        return Random(f"curriculum:{self.seed}:{index}").random() < self.probability(cell(task))

    def probability(self, name: str) -> float:
        """Of taking a task of the cell, from `FLOOR` to 1."""
        largest = max((pool.signal for pool in self.pools.values()), default=1.0)
        return max(FLOOR, min(1.0, self.pools.get(name, Pool()).signal / largest) ** 2)

    def update(self, groups: Sequence[Group]) -> None:
        """One step's groups, in the order of the stream; unscored rollouts are left out."""
        pools = {name: pool.forget() for name, pool in self.pools.items()}
        for group in sorted(groups, key=lambda g: g.index):
            passed = [
                r.verdict.is_correct for r in group.rollouts if r.verdict and r.verdict.status not in UNSCORED
            ]
            if len(passed) > 1:
                p, n = sum(passed) / len(passed), len(passed)
                name = cell(group.task)
                pools[name] = pools.get(name, Pool()).add(p, p * (1 - p) * n / (n - 1))
        self.pools = pools

    def metrics(self, groups: Sequence[Group]) -> dict[str, dict[str, float | None]]:
        """By cell: its share of a step's groups, its pass rate lately, and the probability of being taken."""
        counts = dict.fromkeys(sorted(self.pools), 0)
        for group in groups:
            counts[cell(group.task)] = counts.get(cell(group.task), 0) + 1
        return {
            name: {
                "share": count / max(1, len(groups)),
                "pass_rate": self.pools.get(name, Pool()).pass_rate,
                "probability": self.probability(name),
            }
            for name, count in counts.items()
        }

    def to_dict(self) -> dict[str, dict[str, float]]:
        """For a checkpoint, in JSON's types."""
        return {name: asdict(pool) for name, pool in self.pools.items()}

    @classmethod
    def from_dict(cls, seed: int, state: Mapping[str, Mapping[str, Any]]) -> Curriculum:
        return cls(seed, {name: Pool(**pool) for name, pool in state.items()})


def cell(task: Task) -> str:
    return f"{task.family}/{task.difficulty:g}"
