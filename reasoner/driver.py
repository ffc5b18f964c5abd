"""What surrounds the loop in the driver's process: its stop signals."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from reasoner.display import Display


@contextmanager
def stop_signals(display: Display) -> Iterator[Callable[[], bool]]:
    """Ctrl-C or SIGTERM asks the loop to stop and save; a second Ctrl-C stops at once."""
    asked: list[int] = []

    def ask(signum: int, frame: Any) -> None:
        if asked and signum == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(signum)
        display.message("stopping: the run is being saved (Ctrl-C again stops at once)")

    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
