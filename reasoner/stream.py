"""Which task is sampled next: the positions of the training stream, without those that need not be.

Positions that were admitted and not trained on when a run ended come first. Left out are those whose groups
the journal holds, tasks that are solved and retired, and what the curriculum passes over. Nothing here knows
of servers, the queue or the learner.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from envs.tasks import TaskSource, source_of
from reasoner.config import Config
from reasoner.curriculum import Curriculum
from reasoner.types import UNSCORED, Group, Task

log = logging.getLogger(__name__)


@dataclass
class TaskStream:
    """retire_pass_rate: of a group, from which a task of a finite source is retired; 1: never."""

    source: TaskSource
    retire_pass_rate: float = 1.0
    curriculum: Curriculum | None = None
    next_index: int = 0
    outstanding: list[int] = field(default_factory=list)  # admitted, not trained on: to be sampled again
    retired: set[str] = field(default_factory=set)  # task ids
    journaled: set[int] = field(default_factory=set)  # not to be sampled again

    def next(self) -> tuple[int, Task]:
        """The next position and its task."""
        while self.outstanding:
            index = self.outstanding.pop(0)
            if index not in self.journaled:
                return index, self.source.train(index)
        unwanted = 10 * len(self.retired) + len(self.journaled)  # in a row: then everything is retired
        while unwanted >= 0:
            index, task = self.next_index, self.source.train(self.next_index)
            self.next_index += 1
            if index in self.journaled or task.id in self.retired:
                unwanted -= 1
            elif not self.curriculum or self.curriculum.accepts(task, index):
                return index, task
        log.warning("all %d tasks are solved and retired: starting over with all of them", len(self.retired))
        self.retired.clear()
        return self.next()

    def arrived(self, group: Group) -> None:
        """Retires its task if it is solved."""
        passed = [
            r.verdict.is_correct for r in group.rollouts if r.verdict and r.verdict.status not in UNSCORED
        ]
        rate = self.retire_pass_rate
        if rate < 1 and source_of(self.source, group.task).finite and passed and np.mean(passed) >= rate:
            self.retired.add(group.task.id)

    def restored(self, group: Group) -> None:
        """The journal holds it."""
        self.journaled.add(group.index)
        self.arrived(group)

    def again(self, indices: Iterable[int]) -> None:
        """These are to be sampled once more; those from `next_index` on will be anyway."""
        self.outstanding = sorted({*self.outstanding, *(i for i in indices if i < self.next_index)})

    def stepped(self, groups: Sequence[Group]) -> None:
        """A step was made from these groups; those that are too old are not among them."""
        if self.curriculum:
            self.curriculum.update(groups)

    def continue_after_journaled(self, *, sampled_ahead: bool) -> None:
        """Goes on behind the last group of the journal. `sampled_ahead`: what is missing before it was still
        being sampled; else it was passed over."""
        end = max(self.journaled, default=-1) + 1
        if sampled_ahead:
            self.outstanding += [i for i in range(self.next_index, end) if i not in self.journaled]
        self.next_index = max(self.next_index, end)

    def state(self, waiting: Iterable[int]) -> dict[str, Any]:
        """For a checkpoint, in JSON's types. `waiting`: positions that are being sampled or queued."""
        return {
            "next_index": self.next_index,
            "outstanding": sorted([*waiting, *self.outstanding]),
            "retired": sorted(self.retired),
            "curriculum": self.curriculum.to_dict() if self.curriculum else {},
        }

    @classmethod
    def from_state(cls, config: Config, source: TaskSource, state: Mapping[str, Any]) -> TaskStream:
        """As a checkpoint's `state` has it, or from the beginning where that is empty."""
        adaptive = config.tasks.curriculum == "adaptive"
        return cls(
            source,
            config.learner.retire_pass_rate,
            Curriculum.from_dict(config.seed, state.get("curriculum", {})) if adaptive else None,
            state.get("next_index", 0),
            list(state.get("outstanding", [])),
            set(state.get("retired", [])),
        )
