"""Seconds of the phases of something, on either side of a remote call."""

from __future__ import annotations

import time


class Laps:
    """Seconds between calls of `lap`, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self._last = now - self._last, now
