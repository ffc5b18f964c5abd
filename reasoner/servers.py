"""The servers that a configuration asks for: device, length of context, ours or somebody else's.

Nothing is started here: launchers and `reasoner.evaluation` do that with what they get.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import ray

from reasoner.config import Config
from reasoner.errors import UsageError
from reasoner.learner_actor import sends_adapters, weight_transfer, with_adapters
from reasoner.model_source import ModelSource
from reasoner.types import Task
from rollouts.http_sampler import HTTPSampler, all_answer
from rollouts.launchers import ExternalLauncher, ServerLauncher
from rollouts.server import ServerConfig

_TEMPLATE_TOKENS = 256  # of a chat template and the text around a prompt


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


def on_gpu(config: Config) -> bool:
    """Whether learner and servers compute on GPUs. Needs a running Ray."""
    return config.learner.device == "cuda" or (
        config.learner.device == "auto" and ray.cluster_resources().get("GPU", 0) > 0
    )


def server_config(config: Config, model: ModelSource, learner_base: Path | None = None) -> ServerConfig:
    """How one replica of `config.server` is started: with `model`, or where a learner then sends adapters
    only, with the model that they belong to. Needs a running Ray."""
    server = config.server
    device = "cuda" if on_gpu(config) else "cpu"
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


def _external_samplers(config: Config, model: ModelSource, on_wait: Callable[[], None]) -> list[HTTPSampler]:
    """Samplers of the servers that somebody else started, which must answer before anything else is started.
    The key comes from VLLM_API_KEY."""
    key = os.environ.get("VLLM_API_KEY")
    addresses = config.server.addresses
    samplers = [HTTPSampler(url, stop_token_ids=model.end_token_ids, api_key=key) for url in addresses]
    asyncio.run(all_answer(samplers, config.server.startup_timeout_s, on_wait))
    return samplers
