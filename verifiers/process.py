"""One verifier process as its parent sees it: started, spoken to, listened to, killed, accounted for.

Its other side is `verifiers.worker`: a fresh interpreter that gets the verifier by its spec or by value,
and shares nothing with its parent but one socket. What an answer or a death means, and what is to be done
next, is left to the pool.
"""

from __future__ import annotations

import json
import os
import pickle
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from reasoner.errors import ReasonerError, UsageError
from reasoner.types import Task, Verdict
from verifiers.base import Verifier

START_TIMEOUT_S = 120.0  # a plug-in may import a lot, on a loaded machine
SEND_TIMEOUT_S = 60.0  # for a process to read what it is to verify
READ_BYTES = 1 << 18
KILLED = {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP}  # exit codes

_BOOT = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[2]); "
    "from verifiers.worker import main; main(int(sys.argv[1]))"
)


class WorkerStartError(ReasonerError):
    """A verifier process did not come up; the message says why."""


class VerifierProcess:
    """One worker process and its socket. Used by one thread only; it dies with the thread that made it."""

    def __init__(self, payload: tuple[str, Any], timeout_s: float, memory_mib: int | None) -> None:
        ours, theirs = socket.socketpair()
        # A process that has stopped reading must not hold us for ever, either: sending raises OSError then.
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(SEND_TIMEOUT_S), 0))
        env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        path = json.dumps([p or os.getcwd() for p in sys.path])
        self._popen = subprocess.Popen(
            [sys.executable, "-P", "-c", _BOOT, str(theirs.fileno()), path],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
            env=env,
        )
        self.pid = self._popen.pid
        theirs.close()
        self._connection = Connection(ours.detach())
        self._pidfd = os.pidfd_open(self.pid) if hasattr(os, "pidfd_open") else None
        self._poller = select.poll()
        self._poller.register(self._connection.fileno(), select.POLLIN)
        if self._pidfd is not None:  # a forked child may hold the socket open after the worker died
            self._poller.register(self._pidfd, select.POLLIN)
        self._lines: deque[bytes] = deque()  # answers read, but not yet asked for
        self._rest = b""  # the beginning of the next one
        self._cpu_s = 0.0  # of the process, when it last answered
        self.killed = False  # by somebody else
        hello = {"verifier": payload, "timeout_s": timeout_s, "memory_mib": memory_mib}
        self._starting = True
        self._connection.send_bytes(pickle.dumps(hello))

    @property
    def answers_read(self) -> int:
        """How many answers `receive` will return without waiting."""
        return len(self._lines)

    def wait_ready(self) -> None:
        """Raises `WorkerStartError` unless the worker says that it loaded the verifier."""
        if not self._starting:
            return
        answer = self.receive(START_TIMEOUT_S)
        if answer is None or answer[0] != "ready":
            reason = answer[2].detail if answer else f"no answer (exit code {self.end()[0]})"
            self.kill()
            raise WorkerStartError(f"the verifier process did not start: {reason}")
        self._starting = False

    def send(self, kind: str, completions: list[str], task: Task | list[Task]) -> None:
        """What is to be answered next. Raises OSError when the process has ended or reads nothing."""
        self._connection.send_bytes(_message(kind, task, completions))

    def receive(self, timeout_s: float) -> tuple[str, int, Verdict] | None:
        """The next message, or None when the process died or `timeout_s` passed."""
        end = time.monotonic() + timeout_s
        while not self._lines:
            if not self._readable(max(0.0, end - time.monotonic())) or not self._read():
                return None
        answer = json.loads(self._lines.popleft())
        kind, index, self._cpu_s, status, reward, extracted, detail, seconds = answer
        return kind, index, Verdict(status, reward, extracted, detail, seconds)

    def _read(self) -> bool:
        """Read what has come; False at the end of it."""
        try:
            piece = os.read(self._connection.fileno(), READ_BYTES)
        except OSError:
            return False
        *lines, self._rest = (self._rest + piece).split(b"\n")
        self._lines.extend(lines)
        return bool(piece)

    def _readable(self, timeout_s: float) -> bool:
        ready = [fd for fd, _ in self._poller.poll(timeout_s * 1000)]
        return self._connection.fileno() in ready or (bool(ready) and self._connection.poll(0))

    def end(self) -> tuple[int | None, float]:
        """Exit code (None: was still running) and CPU seconds since the last answer; leaves it dead."""
        try:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid == 0:
                time.sleep(0.01)  # the socket closes a moment before the process is gone
                pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            running = pid == 0
            if running:
                os.killpg(self.pid, signal.SIGKILL)
                _, status, usage = os.wait4(self.pid, 0)
        except (ChildProcessError, ProcessLookupError):
            return self._popen.poll(), 0.0
        self._popen.returncode = os.waitstatus_to_exitcode(status)
        self.killed = not running and self._popen.returncode in KILLED
        cpu_s = max(0.0, usage.ru_utime + usage.ru_stime - self._cpu_s)
        return (None if running else self._popen.returncode), cpu_s

    def kill(self) -> None:
        """End the process and everything in its process group."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass  # already gone
        self._popen.wait()
        self._connection.close()
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None


def _message(kind: str, task: Any, completions: list[str]) -> bytes:
    try:
        return pickle.dumps((kind, task, completions))
    except (pickle.PicklingError, AttributeError, TypeError):
        import cloudpickle

        return cloudpickle.dumps((kind, task, completions))


def encode(verifier: str | Callable[..., Any] | Verifier) -> tuple[str, Any]:
    """How the worker gets the verifier: by its spec, or by value."""
    if isinstance(verifier, str):
        return "spec", verifier
    import cloudpickle

    try:
        return "pickle", cloudpickle.dumps(verifier)
    except Exception as error:  # anything can be in a closure
        name = getattr(verifier, "__qualname__", type(verifier).__name__)
        raise UsageError(f"verifier {name!r} cannot be sent to another process: {error}") from error
