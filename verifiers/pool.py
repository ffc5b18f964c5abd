"""A pool of killable verifier processes.

Each worker is a fresh interpreter that imports the verifier and nothing of its parent, so the pool works in
a driver with threads, in an event loop and inside a Ray worker alike; how one is started, spoken to and
ended is in `verifiers.process`, what it does in `verifiers.worker`. An item that runs past its deadline is
killed by a kernel timer armed in the worker when the item began (waiting in the queue does not count); a
second deadline here catches a worker that disarmed the first. What one item breaks, the others do not see:
the worker is respawned and goes on with the next item. When somebody else killed the worker (an operator,
the kernel short of memory), the item is tried once more. Workers die with the process that owns the pool,
also when that one is killed with SIGKILL.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Any

from reasoner.errors import UsageError
from reasoner.types import Task, Verdict
from verifiers.base import Verifier, load_verifier
from verifiers.inline import answers_inline
from verifiers.process import VerifierProcess, WorkerStartError, encode

GRACE_S = 0.5  # after the worker's own deadline
COLLECT_S = 0.002  # answers that follow one another this closely are collected together
BUSY_SHARE = 0.5  # of the deadline spent on the CPU: the answer, not the machine, was slow


@dataclass(frozen=True)
class _Job:
    kind: str  # "verify" | "explain" | "answer_keys" | "candidates"
    completions: list[str]
    task: Task | list[Task]  # one for all, or one each
    future: Future[list[Any]]


class VerifierPool:
    """Verifies groups in `workers` processes; thread-safe.

    `timeout_s` and `memory_mib` default to what the verifier declares. A verifier that declares `in_process`
    runs in `workers` threads of this process instead, where neither can be enforced. Raises `UsageError`
    when the verifier cannot be loaded, before anything is verified. Use as a context manager or call
    `close()`.
    """

    def __init__(
        self,
        verifier: str | Callable[..., Any] | Verifier = "math",
        workers: int = 1,
        timeout_s: float | None = None,
        memory_mib: int | None = None,
    ) -> None:
        if workers < 1:
            raise UsageError(f"a verifier pool needs at least 1 worker, got {workers}")
        if timeout_s is not None and not 0 < timeout_s < 1e6:
            raise UsageError(
                f"the verifier's deadline must be a positive number of seconds, got {timeout_s!r}"
            )
        self.verifier = load_verifier(verifier)
        self.timeout_s = float(timeout_s if timeout_s is not None else self.verifier.timeout_s)
        self._memory_mib = memory_mib
        self._payload = None if self.verifier.in_process else encode(verifier)
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._pids: dict[int, int] = {}  # of the worker that each thread runs
        self._closed = self._cancelled = False
        self._lock = threading.Lock()
        starts: list[Future[None]] = [Future() for _ in range(workers)]
        serve = self._serve_inline if self.verifier.in_process else self._serve
        self._threads = [
            threading.Thread(target=serve, args=(start,), name=f"verifier-{i}", daemon=True)
            for i, start in enumerate(starts)
        ]
        for thread in self._threads:
            thread.start()
        try:
            for start in starts:
                start.result()
        except WorkerStartError as error:
            self.close()
            raise UsageError(str(error)) from error

    def verify_group(self, completions: Sequence[str], task: Task) -> list[Verdict]:
        """Verdicts on the completions of one task, in order; blocks."""
        return self.submit_group(completions, task).result()

    def submit_group(self, completions: Sequence[str], task: Task) -> Future[list[Verdict]]:
        """Like `verify_group`, at once: a future of the verdicts."""
        return self._submit("verify", completions, task)

    def submit_pairs(self, pairs: Sequence[tuple[str, Task]], explain: bool = False) -> Future[list[Verdict]]:
        """Verdicts on unrelated (completion, task) pairs, verified one by one by one worker, in order. With
        `explain`, each detail goes on, after an empty line, with how the verdict came about."""
        kind = "explain" if explain else "verify"
        return self._submit(kind, [completion for completion, _ in pairs], [task for _, task in pairs])

    def answer_keys(self, completions: Sequence[str], task: Task | list[Task]) -> list[str | None]:
        """For majority votes: the class of each completion's answer, None where there is none. `task` is one
        for all, or one each."""
        return self._submit("answer_keys", completions, task).result()

    def candidates(self, completions: Sequence[str], task: Task | list[Task]) -> list[list[str]]:
        """Every answer each completion states on its way, in order of appearance."""
        found = self._submit("candidates", completions, task).result()
        return [json.loads(texts) if texts else [] for texts in found]

    @property
    def pids(self) -> list[int]:
        """The process ids of the workers."""
        return sorted(self._pids.copy().values())

    def close(self, cancel: bool = False) -> None:
        """Finish what was submitted (`cancel`: drop it), then end every worker. Idempotent."""
        with self._lock:
            if cancel:
                self._cancelled = True
                while not self._jobs.empty():
                    job = self._jobs.get()
                    if job is not None:
                        job.future.cancel()
                for pid in self.pids:
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.killpg(pid, signal.SIGKILL)
            if not self._closed or cancel:
                self._closed = True
                for _ in self._threads:
                    self._jobs.put(None)
        if cancel and self.verifier.in_process:
            return  # a thread cannot be killed: it ends with the item it is at
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> VerifierPool:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *exc_info: object) -> None:
        self.close(cancel=exc_type is not None)

    def _submit(self, kind: str, completions: Sequence[str], task: Task | list[Task]) -> Future[list[Any]]:
        future: Future[list[Any]] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("the verifier pool is closed")
            self._jobs.put(_Job(kind, list(completions), task, future))
        return future

    def _serve_inline(self, start: Future[None]) -> None:
        """One thread a worker, which verifies by itself."""
        start.set_result(None)
        while (job := self._jobs.get()) is not None:
            if not job.future.set_running_or_notify_cancel():
                continue
            try:
                job.future.set_result(answers_inline(self.verifier, job.kind, job.completions, job.task))
            except BaseException as error:
                job.future.set_exception(error)

    def _spawn(self) -> VerifierProcess:
        assert self._payload is not None
        process = VerifierProcess(self._payload, self.timeout_s, self._memory_mib)
        self._pids[threading.get_ident()] = process.pid
        return process

    def _serve(self, start: Future[None]) -> None:
        """One thread a worker. It also starts the process: workers die with the thread that started them."""
        process: VerifierProcess | None = None
        try:
            process = self._spawn()
            process.wait_ready()
            start.set_result(None)
        except BaseException as error:
            start.set_exception(error)
            if process is not None:
                process.kill()
            return
        while (job := self._jobs.get()) is not None:
            if not job.future.set_running_or_notify_cancel():
                continue
            try:
                answers, process = self._run(job, process)
                job.future.set_result(answers)
            except BaseException as error:
                job.future.set_exception(error)
        process.kill()

    def _run(self, job: _Job, process: VerifierProcess) -> tuple[list[Any], VerifierProcess]:
        """All answers of a job, and the process that lived to the end of it."""
        answers: list[Any] = []
        spared = -1  # the item that is tried once more
        whole = self.verifier.batched or getattr(self.verifier, "is_async", False)
        while len(answers) < len(job.completions):
            done = len(answers)
            try:
                process.wait_ready()
                task = job.task if isinstance(job.task, Task) else job.task[done:]
                process.send(job.kind, job.completions[done:], task)
            except WorkerStartError as error:
                return answers + [_failed(job.kind, Verdict.error(str(error)))] * (
                    len(job.completions) - done
                ), self._spawn()
            except OSError:  # it ended between two jobs
                process = self._replace(process)
                continue
            blamed = self._collect(job, process, answers)
            if self._cancelled:
                raise CancelledError
            if len(answers) < len(job.completions):
                if process.killed and spared != len(answers):
                    spared = len(answers)
                elif blamed is not None:
                    spread = len(job.completions) - done if whole and isinstance(job.task, Task) else 1
                    answers.extend([_failed(job.kind, blamed)] * spread)
                process = self._replace(process)
        return answers, process

    def _collect(self, job: _Job, process: VerifierProcess, answers: list[Any]) -> Verdict | None:
        """Append answers as they come. When the worker dies, the verdict on the item it was at; None when
        it left in good order (recycled)."""
        begun = time.perf_counter()
        # an async group waits for its slowest member and then says itself who was late
        grace_s = GRACE_S * (2 if getattr(self.verifier, "is_async", False) else 1)
        while len(answers) < len(job.completions):
            message = process.receive(self.timeout_s + grace_s)
            if message is None:
                return self._post_mortem(process, time.perf_counter() - begun)
            kind, _, verdict = message
            if kind == "recycled":
                return None
            answers.append(verdict.extracted if kind == "key" else verdict)
            begun = time.perf_counter()
            if not process.answers_read and len(answers) < len(job.completions):
                time.sleep(COLLECT_S)  # waking up for every single answer would keep a core busy
        return None

    def _post_mortem(self, process: VerifierProcess, seconds: float) -> Verdict:
        code, cpu_s = process.end()
        if code in (None, -signal.SIGALRM):
            used = (
                f"no verdict within {self.timeout_s:g} s ({cpu_s:.1f} s on the CPU): the process was killed"
            )
            if self.verifier.timeout_is_answer and cpu_s >= BUSY_SHARE * self.timeout_s:
                return Verdict("timeout", 0.0, None, used, seconds)
            return Verdict("error", None, None, used, seconds)
        why = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return Verdict("error", None, None, f"the verifier process died: {why}", seconds)

    def _replace(self, process: VerifierProcess) -> VerifierProcess:
        process.kill()
        return self._spawn()


def _failed(kind: str, verdict: Verdict) -> Verdict | None:
    return None if kind in ("answer_keys", "candidates") else verdict
