"""The processes of a run while it runs: servers, rollout workers and the ranks of the learner.

Here what is asked of them together: a learner in place of one that died, turns on a shared GPU, how much
the servers have done, the end of all. How a run comes to them is in `reasoner.cluster`; who is alive, and
what is started anew, in `rollouts.fleet`; what the learner is asked to compute, in
`reasoner.learner_client`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from reasoner.config import Config
from reasoner.errors import ServerError, ServerLost
from reasoner.learner_actor import HEARTBEAT_GROUP, SYNC_GROUP, LearnerActor
from reasoner.servers import on_gpu
from rollouts.dispatch import Dispatcher
from rollouts.fleet import Fleet, Replica, State
from rollouts.gone import PROCESS_GONE
from rollouts.naming import actor_name
from rollouts.sampler import RaySampler
from rollouts.server import ServerStats

STATS_S = 2.0
TURN_S = 600.0  # for colocated servers to give their memory back, or to take it again


@dataclass
class Processes:
    """What runs. `learner` is None for evaluation; `base` is the model the run began from."""

    config: Config
    servers: Fleet
    workers: Fleet
    log_dir: Path
    base: Path | None = None
    learner: Any = None  # rank 0, which commands the others
    learner_peers: list[Any] = field(default_factory=list)
    learner_place: Any = None  # placement group

    def __post_init__(self) -> None:
        self.dispatcher = Dispatcher(self.servers, self.workers)

    def start_learner(self, model: Path) -> Any:
        """Starts the learner's ranks with the weights in `model`, in place of those that were; the reference
        is ready when they are."""
        self._kill_learner()
        needs = self._rank_needs()
        place = placement_group([needs] * self.config.learner.ranks, strategy="PACK")  # all ranks or none
        actor = ray.remote(
            concurrency_groups={SYNC_GROUP: 1, HEARTBEAT_GROUP: 1},
            num_cpus=needs["CPU"],
            num_gpus=needs.get("GPU", 0),
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(self.config.learner.threads)}},
        )(LearnerActor)
        self.learner, *self.learner_peers = [
            actor.options(
                **actor_name(self.log_dir, f"learner-{rank}" if rank else "learner"),
                scheduling_strategy=PlacementGroupSchedulingStrategy(place, rank),
            ).remote()
            for rank in range(self.config.learner.ranks)
        ]
        self.learner_place = place
        return self.learner.setup.remote(
            str(model), str(self.base), self.config, self.log_dir, self.learner_peers
        )

    def _kill_learner(self) -> None:
        for actor in [self.learner, *self.learner_peers]:
            if actor is not None:
                ray.kill(actor)
        if self.learner_place is not None:
            remove_placement_group(self.learner_place)
        self.learner, self.learner_peers, self.learner_place = None, [], None

    def _rank_needs(self) -> dict[str, float]:
        """What one rank of the learner asks Ray for."""
        share = 0.5 if self.config.cluster.colocate else 1.0
        return {"CPU": 1, "GPU": share} if on_gpu(self.config) else {"CPU": 1}

    def describe_learner(self) -> str:
        """What it waits for while it is not ready."""
        if self.learner_place.wait(0):
            return "the learner is starting"
        free, needs, ranks = ray.available_resources(), self._rank_needs(), self.config.learner.ranks
        room = min(int(free.get(kind, 0) / amount) for kind, amount in needs.items())
        return f"the learner is pending (the cluster has room for {min(room, ranks)} of its {ranks} ranks)"

    def sleep_servers(self) -> None:
        """Colocated on a GPU: servers give their memory back while the learner works, and one that is lost
        meanwhile is started anew only when they wake up."""
        self.servers.held = True
        self._all_servers("go to sleep", lambda actor: actor.sleep.remote())

    def wake_servers(self) -> None:
        self._all_servers("wake up", lambda actor: actor.wake_up.remote())
        self.servers.held = False

    def _all_servers(self, what: str, call: Callable[[Any], Any]) -> None:
        """Our own that serve; one that dies of it is started anew. Raises ServerError when one is not done in
        time."""
        calls = {call(replica.handle.actor): replica for replica in self._own_servers()}
        deadline = time.monotonic() + TURN_S
        for reference, replica in calls.items():
            try:
                ray.get(reference, timeout=max(0.0, deadline - time.monotonic()))
            except ray.exceptions.GetTimeoutError:
                raise ServerError(f"{replica.name} did not {what} within {TURN_S:.0f} s") from None
            except (*PROCESS_GONE, ray.exceptions.RayTaskError) as error:
                if isinstance(error, ray.exceptions.RayTaskError) and not isinstance(error.cause, ServerLost):
                    raise
                self.servers.lost(replica, f"it did not {what}: {error}")

    def tokens_generated(self) -> dict[str, int]:
        """Tokens that each of our own serving servers has sampled so far: whether a slow run is alive."""
        return {key: stats.tokens_generated for key, stats in self._stats().items()}

    def busy_s(self) -> dict[str, float]:
        """Seconds that the engine of each of our own serving servers has been at work."""
        return {key: stats.busy_s for key, stats in self._stats().items()}

    def _stats(self) -> dict[str, ServerStats]:
        """Of those that answer at once; for the others the fleet has its health checks."""
        calls = {r.handle.actor.stats.remote(): r.key for r in self._own_servers()}
        done = ray.wait(list(calls), num_returns=len(calls), timeout=STATS_S)[0] if calls else []
        found = {}
        for call in done:
            with suppress(*PROCESS_GONE):
                found[calls[call]] = ray.get(call)
        return found

    def _own_servers(self) -> list[Replica]:
        return [r for r in self.servers.in_state(State.SERVING) if isinstance(r.handle, RaySampler)]

    def stop(self) -> None:
        closing = [r.handle.actor.close.remote() for r in self.workers.in_state(State.SERVING)]
        ray.wait(closing, num_returns=len(closing), timeout=2) if closing else None
        self.workers.close()
        self.servers.close()
        self._kill_learner()
