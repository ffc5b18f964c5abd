"""The learner's process as the loop sees it: its calls, and what happens when it dies or hangs.

A learner that died, or hung and was killed, is started anew from the newest checkpoint and redoes the updates
since then, from the same batches at the same learning rates. On one machine with one number of threads that
gives the same weights bit for bit, so rollouts sampled meanwhile, accepted ones and the queue all stay valid.
The batches are kept in memory until a checkpoint holds their effect; the loop saves early before they grow
too large.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from reasoner.checkpoint import CheckpointStore
from reasoner.errors import ReasonerError
from reasoner.heartbeat import Heartbeat, LearnerSilent
from reasoner.learner_actor import SYNC_GROUP
from reasoner.processes import Processes
from reasoner.types import NO_VERSION, SyncReport, TrainBatch
from rollouts.fleet import Replica, State
from rollouts.gone import PROCESS_GONE

log = logging.getLogger(__name__)

MAX_REVIVALS = 3  # during one call, after which something is wrong with the call
ANSWER_S = 900.0  # for a sync, a checkpoint, a start
UPDATE_S = 4 * 3600.0  # for one update
UNSAVED_BYTES = 2**30  # of batches in memory, after which a checkpoint is due
LEARNER_GONE = (*PROCESS_GONE, LearnerSilent)


@dataclass(frozen=True)
class _Sync:
    """A weight sync that nobody waits for."""

    report: Any  # Ray reference
    version: int
    servers: Mapping[str, Replica]  # by key


class LearnerClient:
    """meanwhile: called with a Ray reference while an update runs; returns within about a second, or when the
    reference is ready."""

    def __init__(
        self,
        processes: Processes,
        checkpoints: CheckpointStore,
        model: Path,
        tell: Callable[[str], None],
        meanwhile: Callable[[Any], None],
    ) -> None:
        self._processes, self._checkpoints = processes, checkpoints
        self._model, self._tell, self._meanwhile = model, tell, meanwhile
        self._saved: Path | None = None  # the checkpoint it would be started anew from
        self._unsaved: list[tuple[TrainBatch, float]] = []  # (batch, learning-rate scale) since `_saved`
        self.last_sync = SyncReport(NO_VERSION)  # of those that are over
        self._under_way: _Sync | None = None
        config = processes.config  # collectives of several ranks must not mix
        self._beside = config.max_staleness > 0 and config.learner.ranks == 1
        self._dead: Exception | None = None  # why it must be started anew
        self._heartbeat = self._new_heartbeat()

    def update(self, batch: TrainBatch, lr_scale: float) -> Any:
        """One update; rollouts go on arriving meanwhile."""
        result = self._call(
            lambda actor: actor.update.remote(batch, lr_scale), "an update", UPDATE_S, self._meanwhile
        )
        self._unsaved.append((batch, lr_scale))
        return result

    def redo(self, batch: TrainBatch, lr_scale: float) -> None:
        """An update that was made before, in an earlier life of the run."""
        self._call(lambda actor: actor.update.remote(batch, lr_scale), "an update again", UPDATE_S)
        self._unsaved.append((batch, lr_scale))

    def load_trainer(self, checkpoint: Path) -> None:
        self._saved = checkpoint
        self._call(lambda actor: actor.load_trainer.remote(checkpoint.absolute()), "the optimizer's state")

    def fingerprint(self) -> dict[str, Any]:
        """What decides the last bits of its updates."""
        return self._call(lambda actor: actor.fingerprint.remote(), "its fingerprint")

    def write_checkpoint(self, path: Path) -> None:
        self._call(lambda actor: actor.save.remote(path.absolute()), "a checkpoint")

    def saved(self, checkpoint: Path) -> None:
        """The checkpoint is complete: what led to it need not be redone."""
        self._saved, self._unsaved = checkpoint, []

    @property
    def save_due(self) -> bool:
        """Whether so much would have to be redone that it should be saved."""
        return sum(_bytes(batch) for batch, _ in self._unsaved) > UNSAVED_BYTES

    # ------------------------------------------------------------------ weights to the servers

    def sync(self, version: int) -> None:
        """The present weights, as policy `version`, to every healthy server. Servers that fail are started
        anew; they, and those that are starting now, are refitted later. In asynchronous mode this only
        begins, and the next update may begin too; `last_sync` tells when it is over."""
        self.poll_sync(wait=True)  # a refit was asked for before the update, with the weights of then
        fleet = self._processes.servers
        servers = {r.key: r for r in fleet.in_state(State.SYNCING, State.SERVING)}
        if not servers:
            self.last_sync = SyncReport(version)
            fleet.outdated(version)
        elif self._beside:
            self._begin(version, servers)
        else:
            start = self._giving("sync", version, servers)
            self._take_in(self._call(start, "a weight sync", meanwhile=self._poll_fleet), servers)

    def refit(self, version: int) -> None:
        """Servers that came back get the present weights, which are those of `version`; does not wait."""
        self.poll_sync()
        if self._dead is not None:
            self._revive(self._dead)
        servers = {r.key: r for r in self._processes.servers.in_state(State.SYNCING)}
        if self._dead is None and self._under_way is None and servers:
            self._begin(version, servers)

    def settle(self, version: int) -> None:
        """Waits for the end of a sync that is under way: no server that missed `version` serves any more,
        also when the learner has died of it."""
        self.poll_sync(wait=True)
        self.refit(version)

    def _begin(self, version: int, servers: Mapping[str, Replica]) -> None:
        """A sync that nobody waits for, of a learner that does nothing else."""
        if self._beside:
            self._call(self._giving("start_sync", version, servers), "a weight sync")
            report = self._processes.learner.synced.options(concurrency_group=SYNC_GROUP).remote()
        else:
            report = self._giving("sync", version, servers)(self._processes.learner)
        self._under_way = _Sync(report, version, servers)

    def _giving(self, method: str, version: int, servers: Mapping[str, Replica]) -> Callable[[Any], Any]:
        """Has a learner give its weights to these servers."""
        handles = {key: replica.handle for key, replica in servers.items()}

        def start(actor: Any) -> Any:
            self._processes.servers.refit(servers)
            return getattr(actor, method).remote(version, handles)

        return start

    @property
    def syncing(self) -> list[Any]:
        """A Ray reference that is ready when the sync that is under way is over."""
        return [self._under_way.report] if self._under_way else []

    def poll_sync(self, *, wait: bool = False) -> None:
        """Takes in the end of a sync that was under way."""
        sync = self._under_way
        if sync is None or self._dead:
            return
        try:
            if not (wait or ray.wait([sync.report], timeout=0)[0]):
                self._heartbeat.check()
                return
            report = self._wait(sync.report, "a weight sync", ANSWER_S, self._poll_fleet)
        except LEARNER_GONE as error:
            self._dead = error
            return
        self._under_way = None
        self._take_in(report, sync.servers)

    def _take_in(self, report: SyncReport, servers: Mapping[str, Replica]) -> None:
        fleet = self._processes.servers
        fleet.refitted()
        for position, (key, replica) in enumerate(servers.items()):
            if replica.key != key or replica.handle is None:
                continue  # lost meanwhile
            if position in report.failures:
                fleet.lost(replica, report.failures[position])
            else:
                fleet.synced(replica, report.version)
        fleet.outdated(report.version)
        self.last_sync = report

    def _poll_fleet(self, call: Any) -> None:
        ray.wait([call], timeout=1.0)
        self._processes.servers.poll()

    # ------------------------------------------------------------------ when it dies

    def _call(
        self,
        start: Callable[[Any], Any],
        what: str,
        deadline_s: float = ANSWER_S,
        meanwhile: Callable[[Any], None] | None = None,
    ) -> Any:
        """The result of a call, made again when the learner dies of it or before it."""
        for _ in range(MAX_REVIVALS):
            if self._dead is not None:
                self._revive(self._dead)
            if self._dead is None:
                try:
                    return self._wait(start(self._processes.learner), what, deadline_s, meanwhile)
                except LEARNER_GONE as error:
                    self._dead = error
        raise ReasonerError(f"the learner died {MAX_REVIVALS} times in a row during {what}: {self._dead}")

    def _revive(self, reason: Exception) -> None:
        """A new learner in the state of the old one; where it does not get there, it is `_dead` itself: one
        that has redone only some of the updates may live, and must not be used."""
        died = "hangs" if isinstance(reason, LearnerSilent) else "died"
        log.error("the learner %s: %s", died, reason)
        latest = self._checkpoints.latest()
        if latest != self._saved:
            raise ReasonerError(f"the learner {died}, and its last checkpoint {self._saved} is damaged")
        self._tell(
            f"the learner {died}: it is started anew from {latest.name if latest else 'the base model'}, "
            f"with {len(self._unsaved)} updates to redo"
        )
        if self._under_way is not None:  # its servers are still to be refitted, and will be
            self._processes.servers.outdated(self._under_way.version)
            self._under_way = None
        self._processes.servers.refitted()
        self._dead = None
        try:
            ready = self._processes.start_learner(latest or self._model)
            self._heartbeat = self._new_heartbeat()
            self._wait(ready, "a new learner", ANSWER_S)
            if latest is not None:
                loading = self._processes.learner.load_trainer.remote(latest.absolute())
                self._wait(loading, "the optimizer's state", ANSWER_S)
            for batch, lr_scale in self._unsaved:
                again = self._processes.learner.update.remote(batch, lr_scale)
                self._wait(again, "an update", UPDATE_S)
        except LEARNER_GONE as error:
            log.error("the new learner died: %s", error)
            self._dead = error

    def _new_heartbeat(self) -> Heartbeat:
        return Heartbeat([self._processes.learner, *self._processes.learner_peers])

    def _wait(
        self, call: Any, what: str, deadline_s: float, meanwhile: Callable[[Any], None] | None = None
    ) -> Any:
        deadline = time.monotonic() + deadline_s
        while not ray.wait([call], timeout=0 if meanwhile else 1.0)[0]:
            self._heartbeat.check()
            if time.monotonic() > deadline:
                raise ReasonerError(f"waited {deadline_s:.0f} s in vain for the learner: {what}")
            if meanwhile is not None:
                meanwhile(call)
        return ray.get(call)


def _bytes(batch: TrainBatch) -> int:
    return sum(array.nbytes for array in vars(batch).values())
