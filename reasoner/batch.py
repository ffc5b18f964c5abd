"""From groups of rollouts to packed arrays, and from a batch to minibatches and micro-batches. Numpy only.

Nothing is padded: rollouts lie one after the other and are only ever cut apart at their borders. A
*minibatch* gets an optimizer step of its own; a *micro-batch* is what one forward and backward pass takes.
Groups may straddle both, because the batch builder has already put every denominator into `loss_weight`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from reasoner.errors import UsageError
from reasoner.types import Group, Rollout, TrainBatch

Aggregation = Literal["token", "sequence", "prompt", "constant"]
AGGREGATIONS: tuple[Aggregation, ...] = ("token", "sequence", "prompt", "constant")
#: Repeated prompt tokens of all tokens from which on micro-batches keep groups together: below, what a prompt
#: computed once saves is less than attention over more distinct lengths costs.
REPEATED_SHARE = 0.1


@dataclass(frozen=True)
class BatchPart:
    """Some rollouts of a batch, in another order, and where their tokens stand in it:
    `whole.token_ids[token_index] == batch.token_ids`."""

    batch: TrainBatch
    token_index: np.ndarray  # (n,) int64


@dataclass(frozen=True)
class TrainedRollout:
    """One rollout that takes part in the update, and where it came from."""

    group: int  # position in the list of groups
    member: int  # position in that group
    rollout: Rollout
    advantage: float


def trained_rollouts(
    groups: Sequence[Group], advantages: Sequence[np.ndarray], *, mask_truncated: bool = False
) -> list[TrainedRollout]:
    """The rollouts `build_batch` packs, in its order: all with an advantage and at least one action token."""
    chosen: list[TrainedRollout] = []
    for g, (group, values) in enumerate(zip(groups, advantages, strict=True)):
        if len(values) != len(group.rollouts):
            raise ValueError(f"group {g}: {len(group.rollouts)} rollouts, {len(values)} advantages")
        for member, (rollout, advantage) in enumerate(zip(group.rollouts, values, strict=True)):
            masked = np.isnan(advantage) or (mask_truncated and rollout.truncated)
            if not masked and rollout.num_action_tokens:
                chosen.append(TrainedRollout(g, member, rollout, float(advantage)))
    return chosen


def build_batch(
    groups: Sequence[Group],
    advantages: Sequence[np.ndarray],
    *,
    aggregation: Aggregation = "prompt",
    constant_tokens: int | None = None,
    mask_truncated: bool = False,
) -> TrainBatch:
    """Pack the rollouts that have an advantage (one array (G,) a group, NaN where masked).

    `loss_weight` makes `sum(loss_weight * token_loss)`, with R rollouts, P prompts and T_i action tokens:
    - "token": mean over all action tokens (TRL's and verl's reading of DAPO): 1 / sum_i T_i
    - "sequence": mean over rollouts of their token mean (GRPO, arXiv 2402.03300 eq. 3): 1 / (R T_i)
    - "prompt": mean over prompts of their token mean (DAPO, arXiv 2503.14476 eq. 8; ScaleRL, arXiv 2510.13786
      §3.2): 1 / (P sum_group T_i)
    - "constant": 1 / (R constant_tokens) (Dr. GRPO, arXiv 2503.20783 listing 1): no term depends on a length.

    Raises `ValueError` when nothing is left to train on or a rollout's first token is an action (nothing
    precedes it, so it has no logprob), `UsageError` for a bad aggregation.
    """
    chosen = trained_rollouts(groups, advantages, mask_truncated=mask_truncated)
    if not chosen:
        raise ValueError("no rollout to train on: all are masked, without an advantage or without actions")
    rollouts = [c.rollout for c in chosen]
    if any(r.action_mask[0] for r in rollouts):
        raise ValueError("a rollout begins with an action token: it needs at least one prompt token before")
    lengths = np.array([len(r.token_ids) for r in rollouts])
    action_mask = np.concatenate([r.action_mask for r in rollouts]).astype(bool)  # (N,)
    weights = rollout_weights(
        np.array([r.num_action_tokens for r in rollouts]),
        np.array([c.group for c in chosen]),
        aggregation,
        constant_tokens,
    )  # (R,)
    behaviour = np.concatenate([r.behaviour_logprobs for r in rollouts])
    advantage = np.array([c.advantage for c in chosen])
    return TrainBatch(
        token_ids=np.concatenate([r.token_ids for r in rollouts]).astype(np.int32),
        cu_seqlens=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
        action_mask=action_mask,
        behaviour_logprobs=np.where(action_mask, behaviour, 0.0).astype(np.float32),
        advantages=np.where(action_mask, np.repeat(advantage, lengths), 0.0).astype(np.float32),
        loss_weight=np.where(action_mask, np.repeat(weights, lengths), 0.0).astype(np.float32),
        group=np.array([c.group for c in chosen]),
    )


def rollout_weights(
    action_tokens: np.ndarray, group_of: np.ndarray, aggregation: str, constant_tokens: int | None
) -> np.ndarray:
    """(R,) the weight of each action token of a rollout, from its action tokens (R,) and group (R,)."""
    rollouts = len(action_tokens)
    if aggregation == "token":
        return np.full(rollouts, 1.0 / action_tokens.sum())
    if aggregation == "sequence":
        return 1.0 / (rollouts * action_tokens)
    if aggregation == "prompt":
        _, group = np.unique(group_of, return_inverse=True)
        group_tokens = np.bincount(group, weights=action_tokens)  # (P,)
        return 1.0 / (len(group_tokens) * group_tokens[group])
    if aggregation == "constant":
        if constant_tokens is None or constant_tokens < 1:
            raise UsageError(f"aggregation 'constant' needs constant_tokens >= 1, not {constant_tokens!r}")
        return np.full(rollouts, 1.0 / (rollouts * constant_tokens))
    raise UsageError(f"unknown aggregation {aggregation!r}: expected one of {', '.join(AGGREGATIONS)}")


def split_minibatches(batch: TrainBatch, n: int) -> list[BatchPart]:
    """Up to n parts with like numbers of rollouts and of every length, in a fixed order.

    Each part's `loss_weight` is multiplied by the number of parts, so that the mean over the parts' losses is
    the batch's loss and every optimizer step sees a gradient of the usual scale.
    """
    if n < 1:
        raise UsageError(f"minibatches must be at least 1, not {n}")
    by_length = np.argsort(np.diff(batch.cu_seqlens), kind="stable")
    parts = min(n, batch.num_rollouts)
    chosen = [np.sort(by_length[k::parts]) for k in range(parts)]
    return [_scaled(select_rollouts(batch, rollouts), parts) for rollouts in chosen]


def split_prompts(batch: TrainBatch) -> list[BatchPart]:
    """Every other prompt, and the others; the batch as it is where there are fewer than two, or unknown ones.

    Prompts are taken in the order of the batch, which has nothing to do with their lengths or rewards."""
    prompts = np.empty(0) if batch.group is None else np.unique(batch.group)
    if batch.group is None or len(prompts) < 2:
        return [BatchPart(batch, np.arange(batch.num_tokens))]
    first = np.isin(batch.group, prompts[::2])  # (R,)
    return [select_rollouts(batch, np.flatnonzero(chosen)) for chosen in (first, ~first)]


def rank_micro_batches(batch: TrainBatch, max_tokens: int, rank: int, ranks: int) -> list[BatchPart]:
    """The micro-batches of one of `ranks` processes, which all compute their next one at the same time.

    All get the same number, and those computed at the same time have like numbers of tokens and like lengths.
    Where rollouts do not suffice the rest are padding: a short rollout without any action."""
    if ranks == 1:
        return split_micro_batches(batch, max_tokens)
    rounds = math.ceil(batch.num_tokens / (ranks * max_tokens))
    micro = split_micro_batches(batch, max_tokens, at_least=ranks * rounds)
    shortest = int(np.argmin(np.diff(batch.cu_seqlens)))
    idle = _without_actions(select_rollouts(batch, np.array([shortest])))
    micro += [idle] * (-len(micro) % ranks)
    return micro[rank::ranks]


def _without_actions(part: BatchPart) -> BatchPart:
    zeros = np.zeros_like(part.batch.loss_weight)
    nothing = replace(part.batch, action_mask=zeros.astype(bool), loss_weight=zeros, advantages=zeros)
    return BatchPart(nothing, part.token_index)


def split_micro_batches(batch: TrainBatch, max_tokens: int, at_least: int = 1) -> list[BatchPart]:
    """Parts of at most `max_tokens` tokens and of like token counts, each sorted by length; about `at_least`
    of them.

    Neighbours in length share a part, so that attention runs over few distinct lengths. Where prompts are
    much of the batch, groups stay together as far as the counts allow: a part computes a prompt once. A
    rollout longer than `max_tokens` is a part of its own: rollouts are never cut.
    """
    if max_tokens < 1:
        raise UsageError(f"micro_batch_tokens must be at least 1, not {max_tokens}")
    lengths = np.diff(batch.cu_seqlens)
    parts: list[list[int]] = [[]]
    tokens, left = 0, batch.num_tokens  # of this part; of this part and those to come
    for i in _order(batch, lengths):
        length = int(lengths[i])
        target = left / max(math.ceil(left / max_tokens), at_least - len(parts) + 1)
        if parts[-1] and (tokens + length > max_tokens or tokens + length / 2 > target):
            parts.append([])
            left -= tokens
            tokens = 0
        parts[-1].append(int(i))
        tokens += length
    return [select_rollouts(batch, np.array(sorted(part, key=lengths.__getitem__))) for part in parts]


def prompts_of(batch: TrainBatch) -> list[np.ndarray]:
    """R arrays: the tokens before each rollout's first action; none of a rollout without actions."""
    actions = np.append(np.flatnonzero(batch.action_mask), batch.num_tokens)
    starts, stops = batch.cu_seqlens[:-1], batch.cu_seqlens[1:]
    first = actions[np.searchsorted(actions, starts)]  # (R,) of this rollout or of a later one
    ends = np.where(first < stops, first, starts)
    return [batch.token_ids[a:b] for a, b in zip(starts, ends, strict=True)]


