"""What travels packed arrives as it was: sequences, completions, groups."""

import pickle
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasoner.types import NO_VERSION, Completion, Group, Rollout, Task, Verdict
from rollouts.packing import pack_completions, pack_sequences
from rollouts.worker import GroupResult


def completion(tokens, reason="stop", version=1):
    count = len(tokens)
    return Completion(
        np.array(tokens, np.int32),
        -np.arange(count, dtype=np.float32),
        np.full(count, version, np.int32),
        reason,
    )


@st.composite
def rollouts(draw, task):
    length = draw(st.integers(0, 12))

    def per_token(values, dtype):
        return np.array(draw(st.lists(values, min_size=length, max_size=length)), dtype)

    action = per_token(st.booleans(), bool)
    verdicts = (
        st.none(),
        st.builds(Verdict.correct, st.text(), st.text()),
        st.builds(Verdict.error, st.text()),
    )
    return Rollout(
        task=task,
        token_ids=per_token(st.integers(0, 2**31 - 1), np.int32),
        action_mask=action,
        behaviour_logprobs=per_token(st.floats(-30, 0, width=32), np.float32),
        policy_version=np.where(action, draw(st.integers(0, 9)), NO_VERSION).astype(np.int32),
        completion=draw(st.text()),
        terminated=draw(st.booleans()),
        truncated=draw(st.booleans()),
        verdict=draw(st.one_of(verdicts)),
    )


@st.composite
def groups(draw):
    task = Task("t", draw(st.text()), ("1", "2"), metadata={"level": 3})
    members = draw(st.lists(rollouts(task), min_size=1, max_size=4))
    return Group(task, tuple(members), draw(st.integers(0, 2**40)))


@pytest.mark.parametrize("sequences", [[], [[1, 2, 3]], [[1], [], [2, 3]], [[7] * 1000]])
def test_sequences_survive_packing(sequences):
    assert pack_sequences(sequences).unpack() == sequences


@pytest.mark.parametrize("count", [0, 1, 3])
def test_completions_survive_packing(count):
    completions = [completion([5, 6, 7][:i], reason="length", version=i) for i in range(count)]
    unpacked = pickle.loads(pickle.dumps(pack_completions(completions))).unpack()
    assert len(unpacked) == count
    for before, after in zip(completions, unpacked, strict=True):
        np.testing.assert_array_equal(before.token_ids, after.token_ids)
        np.testing.assert_array_equal(before.behaviour_logprobs, after.behaviour_logprobs)
        np.testing.assert_array_equal(before.policy_version, after.policy_version)
        assert before.finish_reason == after.finish_reason
        assert after.token_ids.dtype == np.int32
        assert after.behaviour_logprobs.dtype == np.float32


@given(groups(), st.floats(0, 9))
def test_a_group_travels_in_four_arrays_and_arrives_bit_for_bit(group, seconds):
    buffers = []
    pickled = pickle.dumps(GroupResult(group, seconds), protocol=5, buffer_callback=buffers.append)
    result = pickle.loads(pickled, buffers=buffers)
    assert len(buffers) <= 4  # an empty one is no buffer
    assert result.verify_seconds == seconds
    assert (result.group.task, result.group.index) == (group.task, group.index)
    assert len(result.group.rollouts) == len(group.rollouts)
    for before, after in zip(group.rollouts, result.group.rollouts, strict=True):
        assert after.task is result.group.task
        for field in fields(Rollout):
            old, new = getattr(before, field.name), getattr(after, field.name)
            if isinstance(old, np.ndarray):
                assert (new.dtype, new.tobytes()) == (old.dtype, old.tobytes())
            else:
                assert new == old


def test_a_group_arrives_in_memory_of_its_own_and_can_be_written_to():
    """As without packing: where the reader's memory can be written to, so can the arrays."""
    task = Task("t", "1+1", "2")
    ones = np.ones(2, np.int32)
    rollout = Rollout(task, ones, ones.astype(bool), ones.astype(np.float32), ones, "2", True, False)
    copy = pickle.loads(pickle.dumps(GroupResult(Group(task, (rollout, rollout)), 0.0))).group
    copy.rollouts[0].token_ids[:] = 7
    assert ones.tolist() == [1, 1] and copy.rollouts[1].token_ids.tolist() == [1, 1]
