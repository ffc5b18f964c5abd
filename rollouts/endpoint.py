"""A client for OpenAI-compatible endpoints (`/v1/chat/completions`, `/v1/completions`), for evaluation.

Text in and text out; from a vLLM server also token ids, which is what budgets need. Rate limits (429),
server errors (5xx) and lost connections are tried again with exponential back-off; `Retry-After` is obeyed.
What an endpoint does not know (seed, logprobs, the old name of max_tokens) is left out once it has said so.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_delay
from tenacity.wait import wait_random_exponential

from reasoner.errors import ServerError, UsageError
from reasoner.types import SamplingParams

RETRY_S = 300.0  # one request is tried again for so long
LONGEST_WAIT_S = 60.0
Message = Mapping[str, str]


@dataclass(frozen=True)
class Endpoint:
    """Where the model is served. The key is read from the environment variable `key_variable`."""

    url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    concurrency: int = 64  # requests under way
    price_in: float | None = None  # per million prompt tokens, any currency
    price_out: float | None = None  # per million completion tokens
    retry_s: float = RETRY_S

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise UsageError(f"--endpoint {self.url!r} is not a URL: write http://host:port/v1")
        if not self.model:
            raise UsageError("--endpoint needs --model NAME: the name under which the model is served")
        base = self.url.rstrip("/")
        object.__setattr__(self, "url", base if parts.path.strip("/") else f"{base}/v1")


@dataclass(frozen=True)
class Answer:
    """What came back for one prompt. Only vLLM servers give token ids, and not all endpoints logprobs."""

    text: str
    finish_reason: str
    tokens: int
    prompt_tokens: int | None
    logprobs: np.ndarray | None  # (tokens,) float32
    token_ids: np.ndarray | None  # (tokens,) int32
    prompt_token_ids: np.ndarray | None  # int32
    ended_by_token: bool  # by the model's end token, which is then the last of token_ids


class _TryAgain(Exception):
    """A failure that may pass; `after_s` is what the endpoint asked for."""

    def __init__(self, message: str, after_s: float | None = None) -> None:
        super().__init__(message)
        self.after_s = after_s


class EndpointClient:
    """Use `async with`. Raises UsageError for what the endpoint refuses for good (400, 401, 403, 404, 422),
    ServerError when it stays unreachable or answers garbage."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.is_vllm = False
        self.context_tokens: int | None = None
        self._left_out: set[str] = set()
        key = os.environ.get(endpoint.key_variable)
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(3600.0, connect=10.0),
            limits=httpx.Limits(max_connections=endpoint.concurrency),
        )

    async def __aenter__(self) -> EndpointClient:
        try:
            await self._look_around()
        except BaseException:
            await self._http.aclose()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._http.aclose()

    async def chat(self, messages: Sequence[Message], params: SamplingParams) -> Answer:
        body = self._body(params) | {"messages": [dict(m) for m in messages], "logprobs": True}
        return _chat_answer(await self._ask("/chat/completions", body))

    async def complete(self, prompt: str | Sequence[int], params: SamplingParams) -> Answer:
        """Completes a text, or (vLLM only) token ids."""
        prompt = prompt if isinstance(prompt, str) else list(map(int, prompt))
        body = self._body(params) | {"prompt": prompt, "logprobs": 1}
        return _completion_answer(await self._ask("/completions", body))

    async def tokenize(self, text: str) -> list[int]:
        """vLLM only."""
        body = {"model": self.endpoint.model, "prompt": text, "add_special_tokens": False}
        return (await self._post(self._root() + "/tokenize", body))["tokens"]

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """vLLM only."""
        if not len(token_ids):
            return ""
        body = {"model": self.endpoint.model, "tokens": list(map(int, token_ids))}
        return (await self._post(self._root() + "/detokenize", body))["prompt"]

    # -- requests --------------------------------------------------------------------------------------

    async def _look_around(self) -> None:
        """Whether anybody is there, and whether it is vLLM; an endpoint need not list its models."""
        try:
            response = await self._http.get(self.endpoint.url + "/models")
        except httpx.HTTPError as error:
            raise UsageError(
                f"no endpoint answers at {self.endpoint.url}: {type(error).__name__}: {error}"
            ) from None
        if response.status_code in (401, 403):
            raise UsageError(self._refused(response))
        if not response.is_success:
            return
        try:
            cards = {card["id"]: card for card in response.json()["data"]}
        except (ValueError, TypeError, KeyError):
            return
        if self.endpoint.model not in cards and cards:
            raise UsageError(
                f"{self.endpoint.url} does not serve {self.endpoint.model!r}; it serves "
                f"{', '.join(sorted(cards)[:10])}"
            )
        card = cards.get(self.endpoint.model, {})
        self.is_vllm = card.get("owned_by") == "vllm"
        self.context_tokens = card.get("max_model_len")

    def _root(self) -> str:
        return self.endpoint.url.removesuffix("/v1")

    def _body(self, params: SamplingParams) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.endpoint.model,
            "max_tokens": params.max_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "seed": params.seed,
        }
        if params.stop:
            body["stop"] = list(params.stop)
        if self.is_vllm:
            body |= {"return_token_ids": True, "top_k": params.top_k, "min_p": 0.0, "repetition_penalty": 1.0}
        return body

    async def _ask(self, route: str, body: dict[str, Any]) -> dict[str, Any]:
        """POST, leaving out what the endpoint does not take."""
        while True:
            accepted = self._accepted(body)
            try:
                return await self._post(self.endpoint.url + route, accepted)
            except UsageError as error:
                refused = _refused_part(str(error), accepted)
                if refused is None:
                    raise
                self._left_out.add(refused)

    def _accepted(self, body: dict[str, Any]) -> dict[str, Any]:
        accepted = {k: v for k, v in body.items() if k not in self._left_out and v is not None}
        if "max_tokens" in self._left_out:
            accepted["max_completion_tokens"] = body["max_tokens"]
        return accepted

    async def _post(self, url: str, body: dict[str, Any]) -> dict[str, Any]:
        attempts = AsyncRetrying(
            retry=retry_if_exception_type(_TryAgain),
            stop=stop_after_delay(self.endpoint.retry_s),
            wait=_wait,
            reraise=True,
        )
        try:
            return await attempts(self._post_once, url, body)
        except _TryAgain as error:
            raise ServerError(f"{error}; gave up after {self.endpoint.retry_s:g} s") from None

    async def _post_once(self, url: str, body: dict[str, Any]) -> dict[str, Any]:
        try:
            response = await self._http.post(url, json=body)
        except httpx.HTTPError as error:
            raise _TryAgain(f"{url}: {type(error).__name__}: {error}") from None
        if response.status_code == 429 or response.status_code >= 500:
            raise _TryAgain(self._refused(response), _retry_after(response))
        if not response.is_success:
            raise UsageError(self._refused(response))
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise ServerError(f"{url} answered what is no JSON object: {response.text[:200]!r}")
        return answer

    def _refused(self, response: httpx.Response) -> str:
        message = f"{response.request.url} answered {response.status_code}: {response.text[:300].strip()}"
        if response.status_code in (401, 403):
            return f"{message} (the key is read from ${self.endpoint.key_variable})"
        if "chat template" in response.text:
            return f"{message} (a base model: add --template base)"
        return message


