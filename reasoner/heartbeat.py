"""Whether the learner's processes still run, asked beside whatever they do.

A process that is stopped or stuck does not die, and an update may rightly take hours: only a question of its
own tells one from the other. Each rank answers it in a thread of its own (`HEARTBEAT_GROUP`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray

from reasoner.learner_actor import HEARTBEAT_GROUP

HEARTBEAT_S = 4.0  # between two questions
#: Without an answer, which needs the GIL for a moment. Kernels and collectives let go of it, and so does
#: safetensors as it writes. What keeps it is the import of torch's libraries, and a tensor that is read from
#: a mapped file: seconds each, tens of seconds from a slow network file system.
SILENT_AFTER_S = 90.0


class LearnerSilent(Exception):
    """A rank of the learner does not answer: it hangs."""


@dataclass
class _Rank:
    actor: Any
    sign: Any = None  # Ray reference to the answer
    asked: float = -HEARTBEAT_S
    heard: bool = False  # ever: before that it may be waiting for a place in the cluster
    silent_s: float = 0.0


class Heartbeat:
    """Of these actors. `check` is called about once a second by whoever waits for them."""

    def __init__(self, actors: Sequence[Any], clock: Callable[[], float] = time.monotonic) -> None:
        self._ranks, self._clock = [_Rank(actor) for actor in actors], clock
        self._checked = clock()

    def check(self) -> None:
        """Raises LearnerSilent when a rank that has answered before does not answer any more.

        Only time in which somebody looks counts: a driver that was stopped itself must blame nobody."""
        now = self._clock()
        passed, self._checked = min(now - self._checked, HEARTBEAT_S), now
        for number, rank in enumerate(self._ranks):
            if rank.sign is None:
                self._ask(rank, now)
            elif ray.wait([rank.sign], timeout=0)[0]:
                with suppress(ray.exceptions.RayError):  # it died: what is waited for says so
                    ray.get(rank.sign)
                rank.sign, rank.heard, rank.silent_s = None, True, 0.0
            elif rank.heard:
                rank.silent_s += passed
                if rank.silent_s > SILENT_AFTER_S:
                    raise LearnerSilent(f"rank {number} has not answered for {rank.silent_s:.0f} s")

    @staticmethod
    def _ask(rank: _Rank, now: float) -> None:
        if now - rank.asked >= HEARTBEAT_S:
            rank.sign = rank.actor.ping.options(concurrency_group=HEARTBEAT_GROUP).remote()
            rank.asked = now
