"""A vLLM server as a Ray actor: batches of token ids in, `Completion`s out, new weights in between.

The engine runs in the actor's own process (`rollouts.engine`), so it dies with the actor and the actor
with its driver. Measured on two cores: start-up is mostly imports, and everything that would add to it
(a second process, the tokenizer, torch.compile, the registry's import in a subprocess) is left out; see
`rollouts.vllm_core`.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from reasoner.errors import ServerError, ServerLost, UsageError
from reasoner.logs import log_to
from reasoner.types import Completion, SamplingParams
from rollouts.laps import Laps
from rollouts.naming import actor_name
from rollouts.packing import PackedCompletions, PackedSequences, pack_completions
from rollouts.process import die_with_parent, redirect_output
from rollouts.vllm_core import ServerConfig, set_environment, start_core, stop_token_ids

LOG_TAIL_LINES = 15
STREAM_S = 0.1  # how often finished completions leave `generate_each`


@dataclass(frozen=True)
class ServerStats:
    """Counters since the start, and what is going on now."""

    version: int
    running: int  # requests in the engine
    held: int  # requests waiting for a resume
    tokens_generated: int
    prompt_tokens: int  # as vLLM counts them
    cached_prompt_tokens: int  # of those, found in the prefix cache
    recomputed_tokens: int  # of them, those of requests that went on after a pause
    busy_s: float  # time spent in engine steps
    startup_s: float


class VLLMServer:
    """The actor. Its weight-transfer methods carry the names vLLM's own trainers call."""

    def __init__(self, config: ServerConfig, log_path: str | None = None) -> None:
        started = time.perf_counter()
        if log_path is not None:
            redirect_output(Path(log_path))
            log_to(Path(log_path))
        set_environment(config)
        die_with_parent()
        gc.disable()  # imports make objects by the million and hardly any garbage
        from rollouts.engine import EngineLoop

        self.config = config
        self._core, self._vllm_config = start_core(config)
        self._vocab_size = self._vllm_config.model_config.get_vocab_size()
        self._engine = EngineLoop(
            self._core,
            stop_token_ids=stop_token_ids(config, self._vllm_config),
            make_stop_check=self._make_stop_check,
        )
        gc.enable()
        self._startup_s = time.perf_counter() - started

    # -- sampling --------------------------------------------------------------------------------------

    async def generate(self, prompts: PackedSequences, params: SamplingParams) -> PackedCompletions:
        """One completion a prompt. Raises UsageError for a prompt that cannot be served as asked."""
        sequences = prompts.unpack()
        self._check(sequences, params.max_tokens)
        future = self._engine.generate(sequences, params)
        try:
            completions = await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            self._engine.abort(future)
            raise
        return pack_completions(completions)

    async def generate_each(
        self, prompts: PackedSequences, params: Sequence[SamplingParams]
    ) -> AsyncIterator[tuple[np.ndarray, PackedCompletions]]:
        """One completion a prompt, each with its own parameters, as they finish: (positions (n,), their
        completions), some times a second. A seed is used as it is. Raises UsageError like `generate`."""
        sequences = prompts.unpack()
        for sequence, own in zip(sequences, params, strict=True):
            self._check([sequence], own.max_tokens)
        finished: deque[tuple[int, Completion]] = deque()
        future = self._engine.generate_each(sequences, params, lambda *result: finished.append(result))
        waiting = asyncio.wrap_future(future)
        try:
            while not waiting.done() or finished:
                await asyncio.wait([waiting], timeout=STREAM_S)
                batch = [finished.popleft() for _ in range(len(finished))]
                if batch:
                    positions = np.array([position for position, _ in batch], np.int32)
                    yield positions, pack_completions([completion for _, completion in batch])
            await waiting
        finally:
            if not future.done():
                self._engine.abort(future)

    async def score(self, sequences: PackedSequences, temperature: float) -> list[np.ndarray]:
        """Teacher-forced logprobs (T,) of each sequence at `temperature`, entry 0 is 0."""
        lists = sequences.unpack()
        self._check(lists, 1)
        return await asyncio.wrap_future(self._engine.score(lists, temperature))

    async def probe(
        self, sequences: PackedSequences, temperature: float
    ) -> tuple[list[np.ndarray], PackedCompletions]:
        """`score`, and one token after each sequence, sampled the ordinary way (prefix cache included). Then
        the paused server goes on, in doubt: it hands out no completion before `resume`."""
        lists = sequences.unpack()
        self._check(lists, 1)
        sampling = asyncio.wrap_future(self._engine.sample_one(lists, temperature))
        scores, sampled = await asyncio.gather(self.score(sequences, temperature), sampling)
        await asyncio.wrap_future(self._engine.go_on_in_doubt())
        return scores, pack_completions(sampled)

    async def pause(self, clear_cache: bool = True, keep_kv: bool = False) -> None:
        """Stop computing; requests are kept, and with `keep_kv` what they have computed. `clear_cache=False`
        leaves KV of the old weights behind for those that begin later: only to show that it is noticed."""
        await asyncio.wrap_future(self._engine.pause(clear_cache, keep_kv))

    async def resume(self) -> None:
        """Serve: the weights are right. What was completed in doubt is handed out."""
        await asyncio.wrap_future(self._engine.resume())

    async def reject(self, reason: str) -> None:
        """Fail everything with `reason` until a resume: this server's weights are not to be used."""
        await asyncio.wrap_future(self._engine.reject(reason))

    async def version(self) -> int:
        return self._engine.version

    async def health(self) -> None:
        """Returns once the engine has answered between two of its steps, so one that hangs is noticed.
        Raises ServerLost when it is dead or was rejected."""
        await asyncio.wrap_future(self._engine.call(lambda: None))
        if self._engine.failure is not None:
            raise ServerLost(self._engine.failure)

    async def steps(self) -> np.ndarray:
        """(N, 3) of the last engine steps: start (`time.perf_counter`), seconds, tokens generated."""
        return np.array(await asyncio.wrap_future(self._engine.call(lambda: list(self._engine.steps))))

    async def stats(self) -> ServerStats:
        engine = self._engine
        return ServerStats(
            version=engine.version,
            running=engine.num_running,
            held=engine.num_held,
            tokens_generated=engine.tokens_generated,
            prompt_tokens=engine.prompt_tokens,
            cached_prompt_tokens=engine.cached_prompt_tokens,
            recomputed_tokens=engine.recomputed_tokens,
            busy_s=engine.busy_s,
            startup_s=self._startup_s,
        )

    # -- weights (vLLM's weight-transfer protocol) -----------------------------------------------------

    async def init_weight_transfer_engine(self, request: Any) -> None:
        await self._worker("init_weight_transfer_engine", _field(request, "init_info"))

    async def start_weight_update(self) -> None:
        if not self._engine.paused:
            raise ServerError("pause the server before a weight update: updating while it runs kills it")
        await self._worker("start_weight_update")

    async def update_weights(self, request: Any) -> None:
        await self._worker("update_weights", _field(request, "update_info"))

    async def finish_weight_update(self, weight_version: str | None = None) -> None:
        await self._worker("finish_weight_update")
        if weight_version is not None:
            await self.update_weight_version(weight_version)

    async def update_weight_version(self, version: str | int) -> None:
        await asyncio.wrap_future(self._engine.set_version(int(version)))

    async def refit(
        self,
        version: int,
        weights: np.ndarray | None,
        sequences: PackedSequences,
        temperature: float,
        clear_cache: bool,
        keep_kv: bool,
    ) -> tuple[tuple[list[np.ndarray], PackedCompletions], dict[str, float]]:
        """Pause, a whole update (`shared_memory`), probe: the probe's answer and the seconds of each.
        `weights` (size,) uint8 when they come from another node, None when they are in place already."""
        clock = Laps()
        await self.pause(clear_cache, keep_kv)
        clock.lap("pause")
        await self.start_weight_update()
        await self._worker("update_weights", {"buffer": weights})
        await self.finish_weight_update()
        await self.update_weight_version(version)
        clock.lap("transfer")
        answer = await self.probe(sequences, temperature)
        clock.lap("probe")
        return answer, clock.seconds

    async def sleep(self, level: int = 1) -> None:
        """GPU only, not run here: pause, and give weights and KV memory back until `wake_up`."""
        self._needs_gpu()
        await self.pause()
        await asyncio.wrap_future(self._engine.call(lambda: self._core.sleep(level)))

    async def wake_up(self, tags: Sequence[str] | None = None) -> None:
        """The way back from `sleep`; with `tags` only in part, and still paused."""
        self._needs_gpu()
        wanted = None if tags is None else list(tags)
        await asyncio.wrap_future(self._engine.call(lambda: self._core.wake_up(wanted)))
        if wanted is None:
            await self.resume()

    async def world_size(self) -> int:
        return self.config.tensor_parallel_size

    async def node_id(self) -> str:
        """Ray's name of the node this runs on."""
        return ray.get_runtime_context().get_node_id()

    async def pid(self) -> int:
        return os.getpid()

    # -- inside ----------------------------------------------------------------------------------------

    async def _worker(self, method: str, *args: Any) -> None:
        await asyncio.wrap_future(self._engine.call(lambda: self._core.collective_rpc(method, args=args)))

    def _needs_gpu(self) -> None:
        if self.config.device != "cuda" or not self.config.enable_sleep_mode:
            raise UsageError("sleep and wake_up need device = cuda and enable_sleep_mode")

    def _check(self, sequences: Sequence[Sequence[int]], max_tokens: int) -> None:
        limit = self.config.max_model_len
        if max_tokens < 1:
            raise UsageError(f"max_tokens must be at least 1, got {max_tokens}")
        for sequence in sequences:
            if not sequence:
                raise UsageError("a prompt is empty: the model needs at least one token")
            if len(sequence) + max_tokens > limit:
                raise UsageError(
                    f"a prompt of {len(sequence)} tokens and max_tokens {max_tokens} exceed the server's "
                    f"context of {limit} tokens"
                )
            if min(sequence) < 0 or max(sequence) >= self._vocab_size:
                bad = next(t for t in sequence if not 0 <= t < self._vocab_size)
                raise UsageError(f"a prompt holds token {bad}, outside the vocabulary of {self._vocab_size}")

    def _make_stop_check(self, stop: Sequence[str]) -> Any:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.config.model)
        window = max(len(s.encode()) for s in stop) + 4  # a token holds at least one byte

        def hits(token_ids: list[int]) -> bool:
            tail = tokenizer.decode(token_ids[-window:], skip_special_tokens=True)
            return any(s in tail for s in stop)

        return hits


