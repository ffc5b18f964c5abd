"""Samples from an OpenAI-compatible endpoint: what `generate` does with servers of ours.

One request a sample, so that each is stored as it comes; a vLLM server shares the prompt's prefill all the
same. Chat endpoints get the task's prompt in its chat template (`--template base`: as text).
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from envs.tasks import TaskSource, chat_messages, render_prompt, source_of
from reasoner.errors import UsageError
from reasoner.evaluation.budgets import ANSWER_TOKENS
from reasoner.evaluation.generate import Chain
from reasoner.types import Completion, SamplingParams, Task
from rollouts.endpoint import Answer, EndpointClient


class EndpointGenerator:
    """A `Generator` over an endpoint. Cutting and extending chains needs token ids: vLLM only."""

    def __init__(self, client: EndpointClient, source: TaskSource, template: str) -> None:
        self._client, self._source, self._template = client, source, template
        self.context_tokens = client.context_tokens
        self.max_in_flight = client.endpoint.concurrency
        self.seeded = not client.is_vllm  # on a CPU vLLM dies of seeds, see LocalGenerator
        self.end_token_ids: set[int] = set()
        self._encoded: dict[str, list[int]] = {}

    async def chain(self, task: Task, position: int, params: SamplingParams) -> Chain:
        """One episode; each turn is a message more (without a chat template: text more)."""
        started = time.monotonic()
        env = self._source.env(task)
        observation, _ = env.reset(options={"task": task})
        prompt = self._prompt(task, observation)
        said: list[str] = []
        answers: list[Answer] = []
        while True:
            answer = await self._ask(prompt, params, left=params.max_tokens - sum(a.tokens for a in answers))
            answers.append(answer)
            said.append(answer.text)
            if answer.ended_by_token and answer.token_ids is not None:
                self.end_token_ids.add(int(answer.token_ids[-1]))
            observation, _, terminated, truncated, info = env.step(answer.text)
            spent = sum(a.tokens for a in answers) >= params.max_tokens
            cut = answer.finish_reason == "length" or spent
            if terminated or truncated or cut:
                break
            prompt = _next_prompt(prompt, answer.text, observation)
        env.close()
        completion = info.get("completion", answer.text)
        return _chain(completion, "".join(said), answers, cut or truncated, time.monotonic() - started)

    def _prompt(self, task: Task, observation: str) -> str | list[dict[str, str]]:
        source = source_of(self._source, task)
        if self._template == "chat":
            return chat_messages(task, observation, source)
        template = source.base_template if self._template == "base" else self._template
        return render_prompt(observation, template)

    async def _ask(self, prompt: str | list[dict[str, str]], params: SamplingParams, left: int) -> Answer:
        params = replace(params, max_tokens=left)
        if isinstance(prompt, str):
            return await self._client.complete(prompt, params)
        return await self._client.chat(prompt, params)

    async def go_on(self, token_ids: Sequence[int], position: int, params: SamplingParams) -> Completion:
        answer = await self._client.complete(token_ids, params)
        if answer.token_ids is None:
            raise UsageError(f"{self._client.endpoint.url} gives no token ids: budgets need a vLLM server")
        count = len(answer.token_ids)
        logprobs = answer.logprobs if answer.logprobs is not None else np.full(count, np.nan, np.float32)
        return Completion(answer.token_ids, logprobs, np.zeros(count, np.int32), answer.finish_reason)

    async def encode(self, text: str) -> list[int]:
        if text not in self._encoded:  # forced and appended texts come again and again
            self._encoded[text] = await self._client.tokenize(text) if text else []
        return self._encoded[text]

    async def decode(self, token_ids: Sequence[int]) -> str:
        ids = list(map(int, token_ids))
        while ids and ids[-1] in self.end_token_ids:
            ids.pop()
        return await self._client.detokenize(ids)


def _next_prompt(prompt: str | list[dict[str, str]], said: str, observation: str) -> Any:
    if isinstance(prompt, str):
        return prompt + said + observation
    return [*prompt, {"role": "assistant", "content": said}, {"role": "user", "content": observation}]


def _chain(completion: str, said: str, answers: Sequence[Answer], truncated: bool, seconds: float) -> Chain:
    last = answers[-1]
    known = [a.logprobs for a in answers if a.logprobs is not None]
    logprobs = np.concatenate(known) if len(known) == len(answers) else None
    whole = len(answers) == 1 and last.token_ids is not None and last.prompt_token_ids is not None
    prompts = [a.prompt_tokens for a in answers]
    return Chain(
        completion=completion,
        said=said,
        token_ids=np.concatenate([last.prompt_token_ids, last.token_ids]) if whole else None,
        logprobs=logprobs if whole else None,
        mean_logprob=float(logprobs.mean()) if logprobs is not None and len(logprobs) else float("nan"),
        prompt_tokens=None if None in prompts else sum(p for p in prompts if p is not None),
        tokens=sum(a.tokens for a in answers),
        truncated=truncated,
        seconds=seconds,
    )


@asynccontextmanager
async def endpoint_generator(plan: Any) -> AsyncIterator[EndpointGenerator]:
    """Raises UsageError when the endpoint cannot do what is asked: budgets without token ids, a context
    shorter than the budget."""
    async with EndpointClient(plan.options.endpoint) as client:
        if plan.points and not client.is_vllm:
            raise UsageError(
                f"{client.endpoint.url} is not a vLLM server: budgets and extensions go on from token ids, "
                "which other endpoints do not give"
            )
        needed = plan.params.max_tokens + (ANSWER_TOKENS if plan.points else 0)
        if client.context_tokens is not None and needed >= client.context_tokens:
            raise UsageError(
                f"{needed} tokens of thinking and answer do not fit the context of {client.context_tokens} "
                f"tokens that {client.endpoint.url} serves: lower --max-tokens or --budgets"
            )
        yield EndpointGenerator(client, plan.source, plan.template)
