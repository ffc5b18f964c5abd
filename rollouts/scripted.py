"""A sampler that says what it is told to: for unit tests of everything above vLLM, without vLLM."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from reasoner.errors import ServerError, UsageError
from reasoner.types import Completion, SamplingParams

Respond: TypeAlias = Callable[[list[int], SamplingParams, int], Sequence[int]]


class ScriptedSampler:
    """Obeys the `Sampler` protocol.

    script: the completions, token ids each, handed out in turn and then from the start again; or a
        function (prompt, params, running number of the completion) -> token ids, the end token included.
        A completion longer than `max_tokens` is cut there and ends with "length", any other with "stop".
    logprob: of every token, sampled or scored.
    delay_s: how long each call takes.
    """

    def __init__(
        self,
        script: Sequence[Sequence[int]] | Respond,
        *,
        logprob: float = -1.0,
        version: int = 0,
        delay_s: float = 0.0,
        max_model_len: int | None = None,
    ) -> None:
        self.current_version = version
        self.requests: list[tuple[list[list[int]], SamplingParams]] = []  # (prompts, params) of every call
        self.logprob = logprob
        self.delay_s = delay_s
        self.max_model_len = max_model_len
        self._respond = script if callable(script) else _in_turn(script)
        self._served = 0
        self._death: str | None = None
        self._paused = False

    async def generate(self, prompts: Sequence[Sequence[int]], params: SamplingParams) -> list[Completion]:
        await self._wait()
        lists = [list(prompt) for prompt in prompts]
        self.requests.append((lists, params))
        self._check(lists, params.max_tokens)
        return [self._complete(prompt, params) for prompt in lists]

    async def score(self, token_ids: Sequence[Sequence[int]], temperature: float = 1.0) -> list[np.ndarray]:
        await self.health()
        scores = [np.full(len(ids), self.logprob, np.float32) for ids in token_ids]
        for score in scores:
            score[:1] = 0.0
        return scores

    async def pause(self) -> None:
        self._paused = True

    async def resume(self) -> None:
        self._paused = False

    async def version(self) -> int:
        return self.current_version

    async def health(self) -> None:
        if self._death is not None:
            raise ServerError(self._death)

    def set_version(self, version: int) -> None:
        """What a weight update does: tokens sampled from now on carry `version`."""
        self.current_version = version

    def die(self, message: str = "the scripted server died") -> None:
        """Every call from now on, and every call still waiting, raises ServerError."""
        self._death = message

    async def _wait(self) -> None:
        await asyncio.sleep(self.delay_s)
        while self._paused and self._death is None:
            await asyncio.sleep(0.001)
        await self.health()

    def _check(self, prompts: list[list[int]], max_tokens: int) -> None:
        longest = max(map(len, prompts), default=0)
        if self.max_model_len is not None and longest + max_tokens > self.max_model_len:
            raise UsageError(
                f"a prompt of {longest} tokens and max_tokens {max_tokens} exceed the server's context of "
                f"{self.max_model_len} tokens"
            )

    def _complete(self, prompt: list[int], params: SamplingParams) -> Completion:
        tokens = list(self._respond(prompt, params, self._served))
        self._served += 1
        reason = "length" if len(tokens) > params.max_tokens else "stop"
        tokens = tokens[: params.max_tokens]
        return Completion(
            token_ids=np.array(tokens, np.int32),
            behaviour_logprobs=np.full(len(tokens), self.logprob, np.float32),
            policy_version=np.full(len(tokens), self.current_version, np.int32),
            finish_reason=reason,
        )


def _in_turn(script: Sequence[Sequence[int]]) -> Respond:
    if not script:
        raise ValueError("an empty script: nothing to say")
    return lambda prompt, params, number: script[number % len(script)]
