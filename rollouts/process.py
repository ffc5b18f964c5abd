"""What every process of a run sees to first: where its output goes, and that it ends with its parent."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

PARENT_S = 0.5  # between two looks at the parent


def redirect_output(path: Path) -> None:
    """Everything that this process prints, also from C++ and as it crashes, goes to the end of this file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)


def die_with_parent() -> None:
    """Leave when the parent is gone, even if it was killed. Ray does the same, but not as long as native code
    (an engine step, an update) keeps the process busy."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_S)
        os._exit(1)

    threading.Thread(target=watch, name="parent-watchdog", daemon=True).start()
