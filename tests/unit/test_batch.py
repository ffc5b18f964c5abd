"""Packing, loss weights of every aggregation by hand, and splits that lose nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasoner.batch import (
    build_batch,
    prompts_of,
    rank_micro_batches,
    select_rollouts,
    split_micro_batches,
    split_minibatches,
    split_prompts,
    trained_rollouts,
)
from reasoner.errors import UsageError
from reasoner.types import Group, Rollout, Task, TrainBatch, Verdict

TASK = Task("t", "1+1=", "2")


def rollout(prompt: int, actions: int, first_id: int = 0, truncated: bool = False) -> Rollout:
    length = prompt + actions
    mask = np.arange(length) >= prompt
    return Rollout(
        task=TASK,
        token_ids=np.arange(first_id, first_id + length, dtype=np.int32),
        action_mask=mask,
        behaviour_logprobs=np.where(mask, -0.5, 0.0).astype(np.float32),
        policy_version=np.where(mask, 3, -1).astype(np.int32),
        completion="",
        terminated=not truncated,
        truncated=truncated,
        verdict=Verdict.correct(),
    )


#: Two prompts; action tokens 1 and 3, then 2 and a masked 7.
GROUPS = [
    Group(TASK, (rollout(2, 1, 10), rollout(2, 3, 20))),
    Group(TASK, (rollout(1, 2, 30), rollout(1, 7, 40))),
]
ADVANTAGES = [np.array([1.0, -1.0]), np.array([0.5, np.nan])]


def test_prompts_are_what_stands_before_the_first_action():
    batch = build_batch(GROUPS, ADVANTAGES, aggregation="token")
    assert [p.tolist() for p in prompts_of(batch)] == [[10, 11], [20, 21], [30]]
    nothing = replace(batch, action_mask=np.zeros(batch.num_tokens, bool))
    assert [p.tolist() for p in prompts_of(nothing)] == [[], [], []]
    middle = np.array([False] * 3 + [True] * 5 + [False, False, True])  # no action, at once, after two tokens
    assert [p.tolist() for p in prompts_of(replace(batch, action_mask=middle))] == [[], [], [30, 31]]


def test_packing_by_hand():
    batch = build_batch(GROUPS, ADVANTAGES, aggregation="token")
    assert batch.token_ids.tolist() == [10, 11, 12, 20, 21, 22, 23, 24, 30, 31, 32]
    assert batch.cu_seqlens.tolist() == [0, 3, 8, 11]
    assert batch.action_mask.tolist() == [False, False, True] + [False] * 2 + [True] * 3 + [False, True, True]
    assert batch.advantages.tolist() == [0, 0, 1, 0, 0, -1, -1, -1, 0, 0.5, 0.5]
    np.testing.assert_allclose(batch.behaviour_logprobs, -0.5 * batch.action_mask)
    assert [(c.group, c.member) for c in trained_rollouts(GROUPS, ADVANTAGES)] == [(0, 0), (0, 1), (1, 0)]


@pytest.mark.parametrize(
    ("aggregation", "weights"),
    [
        ("token", [1 / 6, 1 / 6, 1 / 6]),
        ("sequence", [1 / 3, 1 / 9, 1 / 6]),
        ("prompt", [1 / 8, 1 / 8, 1 / 4]),  # 4 action tokens in the first prompt, 2 in the second
        ("constant", [1 / 30, 1 / 30, 1 / 30]),  # 3 rollouts of 10
    ],
)
def test_loss_weights_by_hand(aggregation, weights):
    batch = build_batch(GROUPS, ADVANTAGES, aggregation=aggregation, constant_tokens=10)
    first_actions = [2, 5, 9]
    np.testing.assert_allclose(batch.loss_weight[first_actions], weights, rtol=1e-6)
    assert (batch.loss_weight[~batch.action_mask] == 0).all()
    if aggregation != "constant":
        assert batch.loss_weight.sum() == pytest.approx(1.0)


def test_rollouts_that_are_left_out():
    cut = [Group(TASK, (rollout(1, 2), rollout(1, 2, truncated=True), rollout(3, 0)))]
    advantages = [np.array([1.0, -1.0, 0.0])]
    assert build_batch(cut, advantages).num_rollouts == 2
    assert build_batch(cut, advantages, mask_truncated=True).num_rollouts == 1
    with pytest.raises(ValueError, match="no rollout"):
        build_batch(cut, [np.full(3, np.nan)])


def test_bad_input():
    with pytest.raises(ValueError, match="begins with an action"):
        build_batch([Group(TASK, (rollout(0, 2),))], [np.array([1.0])])
    with pytest.raises(ValueError, match="2 rollouts, 3 advantages"):
        build_batch(GROUPS, [np.zeros(3), np.zeros(2)])
    with pytest.raises(UsageError, match="constant_tokens"):
        build_batch(GROUPS, ADVANTAGES, aggregation="constant")
    with pytest.raises(UsageError, match="sequence"):
        build_batch(GROUPS, ADVANTAGES, aggregation="mean")  # type: ignore[arg-type]
    batch = build_batch(GROUPS, ADVANTAGES)
    with pytest.raises(UsageError, match="micro_batch_tokens"):
        split_micro_batches(batch, 0)
    with pytest.raises(UsageError, match="minibatches"):
        split_minibatches(batch, 0)


def ragged(lengths: list[int]) -> TrainBatch:
    tokens = int(np.sum(lengths))
    values = np.arange(tokens)
    return TrainBatch(
        token_ids=values.astype(np.int32),
        cu_seqlens=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
        action_mask=values % 3 > 0,
        behaviour_logprobs=-values.astype(np.float32),
        advantages=values.astype(np.float32) / 7,
        loss_weight=np.full(tokens, 1 / tokens, dtype=np.float32),
    )


def in_groups(lengths: list[int], group: np.ndarray, prompt: int = 2) -> TrainBatch:
    """Rollouts of a group begin with the same `prompt` tokens, as far as they are long enough."""
    batch = ragged(lengths)
    position = np.concatenate([np.arange(n) for n in lengths])
    asked = position < prompt
    tokens = np.where(asked, -1 - np.repeat(group, lengths), batch.token_ids).astype(np.int32)
    return replace(batch, token_ids=tokens, action_mask=~asked, group=group)


some_lengths = st.lists(st.integers(1, 40), min_size=1, max_size=40)


@given(some_lengths, st.integers(1, 200), st.booleans())
def test_micro_batches_partition_the_batch(lengths, max_tokens, grouped):
    batch = in_groups(lengths, np.arange(len(lengths)) % 7) if grouped else ragged(lengths)
    parts = split_micro_batches(batch, max_tokens)
    covered = np.concatenate([p.token_index for p in parts])
    assert sorted(covered.tolist()) == list(range(batch.num_tokens))
    for part in parts:
        assert part.batch.num_tokens <= max_tokens or part.batch.num_rollouts == 1
        assert (np.diff(np.diff(part.batch.cu_seqlens)) >= 0).all()
        for name in ("token_ids", "action_mask", "behaviour_logprobs", "advantages", "loss_weight"):
            np.testing.assert_array_equal(getattr(part.batch, name), getattr(batch, name)[part.token_index])


def test_a_group_stays_together_and_groups_of_like_length_are_neighbours():
    group, lengths = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2]), [9, 4, 2, 9, 8, 2, 6, 6, 2]  # 24, 18 and 6 tokens
    parts = split_micro_batches(in_groups(lengths, group), 24)
    assert [p.batch.group.tolist() for p in parts] == [[2, 2, 2, 1, 1, 1], [0, 0, 0]]
    assert [np.diff(p.batch.cu_seqlens).tolist() for p in parts] == [[2, 2, 2, 4, 6, 8], [6, 9, 9]]
    others = split_micro_batches(in_groups([n + 40 for n in lengths], group), 174)
    found = [n for p in others for n in np.diff(p.batch.cu_seqlens).tolist()]
    assert len(others) == 3 and found == sorted(found), "prompts are a small share: by length alone"


def test_micro_batches_are_balanced():
    tokens = [p.batch.num_tokens for p in split_micro_batches(ragged([10] * 33), 100)]
    assert sorted(tokens) == [80, 80, 80, 90]


@given(some_lengths, st.integers(1, 5))
def test_the_mean_over_minibatches_is_the_batch(lengths, n):
    batch = ragged(lengths)
    parts = split_minibatches(batch, n)
    assert len(parts) == min(n, len(lengths))
    covered = np.concatenate([p.token_index for p in parts])
    assert sorted(covered.tolist()) == list(range(batch.num_tokens))
    sums = [float((p.batch.loss_weight * p.batch.advantages).sum()) for p in parts]
    assert np.mean(sums) == pytest.approx(float((batch.loss_weight * batch.advantages).sum()), rel=1e-4)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 9)), min_size=1, max_size=30))
def test_every_other_prompt_and_the_others(rollouts):
    group, lengths = zip(*rollouts, strict=True)
    batch = replace(ragged(list(lengths)), group=np.array(group))
    parts = split_prompts(batch)
    covered = np.concatenate([p.token_index for p in parts])
    assert sorted(covered.tolist()) == list(range(batch.num_tokens))
    for part in parts:
        np.testing.assert_array_equal(part.batch.token_ids, batch.token_ids[part.token_index])
    prompts = [np.unique(p.batch.group).tolist() for p in parts]
    everyone = sorted(set(group))
    assert prompts == ([everyone[::2], everyone[1::2]] if len(everyone) > 1 else [everyone])
    assert len(split_prompts(replace(batch, group=None))) == 1


@given(some_lengths, st.integers(1, 200), st.integers(2, 4))
def test_ranks_share_a_batch_in_equal_rounds_of_like_size(lengths, max_tokens, ranks):
    batch = ragged(lengths)
    shares = [rank_micro_batches(batch, max_tokens, rank, ranks) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1, "all gather the layers equally often"
    parts = [part for together in zip(*shares, strict=True) for part in together]
    working = [part for part in parts if part.batch.loss_weight.any()]
    covered = np.concatenate([p.token_index for p in working])
    assert sorted(covered.tolist()) == list(range(batch.num_tokens))
    for idle in parts[len(working) :]:
        assert not idle.batch.action_mask.any() and idle.batch.num_tokens == min(lengths)
    assert len(parts) - len(working) < ranks
    for part in working:
        assert part.batch.num_tokens <= max_tokens or part.batch.num_rollouts == 1
    if len(working) == ranks * -(-batch.num_tokens // (ranks * max_tokens)):  # as few as there can be
        for first in range(0, len(working), ranks):
            tokens = [part.batch.num_tokens for part in working[first : first + ranks]]
            assert max(tokens) - min(tokens) <= 2 * max(lengths), "they are computed at the same time"


def test_ranks_have_like_numbers_of_tokens_and_no_round_too_many():
    def tokens(lengths, max_tokens):
        shares = [rank_micro_batches(ragged(lengths), max_tokens, rank, 2) for rank in range(2)]
        return [[p.batch.num_tokens for p in share] for share in shares]

    assert tokens([10] * 66, 100) == [[80, 80, 90, 90], [80, 80, 80, 80]]
    assert tokens([7] * 31, 200) == [[112], [105]]
    assert tokens([50, 60, 70], 100) == [[50, 70], [60, 50]], "where it must be, a short one without actions"


def test_select_rollouts_in_another_order():
    part = select_rollouts(ragged([2, 3, 1]), np.array([2, 0]))
    assert part.batch.token_ids.tolist() == [5, 0, 1]
    assert part.batch.cu_seqlens.tolist() == [0, 1, 3]
    assert part.token_index.tolist() == [5, 0, 1]
