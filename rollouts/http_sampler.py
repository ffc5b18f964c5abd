"""A client for a vLLM server that somebody else started (`vllm.entrypoints.openai.api_server`).

Uses `POST /inference/v1/generate` (token ids in and out, weight-version spans; the server needs
`--enable-scale-out`) and falls back to `/v1/completions`, where versions are only known per request.
Every sampling parameter that a `generation_config.json` could change is sent explicitly.

Left out: streaming, and batching of different prompts in one request, which that route does not have;
equal prompts next to each other (a group) do travel in one request.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import numpy as np

from reasoner.errors import ServerError, ServerLost, UsageError
from reasoner.types import Completion, SamplingParams

PROBING, FAILED = "probing:", "failed:"  # prefixes of a weight version while, and after, it is in doubt
POLL_S = 0.02
WAIT_S = 0.2  # between two looks at whether the user wants to stop
VERDICT_S = 600.0  # for the learner to say whether the weights it gave are right


class HTTPSampler:
    """A `Sampler` over HTTP. Picklable; one connection pool per event loop."""

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        stop_token_ids: Sequence[int] = (),
        timeout_s: float = 3600.0,
        max_connections: int = 256,
    ) -> None:
        self.url = url.rstrip("/")
        self.stop_token_ids = tuple(stop_token_ids)
        self.timeout_s = timeout_s
        self.max_connections = max_connections
        self._api_key = api_key
        self._reset()

    def _reset(self) -> None:
        self._client: httpx.AsyncClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._model: dict[str, Any] | None = None
        self._has_generate: bool | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_client", "_loop")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._reset()
        self.__dict__.update(state)

    # -- the Sampler protocol --------------------------------------------------------------------------

    async def generate(self, prompts: Sequence[Sequence[int]], params: SamplingParams) -> list[Completion]:
        """One completion a prompt, in order; see `Sampler`."""
        return await self._generate(prompts, params, in_doubt=False)

    async def _generate(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams, in_doubt: bool
    ) -> list[Completion]:
        await self._check(prompts, params.max_tokens)
        groups = [(list(key), len(list(same))) for key, same in itertools.groupby(map(tuple, prompts))]
        one = self._generate_group if await self._generate_route() else self._complete_group
        answers = await asyncio.gather(
            *(one(prompt, count, params, index) for index, (prompt, count) in enumerate(groups))
        )
        labels = set().union(*(found for _, found in answers))
        if not in_doubt and any(label.startswith((PROBING, FAILED)) for label in labels):
            await self._wait_for_verdict()
        if any(completion.finish_reason == "abort" for answer, _ in answers for completion in answer):
            raise ServerLost(f"vLLM server {self.url} aborted a request")
        return [completion for answer, _ in answers for completion in answer]

    async def score(self, token_ids: Sequence[Sequence[int]], temperature: float = 1.0) -> list[np.ndarray]:
        """Teacher-forced logprobs (T,); see `Sampler`. At temperatures other than 1 the server sends the
        whole vocabulary for every token (start it with `--max-logprobs -1`): keep these few and short."""
        await self._check(token_ids, 1)
        return await asyncio.gather(*(self._score_one(list(ids), temperature) for ids in token_ids))

    async def sample_one(
        self, sequences: Sequence[Sequence[int]], temperature: float, in_doubt: bool = False
    ) -> list[Completion]:
        """One token after each sequence, sampled the ordinary way; `in_doubt`: for the probe itself."""
        params = SamplingParams(max_tokens=1, temperature=temperature)
        return await self._generate(sequences, params, in_doubt)

    async def pause(self, clear_cache: bool = True, abort: bool = False) -> None:
        """`abort`: end all requests instead of keeping them; their callers get ServerError."""
        mode = "abort" if abort else "keep"
        await self._post("/pause", params={"mode": mode, "clear_cache": str(clear_cache).lower()})

    async def resume(self) -> None:
        await self._post("/resume")

    async def version(self) -> int:
        return _version_number(await self.version_label())

    async def health(self) -> None:
        await self._request("GET", "/health")
        label = await self.version_label()
        if label.startswith(FAILED):
            raise ServerLost(f"server {self.url} has wrong weights: {label}")

    async def version_label(self) -> str:
        """vLLM's own weight version; "default" for a server that cannot change its weights."""
        try:
            response = await self._request("GET", "/weight_info", allow=(404,))
        except UsageError:
            return "default"
        return response.json().get("weight_version", "default") if response.status_code == 200 else "default"

    async def get(self, path: str) -> Any:
        return (await self._request("GET", path)).json()

    async def post(self, path: str, json: Any = None) -> Any:
        """A route of vLLM's weight-transfer protocol."""
        return await self._post(path, json=json)

    # -- requests --------------------------------------------------------------------------------------

    async def _generate_group(
        self, prompt: list[int], count: int, params: SamplingParams, index: int
    ) -> tuple[list[Completion], set[str]]:
        """`count` samples of one prompt, and the weight versions their tokens were sampled under."""
        sampling = self._params(params, index) | {"n": count}
        if not params.stop:
            sampling["detokenize"] = False
        body = {"token_ids": prompt, "sampling_params": sampling}
        answer = await self._post("/inference/v1/generate", json=body)
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        labels = {span["version"] for c in choices for span in c.get("weight_versions") or ()}
        return [_from_generate(choice) for choice in choices], labels

    async def _complete_group(
        self, prompt: list[int], count: int, params: SamplingParams, index: int
    ) -> tuple[list[Completion], set[str]]:
        """As `_generate_group`; tokens are given the version before the request, never a newer one."""
        before = await self.version_label()
        body = self._params(params, index) | {
            "model": (await self._served_model())["id"],
            "prompt": prompt,
            "n": count,
            "logprobs": 1,
            "return_token_ids": True,
        }
        answer = await self._post("/v1/completions", json=body)
        labels = {before, await self.version_label()}
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        return [_from_completions(choice, _version_number(before)) for choice in choices], labels

    async def _score_one(self, ids: list[int], temperature: float) -> np.ndarray:
        sampling = {
            "max_tokens": 1,
            "temperature": temperature,
            "prompt_logprobs": 0 if temperature == 1.0 else -1,
        }
        if await self._generate_route():
            answer = await self._post(
                "/inference/v1/generate", json={"token_ids": ids, "sampling_params": sampling}
            )
            rows = answer["prompt_logprobs"]
        else:
            model = (await self._served_model())["id"]
            answer = await self._post("/v1/completions", json=sampling | {"model": model, "prompt": ids})
            rows = answer["choices"][0]["prompt_logprobs"]
        return _scores(ids, rows, temperature)

    def _params(self, params: SamplingParams, index: int) -> dict[str, Any]:
        seed = params.seed
        if seed is not None:
            seed = int(np.random.SeedSequence((seed, index)).generate_state(1)[0])
        return {
            "max_tokens": params.max_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": params.top_k,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": seed,
            "stop": list(params.stop),
            "stop_token_ids": list(self.stop_token_ids),
            "logprobs": 0,
        }

    async def _wait_for_verdict(self) -> None:
        """Tokens sampled while the learner was still checking the weights count only if it was content."""
        deadline = time.monotonic() + VERDICT_S
        while (label := await self.version_label()).startswith(PROBING):
            if time.monotonic() > deadline:
                raise ServerLost(
                    f"nobody has confirmed the weights of server {self.url} for {VERDICT_S:.0f} s: {label}"
                )
            await asyncio.sleep(POLL_S)
        if label.startswith(FAILED):
            raise ServerLost(f"server {self.url} has wrong weights: {label}")

    async def _check(self, sequences: Sequence[Sequence[int]], max_tokens: int) -> None:
        limit = (await self._served_model()).get("max_model_len")
        longest = max(map(len, sequences), default=0)
        if limit is not None and longest + max_tokens > limit:
            raise UsageError(
                f"a prompt of {longest} tokens and max_tokens {max_tokens} exceed the context of "
                f"{limit} tokens of {self.url}"
            )

    async def _served_model(self) -> dict[str, Any]:
        if self._model is None:
            self._model = (await self._request("GET", "/v1/models")).json()["data"][0]
        return self._model

    async def _generate_route(self) -> bool:
        """Whether the server has the token-in, token-out route (a GET on it is then 405, not 404)."""
        if self._has_generate is None:
            response = await self._request("GET", "/inference/v1/generate", allow=(404, 405))
            self._has_generate = response.status_code != 404
        return self._has_generate

    async def _post(self, path: str, json: Any = None, params: dict[str, str] | None = None) -> Any:
        response = await self._request("POST", path, json=json, params=params)
        return response.json() if response.content else None

    async def _request(
        self, method: str, path: str, *, allow: tuple[int, ...] = (), **kwargs: Any
    ) -> httpx.Response:
        try:
            response = await self._http().request(method, self.url + path, **kwargs)
        except httpx.HTTPError as error:
            raise ServerLost(f"vLLM server {self.url}: {type(error).__name__}: {error}") from error
        if response.is_success or response.status_code in allow:
            return response
        answer = f"{response.status_code}: {response.text[:500]}"
        message = f"vLLM server {self.url} answered {method} {path} with {answer}"
        if response.status_code in (400, 422):
            raise UsageError(message)
        raise (ServerLost if response.is_server_error else ServerError)(message)

    def _http(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            headers = {"Authorization": f"Bearer {self._api_key}"} if self._api_key else {}
            self._client = httpx.AsyncClient(
                headers=headers,
                timeout=httpx.Timeout(self.timeout_s, connect=10.0),
                limits=httpx.Limits(max_connections=self.max_connections),
            )
            self._loop = loop
        return self._client


async def all_answer(samplers: Sequence[HTTPSampler], timeout_s: float, on_wait: Callable[[], None]) -> None:
    """Returns once all of these servers have said that they are well; `on_wait` is called meanwhile, and may
    raise to stop. Raises ServerError that names one that is not, or those that are silent for `timeout_s`."""
    checks = {asyncio.ensure_future(sampler.health()): sampler.url for sampler in samplers}
    deadline = time.monotonic() + timeout_s
    waiting = set(checks)
    while waiting:
        done, waiting = await asyncio.wait(waiting, timeout=WAIT_S)
        for error in [check.exception() for check in done]:
            if isinstance(error, ServerError):
                raise ServerError(f"the server in server.addresses cannot be used: {error}")
            if error is not None:
                raise error
        on_wait()
        if waiting and time.monotonic() > deadline:
            silent = ", ".join(sorted(checks[check] for check in waiting))
            raise ServerError(f"no answer within {timeout_s:.0f} s from {silent} in server.addresses")


def _version_number(label: str) -> int:
    """ "default" is the model as started: 0."""
    digits = label.removeprefix(PROBING).removeprefix(FAILED).split(" ")[0]
    return int(digits) if digits.isdigit() else 0


def _from_generate(choice: dict[str, Any]) -> Completion:
    tokens = np.array(choice["token_ids"], np.int32)
    versions = np.zeros(len(tokens), np.int32)
    for span in choice.get("weight_versions") or ():
        versions[span["start"] : span["end"]] = _version_number(span["version"])
    logprobs = [entry["logprob"] for entry in choice["logprobs"]["content"]]
    return Completion(tokens, np.array(logprobs, np.float32), versions, choice["finish_reason"])


def _from_completions(choice: dict[str, Any], version: int) -> Completion:
    tokens = np.array(choice["token_ids"], np.int32)
    logprobs = np.array(choice["logprobs"]["token_logprobs"], np.float32)
    return Completion(tokens, logprobs, np.full(len(tokens), version, np.int32), choice["finish_reason"])


def _scores(ids: Sequence[int], rows: Sequence[Any], temperature: float) -> np.ndarray:
    """(T,) logprobs from vLLM's prompt-logprob rows, normalised again at temperatures other than 1."""
    scores = np.zeros(len(ids), np.float64)
    for t in range(1, len(ids)):
        row = rows[t]
        own = row[str(ids[t])]["logprob"]
        if temperature != 1.0:
            scaled = np.array([entry["logprob"] for entry in row.values()]) / temperature
            peak = scaled.max()
            own = own / temperature - peak - np.log(np.exp(scaled - peak).sum())
        scores[t] = own
    return scores.astype(np.float32)
