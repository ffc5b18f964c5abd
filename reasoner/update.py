"""What a step trains on: a pure function of its groups, the configuration and the number of the step.

The loop and `reasoner replay` both go through here, so that what is replayed is what was done: filter →
advantages → packed batch at a learning-rate scale. Nothing here knows of servers, Ray or the learner's state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reasoner.advantages import (
    GROUP_RELATIVE,
    MIN_SCORED,
    compute_advantages,
    filter_groups,
    group_rewards,
)
from reasoner.batch import TrainedRollout, build_batch, trained_rollouts
from reasoner.config import Config
from reasoner.journal import Use
from reasoner.types import Group, TrainBatch


@dataclass(frozen=True)
class PreparedUpdate:
    """The batch of one step and where its rollouts came from."""

    groups: Sequence[Group]
    batch: TrainBatch
    chosen: Sequence[TrainedRollout]  # in the order of the batch

    def uses(self, learner_logprobs: np.ndarray) -> list[Use]:
        """What the journal records of the update; `learner_logprobs` (N,) is in the order of the batch."""
        logprobs = np.split(learner_logprobs, self.batch.cu_seqlens[1:-1])
        return [
            Use(self.groups[r.group].index, r.member, position, r.advantage, logprobs[position])
            for position, r in enumerate(self.chosen)
        ]


def select_groups(groups: Sequence[Group], config: Config) -> tuple[list[Group], list[Group]]:
    """`(kept, filtered)`: filtered are groups without a signal, as `learner.zero_variance` has it."""
    learner = config.learner
    relative = learner.estimator in GROUP_RELATIVE
    if learner.zero_variance != "keep" and relative:
        return filter_groups(groups, mask_truncated=learner.mask_truncated)
    needed = MIN_SCORED if relative else 1
    kept: list[Group] = []
    filtered: list[Group] = []
    for group in groups:
        scored = np.isfinite(group_rewards(group, mask_truncated=learner.mask_truncated)).sum()
        (kept if scored >= needed else filtered).append(group)
    return kept, filtered


def prepare_update(groups: Sequence[Group], config: Config) -> PreparedUpdate:
    """Rewards → advantages → packed batch. ValueError when no rollout is left to train on."""
    learner = config.learner
    advantages = compute_advantages(
        groups,
        learner.estimator,
        batch_normalise=learner.batch_normalise,
        mask_truncated=learner.mask_truncated,
    )
    batch = build_batch(
        groups,
        advantages,
        aggregation=learner.aggregation,
        constant_tokens=config.rollout.max_tokens,
        mask_truncated=learner.mask_truncated,
    )
    chosen = trained_rollouts(groups, advantages, mask_truncated=learner.mask_truncated)
    return PreparedUpdate(groups, batch, chosen)


def lr_scale(config: Config, step: int) -> float:
    """Linear warm-up, then constant or linear decay to 0 at the last step; `step` of them are done."""
    learner = config.learner
    warm = min(1.0, (step + 1) / max(1, learner.warmup_steps))
    return warm * (1 - step / config.steps if learner.decay == "linear" else 1.0)
