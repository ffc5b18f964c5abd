"""Group requests to a worker and a server each; what a dead one had is sent again elsewhere.

A request is one or more groups; a group's samples stay together on one server (prefix cache). It goes to
the serving replica with the shortest queue. When the server or the worker is lost, the request is sent again
as a whole: half-done completions are sampled anew, groups that had arrived are safe with the caller.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from reasoner.errors import ReasonerError, ServerLost
from reasoner.types import SamplingParams, Task
from rollouts.fleet import Fleet, Replica
from rollouts.gone import PROCESS_GONE
from rollouts.worker import GroupResult

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 6  # a request that every server dies of must not kill them forever
TICK_S = 0.2  # between two looks at the fleets while nothing is under way


@dataclass(eq=False)
class _Request:
    tasks: Sequence[Task]
    group_size: int
    params: SamplingParams
    first_index: int
    attempts: int = 0
    server: Replica | None = None  # where it is being sampled; None: waits for one
    worker: Replica | None = None
    keys: tuple[str, str] = ("", "")  # the very processes
    failed_on: list[Replica] = field(default_factory=list)

    @property
    def size(self) -> int:
        return len(self.tasks) * self.group_size


class Dispatcher:
    """Single-threaded: everything happens inside `submit` and `finished`."""

    def __init__(self, servers: Fleet, workers: Fleet) -> None:
        self.servers, self.workers = servers, workers
        self._tickets = itertools.count()
        self._requests: dict[int, _Request] = {}  # not handed over yet
        self._backlog: deque[int] = deque()  # tickets that wait for a server and a worker
        self._calls: dict[Any, int] = {}  # Ray reference → ticket
        self._results: dict[int, list[GroupResult]] = {}

    def submit(
        self, tasks: Sequence[Task], group_size: int, params: SamplingParams, first_index: int = 0
    ) -> int:
        """Have `group_size` verified rollouts of every task sampled; the ticket is for `finished`."""
        ticket = next(self._tickets)
        self._requests[ticket] = _Request(tasks, group_size, params, first_index)
        self._backlog.append(ticket)
        self._send_backlog()
        return ticket

    def finished(
        self, tickets: Collection[int], timeout_s: float, beside: Sequence[Any] = ()
    ) -> dict[int, list[GroupResult]]:
        """The results of those of `tickets` that are ready, handed over once. Waits up to `timeout_s` for the
        first, or for one of the Ray references `beside`.

        Raises what a worker raised, unless sending the request elsewhere can help."""
        deadline = time.monotonic() + timeout_s
        while True:
            self._tend()
            ready = self._results.keys() & tickets
            left = deadline - time.monotonic()
            if ready or left <= 0 or self._wait(min(left, 1.0), beside):
                return {ticket: self._hand_over(ticket) for ticket in sorted(self._results.keys() & tickets)}

    def _hand_over(self, ticket: int) -> list[GroupResult]:
        del self._requests[ticket]
        return self._results.pop(ticket)

    def _wait(self, timeout_s: float, beside: Sequence[Any]) -> bool:
        """Waits for any call; whether one of `beside` is done. Finished calls are taken in."""
        waiting = [*self._calls, *beside]
        if not self._calls:
            timeout_s = min(timeout_s, TICK_S)
        if not waiting:
            time.sleep(timeout_s)
            return False
        done, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0)
        if not done:
            done, _ = ray.wait(waiting, num_returns=1, timeout=timeout_s)
        self._take_in([call for call in done if call in self._calls])
        return any(call in beside for call in done)

    def _take_in(self, calls: Sequence[Any]) -> None:
        try:
            outcomes = ray.get(calls)  # together: every `get` asks the object store
        except ray.exceptions.RayError:
            outcomes = [_outcome(call) for call in calls]
        for call, outcome in zip(calls, outcomes, strict=True):
            self._settle(self._calls.pop(call), outcome)

    def _settle(self, ticket: int, outcome: list[GroupResult] | ray.exceptions.RayError) -> None:
        request = self._requests[ticket]
        server, worker = request.server, request.worker
        assert server is not None and worker is not None
        match outcome:
            case _ if isinstance(outcome, PROCESS_GONE):
                self._again(ticket)
                self._lost(self.workers, worker, request.keys[1], f"its process died: {outcome}")
            case ray.exceptions.RayTaskError() if isinstance(outcome.cause, ServerLost):
                request.failed_on.append(server)
                self._again(ticket)
                self._lost(self.servers, server, request.keys[0], str(outcome.cause))
            case ray.exceptions.RayError():
                raise outcome
            case results:
                self._release(request)
                self.servers.served(server)
                self.workers.served(worker)
                self._results[ticket] = results

    @staticmethod
    def _lost(fleet: Fleet, replica: Replica, key: str, reason: str) -> None:
        if replica.key == key:  # else it was started anew meanwhile
            fleet.lost(replica, reason)

    def _tend(self) -> None:
        """Looks after the fleets, and sends what can be sent."""
        self.servers.poll()
        self.workers.poll()
        replicas = [*self.servers.replicas, *self.workers.replicas]
        alive = {replica.key for replica in replicas if replica.handle}
        for call, ticket in list(self._calls.items()):
            if not alive.issuperset(self._requests[ticket].keys):
                del self._calls[call]
                ray.cancel(call)
                self._again(ticket)
        self._send_backlog()

    def _again(self, ticket: int) -> None:
        """The request goes back to the head of the queue."""
        request = self._requests[ticket]
        log.info("group %d is sampled again: it was on %s and %s", request.first_index, *request.keys)
        self._release(request)
        if request.attempts >= MAX_ATTEMPTS:
            raise ReasonerError(
                f"group {request.first_index} was sent out {request.attempts} times and never came back, "
                f"the last time from {request.keys[0]} and {request.keys[1]}"
            )
        self._backlog.appendleft(ticket)

    def _release(self, request: _Request) -> None:
        for replica, key in zip((request.server, request.worker), request.keys, strict=True):
            if replica is not None and replica.key == key:
                replica.load = max(0, replica.load - request.size)
        request.server = request.worker = None

    def _send_backlog(self) -> None:
        while self._backlog:
            request = self._requests[self._backlog[0]]
            server, worker = self.servers.pick(request.failed_on), self.workers.pick()
            if server is None or worker is None:
                return
            ticket = self._backlog.popleft()
            request.server, request.worker, request.keys = server, worker, (server.key, worker.key)
            request.attempts += 1
            server.load += request.size
            worker.load += request.size
            call = worker.handle.run(
                request.tasks, request.group_size, request.params, request.first_index, server.handle
            )
            self._calls[call] = ticket


def _outcome(call: Any) -> Any:
    """What a call returned, or Ray's error."""
    try:
        return ray.get(call)
    except ray.exceptions.RayError as error:
        return error
