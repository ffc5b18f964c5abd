"""Whether a run that waits for rollouts is slow or stuck."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from reasoner.errors import ReasonerError

STALL_S = 900.0  # nothing finished and no token was sampled for this long: something hangs
SILENT_STALL_S = 7200.0  # where only what has finished can be seen: two of the longest requests
LOOK_S = 60.0  # between two looks at what was sampled


class StallWatch:
    """Raises ReasonerError when nothing has finished and no token was sampled for too long. Long chains of
    thought are no stall.

    tokens: how many each server process has sampled so far, by its key, of those that say so at once; None
    where the servers are others' and do not say.
    waiting: what is waited for, for the message.
    start_s: how long a server may take to start; while none serves, the fleet's own limit comes first."""

    def __init__(
        self, tokens: Callable[[], Mapping[str, int]] | None, waiting: Callable[[], str], start_s: float = 0.0
    ) -> None:
        self._tokens, self._waiting = tokens, waiting
        self._limit_s = max(STALL_S if tokens else SILENT_STALL_S, 3 * start_s)
        self._finished = 0
        self._sampled: dict[str, int] = {}
        self._checked = self._looked = time.monotonic()
        self._idle_s = 0.0  # since something happened

    def check(self, finished: int) -> None:
        """Called often while waiting, with the number of those that have finished. Of a long time between
        two calls only `LOOK_S` count: then the caller did something else, such as starting a learner."""
        now = time.monotonic()
        self._idle_s += min(now - self._checked, LOOK_S)
        self._checked = now
        if finished != self._finished or self._has_sampled(now):
            self._finished, self._idle_s = finished, 0.0
        elif self._idle_s > self._limit_s:
            raise ReasonerError(f"{self._waiting()}: nothing has happened for {self._limit_s:.0f} s")

    def _has_sampled(self, now: float) -> bool:
        """Whether any process has sampled since the last look. A sum would fall when one is started anew."""
        if self._tokens is None or now - self._looked < LOOK_S:
            return False
        self._looked = now
        sampled, before = self._tokens(), self._sampled
        self._sampled = {**before, **sampled}
        return any(count > before.get(key, 0) for key, count in sampled.items())
