"""What surrounds the loop in the driver's process: its log file and its stop signals."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reasoner.display import Display


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """What the driver logs goes to a file; what the user must know is said by the display and by errors."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    loggers = [logging.getLogger(name) for name in ("reasoner", "rollouts", "verifiers", "envs")]
    for logger in loggers:
        logger.addHandler(handler)
        logger.propagate = False
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
            logger.propagate = True
        handler.close()


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
