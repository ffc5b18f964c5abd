"""Starts and stops the processes of a run: Ray, vLLM servers, the learner, rollout workers.

Everything is started side by side, since start-up is mostly imports. The driver itself loads neither torch
nor vLLM. What dies later is started anew in the background (`rollouts.fleet`) by the launchers here. On exit
every actor is killed; a Ray that we started is shut down with everything in it.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from envs.tasks import load_tasks, verifiers_of
from reasoner.config import Config
from reasoner.errors import ReasonerError, ServerError, ServerLost, UsageError
from reasoner.learner_actor import (
    HEARTBEAT_GROUP,
    SYNC_GROUP,
    LearnerActor,
    sends_adapters,
    weight_transfer,
    with_adapters,
)
from reasoner.logs import log_to
from reasoner.loopback import on_loopback
from reasoner.model_source import ModelSource
from reasoner.reaper import guard_children
from reasoner.types import SamplingParams, Task
from rollouts.dispatch import Dispatcher
from rollouts.fleet import Fleet, Replica, State
from rollouts.gone import PROCESS_GONE
from rollouts.http_sampler import HTTPSampler, all_answer
from rollouts.launchers import ExternalLauncher, ServerLauncher, WorkerLauncher
from rollouts.naming import actor_name
from rollouts.process import die_with_parent, redirect_output
from rollouts.sampler import RaySampler, Sampler
from rollouts.server import ServerConfig, ServerStats
from rollouts.worker import GroupResult, RolloutWorker, build_worker
from verifiers import VerifierPool
from verifiers.by_task import expecting

_TEMPLATE_TOKENS = 256  # of a chat template and the text around a prompt
STATS_S = 2.0
#: Results up to this size go straight from process to process; through Ray's object store (its default from
#: 100 kB on) a group costs twice the CPU time.
DIRECT_BYTES = 2**20
TURN_S = 600.0  # for colocated servers to give their memory back, or to take it again
TOGETHER_S = 20.0  # a run begins with the servers that are ready so long after the first; others join later


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
        return {"CPU": 1, "GPU": share} if _on_gpu(self.config) else {"CPU": 1}

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


class WorkerActor:
    """A `RolloutWorker` in its own Ray process. `setup` is a call so that its errors arrive as they are."""

    async def setup(
        self, model: ModelSource, template: str, config: Config, verifier: Any, log_file: Path
    ) -> None:
        redirect_output(log_file)
        die_with_parent()
        log_to(log_file)
        source, keys = load_tasks(config.tasks.source, config.seed), config.verifier
        judge = expecting(verifier, verifiers_of(source))
        self.worker: RolloutWorker = build_worker(
            str(model.path),
            source,
            template,
            VerifierPool(judge, workers=keys.processes, timeout_s=keys.timeout_s or None),
            context_tokens(config, model),
        )

    async def run(
        self,
        tasks: Sequence[Task],
        group_size: int,
        params: SamplingParams,
        first_index: int,
        sampler: Sampler,
    ) -> list[GroupResult]:
        return await self.worker.run(tasks, group_size, params, first_index, sampler)

    async def ping(self) -> None:
        """Returns when the process is alive and its event loop turns."""

    async def close(self) -> None:
        self.worker.verifiers.close()


def context_tokens(config: Config, model: ModelSource) -> int:
    """Longest prompt + completion a server accepts. Raises UsageError where the model cannot hold it."""
    wanted = config.server.context_tokens or min(model.context_length, config.rollout.max_tokens + 512)
    if wanted > model.context_length:
        raise UsageError(
            f"server.context_tokens is {wanted}, but {model.name} holds at most {model.context_length} tokens"
        )
    if config.rollout.max_tokens >= wanted:
        raise UsageError(
            f"rollout.max_tokens is {config.rollout.max_tokens}, but prompt and completion together have "
            f"{wanted} tokens of context in {model.name}"
        )
    return wanted


def with_room(config: Config, model: ModelSource, tasks: Iterable[Task], beside: int = 0) -> Config:
    """The configuration with a context, where none is asked for, that holds the longest prompt of `tasks` (a
    token is a byte at least), a completion, and `beside` more tokens."""
    if config.server.context_tokens:
        return config
    prompts = (task.prompt for task in tasks)
    longest = max((len((p if isinstance(p, str) else json.dumps(p)).encode()) for p in prompts), default=0)
    wanted = config.rollout.max_tokens + beside + max(512, longest + _TEMPLATE_TOKENS)
    server = config.server.model_copy(update={"context_tokens": min(model.context_length, wanted)})
    return config.model_copy(update={"server": server})


@contextmanager
def connected(address: str) -> Iterator[None]:
    """A Ray cluster for the block: the one at `address`, or one started here when it is empty. A Ray that the
    caller's program had initialised before is used and left alone."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address:
            _check_reachable(address)
            ray.init(address=address, **common)
        else:
            # Logical CPUs only place actors; processes here are mostly waiting for one another.
            cpus = max(16, os.cpu_count() or 1)
            with on_loopback():
                ray.init(
                    address="local",
                    num_cpus=cpus,
                    include_dashboard=False,
                    _system_config={"max_direct_call_object_size": DIRECT_BYTES},
                    **common,
                )
    except ConnectionError as e:
        raise UsageError(f"no Ray cluster answers at {address!r}: {e}") from None
    reaper = None if address else guard_children()
    try:
        yield
    finally:
        ray.shutdown()
        if reaper is not None:
            reaper.stdin.close()  # type: ignore[union-attr]
            reaper.wait()


