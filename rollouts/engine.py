"""vLLM's engine core stepped by one thread inside this process, for batches of token ids.

`EngineLoop` owns the scheduler and the model. Everything else talks to it through a queue, so nothing
needs a lock: commands run between two steps. What is left out against `AsyncLLM`, and why: a second
process, sockets, per-token streams and detokenisation (a rollout wants whole batches of token ids; on a
small model those cost more than the model).

Pausing keeps requests: their tokens so far live here, so a pause aborts them in the engine and a resume
submits prompt + tokens again. Their KV is thereby recomputed under the new weights, and while paused the
engine is empty, which is what a weight update and the logprob probe need. With `keep_kv` those that have
begun are only set aside, and go on with the KV they have; requests that begin later never share it.

Sampling does not wait until somebody has judged the probe: after it the engine goes on in doubt, and what is
completed meanwhile stays here until a `resume` says that the weights are right. A `reject` fails it, another
`pause` forgets what was sampled in doubt.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
from vllm.sampling_params import RequestOutputKind
from vllm.sampling_params import SamplingParams as VLLMSamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest
from vllm.v1.engine.core_client import InprocClient

from reasoner.errors import ServerError, ServerLost
from reasoner.types import Completion, SamplingParams
from rollouts.requests import Batch, Request, prompt_logprobs, result_of
from rollouts.set_aside import SetAside

logger = logging.getLogger(__name__)

STEPS_KEPT = 4096
StopCheck = Callable[[list[int]], bool]


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
        self._live: dict[str, Request] = {}  # in the engine
        self._held: list[Request] = []  # accepted, waiting for a resume
        self._aside = SetAside(core)
        self._salts = 0
        self._salt: str | None = None  # of the prefix cache: requests with another one share nothing
        self._in_doubt = False  # running, under weights that nobody has proved yet
        self._withheld: list[tuple[Request, Any]] = []  # completed in doubt, with their results
        self._stop_checks: dict[str, StopCheck] = {}
        self._next_id = 0
        self.version = 0
        self.paused = False
        self.failure: str | None = None  # why the server does not serve; a resume clears it
        self.dead: str | None = None  # why it never will again
        self.tokens_generated = 0
        self.prompt_tokens = 0  # of all requests, as vLLM counts them
        self.cached_prompt_tokens = 0  # of those, found in the prefix cache instead of computed
        self.recomputed_tokens = 0  # prompts and completions so far of requests that had begun before a pause
        self.busy_s = 0.0
        self.steps: deque[tuple[float, float, int]] = deque(maxlen=STEPS_KEPT)  # (start, seconds, tokens)
        self._thread = threading.Thread(target=self._run, name="vllm-engine", daemon=True)
        self._thread.start()

    # -- called from any thread ------------------------------------------------------------------------

    def generate(self, prompts: Sequence[list[int]], params: SamplingParams) -> Future[list[Completion]]:
        """One completion a prompt, in order. Fails with ServerError when the engine dies or is rejected."""
        return self._submit(prompts, [params] * len(prompts))

    def generate_each(
        self,
        prompts: Sequence[list[int]],
        params: Sequence[SamplingParams],
        on_result: Callable[[int, Completion], None],
    ) -> Future[list[Completion]]:
        """One completion a prompt, each with its own parameters; `on_result(position, completion)` is called
        on the engine's thread as each one finishes. A seed is used as it is, wherever the prompt stands."""
        return self._submit(prompts, params, on_result=on_result)

    def score(self, sequences: Sequence[list[int]], temperature: float) -> Future[list[np.ndarray]]:
        """Teacher-forced logprobs (T,) of each sequence; entry 0 is 0. Also answered while paused."""
        params = SamplingParams(max_tokens=1, temperature=temperature)
        return self._submit(sequences, [params] * len(sequences), probing=True, scoring=True)

    def sample_one(self, sequences: Sequence[list[int]], temperature: float) -> Future[list[Completion]]:
        """One sampled token after each sequence, on the ordinary path; also answered while paused."""
        params = SamplingParams(max_tokens=1, temperature=temperature)
        return self._submit(sequences, [params] * len(sequences), probing=True)

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

    def pause(self, clear_cache: bool = True, keep_kv: bool = False) -> Future[None]:
        return self.call(lambda: self._pause(clear_cache, keep_kv))

    def go_on_in_doubt(self) -> Future[None]:
        """Compute on, but hand nothing out before the next `resume`."""
        return self.call(self._go_on_in_doubt)

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
        return len(self._held) + len(self._withheld) + len(self._aside.requests)

    # -- the engine thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            self._run_commands()
            self._step()

    def _step(self) -> None:
        started, before = time.perf_counter(), self.tokens_generated
        try:
            for output in self._core.get_output().outputs:
                self._receive(output)
        except Exception as error:
            logger.exception("the vLLM engine failed")
            self._die(f"the vLLM engine failed: {type(error).__name__}: {error}")
        seconds = time.perf_counter() - started
        self.busy_s += seconds
        self.steps.append((started, seconds, self.tokens_generated - before))

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
        probing: bool = False,
        scoring: bool = False,
        on_result: Callable[[int, Completion], None] | None = None,
    ) -> Future[list[Any]]:
        future: Future[list[Any]] = Future()
        if not prompts:
            future.set_result([])
            return future
        batch = Batch(future, [None] * len(prompts), len(prompts), on_result)
        requests = [
            Request(batch, i, list(prompt), own, probing=probing, scoring=scoring)
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
            elif probing:
                admit()
            elif self.failure is not None:
                future.set_exception(ServerLost(self.failure))
            elif self.paused:
                self._held.extend(requests)
            else:
                admit()

        self._commands.put(command)
        return future

    def _admit(self, requests: Sequence[Request]) -> None:
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
                    cache_salt=self._salt,
                    data_parallel_rank=None,
                )
            )

    def _vllm_params(self, request: Request) -> VLLMSamplingParams:
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
            request.prompt_logprobs = prompt_logprobs(output, request.params.temperature)
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

    def _hits_stop(self, request: Request) -> bool:
        key = "\0".join(request.params.stop)
        if key not in self._stop_checks:
            self._stop_checks[key] = self._make_stop_check(request.params.stop)
        return self._stop_checks[key](request.tokens)

    def _finish(self, request_id: str, request: Request, reason: str) -> None:
        del self._live[request_id]
        if reason == "length" and request.params.stop and self._hits_stop(request):
            reason = "stop"
        if reason not in ("stop", "length"):
            request.batch.fail(ServerError(f"the vLLM engine ended a request with {reason!r}"))
            return
        result = result_of(request, reason)
        if self._in_doubt and not request.probing:
            self._withheld.append((request, result))
        else:
            request.batch.deliver(request.index, result)

    def _pause(self, clear_cache: bool, keep_kv: bool) -> None:
        self.paused = True
        if keep_kv and not self._in_doubt:
            for output in self._aside.finish_steps():
                self._receive(output)
            self._aside.take(self._live)
        kept = [r for r in self._live.values() if not r.probing]
        probing = [r for r in self._live.values() if r.probing]
        self._drop(list(self._live))
        self._held = kept + self._held
        if self._in_doubt:  # whoever probed is gone
            self._held += [request for request, _ in self._withheld]
            self._withheld, self._in_doubt = [], False
            for request in self._held:
                request.take_back()
        if clear_cache:
            self._forget_prefixes()
        self._admit(probing)

    def _forget_prefixes(self) -> None:
        """Whatever is in the prefix cache belongs to other weights."""
        if self._aside.requests:  # their blocks are in use
            self._salts += 1
            self._salt = str(self._salts)
            return
        self._drain()
        if not self._core.reset_prefix_cache():
            raise ServerError("vLLM could not clear its prefix cache: blocks are still in use")

    def _drop(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            del self._live[request_id]
        self._core.abort_requests(request_ids)

    def _drain(self) -> None:
        """Let the engine, in which nothing is live, forget all it had: afterwards its KV blocks are free."""
        core = self._core.engine_core
        while core.batch_queue or core.scheduler.has_finished_requests():
            self._core.get_output()

    def _go_on_in_doubt(self) -> None:
        if not self.paused:
            raise ServerError("only a paused server can go on in doubt")
        self._in_doubt = True
        for request in [*self._held, *self._aside.requests.values()]:
            request.proved = len(request.tokens)
        self._go_on()

    def _resume(self) -> None:
        self.failure, self._in_doubt = None, False
        withheld, self._withheld = self._withheld, []
        for request, result in withheld:
            request.batch.deliver(request.index, result)
        self._go_on()

    def _go_on(self) -> None:
        self.paused = False
        held, self._held = self._held, []
        self.recomputed_tokens += sum(len(r.prompt) + len(r.tokens) for r in held if r.tokens)
        while self._aside.requests and self._live:  # a probe still: vLLM has no room for it beside the others
            self._step()
        aside = self._aside.put_back()
        for request in aside.values():
            request.spans.append((len(request.tokens), self.version))
        self._live |= aside
        self._admit(held)

    def _reject(self, reason: str) -> None:
        self.failure = reason
        self._drop(list(self._fail_all(reason)))

    def _die(self, reason: str) -> None:
        self.dead = reason
        self._fail_all(reason)
        self._live = {}

    def _fail_all(self, reason: str) -> list[str]:
        """Nobody gets an answer; the names of those in the engine."""
        self._live |= self._aside.put_back()
        for request in [*self._held, *self._live.values(), *(request for request, _ in self._withheld)]:
            request.batch.fail(ServerLost(reason))
        self._held, self._withheld, self._in_doubt = [], [], False
        return list(self._live)

    def _set_version(self, version: int) -> None:
        if self._live:
            raise ServerError("the policy version can only change while the server is paused")
        self.version = version

    def _abort_batch(self, future: Future[Any]) -> None:
        self._held = [r for r in self._held if r.batch.future is not future]
        self._withheld = [(r, result) for r, result in self._withheld if r.batch.future is not future]
        self._drop([i for i, r in self._live.items() if r.batch.future is future])
        self._aside.abort([i for i, r in self._aside.requests.items() if r.batch.future is future])
