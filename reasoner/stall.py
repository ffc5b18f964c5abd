"""Whether a run that waits for rollouts is slow or stuck."""

from __future__ import annotations

import time
from collections.abc import Callable

from reasoner.errors import ReasonerError

STALL_S = 900.0  # nothing finished and no token was sampled for this long: something hangs
SILENT_STALL_S = 7200.0  # where only what has finished can be seen: two of the longest requests


class StallWatch:
    """Raises ReasonerError when nothing has finished and no token was sampled for too long. Long chains of
    thought are no stall.

    tokens: how many were sampled so far; None where the servers are others' and do not say.
    waiting: what is waited for, for the message."""

    def __init__(self, tokens: Callable[[], int] | None, waiting: Callable[[], str]) -> None:
        self._tokens, self._waiting = tokens, waiting
        self._limit_s = STALL_S if tokens else SILENT_STALL_S
        self._finished, self._sampled = 0, 0
        self._deadline = time.monotonic() + self._limit_s

    def check(self, finished: int) -> None:
        """Called often while waiting, with the number of those that have finished."""
        if finished == self._finished:
            if time.monotonic() <= self._deadline:
                return
            sampled, before = self._tokens() if self._tokens else 0, self._sampled
            if sampled <= before:
                raise ReasonerError(f"{self._waiting()}: nothing has happened for {self._limit_s:.0f} s")
            self._sampled = sampled
        self._finished = finished
        self._deadline = time.monotonic() + self._limit_s
