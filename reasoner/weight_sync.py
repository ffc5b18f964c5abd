"""Weights from the learner to every vLLM server, and the proof that they arrived.

One sync: pause (requests are kept; their KV is forgotten, unless `keep_kv`) -> vLLM's weight-transfer
protocol -> the new policy version -> the logprob probe -> resume. The probe compares what a server computes
for a few fixed token sequences with what the learner computes, teacher-forced and for one freshly sampled
token, so that wrong weights, a stale tied head, a stale prefix cache and a wrong temperature all show. While
the learner compares, servers sample on, but hand out no completion. A server that fails the probe is not
resumed: what it sampled is lost, and it rejects requests until a later sync succeeds.

On CPUs the weights travel through memory mapped by both sides (`rollouts.transfer`), and through Ray's object
store to servers on other nodes; this module needs no vLLM for that, which saves the learner seconds of
imports. `nccl` and `ipc` use vLLM's own trainer engines (not run here: no GPU).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from reasoner.errors import ReasonerError, ServerError, UsageError, WeightSyncError
from reasoner.types import SyncReport
from reasoner.weight_channel import GatherOnly, SharedMemoryChannel, vllm_trainer
from rollouts.control import Probe, ServerControl, control
from rollouts.laps import Laps

Refit = tuple[dict[int, Probe], dict[str, float]]  # what servers answered, by position; seconds by phase
Score = Callable[[list[np.ndarray]], list[np.ndarray]]

PROBE_SEQUENCES = 2  # faults show at nearly every token, and servers sample nothing meanwhile
PROBE_TOKENS = 40  # more than one prefix-cache block, so that a stale block would be hit


@dataclass(frozen=True)
class Tolerance:
    """What is still rounding: |server logprob - learner logprob| of any token, and on average."""

    max: float
    mean: float


#: By the lower precision of server and learner. Measured on random token ids, the hardest case (logprobs
#: around -20): fp32 max 2.5e-5, fp16 max 0.03, mean 0.005, bf16 max 0.32, mean 0.05.
TOLERANCE = {
    "float32": Tolerance(max=1e-3, mean=1e-3),
    "float16": Tolerance(max=0.5, mean=0.05),
    "bfloat16": Tolerance(max=3.0, mean=0.2),
}


@dataclass(frozen=True)
class LogprobDiff:
    """|server logprob - learner logprob| over all compared tokens."""

    mean: float
    p99: float
    max: float
    tokens: int


class ServersFailed(WeightSyncError):
    """Some servers did not take the new weights; the others have been resumed. `failures` maps positions in
    the list of servers to reasons, `report` is about the sync as a whole."""

    def __init__(self, report: SyncReport, failures: Mapping[int, str]) -> None:
        super().__init__("\n".join(failures.values()))
        self.report, self.failures = report, failures


class WeightSync:
    """Used in the learner's process, by every rank of it; only rank 0 talks to the servers.

    servers: actors (`rollouts.server`), URLs of external servers, or samplers.
    score: the learner's teacher-forced logprobs at `temperature`: token ids in, (T,) each out, entry 0 is 0.
    adapters_only: the servers have the base model in their model directory, as safetensors, and merge the
    LoRA adapters into it themselves: nothing else is sent.
    dtype: the lower precision of servers and learner; chooses the default `tolerance` of the probe.
    keep_kv: completions under way go on with the KV cache of the old weights instead of recomputing it.
    clear_cache, repack_tied_heads: True, except in the tests that show what they are there for.
    """

    def __init__(
        self,
        servers: Sequence[Any],
        backend: str = "shared_memory",
        *,
        score: Score,
        temperature: float = 1.0,
        dtype: str = "float32",
        tolerance: Tolerance | None = None,
        probe_sequences: Sequence[np.ndarray] | None = None,
        rank: int = 0,
        adapters_only: bool = False,
        keep_kv: bool = False,
        clear_cache: bool = True,
        repack_tied_heads: bool = True,
    ) -> None:
        if backend not in ("shared_memory", "nccl", "ipc"):
            raise UsageError(f"unknown weight sync backend {backend!r}: expected shared_memory, nccl or ipc")
        if not servers:
            raise UsageError("weight sync needs at least one server")
        self._backend = backend
        self._score = score
        self._temperature = temperature
        self._tolerance = TOLERANCE[dtype] if tolerance is None else tolerance
        self._sequences = None if probe_sequences is None else list(probe_sequences)
        self._rank = rank
        self._adapters_only = adapters_only
        self._keep_kv = keep_kv
        self._clear_cache = clear_cache
        self._repack_tied_heads = repack_tied_heads
        self._channel: Any = None
        self._far: set[ServerControl] = set()  # servers that cannot map this process's memory
        self._set_servers(servers)

    def replace_servers(self, servers: Sequence[Any]) -> None:
        """Go on with these servers (after a restart): the next sync connects to all of them anew."""
        self.close()
        self._set_servers(servers)

    def sync(self, model: torch.nn.Module, version: int) -> SyncReport:
        """Bring `model`'s weights to every server as policy `version`.

        Raises ServersFailed when a server died or computes something else afterwards; it stays out of
        service, the others go on.
        """
        started = time.perf_counter()
        failures: dict[int, Exception] = {}
        if self._channel is None:
            self._connect(model, failures)
        if self._rank != 0:
            self._channel.send()
            return SyncReport(version, time.perf_counter() - started)
        clock = Laps()
        num_bytes = self._channel.load()
        clock.lap("load")
        refit = self._refit if self._backend == "shared_memory" else self._refit_together
        answers, laps = refit(version, self._probe_sequences(model), failures)
        clock.lap("refit")
        worst = self._compare(answers, failures)
        clock.lap("compare")
        self._each(lambda c: c.resume(version), failures)
        clock.lap("resume")
        del clock.seconds["refit"]  # it consists of `laps`
        seconds, phases = time.perf_counter() - started, clock.seconds | laps
        report = SyncReport(version, seconds, sum(laps.values()), num_bytes, worst, phases=phases)
        if failures:
            raise ServersFailed(report, self._rejected(version, failures))
        return report

    def close(self) -> None:
        """Let go of the transfer channel; the servers stay as they are."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        self._pool.shutdown(wait=False)

    # -- phases ----------------------------------------------------------------------------------------

    def _set_servers(self, servers: Sequence[Any]) -> None:
        self._controls: list[ServerControl] = [control(server) for server in servers]
        self._pool = ThreadPoolExecutor(max_workers=len(self._controls), thread_name_prefix="weight-sync")

    def _connect(self, model: torch.nn.Module, failures: dict[int, Exception]) -> None:
        adapters_only = self._adapters_only
        if self._backend != "shared_memory":
            self._channel = vllm_trainer(
                self._backend, model, self._controls, rank=self._rank, adapters_only=adapters_only
            )
        elif self._rank != 0:
            self._channel = GatherOnly(model, adapters_only=adapters_only)
        else:
            self._channel = SharedMemoryChannel(
                model, adapters_only=adapters_only, repack_tied_heads=self._repack_tied_heads
            )
            near = self._each(lambda c: c.shares_memory(), failures)
            self._far = {self._controls[i] for i, shares in near.items() if not shares}
            info = self._channel.init_info
            self._each(
                lambda c: c.init_weight_transfer_engine({**info, "path": None} if c in self._far else info),
                failures,
            )
            self._channel.seal()

    def _refit(self, version: int, sequences: list[np.ndarray], failures: dict[int, Exception]) -> Refit:
        """Every server at its own pace: pause, weights, probe. The seconds are those of the slowest."""
        copy = self._channel.put() if self._far else None

        def refit(server: ServerControl) -> tuple[Probe, dict[str, float]]:
            return server.refit(
                version,
                copy if server in self._far else None,
                sequences,
                self._temperature,
                clear_cache=self._clear_cache,
                keep_kv=self._keep_kv,
            )

        done = self._each(refit, failures)
        slowest: dict[str, float] = max(
            (laps for _, laps in done.values()), key=lambda laps: sum(laps.values()), default={}
        )
        return {index: answer for index, (answer, _) in done.items()}, slowest

    def _refit_together(
        self, version: int, sequences: list[np.ndarray], failures: dict[int, Exception]
    ) -> Refit:
        """The same for a collective transfer: begun when all have paused, it succeeds for all or none."""
        clock = Laps()
        self._each(lambda c: c.pause(self._clear_cache, self._keep_kv), failures)
        clock.lap("pause")
        try:
            self._channel.send()
            self._each(lambda c: c.set_version(version), failures)
        except ServerError as error:
            failures.update({i: error for i in range(len(self._controls)) if i not in failures})
        clock.lap("transfer")
        answers = self._each(lambda c: c.probe(sequences, self._temperature), failures)
        clock.lap("probe")
        return answers, clock.seconds

    def _compare(self, answers: Mapping[int, Probe], failures: dict[int, Exception]) -> float:
        """The largest difference over all servers; those above the tolerance are added to `failures`."""
        worst = 0.0
        for index, (token_ids, server) in answers.items():
            learner = self._score(token_ids)
            if not all(np.isfinite(scores).all() for scores in learner):
                raise WeightSyncError("the learner's own logprobs are not finite: the policy is broken")
            diff = compare_logprobs(server, learner)
            worst = max(worst, diff.max)
            if not (diff.max <= self._tolerance.max and diff.mean <= self._tolerance.mean):  # also for NaN
                failures[index] = WeightSyncError(
                    f"its logprobs differ from the learner's by up to {diff.max:.3g}, on average "
                    f"{diff.mean:.3g} (accepted: {self._tolerance.max:g} and {self._tolerance.mean:g})"
                )
        return worst

    def _probe_sequences(self, model: torch.nn.Module) -> list[np.ndarray]:
        if self._sequences is None:
            self._sequences = probe_sequences(model.config.vocab_size)
        return self._sequences

    def _each(self, phase: Callable[[ServerControl], Any], failures: dict[int, Exception]) -> dict[int, Any]:
        """Run one phase on every server that has not failed, at the same time."""
        running = {i: self._pool.submit(phase, c) for i, c in enumerate(self._controls) if i not in failures}
        results: dict[int, Any] = {}
        for index, future in running.items():
            try:
                results[index] = future.result()
            except ReasonerError as error:
                failures[index] = error
        return results

    def _rejected(self, version: int, failures: Mapping[int, Exception]) -> dict[int, str]:
        """Tells the failed servers not to serve; position → reason."""
        reasons = {}
        for index, error in sorted(failures.items()):
            name = self._controls[index].name
            reasons[index] = f"server {name} did not take policy version {version}: {error}"
            try:
                self._controls[index].reject(reasons[index])
            except ServerError as gone:  # it rejects everything already
                reasons[index] += f" ({name} could not be told: {gone})"
        return reasons


