"""What surrounds the loop in the driver's process: its stop signals."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from reasoner.display import Display


class StopSignals:
    """For the block, Ctrl-C or SIGTERM only asks to stop: the object is then true when called, and whoever is
    at work saves and ends. A second Ctrl-C stops at once."""

    def __init__(self, display: Display) -> None:
        self._display = display
        self._asked = False
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        return self._asked

    def catch(self) -> None:
        """Again, after a library has installed handlers of its own. Nothing where `train` runs in another
        thread: signals are the main thread's."""
        if threading.current_thread() is not threading.main_thread():
            return
        for signum in (signal.SIGINT, signal.SIGTERM):
            handler = signal.signal(signum, self._ask)
            self._before.setdefault(signum, handler)

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        if self._asked and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True
        self._display.message("stopping: what is done is being saved (Ctrl-C again stops at once)")

    def __enter__(self) -> Self:
        self.catch()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
