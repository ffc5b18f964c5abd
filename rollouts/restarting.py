"""A server that an evaluation survives: when it dies it is started anew, and asked again what it had not
answered. Training has a fleet for this (`rollouts.fleet`), which also refits servers with new weights."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from reasoner.errors import ServerError, ServerLost
from reasoner.types import Completion, SamplingParams
from rollouts.fleet import MAX_FAILURES


class Served(Protocol):
    """What a server answers through, as long as it lives; `close` ends it."""

    async def generate(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams
    ) -> list[Completion]: ...

    async def close(self) -> None: ...


class RestartingSampler:
    """`generate` of the `Sampler` protocol. `start(number)` returns a server that is ready, the number-th
    (from 0); `tell` gets a line when one is lost. Belongs to one event loop.

    Raises what `start` raises, and ServerError when servers die in a row without having answered anything."""

    def __init__(
        self, start: Callable[[int], Coroutine[Any, Any, Served]], tell: Callable[[str], None]
    ) -> None:
        self._start, self._tell = start, tell
        self._starting: asyncio.Task[Served] | None = None
        self._number = self._failures = 0

    def start(self) -> asyncio.Task[Served]:
        """The present server, which may be starting still."""
        if self._starting is None:
            self._starting = asyncio.create_task(self._start(self._number))
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
