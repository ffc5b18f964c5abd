"""How replicas are started and killed: vLLM servers of ours, servers of others, rollout workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from reasoner.errors import ServerLost
from rollouts.fleet import MAX_FAILURES
from rollouts.gone import PROCESS_GONE
from rollouts.naming import actor_name
from rollouts.sampler import HTTPSampler, RaySampler, own_error
from rollouts.server import ServerConfig, gpus_of, log_path, log_tail, start_server


class WorkerHandle:
    """A worker as the driver sees it."""

    def __init__(self, actor: Any, ready: Any) -> None:
        self.actor, self._ready = actor, ready

    def run(self, *request: Any) -> Any:
        """A Ray reference to the group results."""
        return self.actor.run.remote(*request)

    async def health(self) -> None:
        """Returns when it can work. Raises what its setup raised, ServerLost when it is gone."""
        try:
            await self._ready
            await self.actor.ping.remote()
        except ray.exceptions.RayTaskError as error:
            raise own_error(error) from None
        except PROCESS_GONE as error:
            raise ServerLost(f"its process died: {error}") from None


class ServerLauncher:
    """Starts a vLLM server in a placement group of its own: its GPUs on one node, or one CPU."""

    max_failures = MAX_FAILURES

    def __init__(self, name: str, config: ServerConfig, log_dir: Path) -> None:
        self.name, self._config, self._log_dir = name, config, log_dir
        self._group: Any = None

    def start(self) -> RaySampler:
        gpus = gpus_of(self._config)
        self._group = placement_group([{"GPU": gpus} if gpus else {"CPU": 1}], strategy="STRICT_PACK")
        strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=0)
        return RaySampler(
            start_server(
                self._config,
                name=self.name,
                log_dir=self._log_dir,
                num_cpus=0 if gpus else 1,
                scheduling_strategy=strategy,
                wait=False,
            )
        )

    def placed(self) -> bool:
        return self._group.wait(0)

    def kill(self, handle: RaySampler) -> None:
        ray.kill(handle.actor)
        remove_placement_group(self._group)

    def last_words(self) -> str:
        return f"its last lines:\n{log_tail(log_path(self._log_dir, self.name))}"


class ExternalLauncher:
    """A server that somebody else starts, and restarts: here it is only waited for."""

    max_failures = 10**9

    def __init__(self, sampler: HTTPSampler) -> None:
        self.name, self._sampler = sampler.url, sampler

    def start(self) -> HTTPSampler:
        return self._sampler

    def placed(self) -> bool:
        return True

    def kill(self, handle: HTTPSampler) -> None: ...

    def last_words(self) -> str:
        return "its log is where it was started"


class WorkerLauncher:
    """Starts a rollout worker; on a cluster they are spread over the nodes."""

    max_failures = MAX_FAILURES

    def __init__(self, name: str, actor_class: type, setup: tuple[Any, ...], log_dir: Path) -> None:
        self.name, self._class, self._setup = name, actor_class, setup
        self._log = log_dir / f"{name.replace('-', '_', 1)}.log"

    def start(self) -> WorkerHandle:
        options = {"num_cpus": 0, "max_concurrency": 1000, "scheduling_strategy": "SPREAD"}
        name = actor_name(self._log.parent, self.name)
        actor = ray.remote(**options)(self._class).options(**name).remote()
        return WorkerHandle(actor, actor.setup.remote(*self._setup, self._log))

    def placed(self) -> bool:
        return True  # it asks for nothing that a cluster could lack

    def kill(self, handle: WorkerHandle) -> None:
        ray.kill(handle.actor)

    def last_words(self) -> str:
        return f"its last lines:\n{log_tail(self._log)}"