def _refused_part(message: str, body: Mapping[str, Any]) -> str | None:
    """What of `body` a refusal is about and can do without. A temperature other than 1 is never left out:
    that is what was to be measured."""
    for field in ("logprobs", "seed", "temperature", "top_p"):
        if field in message and field in body and (field != "temperature" or body[field] == 1.0):
            return field
    return "max_tokens" if "max_completion_tokens" in message and "max_tokens" in body else None


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, _TryAgain) and error.after_s is not None:
        return min(error.after_s, LONGEST_WAIT_S)
    return wait_random_exponential(multiplier=0.5, max=LONGEST_WAIT_S)(state)


def _retry_after(response: httpx.Response) -> float | None:
    try:
        return max(0.0, float(response.headers.get("retry-after", "")))
    except ValueError:
        return None  # absent, or a date


def _chat_answer(answer: Mapping[str, Any]) -> Answer:
    choice = _choice(answer)
    message = choice.get("message")
    if not isinstance(message, Mapping):
        raise ServerError(f"the endpoint answered a choice without a message: {str(choice)[:200]}")
    text = message.get("content") or ""
    thought = message.get("reasoning") or message.get("reasoning_content")
    if thought:
        text = f"<think>{thought}</think>{text}"
    content = (choice.get("logprobs") or {}).get("content")
    logprobs = [entry["logprob"] for entry in content] if content else None
    return _answer(answer, choice, text, logprobs, answer.get("prompt_token_ids"))


def _completion_answer(answer: Mapping[str, Any]) -> Answer:
    choice = _choice(answer)
    if not isinstance(choice.get("text"), str):
        raise ServerError(f"the endpoint answered a choice without a text: {str(choice)[:200]}")
    logprobs = (choice.get("logprobs") or {}).get("token_logprobs")
    return _answer(answer, choice, choice["text"], logprobs, choice.get("prompt_token_ids"))


def _choice(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
        raise ServerError(f"the endpoint answered without choices: {str(dict(answer))[:200]}")
    return choices[0]


def _answer(
    answer: Mapping[str, Any],
    choice: Mapping[str, Any],
    text: str,
    logprobs: Sequence[float | None] | None,
    prompt_ids: Sequence[int] | None,
) -> Answer:
    usage, token_ids = answer.get("usage") or {}, choice.get("token_ids")
    tokens = len(token_ids) if token_ids is not None else usage.get("completion_tokens")
    if not isinstance(tokens, int):
        raise ServerError("the endpoint does not say how many tokens it wrote (usage.completion_tokens)")
    known = logprobs is not None and all(value is not None for value in logprobs)
    finish = choice.get("finish_reason") or "stop"
    prompt_tokens = len(prompt_ids) if prompt_ids is not None else usage.get("prompt_tokens")
    return Answer(
        text=text,
        finish_reason=finish,
        tokens=tokens,
        prompt_tokens=prompt_tokens if isinstance(prompt_tokens, int) else None,
        logprobs=np.array(logprobs, np.float32) if known else None,
        token_ids=None if token_ids is None else np.array(token_ids, np.int32),
        prompt_token_ids=None if prompt_ids is None else np.array(prompt_ids, np.int32),
        ended_by_token=finish == "stop" and choice.get("stop_reason") is None and bool(token_ids),
    )


__all__ = ["Answer", "Endpoint", "EndpointClient"]
