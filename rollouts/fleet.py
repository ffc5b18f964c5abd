"""Processes that may die, as state machines: the servers of a run, and its rollout workers.

    pending ─placed→ starting ─healthy→ syncing ─proved→ serving ⇄ suspect
       ↑                                                    │ died, hung, failed the probe
       └──────────────────── started anew ←── dead ←────────┘

Only `serving` replicas are given requests. A server is `serving` only after it was refitted with the current
weights and proved by the logprob probe (`reasoner.weight_sync`), so a dead one never serves before that; for
workers, and for servers of an evaluation, there is nothing to refit. Whoever finds a replica out of order
(a failed request, a failed sync, a health check without an answer) reports it with `lost`.

Nothing here blocks and nothing here knows Ray: `poll` is called about once a second by whoever waits for
something, and a `Launcher` starts and kills processes.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from reasoner.errors import ReasonerError, ServerError, UsageError

log = logging.getLogger(__name__)

HEARTBEAT_S = 4.0  # between two health checks
SUSPECT_AFTER_S = 15.0  # without an answer: no new requests
DEAD_AFTER_S = 90.0  # without an answer: killed
MAX_FAILURES = 3  # in a row without a single answered request: given up
BACKOFF_S = (0.0, 2.0, 10.0)  # before the first, second, … attempt in a row to start it anew
CLOSE_S = 2.0
SAY_AFTER_S = 60.0  # between two reminders of what is being waited for


class State(StrEnum):
    PENDING = "pending"  # the cluster has no room for it yet
    STARTING = "starting"
    SYNCING = "syncing"  # healthy, but not with the current weights
    SERVING = "serving"
    SUSPECT = "suspect"  # late with its answer: no new requests
    DEAD = "dead"  # killed; to be started anew
    GONE = "gone"  # given up


class Launcher(Protocol):
    """How one replica is started and ended. Neither call waits for the process."""

    name: str
    max_failures: int  # in a row, after which it is given up

    def start(self) -> Any:
        """A handle whose `health()` coroutine returns once the process can be used. That of a replica that is
        refitted has `version()` too, which is answered also while it loads weights."""
        ...

    def placed(self) -> bool:
        """Whether the cluster has found room for it."""
        ...

    def kill(self, handle: Any) -> None: ...

    def last_words(self) -> str:
        """The end of its log, for an error message."""
        ...


@dataclass(eq=False)
class Replica:
    launcher: Launcher
    state: State = State.DEAD
    handle: Any = None
    generation: int = 0  # how often it was started
    load: int = 0  # rollouts it is busy with
    version: int = -1  # the policy it was last proved to hold
    refitting: bool = False  # it is being given new weights now
    failures: int = 0  # since it last answered a request
    reason: str = ""  # of the last failure
    since: float = 0.0  # of the present state
    ping: Future[Any] | None = None
    pinged: float = 0.0

    @property
    def name(self) -> str:
        return self.launcher.name

    @property
    def key(self) -> str:
        """Names this very process: another one after each restart."""
        return f"{self.name}#{self.generation}"


@dataclass
class Fleet:
    """Replicas of one kind.

    what: their name in messages. needs_sync: they hold weights that must be brought up to date before they
    serve. start_s: how long a start may take. tell: gets one line for the user when something happens.
    restarts: what fails is started anew; before that is switched on it waits, unless all that the cluster has
    room for have failed: then no restart would help, and that is an error. held: nothing is started for now,
    since somebody else has the place (a colocated learner); what fails meanwhile is started anew afterwards.
    """

    launchers: Sequence[Launcher]
    what: str = "server"
    needs_sync: bool = False
    start_s: float = 300.0
    tell: Callable[[str], None] = lambda text: None
    restarts: bool = False
    held: bool = False
    clock: Callable[[], float] = time.monotonic
    replicas: list[Replica] = field(init=False)

    def __post_init__(self) -> None:
        self.replicas = [Replica(launcher) for launcher in self.launchers]
        self._closed = False
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name=f"{self.what}-health", daemon=True).start()
        self._dark_since: float | None = None  # since when nothing serves
        self._said = self.clock()

    # ------------------------------------------------------------------ who may be asked

    def pick(self, avoid: Collection[Replica] = ()) -> Replica | None:
        """The serving replica with the shortest queue; None while none serves. Those to `avoid` come last."""
        serving = [r for r in self.replicas if r.state is State.SERVING]
        return min(serving, key=lambda r: (r in avoid, r.load), default=None)

    def in_state(self, *states: State) -> list[Replica]:
        return [r for r in self.replicas if r.state in states]

    def counts(self) -> dict[str, int]:
        """How many replicas are in each state."""
        return {state.value: len(self.in_state(state)) for state in State}

    # ------------------------------------------------------------------ what happens to them

    def lost(self, replica: Replica, reason: str) -> None:
        """Kills a replica that does not do its work; `poll` starts it anew."""
        if self._closed or replica.state in (State.DEAD, State.GONE):
            return
        started = replica.state not in (State.PENDING, State.STARTING)
        replica.failures += 1
        replica.reason = reason
        self._end(replica)
        given_up = replica.failures >= replica.launcher.max_failures
        self._enter(replica, State.GONE if given_up else State.DEAD, reason)
        if not (self.restarts or any(self._has_place(other) for other in self.replicas)):
            raise ServerError(
                f"{self.what} {replica.name} did not start: {reason}\n{replica.launcher.last_words()}"
            )
        first_line = reason.splitlines()[0] if reason else "no reason given"
        again = "it is started anew" if self.restarts else "it is tried again once the run has begun"
        outcome = f"given up after {replica.failures} failures in a row" if given_up else again
        if given_up or replica.failures <= MAX_FAILURES:  # a server of others may be away for long
            what = "is lost" if started else "did not start"
            self.tell(f"{self.what} {replica.name} {what}, {outcome}: {first_line}")
        if all(r.state is State.GONE for r in self.replicas):
            raise ServerError(
                f"no {self.what} is left: {replica.name}: {reason}\n{replica.launcher.last_words()}"
            )

    def served(self, replica: Replica) -> None:
        """It answered a request: earlier failures are forgotten."""
        replica.failures = 0

    def refit(self, keys: Collection[str]) -> None:
        """These processes are given new weights from now on, until `refitted`; those of a large model take
        minutes. An engine that loads them answers nothing else, and its sync has a deadline of its own:
        meanwhile only the process is asked for a sign of life."""
        for replica in self.replicas:
            if replica.key in keys and not replica.refitting:
                replica.refitting = True
                if replica.ping is not None:  # it waits behind the update
                    replica.ping.cancel()
                    replica.ping = None

    def refitted(self) -> None:
        """No weight update is under way any more."""
        for replica in self.replicas:
            replica.refitting = False

    def synced(self, replica: Replica, version: int) -> None:
        """It was proved to hold the weights of `version`. One that was late with its answer because it loaded
        them has answered with that: to sync it again would only make it late again."""
        replica.version = max(version, replica.version)
        if replica.state in (State.SYNCING, State.SUSPECT):
            self._enter(replica, State.SERVING, f"policy version {version}")

    def outdated(self, version: int) -> None:
        """The policy has moved on to `version`: those that missed the update do not serve."""
        for replica in self.in_state(State.SERVING):
            if replica.version != version:
                self._enter(replica, State.SYNCING, f"it missed policy version {version}")

    def poll(self) -> None:
        """Takes in what health checks have found, sends new ones, starts what is due to be started.

        Raises ServerError when every replica is given up, or none has served for too long."""
        if self._closed:
            return
        for replica in self.replicas:
            self._step(replica, self.clock())
        self._watch_darkness()

    def close(self) -> None:
        """Kills all of them, for good."""
        if self._closed:
            return
        self._closed = True
        for replica in self.replicas:
            self._end(replica)
        with suppress(TimeoutError):  # a check that does not even end when cancelled: its thread is a daemon
            asyncio.run_coroutine_threadsafe(_cancel_all(), self._loop).result(CLOSE_S)
        self._loop.call_soon_threadsafe(self._loop.stop)

    # ------------------------------------------------------------------ inside

    def _step(self, replica: Replica, now: float) -> None:
        if replica.state is State.GONE:
            return
        if replica.state is State.DEAD:
            wanted = not self.held and (self.restarts or not replica.generation)
            if wanted and now - replica.since >= BACKOFF_S[min(replica.failures, len(BACKOFF_S)) - 1]:
                self._start(replica)
            return
        if replica.state is State.PENDING:
            if not replica.launcher.placed():
                return
            self._enter(replica, State.STARTING)
        if replica.ping is not None and replica.ping.done():
            self._take_in(replica, replica.ping)
        elif replica.ping is not None:
            self._overdue(replica, now - max(replica.pinged, replica.since))
        elif now - replica.pinged >= HEARTBEAT_S:
            self._send_ping(replica, now)

    @staticmethod
    def _has_place(replica: Replica) -> bool:
        if replica.state is State.PENDING:
            return replica.launcher.placed()
        return replica.state not in (State.DEAD, State.GONE)

    def _start(self, replica: Replica) -> None:
        replica.generation += 1
        replica.handle = replica.launcher.start()
        self._enter(replica, State.PENDING)
        self._send_ping(replica, self.clock())

    def _end(self, replica: Replica) -> None:
        if replica.ping is not None:
            replica.ping.cancel()
        if replica.handle is not None:
            replica.launcher.kill(replica.handle)
        replica.handle, replica.load, replica.ping, replica.version = None, 0, None, -1
        replica.refitting = False

    def _send_ping(self, replica: Replica, now: float) -> None:
        sign = replica.handle.version if replica.refitting else replica.handle.health
        replica.ping = asyncio.run_coroutine_threadsafe(sign(), self._loop)
        replica.pinged = now

    def _take_in(self, replica: Replica, ping: Future[Any]) -> None:
        replica.ping = None
        try:
            ping.result()
        except UsageError:  # no restart mends a mistake
            raise
        except ReasonerError as error:
            self.lost(replica, str(error))
            return
        if replica.state is State.STARTING or (replica.state is State.SUSPECT and self.needs_sync):
            self._enter(replica, State.SYNCING, "healthy")  # a suspect may have missed an update
        if replica.state in (State.SYNCING, State.SUSPECT) and not self.needs_sync:
            self._enter(replica, State.SERVING, "healthy")

    def _overdue(self, replica: Replica, seconds: float) -> None:
        if replica.state is State.STARTING:
            if seconds > self.start_s:
                self.lost(replica, f"it was not ready after {self.start_s:.0f} s")
        elif seconds > DEAD_AFTER_S:
            self.lost(replica, f"it has not answered for {seconds:.0f} s")
        elif seconds > SUSPECT_AFTER_S and replica.state is State.SERVING:
            self._enter(replica, State.SUSPECT, f"no answer for {seconds:.0f} s")

    def _watch_darkness(self) -> None:
        """Says what is being waited for while nothing serves, and for how long that may last."""
        now = self.clock()
        if self.held or self.in_state(State.SERVING, State.SYNCING):  # a sync has a deadline of its own
            self._dark_since = None
            return
        if self._dark_since is None:
            self._dark_since = now
        waited = now - self._dark_since
        if now - self._said > SAY_AFTER_S:
            self._said = now
            self.tell(f"no {self.what} has served for {waited:.0f} s: {self.describe()}")
        if waited > 2 * self.start_s:
            raise ServerError(f"no {self.what} has served for {waited:.0f} s: {self.describe()}")

    def describe(self) -> str:
        """Every replica that does not serve, and why."""
        return "; ".join(
            f"{r.name} is {r.state.value}" + (f" ({r.reason})" if r.reason else "")
            for r in self.replicas
            if r.state is not State.SERVING
        )

    def _enter(self, replica: Replica, state: State, why: str = "") -> None:
        level = logging.WARNING if state is State.DEAD else logging.INFO
        names = (self.what, replica.name, replica.state, state)
        log.log(level, "%s %s: %s → %s%s", *names, f" ({why})" if why else "")
        replica.state, replica.since = state, self.clock()


async def _cancel_all() -> None:
    """Ends the health checks that are under way in this event loop."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