def start_server(
    config: ServerConfig,
    *,
    name: str,
    log_dir: str | Path,
    num_cpus: float = 0,
    scheduling_strategy: Any = None,
    wait: bool = True,
    timeout_s: float = 180.0,
) -> ray.actor.ActorHandle:
    """Start one replica; its output goes to `log_dir/server_NAME.log`, its records to `.jsonl` beside it too.

    With `wait=False` it returns at once: call `wait_until_ready` later, and do other slow things between.
    `scheduling_strategy` is Ray's, e.g. a placement group.
    Raises UsageError for a missing model directory, ServerError when it does not become healthy.
    """
    _check_model(config.model)
    log = log_path(log_dir, name)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.touch()  # a restarted server goes on writing where the dead one stopped
    actor_class = ray.remote(VLLMServer).options(
        **actor_name(log_dir, name),
        max_concurrency=10_000,
        num_cpus=num_cpus,
        num_gpus=gpus_of(config),
        max_restarts=0,
        scheduling_strategy=scheduling_strategy,
    )
    actor = actor_class.remote(config, str(log))
    if wait:
        wait_until_ready({name: actor}, log_dir=log_dir, timeout_s=timeout_s)
    return actor


def gpus_of(config: ServerConfig) -> float:
    """GPUs Ray reserves; half of one where a learner shares it (sleep mode)."""
    if config.device != "cuda":
        return 0.0
    return config.tensor_parallel_size * (0.5 if config.enable_sleep_mode else 1.0)


