"""Which groups may be sampled when, and which a step trains on: bounded staleness without dropped work.

Staleness of a rollout is the learner's version minus the version of its oldest action token. A new group is
admitted while

    running < max_concurrent
    trained + queued + running < (max_staleness + serving + 1) · groups_per_step

where `serving` is the version that the servers have: the learner's, or one before it while a weight sync is
under way. So at max_staleness 0 nothing runs ahead of the policy. The learner waits for stragglers rather
than letting them grow too old, also where there are more of them than one batch can hold: dropping what took
longest would teach brevity.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field

from reasoner.types import Group


@dataclass
class RolloutQueue:
    groups_per_step: int
    max_staleness: int
    max_concurrent: int
    version: int = 0  # the learner's
    serving: int = 0  # the servers'
    trained: int = 0  # groups that left the queue, and filtered ones that are not replaced
    running: dict[Hashable, int] = field(default_factory=dict)  # what is being sampled → version at admission
    queued: deque[Group] = field(default_factory=deque)

    @property
    def admissible(self) -> int:
        """How many groups may be started now."""
        ahead = (self.max_staleness + self.serving + 1) * self.groups_per_step
        room = ahead - self.trained - len(self.queued) - len(self.running)
        return max(0, min(room, self.max_concurrent - len(self.running)))

    def start(self, key: Hashable) -> None:
        self.running[key] = self.serving

    def finish(self, key: Hashable, group: Group, *, keep: bool = True) -> None:
        """A group arrived. `keep=False` (filtered, to be replaced): it leaves the count."""
        del self.running[key]
        if keep:
            self.queued.append(group)

    @property
    def batch_ready(self) -> bool:
        """A full batch is queued, and what it leaves behind will fit into the batches to come before it is
        too old: of every age, no more than those can hold. Else the learner waits for an older group, even
        where younger ones have arrived that could fill the batch."""
        if len(self.queued) < self.groups_per_step:
            return False
        queued = [group.oldest_version for group in self.queued]
        for ahead in range(self.max_staleness + 1):  # the last batch that groups of `oldest` may be in
            oldest = self.version + ahead - self.max_staleness
            here = sum(version <= oldest for version in queued)
            coming = sum(version <= oldest for version in self.running.values())
            if here < self.groups_per_step and coming > ahead * self.groups_per_step:
                return False
        return True

    def take_batch(self) -> tuple[list[Group], list[Group]]:
        """(groups to train on, groups dropped because they are too old: only after a resume or a failure).

        Of one age in the order of the training stream, not of arrival: same groups, same batch."""
        aged = [(group.oldest_version, group.index, group) for group in self.queued]
        aged.sort(key=lambda entry: entry[:2])
        taken, rest = aged[: self.groups_per_step], aged[self.groups_per_step :]
        self.queued = deque(group for *_, group in rest)
        self.trained += len(taken)
        oldest = self.version - self.max_staleness
        stale = [0 <= v < oldest for v, _, _ in taken]  # NO_VERSION: what was not sampled is not old
        fresh = [g for (*_, g), old in zip(taken, stale, strict=True) if not old]
        return fresh, [g for (*_, g), old in zip(taken, stale, strict=True) if old]
