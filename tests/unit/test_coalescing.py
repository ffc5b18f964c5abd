"""Many small calls in one stream: what each caller gets, and what becomes of those who wait when it ends."""

import asyncio

import numpy as np
import pytest

from reasoner.errors import ServerError, ServerLost
from reasoner.types import Completion, SamplingParams
from rollouts.coalescing import CoalescingSampler

PARAMS = SamplingParams(max_tokens=4)


class Streams:
    """In place of a `RaySampler`: answers each prompt with itself, the last one first; then `end`."""

    def __init__(self, answers=99, end=None):
        self.calls, self.answers, self.end = [], answers, end

    async def generate_each(self, prompts, params):
        self.calls.append(list(prompts))
        for position in list(reversed(range(len(prompts))))[: self.answers]:
            await asyncio.sleep(0)
            ids = np.array(prompts[position], np.int32)
            yield position, Completion(ids, np.zeros(1, np.float32), np.zeros(1, np.int32), "stop")
        if self.end is not None:
            await self.end()


async def ask(sampler, *prompts):
    found = await asyncio.gather(*(sampler.generate([p], PARAMS) for p in prompts), return_exceptions=True)
    return [f if isinstance(f, Exception) else f[0].token_ids.tolist() for f in found]


def test_calls_of_a_moment_travel_together_and_each_gets_its_own():
    streams = Streams()
    assert asyncio.run(ask(CoalescingSampler(streams), [1], [2], [3])) == [[1], [2], [3]]
    assert streams.calls == [[[1], [2], [3]]]


def test_a_stream_that_breaks_is_an_error_for_those_without_an_answer():
    async def die():
        raise ServerLost("gone")

    first, second = asyncio.run(ask(CoalescingSampler(Streams(answers=1, end=die)), [1], [2]))
    assert isinstance(first, ServerLost) and second == [2]
    first, _ = asyncio.run(ask(CoalescingSampler(Streams(answers=1)), [1], [2]))
    assert isinstance(first, ServerError) and "ended a stream" in str(first)


@pytest.mark.parametrize("after_s", [0.0, 0.001, 0.1])
def test_nobody_waits_for_a_server_that_was_closed(after_s):
    """Before the call, before its stream has begun, and while that runs."""

    async def closed():
        sampler = CoalescingSampler(Streams(answers=0, end=asyncio.Event().wait))
        asking = asyncio.create_task(ask(sampler, [1], [2]))
        await asyncio.sleep(after_s)
        await sampler.close()
        return await asyncio.wait_for(asking, 5)

    assert all(isinstance(error, ServerLost) for error in asyncio.run(closed()))