def _order(batch: TrainBatch, lengths: np.ndarray) -> np.ndarray:
    """(R,) rollouts by length; where prompts are much of the batch, groups by their mean length."""
    if batch.group is None or _repeated_share(batch) < REPEATED_SHARE:
        return np.argsort(lengths, kind="stable")
    _, group = np.unique(batch.group, return_inverse=True)
    mean = np.bincount(group, weights=lengths) / np.bincount(group)
    return np.lexsort((lengths, group, mean[group]))


def _repeated_share(batch: TrainBatch) -> float:
    """The share of a batch's tokens that belong to prompts which an earlier rollout has too."""
    prompts = prompts_of(batch)
    once = {prompt.tobytes(): len(prompt) for prompt in prompts}
    return (sum(map(len, prompts)) - sum(once.values())) / max(1, batch.num_tokens)


def select_rollouts(batch: TrainBatch, rollouts: np.ndarray) -> BatchPart:
    """The given rollouts (r,) of a batch, in the given order, weights unchanged."""
    starts = batch.cu_seqlens[:-1][rollouts].astype(np.int64)
    lengths = np.diff(batch.cu_seqlens)[rollouts].astype(np.int64)
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)])
    index = np.repeat(starts - cu_seqlens[:-1], lengths) + np.arange(cu_seqlens[-1])  # (n,)
    part = TrainBatch(
        token_ids=batch.token_ids[index],
        cu_seqlens=cu_seqlens.astype(np.int32),
        action_mask=batch.action_mask[index],
        behaviour_logprobs=batch.behaviour_logprobs[index],
        advantages=batch.advantages[index],
        loss_weight=batch.loss_weight[index],
        group=None if batch.group is None else batch.group[rollouts],
    )
    return BatchPart(part, index)


def _scaled(part: BatchPart, factor: float) -> BatchPart:
    weights = (part.batch.loss_weight * factor).astype(np.float32)
    return BatchPart(replace(part.batch, loss_weight=weights), part.token_index)