def compare_logprobs(server: Sequence[np.ndarray], learner: Sequence[np.ndarray]) -> LogprobDiff:
    """Differences over all tokens but the first of each sequence (nothing predicts it).

    A mean ratio of 1 would prove nothing, its expectation is 1 for any policy: hence mean, p99 and max
    of the absolute difference. NaN anywhere makes all three NaN.
    """
    if [len(a) for a in server] != [len(b) for b in learner]:
        raise ValueError("server and learner scored sequences of different lengths")
    deltas = np.concatenate(
        [
            np.abs(np.asarray(a, np.float64)[1:] - np.asarray(b, np.float64)[1:])
            for a, b in zip(server, learner, strict=True)
        ]
        or [np.zeros(0)]
    )
    if deltas.size == 0:
        raise ValueError("nothing to compare: no sequence has two tokens")
    return LogprobDiff(
        float(deltas.mean()), float(np.quantile(deltas, 0.99)), float(deltas.max()), deltas.size
    )


def probe_sequences(
    vocab_size: int, *, sequences: int = PROBE_SEQUENCES, tokens: int = PROBE_TOKENS, seed: int = 0
) -> list[np.ndarray]:
    """Fixed random token ids: they touch the embedding and the output head all over the vocabulary."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocab_size, tokens, dtype=np.int32) for _ in range(sequences)]
