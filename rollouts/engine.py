"""vLLM's engine core stepped by one thread inside this process, for batches of token ids.

`EngineLoop` owns the scheduler and the model. Everything else talks to it through a queue, so nothing
needs a lock: commands run between two steps. What is left out against `AsyncLLM`, and why: a second
process, sockets, per-token streams and detokenisation (a rollout wants whole batches of token ids; on a
small model those cost more than the model).

Pausing keeps requests: their tokens so far live here, so a pause aborts them in the engine and a resume
submits prompt + tokens again. Their KV is thereby recomputed under the new weights, and while paused the
engine is empty, which is what a weight update and the logprob probe need.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from vllm.sampling_params import RequestOutputKind
from vllm.sampling_params import SamplingParams as VLLMSamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest
from vllm.v1.engine.core_client import InprocClient

from reasoner.errors import ServerError, ServerLost
from reasoner.types import Completion, SamplingParams

logger = logging.getLogger(__name__)

StopCheck = Callable[[list[int]], bool]


@dataclass(eq=False)
class _Batch:
    """The prompts of one call; the future resolves when the last of them is done."""

    future: Future[list[Any]]
    results: list[Any]
    missing: int
    on_result: Callable[[int, Completion], None] | None = None  # then every prompt brings a seed of its own


@dataclass(eq=False, slots=True)
class _Request:
    batch: _Batch
    index: int  # position in the batch
    prompt: list[int]
    params: SamplingParams
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)  # (first token, policy version)
    prompt_logprobs: np.ndarray | None = None  # (T,), entry 0 is 0; only when scoring
    scoring: bool = False


class EngineLoop:
    """Runs an `InprocClient`. All public methods are thread-safe and return futures or plain counters."""

    def __init__(
        self,
        core: InprocClient,
        *,
        stop_token_ids: Sequence[int],
        make_stop_check: Callable[[Sequence[str]], StopCheck],
    ) -> None:
        self._core = core
        self._stop_token_ids = list(stop_token_ids)
        self._make_stop_check = make_stop_check
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._live: dict[str, _Request] = {}  # in the engine
        self._held: list[_Request] = []  # accepted, waiting for a resume
        self._stop_checks: dict[str, StopCheck] = {}
        self._next_id = 0
        self.version = 0
        self.paused = False
        self.failure: str | None = None  # why the server does not serve; a resume clears it
        self.dead: str | None = None  # why it never will again
        self.tokens_generated = 0
        self.prompt_tokens = 0  # of all requests, as vLLM counts them
        self.cached_prompt_tokens = 0  # of those, found in the prefix cache instead of computed
        self.busy_s = 0.0
        self._thread = threading.Thread(target=self._run, name="vllm-engine", daemon=True)
        self._thread.start()

    # -- called from any thread ------------------------------------------------------------------------

    def generate(self, prompts: Sequence[list[int]], params: SamplingParams) -> Future[list[Completion]]:
        """One completion a prompt, in order. Fails with ServerError when the engine dies or is rejected."""
        return self._submit(prompts, [params] * len(prompts), scoring=False)

    def generate_each(
        self,
        prompts: Sequence[list[int]],
        params: Sequence[SamplingParams],
        on_result: Callable[[int, Completion], None],
    ) -> Future[list[Completion]]:
        """One completion a prompt, each with its own parameters; `on_result(position, completion)` is called
        on the engine's thread as each one finishes. A seed is used as it is, wherever the prompt stands."""
        return self._submit(prompts, params, scoring=False, on_result=on_result)

    def score(self, sequences: Sequence[list[int]], temperature: float) -> Future[list[np.ndarray]]:
        """Teacher-forced logprobs (T,) of each sequence; entry 0 is 0. Also answered while paused."""
        params = SamplingParams(max_tokens=1, temperature=temperature)
        return self._submit(sequences, [params] * len(sequences), scoring=True)

    def sample_one(self, sequences: Sequence[list[int]], temperature: float) -> Future[list[Completion]]:
        """One sampled token after each sequence, on the ordinary path; also answered while paused."""
        params = SamplingParams(max_tokens=1, temperature=temperature)
        return self._submit(sequences, [params] * len(sequences), scoring=False, even_paused=True)

    def call(self, function: Callable[[], Any]) -> Future[Any]:
        """Run `function` on the engine thread, between two steps."""
        future: Future[Any] = Future()

        def command() -> None:
            if not future.set_running_or_notify_cancel():  # the caller is gone
                return
            if self.dead is not None:
                future.set_exception(ServerLost(self.dead))
                return
            try:
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)

        self._commands.put(command)
        return future

    def pause(self, clear_cache: bool = True) -> Future[None]:
        return self.call(lambda: self._pause(clear_cache))

    def resume(self) -> Future[None]:
        return self.call(self._resume)

    def reject(self, reason: str) -> Future[None]:
        """Stop serving: everything accepted and everything that still arrives fails with `reason`, until
        a `resume`."""
        return self.call(lambda: self._reject(reason))

    def set_version(self, version: int) -> Future[None]:
        return self.call(lambda: self._set_version(version))

    def abort(self, future: Future[Any]) -> Future[None]:
        """Forget the batch behind `future`: its caller is gone."""
        return self.call(lambda: self._abort_batch(future))

    @property
    def num_running(self) -> int:
        return len(self._live)

    @property
    def num_held(self) -> int:
        return len(self._held)

    # -- the engine thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            self._run_commands()
            started = time.perf_counter()
            try:
                for output in self._core.get_output().outputs:
                    self._receive(output)
            except Exception as error:
                logger.exception("the vLLM engine failed")
                self._die(f"the vLLM engine failed: {type(error).__name__}: {error}")
            self.busy_s += time.perf_counter() - started

    def _run_commands(self) -> None:
        """Run what has arrived; wait for more as long as the engine has nothing to do."""
        while True:
            try:
                command = self._commands.get(block=not self._live)
            except queue.Empty:
                return
            command()

    def _submit(
        self,
        prompts: Sequence[list[int]],
        params: Sequence[SamplingParams],
        *,
        scoring: bool,
        even_paused: bool = False,
        on_result: Callable[[int, Completion], None] | None = None,
    ) -> Future[list[Any]]:
        future: Future[list[Any]] = Future()
        if not prompts:
            future.set_result([])
            return future
        batch = _Batch(future, [None] * len(prompts), len(prompts), on_result)
        requests = [
            _Request(batch, i, list(prompt), own, scoring=scoring)
            for i, (prompt, own) in enumerate(zip(prompts, params, strict=True))
        ]

        def admit() -> None:
            try:
                self._admit(requests)
            except Exception as error:
                self._abort_batch(future)
                future.set_exception(ServerError(f"vLLM refused a request: {type(error).__name__}: {error}"))

        def command() -> None:
            if self.dead is not None:
                future.set_exception(ServerLost(self.dead))
            elif scoring or even_paused:
                admit()
            elif self.failure is not None:
                future.set_exception(ServerLost(self.failure))
            elif self.paused:
                self._held.extend(requests)
            else:
                admit()

        self._commands.put(command)
        return future

    def _admit(self, requests: Sequence[_Request]) -> None:
        for request in requests:
            self._next_id += 1
            request_id = str(self._next_id)
            request.spans.append((len(request.tokens), self.version))
            self._live[request_id] = request
            self._core.add_request(
                EngineCoreRequest(
                    request_id=request_id,
                    prompt_token_ids=request.prompt + request.tokens,
                    mm_features=None,
                    sampling_params=self._vllm_params(request),
                    pooling_params=None,
                    arrival_time=time.time(),
                    lora_request=None,
                    cache_salt=None,
                    data_parallel_rank=None,
                )
            )

    def _vllm_params(self, request: _Request) -> VLLMSamplingParams:
        params, done = request.params, len(request.tokens)
        seed = params.seed
        if seed is not None:  # every prompt, and every continuation after a pause, draws its own numbers
            position = 0 if request.batch.on_result else request.index
            seed = int(np.random.SeedSequence((seed, position, done)).generate_state(1)[0])
        prompt_logprobs = None
        if request.scoring:  # vLLM scores prompts before temperature: then the whole row is needed
            prompt_logprobs = 0 if params.temperature == 1.0 else -1
        return VLLMSamplingParams(
            max_tokens=params.max_tokens - done,
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=params.top_k,
            seed=seed,
            stop_token_ids=self._stop_token_ids,
            logprobs=0,
            prompt_logprobs=prompt_logprobs,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            skip_clone=True,
        )

    def _receive(self, output: EngineCoreOutput) -> None:
        request = self._live.get(output.request_id)
        if request is None:  # aborted meanwhile
            return
        if output.new_prompt_logprobs_tensors is not None:
            request.prompt_logprobs = _prompt_logprobs(output, request.params.temperature)
        if output.new_logprobs is not None:
            request.logprobs.extend(output.new_logprobs.logprobs[:, 0].tolist())
        if output.prefill_stats is not None:
            self.prompt_tokens += output.prefill_stats.num_prompt_tokens
            self.cached_prompt_tokens += output.prefill_stats.num_cached_tokens
        request.tokens.extend(output.new_token_ids)
        self.tokens_generated += len(output.new_token_ids)
        reason = output.finish_reason
        if reason is not None:
            self._finish(output.request_id, request, str(reason))
        elif request.params.stop and self._hits_stop(request):
            self._core.abort_requests([output.request_id])
            self._finish(output.request_id, request, "stop")

    def _hits_stop(self, request: _Request) -> bool:
        key = "\0".join(request.params.stop)
        if key not in self._stop_checks:
            self._stop_checks[key] = self._make_stop_check(request.params.stop)
        return self._stop_checks[key](request.tokens)

    def _finish(self, request_id: str, request: _Request, reason: str) -> None:
        del self._live[request_id]
        if reason == "length" and request.params.stop and self._hits_stop(request):
            reason = "stop"
        batch = request.batch
        if reason not in ("stop", "length"):
            self._fail(batch, ServerError(f"the vLLM engine ended a request with {reason!r}"))
            return
        batch.results[request.index] = result = _result(request, reason)
        if batch.on_result is not None and isinstance(result, Completion):
            batch.on_result(request.index, result)
        batch.missing -= 1
        if batch.missing == 0 and not batch.future.done():
            batch.future.set_result(batch.results)

    def _fail(self, batch: _Batch, error: ServerError) -> None:
        if not batch.future.done():
            batch.future.set_exception(error)

    def _pause(self, clear_cache: bool) -> None:
        self.paused = True
        kept = [r for r in self._live.values() if not r.scoring]
        scoring = [r for r in self._live.values() if r.scoring]
        self._drop(list(self._live))
        self._drain()
        self._held = kept + self._held
        if clear_cache and not self._core.reset_prefix_cache():
            raise ServerError("vLLM could not clear its prefix cache: blocks are still in use")
        self._admit(scoring)

    def _drop(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            del self._live[request_id]
        self._core.abort_requests(request_ids)

    def _drain(self) -> None:
        """Let the engine, in which nothing is live, forget all it had: afterwards its KV blocks are free."""
        core = self._core.engine_core
        while core.batch_queue or core.scheduler.has_finished_requests():
            self._core.get_output()

    def _resume(self) -> None:
        self.paused, self.failure = False, None
        held, self._held = self._held, []
        self._admit(held)

    def _reject(self, reason: str) -> None:
        self.failure = reason
        requests = self._held + list(self._live.values())
        self._drop(list(self._live))
        self._held = []
        for request in requests:
            self._fail(request.batch, ServerLost(reason))

    def _die(self, reason: str) -> None:
        self.dead = reason
        requests = self._held + list(self._live.values())
        self._held, self._live = [], {}
        for request in requests:
            self._fail(request.batch, ServerLost(reason))

    def _set_version(self, version: int) -> None:
        if self._live:
            raise ServerError("the policy version can only change while the server is paused")
        self.version = version

    def _abort_batch(self, future: Future[Any]) -> None:
        self._held = [r for r in self._held if r.batch.future is not future]
        self._drop([i for i, r in self._live.items() if r.batch.future is future])


def _result(request: _Request, reason: str) -> Completion | np.ndarray:
    if request.scoring:
        if request.prompt_logprobs is None:  # a sequence of one token has nothing to score
            return np.zeros(len(request.prompt), np.float32)
        return request.prompt_logprobs
    versions = np.empty(len(request.tokens), np.int32)
    for start, version in request.spans:
        versions[start:] = version
    return Completion(
        token_ids=np.array(request.tokens, np.int32),
        behaviour_logprobs=np.array(request.logprobs, np.float32),
        policy_version=versions,
        finish_reason=reason,
    )


def _prompt_logprobs(output: EngineCoreOutput, temperature: float) -> np.ndarray:
    """(T,) logprobs of a prompt's own tokens at `temperature`; entry 0 is 0.

    Column 0 of vLLM's table is the prompt token. At temperatures other than 1 the other columns are the
    whole vocabulary (the token appears twice), and the row is normalised again: log softmax(logp / tau).
    """
    tensors = output.new_prompt_logprobs_tensors
    assert tensors is not None
    table = tensors.logprobs.numpy().astype(np.float64)  # (T - 1, 1 or 1 + V)
    own = table[:, 0]
    if table.shape[1] > 1:
        rows = table[:, 1:] / temperature
        peak = rows.max(axis=1)
        own = own / temperature - peak - np.log(np.exp(rows - peak[:, None]).sum(axis=1))
    return np.concatenate([np.zeros(1), own]).astype(np.float32)
