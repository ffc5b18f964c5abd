"""Starts and stops the processes of a run: Ray, vLLM servers, the learner, rollout workers.

Everything is started side by side, since start-up is mostly imports. The driver itself loads neither torch
nor vLLM. On exit every actor is killed; a Ray that we started is shut down with everything in it.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from envs.tasks import load_tasks
from reasoner.config import Config
from reasoner.errors import ReasonerError, ServerError, UsageError
from reasoner.fingerprint import fingerprint
from reasoner.model_source import ModelSource
from reasoner.reaper import guard_children
from reasoner.types import SamplingParams, Task, TrainBatch
from rollouts.sampler import HTTPSampler, RaySampler, Sampler
from rollouts.server import ServerConfig, start_server, wait_until_ready
from rollouts.worker import GroupResult, RolloutWorker, build_worker
from verifiers import VerifierPool


@dataclass
class Processes:
    """Handles of what runs. `learner` is None for evaluation."""

    servers: list[Any]
    workers: list[Any]
    learner: Any

    def sleep_servers(self) -> None:
        """Colocated on a GPU: servers give their memory back while the learner works."""
        ray.get([server.sleep.remote() for server in self.servers])

    def wake_servers(self) -> None:
        ray.get([server.wake_up.remote() for server in self.servers])

    def tokens_generated(self) -> int:
        """Tokens our own servers have sampled so far: whether a slow run is alive."""
        return sum(s.tokens_generated for s in ray.get([x.stats.remote() for x in self.servers], timeout=60))

    def stop(self) -> None:
        for worker in self.workers:
            _quietly(worker.close.remote())
        for actor in [*self.workers, *self.servers, *([self.learner] if self.learner else [])]:
            ray.kill(actor)


class WorkerActor:
    """A `RolloutWorker` in its own Ray process. `setup` is a call so that its errors arrive as they are."""

    async def setup(
        self, samplers: Sequence[Sampler], model: ModelSource, template: str, config: Config, verifier: Any
    ) -> None:
        self.worker: RolloutWorker = build_worker(
            samplers,
            str(model.path),
            load_tasks(config.tasks.source, config.seed),
            template,
            VerifierPool(verifier, workers=config.verifier.processes, timeout_s=config.verifier.timeout_s),
            context_tokens(config, model),
        )

    async def run(
        self, tasks: Sequence[Task], group_size: int, params: SamplingParams, first_index: int
    ) -> list[GroupResult]:
        return await self.worker.run(tasks, group_size, params, first_index)

    async def close(self) -> None:
        self.worker.verifiers.close()


class LearnerActor:
    """The learner and its side of the weight sync, in a process of its own."""

    def setup(self, model_path: str, base_path: str, config: Config, samplers: Sequence[Sampler]) -> None:
        import torch

        from reasoner.learner import Learner, LearnerConfig
        from reasoner.weight_sync import WeightSync

        keys = config.learner
        device = keys.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.learner = Learner(
            model_path,
            LearnerConfig.of(keys),
            temperature=config.rollout.temperature,
            seed=config.seed,
            device=device,
            reference_path=base_path,
        )
        self.weight_sync = WeightSync(
            samplers,
            _transfer(device, config),
            score=self.learner.score,
            temperature=config.rollout.temperature,
            dtype="bfloat16" if keys.dtype == "bfloat16" else config.server.dtype,  # the coarser of the two
        )

    def update(self, batch: TrainBatch, lr_scale: float) -> Any:
        return self.learner.update(batch, lr_scale)

    def sync(self, version: int) -> Any:
        """New weights to every server, proved by a logprob probe before any of them serves again."""
        return self.weight_sync.sync(self.learner.model, version)

    def fingerprint(self) -> dict[str, Any]:
        """What decides the last bits of an update in this process."""
        return fingerprint(self.learner)

    def save(self, path: Path) -> None:
        self.learner.save(path)
        self.learner.save_trainer(path / "trainer")

    def load_trainer(self, path: Path) -> None:
        self.learner.load_trainer(path / "trainer")


def _transfer(device: str, config: Config) -> str:
    """vLLM's weight-transfer backend: a mapped file on CPU, CUDA IPC on one shared GPU, else NCCL (the two
    GPU ones were not run by us)."""
    if device == "cpu":
        return "shared_memory"
    return "ipc" if config.cluster.colocate else "nccl"


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
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, **common)
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
) -> Processes:
    """Starts servers, workers and, when `learner_base` (the model the run began from) is given, the learner
    side by side; returns when all are ready.

    Raises ServerError with the last log lines of a server that never becomes healthy."""
    _check_devices(config)
    log_dir = log_dir.absolute()  # actors may have another working directory
    processes = Processes([], [], None)
    timeout_s = config.server.startup_timeout_s
    try:
        servers = {}
        if not config.server.addresses:
            for i in range(config.server.replicas):
                name = f"server-{i}"
                servers[name] = start_server(
                    _server_config(config, model), name=name, log_dir=log_dir, wait=False
                )
        processes.servers.extend(servers.values())
        samplers: list[Sampler] = [RaySampler(server) for server in processes.servers]
        samplers += _external_samplers(config, model)
        pending = []
        if learner_base is not None:
            share = 0.5 if config.cluster.colocate else 1.0
            actor = ray.remote(
                num_cpus=1,
                num_gpus=share * _on_gpu(config),
                runtime_env={"env_vars": {"OMP_NUM_THREADS": str(config.learner.threads)}},
            )(LearnerActor)
            processes.learner = actor.remote()
            pending.append(
                processes.learner.setup.remote(str(model.path), str(learner_base), config, samplers)
            )
        worker = ray.remote(num_cpus=1, max_concurrency=1000)(WorkerActor)
        for _ in range(config.rollout.workers):
            processes.workers.append(worker.remote())
            pending.append(processes.workers[-1].setup.remote(samplers, model, template, config, verifier))
        wait_until_ready(servers, log_dir=log_dir, timeout_s=timeout_s)
        ray.get(pending, timeout=timeout_s)
        return processes
    except ray.exceptions.GetTimeoutError:
        processes.stop()
        raise ServerError(
            f"workers and learner were not ready after {timeout_s:.0f} s; logs: {log_dir}"
        ) from None
    except BaseException:
        processes.stop()
        raise


def unwrap(error: BaseException) -> ReasonerError:
    """The error a user can act on, out of the wrapping that Ray puts around it."""
    cause = getattr(error, "cause", None)
    for candidate in (error, cause):
        if isinstance(candidate, ReasonerError):
            return candidate
    if isinstance(error, ray.exceptions.RayActorError):
        return ServerError(f"a process of the run died: {error}")
    shown = cause if isinstance(cause, BaseException) else error
    return ReasonerError(f"{type(shown).__name__}: {shown}")


def _on_gpu(config: Config) -> bool:
    return config.learner.device == "cuda" or (
        config.learner.device == "auto" and ray.cluster_resources().get("GPU", 0) > 0
    )


def _server_config(config: Config, model: ModelSource) -> ServerConfig:
    server = config.server
    device = "cuda" if _on_gpu(config) else "cpu"
    return ServerConfig(
        model=str(model.path),
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
        weight_transfer=_transfer(device, config),
    )


def _check_devices(config: Config) -> None:
    if config.cluster.colocate and not _on_gpu(config):
        raise UsageError("cluster.colocate shares a GPU, and there is none: leave it off on CPU")
    if config.learner.device == "cuda" and not ray.cluster_resources().get("GPU"):
        raise UsageError("learner.device is cuda, but Ray sees no GPU")


def _external_samplers(config: Config, model: ModelSource) -> list[Sampler]:
    """Samplers of the servers that somebody else started; the key comes from VLLM_API_KEY."""
    key = os.environ.get("VLLM_API_KEY")
    addresses = config.server.addresses
    samplers = [HTTPSampler(url, stop_token_ids=model.end_token_ids, api_key=key) for url in addresses]
    for sampler in samplers:
        asyncio.run(_check_external(sampler))
    return list(samplers)


async def _check_external(sampler: Sampler) -> None:
    """A server that somebody else started must answer before anything else is started."""
    try:
        await sampler.health()
    except ServerError as e:
        raise ServerError(f"the server in server.addresses cannot be used: {e}") from None


def _quietly(ref: Any) -> None:
    """Waits a moment for a parting call; a dead actor is what we are about to make anyway."""
    ray.wait([ref], timeout=2)
