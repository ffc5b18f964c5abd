"""Many small calls, one stream: how an evaluation samples thousands of prompts from a server of ours.

Every caller waits for its own completions only, so each finished sample can be stored at once; the server
gets what was asked within a moment in one call, so samples of one task are prefilled together and a small
model is not slowed down by one remote call a sample.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from reasoner.errors import ServerError, ServerLost
from reasoner.types import Completion, SamplingParams
from rollouts.sampler import RaySampler

WINDOW_S = 0.02  # requests that arrive within this time travel together


class CoalescingSampler:
    """`generate` of the `Sampler` protocol over `RaySampler.generate_each`. Belongs to one event loop."""

    def __init__(self, sampler: RaySampler) -> None:
        self._sampler = sampler
        self._waiting: list[tuple[list[int], SamplingParams, asyncio.Future[Completion]]] = []
        self._unanswered: set[asyncio.Future[Completion]] = set()
        self._streams: set[asyncio.Task[None]] = set()
        self._flush: asyncio.Task[None] | None = None
        self._closed: str | None = None  # why

    async def generate(self, prompts: Sequence[Sequence[int]], params: SamplingParams) -> list[Completion]:
        """One completion a prompt, in order. The seed of a lone prompt is used as it is."""
        if self._closed is not None:
            raise ServerLost(self._closed)
        loop = asyncio.get_running_loop()
        futures = []
        for position, prompt in enumerate(prompts):
            future: asyncio.Future[Completion] = loop.create_future()
            self._unanswered.add(future)
            future.add_done_callback(self._unanswered.discard)
            self._waiting.append((list(prompt), _own(params, position), future))
            futures.append(future)
        if self._flush is None or self._flush.done():
            self._flush = loop.create_task(self._send_soon())
        return list(await asyncio.gather(*futures))

    async def close(self, reason: str = "the server was closed") -> None:
        """Ends every call that is still under way: whoever waits for it gets ServerLost with `reason`."""
        self._closed = reason
        tasks = [*self._streams, *([self._flush] if self._flush else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for future in [f for f in self._unanswered if not f.done()]:
            future.set_exception(ServerLost(reason))

    async def _send_soon(self) -> None:
        await asyncio.sleep(WINDOW_S)
        batch, self._waiting = self._waiting, []
        stream = asyncio.get_running_loop().create_task(self._stream(batch))
        self._streams.add(stream)
        stream.add_done_callback(self._streams.discard)

    async def _stream(
        self, batch: list[tuple[list[int], SamplingParams, asyncio.Future[Completion]]]
    ) -> None:
        try:
            prompts, params = [prompt for prompt, _, _ in batch], [own for _, own, _ in batch]
            async for position, completion in self._sampler.generate_each(prompts, params):
                _resolve(batch[position][2], completion)
            lost: Exception = ServerError("the vLLM server ended a stream before its last completion")
        except Exception as error:  # belongs to those who wait
            lost = error
        for _, _, future in batch:
            if not future.done():
                future.set_exception(lost)


def _own(params: SamplingParams, position: int) -> SamplingParams:
    if params.seed is None or position == 0:
        return params
    return replace(params, seed=int(np.random.SeedSequence((params.seed, position)).generate_state(1)[0]))


def _resolve(future: asyncio.Future[Completion], completion: Completion) -> None:
    if not future.done():  # its caller may be gone
        future.set_result(completion)
