"""What the engine loop keeps of a request, and what becomes of it: a `Completion`, or a row of scores."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from reasoner.errors import ServerError
from reasoner.types import Completion, SamplingParams

if TYPE_CHECKING:
    from vllm.v1.engine import EngineCoreOutput


@dataclass(eq=False)
class Batch:
    """The prompts of one call; the future resolves when the last of them is done."""

    future: Future[list[Any]]
    results: list[Any]
    missing: int
    on_result: Callable[[int, Completion], None] | None = None  # then every prompt brings a seed of its own

    def deliver(self, index: int, result: Any) -> None:
        """One result; the caller gets all of them with the last."""
        self.results[index] = result
        if self.on_result is not None and isinstance(result, Completion):
            self.on_result(index, result)
        self.missing -= 1
        if self.missing == 0 and not self.future.done():
            self.future.set_result(self.results)

    def fail(self, error: ServerError) -> None:
        if not self.future.done():
            self.future.set_exception(error)


@dataclass(eq=False, slots=True)
class Request:
    batch: Batch
    index: int  # position in the batch
    prompt: list[int]
    params: SamplingParams
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)  # (first token, policy version)
    prompt_logprobs: np.ndarray | None = None  # (T,), entry 0 is 0; only when scoring
    probing: bool = False  # answered also while the engine is paused or its weights are in doubt
    scoring: bool = False
    proved: int = 0  # tokens sampled under weights that were proved

    def take_back(self) -> None:
        """Forget the tokens that were sampled under weights nobody has proved."""
        del self.tokens[self.proved :], self.logprobs[self.proved :]
        self.spans = [span for span in self.spans if span[0] < self.proved]


def result_of(request: Request, reason: str) -> Completion | np.ndarray:
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


def prompt_logprobs(output: EngineCoreOutput, temperature: float) -> np.ndarray:
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
