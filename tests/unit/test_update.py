import numpy as np
import pytest

from reasoner.config import Config, LearnerKeys, RolloutConfig
from reasoner.types import Group, Rollout, Task, Verdict
from reasoner.update import lr_scale, prepare_update, select_groups

TASK = Task("t", "1+1", "2")


def group(index: int, *rewards: float | None) -> Group:
    def rollout(reward: float | None, length: int) -> Rollout:
        mask = np.arange(length) > 0
        verdict = Verdict.error("broken") if reward is None else Verdict("correct", reward)
        zeros = np.zeros(length, np.float32)
        return Rollout(
            TASK, np.full(length, index), mask, zeros, np.where(mask, 0, -1), "", True, False, verdict
        )

    return Group(TASK, tuple(rollout(r, 2 + i) for i, r in enumerate(rewards)), index)


def config(**learner) -> Config:
    return Config(learner=LearnerKeys(**learner), rollout=RolloutConfig(max_tokens=10), steps=10)


def test_uses_say_where_each_part_of_the_batch_came_from():
    groups = [group(7, 1.0, None, 0.0), group(3, 0.0, 1.0)]
    prepared = prepare_update(groups, config(estimator="dr_grpo", batch_normalise=False))
    uses = prepared.uses(np.arange(prepared.batch.num_tokens, dtype=np.float32))
    assert [(u.group_index, u.rollout, u.position, u.advantage) for u in uses] == [
        (7, 0, 0, 0.5),
        (7, 2, 1, -0.5),
        (3, 0, 2, -0.5),
        (3, 1, 3, 0.5),
    ]
    assert [u.learner_logprobs.tolist() for u in uses] == [[0, 1], [2, 3, 4, 5], [6, 7], [8, 9, 10]]


@pytest.mark.parametrize(
    ("learner", "kept"),
    [
        ({}, [0]),
        ({"zero_variance": "keep"}, [0, 1]),
        ({"zero_variance": "keep", "estimator": "reinforce_pp"}, [0, 1, 2]),
    ],
)
def test_groups_without_a_signal_are_filtered(learner, kept):
    groups = [group(0, 1.0, 0.0), group(1, 1.0, 1.0), group(2, 1.0, None), group(3, None, None)]
    found, filtered = select_groups(groups, config(**learner))
    assert [g.index for g in found] == kept
    assert [g.index for g in filtered] == [i for i in range(4) if i not in kept]


def test_learning_rate_warms_up_and_decays_over_the_runs_steps():
    linear = config(warmup_steps=4)
    assert [lr_scale(linear, step) for step in (0, 1, 4, 9)] == pytest.approx([0.25, 0.5 * 0.9, 0.6, 0.1])
    assert lr_scale(config(warmup_steps=0, decay="none"), 9) == 1.0
