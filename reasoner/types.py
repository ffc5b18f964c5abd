"""The data that crosses module borders, as frozen dataclasses.

One alignment rule holds everywhere: entry *t* of every per-token array describes token *t*. The only
function that shifts is `reasoner.logprobs.token_logprobs`. This module loads neither torch, Ray nor vLLM.

Shape suffixes: T tokens of one completion, L tokens of one rollout (prompt, actions and observations),
G rollouts of one group, N tokens of a packed batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

Status = Literal["correct", "wrong", "unparsed", "timeout", "error", "bad_reference", "masked"]
STATUSES: tuple[Status, ...] = (
    "correct",
    "wrong",
    "unparsed",
    "timeout",
    "error",
    "bad_reference",
    "masked",
)
#: Verdicts that say nothing about the policy: their reward is None and the rollout is left out.
UNSCORED: frozenset[str] = frozenset({"error", "bad_reference", "masked"})

#: How the detail of an `error` begins that no verifier gave: there was nothing to verify.
ENVIRONMENT_FAILED = "the environment failed: "

NO_VERSION = -1  # the policy version of a token that no policy sampled


@dataclass(frozen=True)
class Task:
    """One verifiable problem. `prompt` is plain text or chat messages (`{"role", "content"}`);
    `reference` is the right answer, or several of which any one is right."""

    id: str
    prompt: str | tuple[Mapping[str, str], ...]
    reference: str | tuple[str, ...]
    family: str = "default"
    difficulty: float = 0.0
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def references(self) -> tuple[str, ...]:
        return (self.reference,) if isinstance(self.reference, str) else tuple(self.reference)


@dataclass(frozen=True)
class Completion:
    """What a server sampled for one prompt. Versions are per token: weights may change in flight."""

    token_ids: np.ndarray  # (T,) int32, the end token included when one was sampled
    behaviour_logprobs: np.ndarray  # (T,) float32, of the distribution sampled from
    policy_version: np.ndarray  # (T,) int32
    finish_reason: str  # "stop" | "length" | "abort"


@dataclass(frozen=True)
class Verdict:
    """What a verifier says of one completion; `reward` is None exactly for the `UNSCORED` statuses."""

    status: Status
    reward: float | None
    extracted: str | None = None
    detail: str = ""
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"unknown verdict status {self.status!r}: expected one of {', '.join(STATUSES)}")
        if (self.reward is None) != (self.status in UNSCORED):
            raise ValueError(f"a verdict {self.status!r} cannot carry reward {self.reward!r}")

    @classmethod
    def correct(cls, extracted: str | None = None, detail: str = "", reward: float = 1.0) -> Verdict:
        return cls("correct", reward, extracted, detail)

    @classmethod
    def wrong(cls, extracted: str | None = None, detail: str = "", reward: float = 0.0) -> Verdict:
        return cls("wrong", reward, extracted, detail)

    @classmethod
    def unparsed(cls, detail: str = "") -> Verdict:
        return cls("unparsed", 0.0, None, detail)

    @classmethod
    def timeout(cls, detail: str = "", extracted: str | None = None) -> Verdict:
        return cls("timeout", 0.0, extracted, detail)

    @classmethod
    def error(cls, detail: str) -> Verdict:
        return cls("error", None, None, detail)

    @property
    def is_correct(self) -> bool:
        return self.status == "correct"


@dataclass(frozen=True)
class Rollout:
    """One finished episode as the learner sees it. Where `action_mask` is 0 (prompt, observations),
    behaviour logprobs are 0 and versions `NO_VERSION`. `verdict` is None until the verifier spoke."""

    task: Task
    token_ids: np.ndarray  # (L,) int32
    action_mask: np.ndarray  # (L,) bool
    behaviour_logprobs: np.ndarray  # (L,) float32
    policy_version: np.ndarray  # (L,) int32
    completion: str  # the text that is graded
    terminated: bool
    truncated: bool  # cut off by the token budget or the environment's step limit
    verdict: Verdict | None = None

    def __post_init__(self) -> None:
        lengths = {
            len(a) for a in (self.token_ids, self.action_mask, self.behaviour_logprobs, self.policy_version)
        }
        if len(lengths) != 1:
            raise ValueError(f"per-token arrays of one rollout differ in length: {sorted(lengths)}")

    @cached_property
    def num_action_tokens(self) -> int:
        return int(self.action_mask.sum())

    @property
    def reward(self) -> float | None:
        return None if self.verdict is None else self.verdict.reward

    @property
    def oldest_version(self) -> int:
        """The version of the oldest action token: `learner version - this` is the staleness."""
        versions = self.policy_version[self.action_mask]
        return int(versions.min()) if len(versions) else NO_VERSION

    def with_verdict(self, verdict: Verdict) -> Rollout:
        return replace(self, verdict=verdict)


@dataclass(frozen=True)
class Group:
    """G rollouts of the same task, verified together."""

    task: Task
    rollouts: tuple[Rollout, ...]
    index: int = 0  # position in the training stream

    @property
    def oldest_version(self) -> int:
        return min((r.oldest_version for r in self.rollouts if r.num_action_tokens), default=NO_VERSION)


@dataclass(frozen=True)
class TrainBatch:
    """Padding-free arrays over the N tokens of all trained rollouts, one after the other.

    `loss_weight` is the weight of each action token in the loss: the batch builder makes it for every
    aggregation so that `sum(loss_weight * token_loss)` over all micro-batches and ranks is the loss.
    """

    token_ids: np.ndarray  # (N,) int32
    cu_seqlens: np.ndarray  # (R + 1,) int32, rollout i is [cu_seqlens[i], cu_seqlens[i + 1])
    action_mask: np.ndarray  # (N,) bool
    behaviour_logprobs: np.ndarray  # (N,) float32
    advantages: np.ndarray  # (N,) float32, 0 where action_mask is 0
    loss_weight: np.ndarray  # (N,) float32, 0 where action_mask is 0
    group: np.ndarray | None = None  # (R,) int, which prompt each rollout answers; None: not known

    @property
    def num_rollouts(self) -> int:
        return len(self.cu_seqlens) - 1

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_action_tokens(self) -> int:
        return int(self.action_mask.sum())


@dataclass(frozen=True)
class UpdateResult:
    """`learner_logprobs` (N,) float32, in the order of the given batch: log pi_prox, those of the policy that
    the batch met, before any step on it; 0 where `action_mask` is 0."""

    metrics: dict[str, float]
    learner_logprobs: np.ndarray


@dataclass(frozen=True)
class SyncReport:
    """One weight sync. `pause_seconds` is how long the servers did not sample; `seconds` the whole of it;
    `failures` maps the positions of servers that did not take the weights to the reasons; `phases` are the
    seconds of load (into the transfer buffer), pause, transfer, probe, compare and resume."""

    version: int
    seconds: float = 0.0
    pause_seconds: float = 0.0
    bytes: int = 0
    probe_max_abs_diff: float = 0.0
    failures: Mapping[int, str] = field(default_factory=dict)
    phases: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SamplingParams:
    """How completions are sampled. Training uses the whole distribution: no top-p, top-k or penalties."""

    max_tokens: int
    temperature: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    top_p: float = 1.0  # evaluation only
    top_k: int = 0  # evaluation only; 0 is off
