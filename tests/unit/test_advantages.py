"""Advantages: small numbers by hand, then properties that hold for any rewards."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasoner.advantages import (
    ESTIMATORS,
    compute_advantages,
    dr_grpo,
    filter_groups,
    group_rewards,
    grpo,
    normalise_by_batch,
    reinforce_pp,
    rloo,
)
from reasoner.errors import UsageError
from reasoner.types import Group, Rollout, Task, Verdict

NAN = float("nan")
TASK = Task("t", "1+1=", "2")
ONE_OF_FOUR = [np.array([1.0, 0.0, 0.0, 0.0])]  # mean 1/4, variance 3/16


def rollout(reward: float | None, truncated: bool = False) -> Rollout:
    verdict = Verdict.error("broke") if reward is None else Verdict("correct", reward)
    ids = np.array([1, 2, 3], dtype=np.int32)
    mask = np.array([False, True, True])
    zeros = np.zeros(3, dtype=np.float32)
    return Rollout(TASK, ids, mask, zeros, np.array([-1, 0, 0]), "", not truncated, truncated, verdict)


def group(*rewards: float | None) -> Group:
    return Group(TASK, tuple(rollout(r) for r in rewards))


def test_four_rewards_by_hand():
    std = np.sqrt(3) / 4
    np.testing.assert_allclose(grpo(ONE_OF_FOUR)[0], [0.75 / std, -0.25 / std, -0.25 / std, -0.25 / std])
    np.testing.assert_allclose(dr_grpo(ONE_OF_FOUR)[0], [0.75, -0.25, -0.25, -0.25])
    np.testing.assert_allclose(rloo(ONE_OF_FOUR)[0], [1.0, -1 / 3, -1 / 3, -1 / 3])
    np.testing.assert_allclose(
        reinforce_pp([np.array([1.0, 0.0]), np.array([0.0, 0.0])]),
        [[0.75 / std, -0.25 / std], [-0.25 / std, -0.25 / std]],
    )


def test_a_masked_rollout_takes_part_in_no_baseline():
    rewards = [np.array([1.0, NAN, 0.0, 0.5])]  # mean 1/2, variance 1/6
    np.testing.assert_allclose(dr_grpo(rewards)[0], [0.5, NAN, -0.5, 0.0])
    np.testing.assert_allclose(rloo(rewards)[0], [0.75, NAN, -0.75, 0.0])
    np.testing.assert_allclose(grpo(rewards)[0], np.array([0.5, NAN, -0.5, 0.0]) * np.sqrt(6))
    np.testing.assert_allclose(reinforce_pp(rewards)[0], np.array([0.5, NAN, -0.5, 0.0]) * np.sqrt(6))


def test_batch_normalisation_divides_by_the_deviation_of_all_advantages():
    groups = [group(1.0, 0.0), group(1.0, 1.0), group(None, 1.0, 0.0)]
    plain = compute_advantages(groups, "dr_grpo")  # +-0.5 four times, 0 twice: variance 1/6
    np.testing.assert_allclose(plain[2], [NAN, 0.5, -0.5])
    scaled = compute_advantages(groups, "dr_grpo", batch_normalise=True)
    for a, b in zip(plain, scaled, strict=True):
        np.testing.assert_allclose(b, a * np.sqrt(6))


@pytest.mark.parametrize("estimator", ["grpo", "dr_grpo", "rloo"])
def test_one_scored_rollout_has_nothing_to_be_compared_with(estimator):
    (advantages,) = compute_advantages([group(1.0, None, None)], estimator)
    assert np.isnan(advantages).all()


def test_the_batch_baseline_needs_no_group():
    advantages = compute_advantages([group(1.0), group(0.0)], "reinforce_pp")
    np.testing.assert_allclose(advantages, [[1.0], [-1.0]])


@pytest.mark.parametrize("estimator", sorted(ESTIMATORS))
def test_equal_rewards_give_zeros_not_rounding_noise(estimator):
    (advantages,) = compute_advantages([group(0.1, 0.1 + 1e-12, 0.1)], estimator, batch_normalise=True)
    assert np.abs(advantages).max() < 1e-9


def test_filter_reports_groups_without_signal():
    signal, same, alone, masked = group(1.0, 0.0), group(1.0, 1.0, None), group(1.0, None), group(None, None)
    kept, filtered = filter_groups([same, signal, alone, masked])
    assert kept == [signal]
    assert filtered == [same, alone, masked]


def test_mask_truncated_leaves_cut_rollouts_out_of_the_baseline():
    cut = Group(TASK, (rollout(1.0), rollout(0.0), rollout(0.0, truncated=True)))
    np.testing.assert_allclose(group_rewards(cut, mask_truncated=True), [1.0, 0.0, NAN])
    np.testing.assert_allclose(compute_advantages([cut], "dr_grpo", mask_truncated=True)[0], [0.5, -0.5, NAN])
    np.testing.assert_allclose(compute_advantages([cut], "dr_grpo")[0], [2 / 3, -1 / 3, -1 / 3])
    kept, _ = filter_groups([Group(TASK, (rollout(1.0), rollout(0.0, truncated=True)))], mask_truncated=True)
    assert not kept


def test_an_own_estimator_and_an_unknown_name():
    doubled = compute_advantages([group(1.0, 0.0)], lambda groups: [2 * r for r in groups])
    np.testing.assert_allclose(doubled[0], [2.0, 0.0])
    with pytest.raises(UsageError, match="rloo"):
        compute_advantages([group(1.0, 0.0)], "rlo")


rewards_of_a_group = st.lists(
    st.one_of(st.just(NAN), st.integers(-8, 8).map(lambda i: i / 4)), min_size=2, max_size=9
).map(np.array)
batches = st.lists(rewards_of_a_group.filter(lambda r: np.isfinite(r).sum() >= 2), min_size=1, max_size=4)


@given(batches)
def test_group_relative_advantages_sum_to_zero_in_every_group(groups):
    for estimator in (grpo, dr_grpo, rloo):
        for rewards, advantages in zip(groups, estimator(groups), strict=True):
            assert (np.isnan(advantages) == np.isnan(rewards)).all()
            assert abs(np.nansum(advantages)) < 1e-9


@given(batches)
def test_what_the_batch_normalises_has_mean_zero_and_deviation_one(groups):
    for advantages in (reinforce_pp(groups), normalise_by_batch(dr_grpo(groups))):
        everything = np.concatenate(advantages)
        present = everything[np.isfinite(everything)]
        assert abs(present.sum()) < 1e-9
        assert present.std() == pytest.approx(1) or np.ptp(present) < 1e-9
    for advantages in normalise_by_batch(dr_grpo(groups)):
        assert abs(np.nansum(advantages)) < 1e-9, "only the scale changes: every group still sums to zero"


@given(batches, st.randoms())
def test_a_permutation_of_the_group_permutes_the_advantages(groups, random):
    orders = [random.sample(range(len(g)), len(g)) for g in groups]
    for estimator in ESTIMATORS.values():
        permuted = estimator([g[o] for g, o in zip(groups, orders, strict=True)])
        for a, o, b in zip(estimator(groups), orders, permuted, strict=True):
            np.testing.assert_allclose(a[o], b, atol=1e-12)


@given(batches, st.floats(-3, 3), st.floats(0.5, 4))
def test_what_a_shift_and_a_scale_of_the_rewards_do(groups, shift, scale):
    changed = [g * scale + shift for g in groups]
    powers = {"grpo": 0, "reinforce_pp": 0, "dr_grpo": 1, "rloo": 1}
    for name, estimator in ESTIMATORS.items():
        for a, b in zip(estimator(groups), estimator(changed), strict=True):
            np.testing.assert_allclose(b, a * scale ** powers[name], atol=1e-6)


@given(batches)
def test_rloo_is_the_reward_minus_the_mean_of_the_others(groups):
    for rewards, advantages in zip(groups, rloo(groups), strict=True):
        scored = rewards[np.isfinite(rewards)]
        expected = [scored[i] - np.delete(scored, i).mean() for i in range(len(scored))]
        np.testing.assert_allclose(advantages[np.isfinite(rewards)], expected, atol=1e-12)
