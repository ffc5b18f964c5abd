"""A server that an evaluation survives: when it dies or hangs it is started anew, and asked again what it had
not answered. Training has a fleet for this (`rollouts.fleet`), which also refits servers with new weights."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from reasoner.errors import ServerError, ServerLost
from reasoner.types import Completion, SamplingParams
from rollouts.fleet import DEAD_AFTER_S, HEARTBEAT_S, MAX_FAILURES


class Served(Protocol):
    """What a server answers through, as long as it lives. `health` returns when it works; `close` ends it:
    whoever waits for an answer gets ServerLost with `reason`."""

    async def generate(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams
    ) -> list[Completion]: ...

    async def health(self) -> None: ...

    async def close(self, reason: str = ...) -> None: ...


class RestartingSampler:
    """`generate` of the `Sampler` protocol. `start(number)` returns a server that is ready, the number-th
    (from 0); `tell` gets a line when one is lost. Belongs to one event loop.

    It is asked for its health as in training, and given up after as long without an answer.
    Raises what `start` raises, and ServerError when servers die in a row without having answered anything."""

    def __init__(
        self, start: Callable[[int], Coroutine[Any, Any, Served]], tell: Callable[[str], None]
    ) -> None:
        self._start, self._tell = start, tell
        self._starting: asyncio.Task[Served] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._number = self._failures = 0

    def start(self) -> asyncio.Task[Served]:
        """The present server, which may be starting still."""
        if self._starting is None:
            self._starting = asyncio.create_task(self._start(self._number))
            self._watching = asyncio.create_task(_watch(self._starting))
            self._number += 1
        return self._starting

    async def generate(self, prompts: Sequence[Sequence[int]], params: SamplingParams) -> list[Completion]:
        while True:
            starting = self.start()
            server = await asyncio.shield(starting)  # others wait for it too
            try:
                completions = await server.generate(prompts, params)
            except ServerLost as error:
                if self._starting is starting:  # else another request has found out before
                    await self._lost(error)
            else:
                self._failures = 0
                return completions

    async def close(self) -> None:
        """Ends the server, also one that is starting."""
        starting, self._starting = self._starting, None
        if self._watching is not None:
            self._watching.cancel()
        if starting is not None:
            starting.cancel()
            (server,) = await asyncio.gather(starting, return_exceptions=True)
            if not isinstance(server, BaseException):
                await server.close()

    async def _lost(self, error: ServerLost) -> None:
        self._failures += 1
        reason = str(error).splitlines()[0]
        if self._failures >= MAX_FAILURES:
            raise ServerError(f"the server died {self._failures} times without an answer: {reason}")
        self._tell(f"the server is lost and is started anew: {reason}")
        await self.close()


async def _watch(starting: asyncio.Task[Served]) -> None:
    """Closes a server that does not answer health checks: those who wait for it are told that it is lost."""
    await asyncio.wait([starting])
    if starting.cancelled() or starting.exception() is not None:
        return
    server = starting.result()
    while True:
        await asyncio.sleep(HEARTBEAT_S)
        try:
            await asyncio.wait_for(server.health(), DEAD_AFTER_S)
        except TimeoutError:
            await server.close(f"it has not answered for {DEAD_AFTER_S:.0f} s")
            return
        except ServerError as error:
            await server.close(str(error))
            return
