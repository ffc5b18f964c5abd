"""Ends what a Ray started by us leaves behind when its driver is killed.

Ray's own processes watch their parents, but two of its agents (dashboard, runtime environments) were seen to
outlive a driver killed with SIGKILL by minutes. A small process of its own waits for the driver's end on a
pipe, gives Ray a moment, and kills what is left of the processes that it was told of.
"""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import suppress

import psutil

GRACE_S = 5.0


def guard_children() -> subprocess.Popen[bytes]:
    """Starts the reaper for all present descendants of this process; closing its `stdin` ends its watch."""
    children = [f"{p.pid}:{p.create_time()}" for p in psutil.Process().children(recursive=True)]
    command = [sys.executable, "-m", "reasoner.reaper", *children]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def reap(children: list[str]) -> None:
    """Waits until standard input ends, then kills the children (`pid:create_time`) that are still there."""
    sys.stdin.buffer.read()
    processes = []
    for child in children:
        pid, created = child.split(":")
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(int(pid))
            if abs(process.create_time() - float(created)) < 1.0:
                processes.append(process)
    time.sleep(0.1)
    _, alive = psutil.wait_procs(processes, timeout=GRACE_S)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()


if __name__ == "__main__":
    reap(sys.argv[1:])
