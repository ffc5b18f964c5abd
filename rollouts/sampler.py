"""How everything else samples: one protocol, whatever stands behind it.

`RaySampler` talks to a server actor of ours (`rollouts.server`), `HTTPSampler` (`rollouts.http_sampler`)
to a vLLM server that somebody else started. Token ids in, token ids, behaviour logprobs and policy versions
out; nothing is ever re-tokenised. Behaviour logprobs are those of the distribution sampled from.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import ray

from reasoner.errors import ReasonerError, ServerError, ServerLost
from reasoner.types import Completion, SamplingParams
from rollouts.gone import PROCESS_GONE
from rollouts.http_sampler import HTTPSampler
from rollouts.packing import pack_sequences

T = TypeVar("T")


@runtime_checkable
class Sampler(Protocol):
    """A vLLM server as workers, evaluation and weight sync see it. Raises UsageError for a request that
    cannot be served as asked (context exceeded, unknown token), ServerLost when the server is gone or
    does not serve at present, ServerError when it fails otherwise."""

    async def generate(self, prompts: Sequence[Sequence[int]], params: SamplingParams) -> list[Completion]:
        """One completion a prompt, in order. For a group repeat the prompt G times."""
        ...

    async def score(self, token_ids: Sequence[Sequence[int]], temperature: float = 1.0) -> list[np.ndarray]:
        """Teacher-forced logprobs (T,) float32 of each sequence; entry t describes token t, entry 0 is 0."""
        ...

    async def pause(self) -> None:
        """Stop computing, keep all requests, forget their KV and the prefix cache."""
        ...

    async def resume(self) -> None: ...

    async def version(self) -> int:
        """The policy version being sampled from; 0 is the model as started."""
        ...

    async def health(self) -> None:
        """Returns when the server is well; raises ServerLost otherwise."""
        ...


class RaySampler:
    """A `VLLMServer` actor. Cheap to pickle: hand it to any number of workers."""

    def __init__(self, actor: ray.actor.ActorHandle) -> None:
        self.actor = actor

    async def generate(self, prompts: Sequence[Sequence[int]], params: SamplingParams) -> list[Completion]:
        packed = await _answer(self.actor.generate.remote(pack_sequences(prompts), params))
        return packed.unpack()

    async def generate_each(
        self, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]
    ) -> AsyncIterator[tuple[int, Completion]]:
        """(position, completion) of every prompt as it finishes, each sampled with its own parameters."""
        stream = self.actor.generate_each.options(num_returns="streaming").remote(
            pack_sequences(prompts), list(params)
        )
        async for reference in stream:
            positions, packed = await _answer(reference)
            for position, completion in zip(positions.tolist(), packed.unpack(), strict=True):
                yield position, completion

    async def score(self, token_ids: Sequence[Sequence[int]], temperature: float = 1.0) -> list[np.ndarray]:
        return await _answer(self.actor.score.remote(pack_sequences(token_ids), temperature))

    async def pause(self) -> None:
        await _answer(self.actor.pause.remote())

    async def resume(self) -> None:
        await _answer(self.actor.resume.remote())

    async def version(self) -> int:
        return await _answer(self.actor.version.remote())

    async def health(self) -> None:
        await _answer(self.actor.health.remote())


async def _answer(reference: Awaitable[Any]) -> Any:
    """Await a remote call; our own errors come back as themselves, a process that is gone as ServerLost."""
    try:
        return await reference
    except ray.exceptions.RayTaskError as error:
        raise own_error(error) from None
    except PROCESS_GONE as error:
        raise ServerLost(f"the vLLM server died: {error}") from error


def own_error(error: ray.exceptions.RayTaskError) -> BaseException:
    """The ReasonerError inside Ray's wrapping, or a ServerError about whatever else it was."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, ReasonerError):
        return cause
    return ServerError(f"the vLLM server failed: {cause!r}" if cause else str(error))


__all__ = ["HTTPSampler", "RaySampler", "Sampler", "own_error"]
