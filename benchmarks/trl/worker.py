"""A side of a comparison as a process: it reads a command a line, answers with a JSON object a line.

`warm` updates on a shortened batch (the optimizer's state exists from then on), `update` on the whole one.
An answer has `seconds`, `grad_norm`, and `activation_bytes`: the peak of the resident memory over what the
process held before, less the gradients, which are as large as the parameters on both sides.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

ANSWER_S = 1800.0  # for one answer; the first one includes the imports


class Worker:
    """The caller's end."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], log: Path) -> None:
        self._log = log
        with open(log, "w") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
            )
        self.ready = self._read()

    def ask(self, command: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        overdue = threading.Timer(ANSWER_S, self._process.kill)
        overdue.start()
        try:
            line = self._process.stdout.readline()
        finally:
            overdue.cancel()
        if not line:
            code = self._process.wait(timeout=ANSWER_S)
            raise RuntimeError(
                f"a side of the comparison ended with {code}, or was killed after {ANSWER_S:.0f} s without "
                f"an answer:\n{self._log.read_text()[-3000:]}"
            )
        return json.loads(line)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def answers() -> TextIO:
    """The stream of answers; whatever else is printed goes to the log."""
    stream = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return stream


def commands() -> Any:
    return (line.strip() for line in sys.stdin)


class Memory:
    """Peak of the resident memory over what was there at construction."""

    def __init__(self) -> None:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
        self._before = _status("VmRSS")

    def peak(self) -> int:
        return _status("VmHWM") - self._before


def _status(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")