def _check_reachable(address: str) -> None:
    """Ray itself tries for minutes before it says that nobody is there."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return  # "auto" and the like: Ray knows at once
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as e:
        raise ConnectionError(f"{e.strerror or e}") from None


def start(
    config: Config,
    model: ModelSource,
    template: str,
    verifier: Any,
    log_dir: Path,
    *,
    learner_base: Path | None,
    tell: Callable[[str], None] = lambda text: None,
    on_wait: Callable[[], None] = lambda: None,
) -> Processes:
    """Starts servers, workers and, when `learner_base` (the model the run began from) is given, the learner
    side by side; returns when the run can begin. `tell` gets a line when something dies or comes back later;
    `on_wait` is called while they start, and may raise to stop.

    Raises ServerError with the last log lines of a server that never becomes healthy."""
    _check_devices(config)
    log_dir = log_dir.absolute()  # actors may have another working directory
    setup = (model, template, config, verifier)
    timeout_s = config.server.startup_timeout_s
    processes = Processes(
        config,
        Fleet(
            server_launchers(config, model, log_dir, learner_base, on_wait),
            needs_sync=learner_base is not None,
            start_s=timeout_s,
            tell=tell,
        ),
        Fleet(
            [
                WorkerLauncher(f"worker-{i}", WorkerActor, setup, log_dir)
                for i in range(config.rollout.workers)
            ],
            what="worker",
            start_s=timeout_s,
            tell=tell,
        ),
        log_dir,
        learner_base,
    )
    try:
        learner = None if learner_base is None else processes.start_learner(model.path)
        _wait_until_ready(processes, learner, timeout_s, on_wait)
        return processes
    except BaseException:
        processes.stop()
        raise


def server_launchers(
    config: Config,
    model: ModelSource,
    log_dir: Path,
    learner_base: Path | None,
    on_wait: Callable[[], None],
) -> list[ServerLauncher] | list[ExternalLauncher]:
    """One launcher a replica. Servers of others are waited for; `on_wait` is called meanwhile."""
    if config.server.addresses:
        return [ExternalLauncher(sampler) for sampler in _external_samplers(config, model, on_wait)]
    server = server_config(config, model, learner_base)
    return [ServerLauncher(f"server-{i}", server, log_dir) for i in range(config.server.replicas)]


def _wait_until_ready(
    processes: Processes, learner: Any, timeout_s: float, on_wait: Callable[[], None]
) -> None:
    """Returns when the learner, a worker and a server are ready, and the other servers too, unless there
    is no room for them yet or they take much longer. From then on what fails is started anew."""
    began, first = time.monotonic(), None
    servers, workers = processes.servers, processes.workers
    while True:
        on_wait()
        servers.poll()
        workers.poll()
        if learner is not None and ray.wait([learner], timeout=0)[0]:
            ray.get(learner)
            learner = None
        if learner is None and servers.in_state(State.SYNCING, State.SERVING) and workers.pick():
            first = first or time.monotonic()
            if not servers.in_state(State.STARTING) or time.monotonic() - first > TOGETHER_S:
                break
        if time.monotonic() - began > timeout_s:
            raise ServerError(_not_ready(processes, learner, timeout_s))
        time.sleep(0.05)
    servers.restarts = workers.restarts = True
    for replica in servers.in_state(State.PENDING):
        servers.tell(f"the cluster has no room for {replica.name} yet: the run begins without it")


def _not_ready(processes: Processes, learner: Any, timeout_s: float) -> str:
    waiting = [part for part in (processes.servers.describe(), processes.workers.describe()) if part]
    if learner is not None:
        waiting.append(processes.describe_learner())
    hint = "; pending: the cluster lacks CPUs or GPUs for it" if "pending" in " ".join(waiting) else ""
    return f"not ready after {timeout_s:.0f} s: {'; '.join(waiting)}{hint}; logs: {processes.log_dir}"


def unwrap(error: BaseException) -> ReasonerError:
    """The error a user can act on, out of the wrapping that Ray puts around it."""
    cause = getattr(error, "cause", None)
    for candidate in (cause, error):  # Ray's error is of the cause's type too, with a traceback as its text
        if isinstance(candidate, ReasonerError):
            return candidate
    if isinstance(error, PROCESS_GONE):
        return ServerError(f"a process of the run died: {error}")
    shown = cause if isinstance(cause, BaseException) else error
    return ReasonerError(f"{type(shown).__name__}: {shown}")


def _on_gpu(config: Config) -> bool:
    return config.learner.device == "cuda" or (
        config.learner.device == "auto" and ray.cluster_resources().get("GPU", 0) > 0
    )


def server_config(config: Config, model: ModelSource, learner_base: Path | None = None) -> ServerConfig:
    """How one replica of `config.server` is started: with `model`, or where a learner then sends adapters
    only, with the model that they belong to. Needs a running Ray."""
    server = config.server
    device = "cuda" if _on_gpu(config) else "cpu"
    path, transfer = model.path, weight_transfer(device, config)
    if learner_base is not None and sends_adapters(device, config, learner_base):
        path, transfer = learner_base, with_adapters(transfer)
    return ServerConfig(
        model=str(path),
        dtype=server.dtype,
        max_model_len=context_tokens(config, model),
        max_num_seqs=server.max_num_seqs,
        kv_cache_gib=server.kv_cache_gib,
        threads=server.threads,
        seed=config.seed,
        device=device,
        tensor_parallel_size=server.tensor_parallel,
        gpu_memory_utilization=server.gpu_memory_utilization,
        enable_sleep_mode=device == "cuda" and config.cluster.colocate,
        weight_transfer=transfer,
    )


def _check_devices(config: Config) -> None:
    if config.cluster.colocate and not _on_gpu(config):
        raise UsageError("cluster.colocate shares a GPU, and there is none: leave it off on CPU")
    if config.learner.device == "cuda" and not ray.cluster_resources().get("GPU"):
        raise UsageError("learner.device is cuda, but Ray sees no GPU")
    ranks, gpus = config.learner.ranks, int(ray.cluster_resources().get("GPU", 0))
    if _on_gpu(config) and ranks > gpus:
        raise UsageError(f"learner.ranks is {ranks}, but Ray sees {gpus} GPUs")


def _external_samplers(config: Config, model: ModelSource, on_wait: Callable[[], None]) -> list[HTTPSampler]:
    """Samplers of the servers that somebody else started, which must answer before anything else is started.
    The key comes from VLLM_API_KEY."""
    key = os.environ.get("VLLM_API_KEY")
    addresses = config.server.addresses
    samplers = [HTTPSampler(url, stop_token_ids=model.end_token_ids, api_key=key) for url in addresses]
    asyncio.run(all_answer(samplers, config.server.startup_timeout_s, on_wait))
    return samplers
