"""Advantage estimators: rewards of a group in, one advantage a rollout out. Value-free, numpy only.

Every estimator is a pure function of a list of groups, each a (G,) array of rewards with NaN where the
rollout is masked (no verdict on the policy), and returns arrays of the same shapes. A NaN reward gives a NaN
advantage and takes part in no baseline. What is left out: critics, per-token returns (the reward comes once,
at the end) and a KL term inside the reward (`reasoner.losses` has it in the loss).

Notation: r_i the reward of rollout i, n the scored rollouts of its group, mean/std over those n.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from reasoner.errors import UsageError
from reasoner.plugins import load_function
from reasoner.types import Group

Rewards = Sequence[np.ndarray]  # groups of (G,) float, NaN where masked
Estimator = Callable[[Rewards], list[np.ndarray]]

MIN_SCORED = 2  # a group-relative baseline needs another rollout
ZERO_SPREAD = 1e-6  # rewards of one group closer than this are equal: the rest is rounding


def grpo(groups: Rewards) -> list[np.ndarray]:
    """GRPO (arXiv 2402.03300 §4.1.2): A_i = (r_i - mean) / std, with the population standard deviation.

    No epsilon is added to std: a group without spread gets zeros instead.
    """
    return [_centred(r) / (_std(r) if has_signal(r) else 1.0) for r in groups]


def dr_grpo(groups: Rewards) -> list[np.ndarray]:
    """Dr. GRPO (arXiv 2503.20783 §3.2, eq. 3 without its std): A_i = r_i - mean. No division by the standard
    deviation, which would weigh the easiest and the hardest tasks most."""
    return [_centred(r) for r in groups]


def rloo(groups: Rewards) -> list[np.ndarray]:
    """RLOO (arXiv 2402.14740 §2.3): A_i = r_i - mean of the other n - 1, that is n / (n - 1) (r_i - mean)."""
    scored = [int(np.isfinite(r).sum()) for r in groups]
    return [_centred(r) * (n / (n - 1) if n > 1 else np.nan) for r, n in zip(groups, scored, strict=True)]


def reinforce_pp(groups: Rewards) -> list[np.ndarray]:
    """REINFORCE++ (arXiv 2501.03262v9 eq. 5): A_i = (r_i - mean_batch) / std_batch over all scored rollouts.

    The baseline is the batch, not the group, so groups of one rollout are allowed. The paper's variant with
    a group baseline (eq. 6 and 7) is `dr_grpo` with `batch_normalise`.
    """
    rewards = np.concatenate([_float(r) for r in groups]) if len(groups) else np.empty(0)
    if not has_signal(rewards):
        return [_float(r) * 0.0 for r in groups]
    mean, std = float(np.nanmean(rewards)), float(np.nanstd(rewards))
    return [(_float(r) - mean) / std for r in groups]


ESTIMATORS: dict[str, Estimator] = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "rloo": rloo,
    "reinforce_pp": reinforce_pp,
}
#: Estimators whose baseline is the own group: they need `MIN_SCORED` scored rollouts in it.
GROUP_RELATIVE: frozenset[str] = frozenset({"grpo", "dr_grpo", "rloo"})


def normalise_by_batch(advantages: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Divide by the standard deviation of all advantages of the batch (ScaleRL, arXiv 2510.13786 §3.2).

    Only the scale changes, not the sign or the zero. Advantages that are all (nearly) equal stay as they are.
    """
    everything = np.concatenate(advantages) if len(advantages) else np.empty(0)
    if not has_signal(everything):
        return list(advantages)
    return [a / np.nanstd(everything) for a in advantages]


def compute_advantages(
    groups: Sequence[Group],
    estimator: str | Estimator,
    *,
    batch_normalise: bool = False,
    mask_truncated: bool = False,
) -> list[np.ndarray]:
    """One array (G,) of advantages a group, NaN where the rollout is masked.

    `estimator` is a name of `ESTIMATORS` or a function of the same signature. With `mask_truncated` a rollout
    that was cut off counts as masked: it takes part in no baseline either. Under a group-relative estimator
    a group with fewer than two scored rollouts is NaN throughout. Raises `UsageError` for an unknown name,
    and for a function that returns other shapes or infinite values.
    """
    rewards = [group_rewards(group, mask_truncated=mask_truncated) for group in groups]
    if estimator in GROUP_RELATIVE:
        rewards = [r if np.isfinite(r).sum() >= MIN_SCORED else np.full_like(r, np.nan) for r in rewards]
    advantages = _checked(find_estimator(estimator)(rewards), rewards, estimator)
    return normalise_by_batch(advantages) if batch_normalise else advantages


def _checked(advantages: Any, rewards: Rewards, estimator: str | Estimator) -> list[np.ndarray]:
    """What an estimator returned, in float64; NaN wherever there is no reward, whatever it says of these."""
    found = [np.asarray(a, dtype=np.float64) for a in advantages]
    expected, shapes = [r.shape for r in rewards], [a.shape for a in found]
    if shapes != expected:
        raise UsageError(f"estimator {estimator} returned arrays of the shapes {shapes}, not {expected}")
    if any(np.isinf(a).any() for a in found):
        raise UsageError(f"estimator {estimator} returned infinite advantages")
    return [np.where(np.isnan(r), np.nan, a) for r, a in zip(rewards, found, strict=True)]


def find_estimator(estimator: str | Estimator) -> Estimator:
    """The function of that name, or the `module:function`; a function passes through. Raises `UsageError`
    for an unknown name."""
    if callable(estimator):
        return estimator
    if ":" in estimator:
        return load_function("estimator", estimator)
    if estimator not in ESTIMATORS:
        raise UsageError(
            f"unknown estimator {estimator!r}: expected one of {', '.join(ESTIMATORS)}, "
            "module:function, or a function"
        )
    return ESTIMATORS[estimator]


def filter_groups(
    groups: Sequence[Group], *, mask_truncated: bool = False
) -> tuple[list[Group], list[Group]]:
    """`(kept, filtered)`: filtered are groups that teach nothing group-relative, because fewer than two of
    their rollouts are scored or because all scores are the same (within 1e-6)."""
    kept: list[Group] = []
    filtered: list[Group] = []
    for group in groups:
        teaches = has_signal(group_rewards(group, mask_truncated=mask_truncated))
        (kept if teaches else filtered).append(group)
    return kept, filtered


def group_rewards(group: Group, *, mask_truncated: bool = False) -> np.ndarray:
    """(G,) float64 rewards as the verifier gave them, NaN for rollouts without one (and, with
    `mask_truncated`, for those that were cut off)."""
    rewards = [
        np.nan if r.reward is None or (mask_truncated and r.truncated) else r.reward for r in group.rollouts
    ]
    return np.array(rewards, dtype=np.float64)


def has_signal(values: np.ndarray) -> bool:
    """Whether at least two of the values are present (not NaN) and they are not all the same."""
    present = values[np.isfinite(values)]
    return len(present) >= MIN_SCORED and float(np.ptp(present)) > ZERO_SPREAD


def _centred(rewards: np.ndarray) -> np.ndarray:
    rewards = _float(rewards)
    return rewards - np.nanmean(rewards) if np.isfinite(rewards).any() else rewards


def _std(rewards: np.ndarray) -> float:
    return float(np.nanstd(_float(rewards)))


def _float(rewards: np.ndarray) -> np.ndarray:
    return np.asarray(rewards, dtype=np.float64)
