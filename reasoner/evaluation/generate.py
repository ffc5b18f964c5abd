"""Where samples come from: vLLM servers of ours (here), or somebody's endpoint (`endpoint`).

A generator makes chains (whole episodes of a task) and, where it has token ids, goes on from any prefix:
that is all that budgets and extensions need. Nothing that was sampled is ever re-tokenised.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import ray

from envs.tasks import TaskSource
from reasoner import cluster
from reasoner.config import Config
from reasoner.errors import ReasonerError, ServerError
from reasoner.model_source import ModelSource
from reasoner.servers import context_tokens, server_config
from reasoner.types import Completion, SamplingParams, Task
from rollouts.coalescing import CoalescingSampler
from rollouts.restarting import RestartingSampler
from rollouts.sampler import RaySampler
from rollouts.server import ServerConfig, log_path, log_tail, start_server
from rollouts.worker import RolloutWorker

IN_FLIGHT_PER_SLOT = 3  # requests under way for each sequence a server decodes at once: it must never run dry


@dataclass(frozen=True)
class Chain:
    """One episode as it was sampled. Without token ids nothing can be cut or extended."""

    completion: str  # the text that is graded
    said: str  # all the policy wrote
    token_ids: np.ndarray | None  # (L,) int32, prompt and completion
    logprobs: np.ndarray | None  # (L - prompt_tokens,) float32; 0 for observations
    mean_logprob: float  # nan when unknown
    prompt_tokens: int | None
    tokens: int
    truncated: bool
    seconds: float


class Generator(Protocol):
    """What `collect` samples from."""

    max_in_flight: int
    context_tokens: int | None  # prompt + completion; None: not known
    seeded: bool  # whether every request may carry a seed

    @property
    def end_token_ids(self) -> Collection[int]:
        """What a chain that ended by itself may end with."""
        ...

    async def chain(self, task: Task, position: int, params: SamplingParams) -> Chain:
        """One episode; `position` of the task in its split decides which server is asked."""
        ...

    async def go_on(self, token_ids: Sequence[int], position: int, params: SamplingParams) -> Completion:
        """What follows `token_ids`. Raises UsageError where there is no going on from token ids."""
        ...

    async def encode(self, text: str) -> list[int]: ...

    async def decode(self, token_ids: Sequence[int]) -> str:
        """The text of sampled tokens, special ones left out."""
        ...


class LocalGenerator:
    """Episodes against servers of ours; all samples of a task go to the same one (prefix cache).

    Not `seeded`: on CPU vLLM's engine dies of a seeded request whose prompt it computes in pieces (torch's
    CPU generator cannot go back). Servers get a seed of their own for each call of `evaluate` instead."""

    seeded = False

    def __init__(
        self,
        samplers: Sequence[Any],
        tokenizer: Any,
        source: TaskSource,
        template: str,
        context_tokens: int,
        max_in_flight: int,
        end_token_ids: Sequence[int],
    ) -> None:
        self.end_token_ids = end_token_ids
        self._samplers = samplers
        self._tokenizer = tokenizer
        self.context_tokens: int | None = context_tokens
        self.max_in_flight = max_in_flight
        self._worker = RolloutWorker(tokenizer, source, template, None, context_tokens)  # type: ignore[arg-type]

    async def chain(self, task: Task, position: int, params: SamplingParams) -> Chain:
        started = time.monotonic()
        sampler = self._samplers[position % len(self._samplers)]
        (group,) = await self._worker.sample([task], 1, params, position, sampler)
        rollout = group.rollouts[0]
        if rollout.verdict is not None:  # of an environment that failed: no chain, and nothing to grade
            raise ReasonerError(rollout.verdict.detail)
        begin = int(np.argmax(rollout.action_mask))
        mask = rollout.action_mask[begin:]
        said = rollout.completion
        if not mask.all():  # several turns: everything but the observations
            said = await self.decode(rollout.token_ids[begin:][mask])
        return Chain(
            completion=rollout.completion,
            said=said,
            token_ids=rollout.token_ids,
            logprobs=rollout.behaviour_logprobs[begin:],
            mean_logprob=float(rollout.behaviour_logprobs[begin:][mask].mean()),
            prompt_tokens=begin,
            tokens=rollout.num_action_tokens,
            truncated=rollout.truncated,
            seconds=time.monotonic() - started,
        )

    async def go_on(self, token_ids: Sequence[int], position: int, params: SamplingParams) -> Completion:
        sampler = self._samplers[position % len(self._samplers)]
        (completion,) = await sampler.generate([list(token_ids)], params)
        return completion

    async def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    async def decode(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(map(int, token_ids)), skip_special_tokens=True)


@asynccontextmanager
async def local_generator(
    config: Config,
    model: ModelSource,
    source: TaskSource,
    template: str,
    log_dir: Path,
    tell: Callable[[str], None] = lambda text: None,
) -> AsyncIterator[LocalGenerator]:
    """Servers as `config.server` says, for the block; `tell` gets a line when one is lost and started anew.
    Raises ServerError when one does not start."""
    with cluster.connected(config.cluster.address):
        server = server_config(config, model)
        starters = [
            partial(_serve, f"server-{i}", server, log_dir.absolute(), config.server.startup_timeout_s)
            for i in range(config.server.replicas)
        ]
        samplers = [RestartingSampler(starter, tell) for starter in starters]
        try:
            starting = [sampler.start() for sampler in samplers]
            tokenizer = await asyncio.to_thread(_tokenizer, model)  # a slow import, while the servers start
            await asyncio.gather(*starting)
            yield LocalGenerator(
                samplers,
                tokenizer,
                source,
                template,
                context_tokens(config, model),
                IN_FLIGHT_PER_SLOT * config.server.max_num_seqs * len(samplers),
                model.end_token_ids,
            )
        except ray.exceptions.RayError as e:
            raise cluster.unwrap(e) from None
        finally:
            for sampler in samplers:
                await sampler.close()


class _Server(CoalescingSampler):
    """A server of ours, which `close` ends."""

    def __init__(self, actor: ray.actor.ActorHandle) -> None:
        super().__init__(RaySampler(actor))
        self._actor = actor

    async def health(self) -> None:
        await RaySampler(self._actor).health()

    async def close(self, reason: str = "the server was closed") -> None:
        await super().close(reason)
        ray.kill(self._actor)


async def _serve(name: str, config: ServerConfig, log_dir: Path, timeout_s: float, number: int) -> _Server:
    """A server that is ready, the number-th in its place: one that replaces a dead one must not repeat its
    random numbers. Raises ServerError with the last lines of its log when it does not start."""
    config = replace(config, seed=config.seed + number)
    actor = start_server(config, name=name, log_dir=log_dir, wait=False)
    try:
        await asyncio.wait_for(RaySampler(actor).health(), timeout_s)
    except BaseException as error:
        ray.kill(actor)
        if not isinstance(error, TimeoutError | ServerError):
            raise
        what = "is not ready in time" if isinstance(error, TimeoutError) else "did not start"
        tail = log_tail(log_path(log_dir, name))
        raise ServerError(f"server {name} {what}; its last lines:\n{tail}") from error
    return _Server(actor)


def _tokenizer(model: ModelSource) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(model.path))