def wait_until_ready(
    servers: dict[str, ray.actor.ActorHandle], *, log_dir: str | Path, timeout_s: float = 180.0
) -> None:
    """Wait until all named servers answer. Raises ServerError with the last log lines of one that does
    not, after killing all of them."""
    deadline = time.monotonic() + timeout_s
    try:
        for name, actor in servers.items():
            _wait_for_one(name, actor, log_dir, max(0.0, deadline - time.monotonic()), timeout_s)
    except BaseException:
        for actor in servers.values():
            ray.kill(actor)
        raise


def _wait_for_one(name: str, actor: Any, log_dir: str | Path, left_s: float, timeout_s: float) -> None:
    tail = lambda: log_tail(log_path(log_dir, name))  # noqa: E731
    try:
        ray.get(actor.health.remote(), timeout=left_s)
    except ray.exceptions.GetTimeoutError:
        raise ServerError(
            f"server {name} is not ready after {timeout_s:.0f} s; its last lines:\n{tail()}"
        ) from None
    except (ray.exceptions.RayActorError, ray.exceptions.RayTaskError) as error:
        raise ServerError(f"server {name} did not start; its last lines:\n{tail()}") from error


def log_tail(path: Path, lines: int = LOG_TAIL_LINES) -> str:
    """The last lines of a server's log, indented."""
    if not path.exists():
        return "    (no log)"
    text = path.read_text(errors="replace").rstrip().splitlines()[-lines:]
    return "\n".join("    " + line for line in text) or "    (empty log)"


def log_path(log_dir: str | Path, name: str) -> Path:
    return Path(log_dir) / f"server_{name}.log"


def _check_model(model: str) -> None:
    path = Path(model)
    if path.is_dir():
        if not (path / "config.json").exists():
            raise UsageError(f"model directory {model} has no config.json")
    elif path.is_absolute() or model.startswith(".") or model.count("/") > 1:
        raise UsageError(f"model directory {model} does not exist")


def _field(request: Any, name: str) -> Any:
    """vLLM's clients send request objects, ours plain dicts."""
    return request if isinstance(request, dict) else getattr(request, name)


__all__ = [
    "ServerConfig",
    "ServerStats",
    "VLLMServer",
    "gpus_of",
    "log_path",
    "log_tail",
    "start_server",
    "wait_until_ready",
]
