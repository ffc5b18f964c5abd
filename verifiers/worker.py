"""The inside of one verifier process: reads groups from a socket, answers each item at once.

It is started as a fresh interpreter (nothing of the parent is imported or inherited but one socket),
leads a process group of its own, and dies with the thread that started it. The deadline of an item is a
kernel timer armed when the item begins, with the default action: it kills this process even inside a C
loop that never gives the interpreter back. This is a guard against accidents and run-away answers, not
a sandbox: a plug-in is trusted code and could reach files and the network.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pickle
import resource
import signal
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

from reasoner.types import Task, Verdict
from verifiers.base import (
    CallableVerifier,
    Verifier,
    describe_exception,
    load_verifier,
    one_each,
    to_verdict,
)

PR_SET_PDEATHSIG = 1
MIB = 1 << 20
ASYNC_GRACE_S = 0.5
RECYCLE_ITEMS = 50_000
RECYCLE_GROWTH_MIB = 512


def die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the thread that started this process is gone (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def status_mib(field: str) -> float:
    """A size of this process from /proc/self/status (`VmSize`, `VmRSS`); 0 where there is no /proc."""
    with contextlib.suppress(OSError), open("/proc/self/status") as status:
        for line in status:
            if line.startswith(field + ":"):
                return int(line.split()[1]) / 1024
    return 0.0


def limit_memory(memory_mib: int) -> None:
    """Let the address space grow by `memory_mib` from here on; past that, MemoryError."""
    size_mib = status_mib("VmSize")
    if size_mib:
        limit = int((size_mib + memory_mib) * MIB)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def encode(kind: str, index: int, verdict: Verdict) -> bytes:
    """One answer as a line of JSON: kind, index in the group, CPU seconds of this process so far, verdict."""
    fields = (verdict.status, verdict.reward, verdict.extracted, verdict.detail, verdict.seconds)
    return json.dumps([kind, index, time.process_time(), *fields]).encode() + b"\n"


class Emitter:
    """Writes answers to the socket, one line each. Ends the process when nobody is left to read them."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __call__(self, kind: str, index: int, verdict: Verdict) -> None:
        waiting = memoryview(encode(kind, index, verdict))
        try:
            while waiting:
                waiting = waiting[os.write(self.fd, waiting) :]
        except ConnectionError:
            os._exit(0)


def kill_children() -> None:
    """Kill what a plug-in forked and left behind."""
    with contextlib.suppress(OSError):
        for thread in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{thread}/children") as children:
                for pid in map(int, children.read().split()):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


