"""Ragged lists as flat arrays, for the trip between processes: one pickle of three buffers instead of
thousands of small objects (512 completions: well under a millisecond instead of tens)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from operator import attrgetter
from typing import Any

import numpy as np

from reasoner.types import Completion, Group, Rollout


@dataclass(frozen=True)
class PackedSequences:
    """n token sequences, one after the other."""

    token_ids: np.ndarray  # (sum of lengths,) int32
    lengths: np.ndarray  # (n,) int32

    def unpack(self) -> list[list[int]]:
        flat = self.token_ids.tolist()
        ends = np.cumsum(self.lengths).tolist()
        return [flat[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)] if ends else []


@dataclass(frozen=True)
class PackedCompletions:
    """n completions, one after the other; see `Completion` for the fields."""

    token_ids: np.ndarray  # (sum of lengths,) int32
    behaviour_logprobs: np.ndarray  # (sum of lengths,) float32
    policy_version: np.ndarray  # (sum of lengths,) int32
    lengths: np.ndarray  # (n,) int32
    finish_reasons: tuple[str, ...]  # n

    def unpack(self) -> list[Completion]:
        ends = np.cumsum(self.lengths).tolist()
        starts = [0, *ends[:-1]]
        return [
            Completion(
                token_ids=self.token_ids[a:b],
                behaviour_logprobs=self.behaviour_logprobs[a:b],
                policy_version=self.policy_version[a:b],
                finish_reason=reason,
            )
            for a, b, reason in zip(starts, ends, self.finish_reasons, strict=False)
        ]


@dataclass(frozen=True)
class PackedGroup:
    """A group with the per-token arrays of its rollouts one after the other; see `Rollout` for the fields."""

    group: Group  # without its rollouts
    token_ids: np.ndarray  # (sum of lengths,) int32
    action_mask: np.ndarray  # (sum of lengths,) bool
    behaviour_logprobs: np.ndarray  # (sum of lengths,) float32
    policy_version: np.ndarray  # (sum of lengths,) int32
    lengths: tuple[int, ...]  # G
    others: tuple[tuple[Any, ...], ...]  # G times the fields that are no arrays, in the order of `_OTHERS`

    def unpack(self) -> Group:
        """The group; its arrays are views of those here."""
        ends = list(accumulate(self.lengths))
        rollouts = (
            Rollout(
                token_ids=self.token_ids[a:b],
                action_mask=self.action_mask[a:b],
                behaviour_logprobs=self.behaviour_logprobs[a:b],
                policy_version=self.policy_version[a:b],
                **dict(zip(_OTHERS, others, strict=True)),
            )
            for a, b, others in zip([0, *ends], ends, self.others, strict=False)
        )
        return replace(self.group, rollouts=tuple(rollouts))


_ARRAYS = ("token_ids", "action_mask", "behaviour_logprobs", "policy_version")
_OTHERS = tuple(field.name for field in fields(Rollout) if field.name not in _ARRAYS)


def pack_group(group: Group) -> PackedGroup:
    """Raises ValueError for a group without rollouts."""

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(rollout, name) for rollout in group.rollouts])

    others = attrgetter(*_OTHERS)
    return PackedGroup(
        group=replace(group, rollouts=()),
        token_ids=joined("token_ids"),
        action_mask=joined("action_mask"),
        behaviour_logprobs=joined("behaviour_logprobs"),
        policy_version=joined("policy_version"),
        lengths=tuple(len(rollout.token_ids) for rollout in group.rollouts),
        others=tuple(others(rollout) for rollout in group.rollouts),
    )


def pack_sequences(sequences: Sequence[Sequence[int]]) -> PackedSequences:
    lengths = np.fromiter((len(s) for s in sequences), np.int32, len(sequences))
    flat = [token for sequence in sequences for token in sequence]
    return PackedSequences(np.array(flat, np.int32), lengths)


def pack_completions(completions: Sequence[Completion]) -> PackedCompletions:
    def joined(name: str, dtype: type) -> np.ndarray:
        return np.concatenate([np.zeros(0, dtype), *(getattr(c, name) for c in completions)])

    return PackedCompletions(
        token_ids=joined("token_ids", np.int32),
        behaviour_logprobs=joined("behaviour_logprobs", np.float32),
        policy_version=joined("policy_version", np.int32),
        lengths=np.array([len(c.token_ids) for c in completions], np.int32),
        finish_reasons=tuple(c.finish_reason for c in completions),
    )