class Worker:
    """Answers groups with one verifier until the socket closes or it is time to be recycled."""

    def __init__(self, connection: Connection, verifier: Verifier, timeout_s: float) -> None:
        self.connection, self.verifier, self.kill_after_s = connection, verifier, timeout_s
        with contextlib.suppress(AttributeError):  # it may be frozen
            verifier.timeout_s = timeout_s  # one that waits gives up in time to say what it waited for
        if getattr(verifier, "is_async", False):  # its calls end one by one, each at its own deadline
            self.kill_after_s += ASYNC_GRACE_S
        self._emitter = Emitter(connection.fileno())
        self.builtin = type(verifier).__module__.startswith("verifiers.") and not isinstance(
            verifier, CallableVerifier
        )
        self.items = 0
        self.start_mib = status_mib("VmRSS")

    def serve(self) -> None:
        while True:
            try:
                kind, task, completions = pickle.loads(self.connection.recv_bytes())
            except (EOFError, ConnectionError):
                return
            self.answer(kind, completions, task)
            self.items += len(completions)
            grown = self.items % 64 == 0 and status_mib("VmRSS") - self.start_mib > RECYCLE_GROWTH_MIB
            if self.items >= RECYCLE_ITEMS or grown:
                self.emit("recycled", 0, Verdict("correct", 1.0))
                return

    def answer(self, kind: str, completions: list[str], task: Any) -> None:
        """Emit one answer for each completion, in order."""
        if kind in ("answer_keys", "candidates"):
            self.texts(kind, completions, task)
        elif self.whole_group():
            self.group(completions, task)
        else:
            tasks = _tasks(task, completions)
            decide = getattr(self.verifier, kind)
            for index, (completion, own) in enumerate(zip(completions, tasks, strict=True)):
                self.one(index, decide, completion, own)

    def emit(self, kind: str, index: int, verdict: Verdict) -> None:
        self._emitter(kind, index, verdict)

    def whole_group(self) -> bool:
        own = type(self.verifier).verify_group is not Verifier.verify_group
        return own and (self.verifier.batched or getattr(self.verifier, "is_async", True))

    def guarded(self, call: Any) -> Any:
        """The result of `call()` under the deadline, or the error `Verdict`; never an exception."""
        signal.setitimer(signal.ITIMER_REAL, self.kill_after_s)
        try:
            return call()
        except MemoryError:
            if self.verifier.timeout_is_answer:
                return Verdict.timeout("the answer needs more memory than the verifier may use")
            return Verdict.error(f"the verifier ran out of its {self.verifier.memory_mib} MiB of memory")
        except BaseException as error:  # SystemExit and the like: a plug-in is a boundary
            return Verdict.error(describe_exception(error))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            if not self.builtin:
                kill_children()

    def one(self, index: int, decide: Any, completion: str, task: Task) -> None:
        begun = time.perf_counter()
        verdict = self.guarded(lambda: decide(completion, task))
        self.send("verdict", index, verdict, time.perf_counter() - begun)

    def group(self, completions: list[str], task: Any) -> None:
        """One call for all completions of one task (a list of tasks: one call each)."""
        if isinstance(task, Task):
            return self.call_group(0, completions, task)
        for index, (completion, own) in enumerate(zip(completions, task, strict=True)):
            self.call_group(index, [completion], own)

    def call_group(self, first: int, completions: list[str], task: Task) -> None:
        """One call for the completions of one task, the first of which is number `first` of the message."""
        begun, count, threshold = time.perf_counter(), len(completions), self.verifier.correct_from
        verify = self.verifier.verify_group
        found = self.guarded(lambda: one_each(verify(completions, task), count, threshold))
        verdicts = [found] * count if isinstance(found, Verdict) else found
        seconds = (time.perf_counter() - begun) / max(1, count)
        for index, verdict in enumerate(verdicts, first):
            self.send("verdict", index, verdict, seconds)

    def texts(self, kind: str, completions: list[str], task: Any) -> None:
        """The answer key, or the candidates as JSON, of each completion; None when there is none."""
        for index, (completion, own) in enumerate(zip(completions, _tasks(task, completions), strict=True)):
            read = self.verifier.answer_key if kind == "answer_keys" else self.candidates
            text = self.guarded(lambda c=completion, t=own, r=read: r(c, t))
            text = None if isinstance(text, Verdict) or text is None else str(text)
            self.send("key", index, Verdict("correct", 1.0, text), 0.0)

    def candidates(self, completion: str, task: Task) -> str:
        return json.dumps([str(answer) for answer in self.verifier.candidates(completion)])

    def send(self, kind: str, index: int, outcome: Any, seconds: float) -> None:
        verdict = to_verdict(outcome, self.verifier.correct_from)
        timed = Verdict(
            verdict.status,
            verdict.reward,
            None if verdict.extracted is None else str(verdict.extracted),
            str(verdict.detail),
            round(verdict.seconds or seconds, 6),
        )
        self.emit(kind, index, timed)


def _tasks(task: Any, completions: list[str]) -> list[Task]:
    return [task] * len(completions) if isinstance(task, Task) else task


def main(fd: int) -> None:
    """Entry point: the first message says what to load; the answer is `ready` or why not."""
    die_with_parent()
    os.dup2(2, 1)  # what a plug-in prints must not end up in the parent's output
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    connection = Connection(fd)
    emit = Emitter(fd)
    home = os.getpid()
    os.register_at_fork(after_in_child=die_with_parent)
    os.register_at_fork(after_in_child=lambda: os.close(fd))
    try:
        hello = pickle.loads(connection.recv_bytes())
    except (EOFError, ConnectionError):  # the parent has ended meanwhile
        return
    try:
        verifier = load_verifier(_decode(hello["verifier"]))
    except BaseException as error:  # foreign code at import
        message = str(error) if type(error).__name__ == "UsageError" else describe_exception(error)
        emit("failed", 0, Verdict.error(message))
        return
    limit_memory(hello["memory_mib"] or verifier.memory_mib)
    emit("ready", 0, Verdict("correct", 1.0))
    if hasattr(verifier, "prepare"):
        verifier.prepare()  # after "ready": the parent need not wait for it
    try:
        Worker(connection, verifier, hello["timeout_s"]).serve()
    finally:
        if os.getpid() != home:
            os._exit(1)  # a fork that a plug-in let run on


def _decode(verifier: tuple[str, Any]) -> Any:
    kind, payload = verifier
    if kind == "spec":
        return payload
    import cloudpickle

    return cloudpickle.loads(payload)
