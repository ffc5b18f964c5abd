"""Policy-gradient losses over packed tokens: pure functions of a few lines, each beside its paper's equation.

Three policies meet here, per token t:
- pi_theta  (`logprobs`): the policy being trained, the only one with a gradient;
- pi_mu     (`behaviour_logprobs`): the one that sampled the token, as the sampler reported it;
- pi_prox   (`prox_logprobs`): the learner's policy when the batch arrived. None says that it is the current
  policy, which holds for the first optimizer step on a batch and saves a forward pass.

A loss takes `PolicyTensors` and three numbers and returns `(loss, stats)`: the loss is
`sum(loss_weight * token_loss)` (all denominators are in the weights), the stats are sums over action tokens,
which the learner divides by their number. Any function of this signature can be used in place of a name.
Left out: a value loss and an entropy bonus (the policy gradient here is value-free, and a bonus needs
gradients through the entropy, which `token_logprobs` does not keep).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from reasoner.errors import UsageError
from reasoner.plugins import load_function


@dataclass(frozen=True)
class PolicyTensors:
    """One micro-batch of whole rollouts, N packed tokens. Off the action mask values mean nothing."""

    logprobs: Tensor  # (N,) float32, log pi_theta, with gradient
    behaviour_logprobs: Tensor  # (N,) float32, log pi_mu
    prox_logprobs: Tensor | None  # (N,) float32, log pi_prox; None: the current policy
    advantages: Tensor  # (N,) float32
    action_mask: Tensor  # (N,) bool
    loss_weight: Tensor  # (N,) float32, 0 off the action mask
    cu_seqlens: Tensor  # (R + 1,) int64


Stats = dict[str, Tensor]
#: (tensors, eps_low, eps_high, ratio_cap) -> (scalar loss, sums over action tokens)
LossFn = Callable[[PolicyTensors, float, float, float | None], tuple[Tensor, Stats]]


def reinforce(
    t: PolicyTensors, eps_low: float, eps_high: float, ratio_cap: float | None
) -> tuple[Tensor, Stats]:
    """REINFORCE with truncated importance sampling: -sg(min(pi_theta / pi_mu, cap)) A log pi_theta.

    Williams 1992; the truncation is that of IMPALA (arXiv 1802.01561 §4.1). Without a cap (`ratio_cap` None)
    there is no ratio at all, which is on-policy REINFORCE. The eps are not used.
    """
    log_ratio = (t.logprobs - t.behaviour_logprobs).detach()  # (N,)
    weight = torch.ones_like(log_ratio) if ratio_cap is None else _truncated(log_ratio, ratio_cap)
    truncated = torch.zeros_like(t.action_mask) if ratio_cap is None else log_ratio.exp() > ratio_cap
    return _total(-weight * t.advantages * t.logprobs, t), _rates(t, clip_rate=truncated)


def ppo_clip(
    t: PolicyTensors, eps_low: float, eps_high: float, ratio_cap: float | None
) -> tuple[Tensor, Stats]:
    """PPO's clipped surrogate (arXiv 1707.06347 eq. 7) with two epsilons (DAPO, arXiv 2503.14476 eq. 10):
    -min(r A, clip(r, 1 - eps_low, 1 + eps_high) A), r = pi_theta / pi_prox.

    Decoupled from the sampler (arXiv 2110.00641 §3): times sg(min(pi_prox / pi_mu, cap)), unless cap is None.
    """
    prox = _prox(t)
    ratio = (t.logprobs - prox).exp()  # (N,)
    return _clipped_and_corrected(t, ratio, prox - t.behaviour_logprobs, eps_low, eps_high, ratio_cap)


def cispo(t: PolicyTensors, eps_low: float, eps_high: float, ratio_cap: float | None) -> tuple[Tensor, Stats]:
    """CISPO (arXiv 2506.13585 eq. 4 and 5): -sg(min(r, cap)) A log pi_theta, r = pi_theta / pi_mu.

    The cap is the paper's 1 + eps_high and ScaleRL's single constant (arXiv 2510.13786 eq. 4); as in their
    runs there is no lower bound. No token loses its gradient: only its weight is bounded. The eps are not
    used, and no further correction is needed: the ratio is to the behaviour policy.
    """
    log_ratio = (t.logprobs - t.behaviour_logprobs).detach()  # (N,)
    cap = math.inf if ratio_cap is None else ratio_cap
    loss = -_truncated(log_ratio, cap) * t.advantages * t.logprobs
    return _total(loss, t), _rates(t, clip_rate=log_ratio.exp() > cap)


def gspo(t: PolicyTensors, eps_low: float, eps_high: float, ratio_cap: float | None) -> tuple[Tensor, Stats]:
    """GSPO (arXiv 2507.18071 eq. 5 and 7): -min(s A, clip(s, 1 - eps_low, 1 + eps_high) A) with one ratio a
    rollout, s = (pi_theta(y) / pi_prox(y))^(1 / T), the geometric mean over its T action tokens.

    Every token of a rollout has this loss, so that eq. 5, where each rollout counts once, needs
    `aggregation = "sequence"`. The sampler's mismatch is corrected on the same level: times
    sg(min((pi_prox(y) / pi_mu(y))^(1 / T), cap)).
    """
    prox = _prox(t)
    ratio = _rollout_mean(t.logprobs - prox, t).exp()  # (N,), the same at all tokens of a rollout
    mismatch = _rollout_mean(prox - t.behaviour_logprobs, t)
    return _clipped_and_corrected(t, ratio, mismatch, eps_low, eps_high, ratio_cap)


LOSSES: dict[str, LossFn] = {"reinforce": reinforce, "ppo_clip": ppo_clip, "cispo": cispo, "gspo": gspo}

#: (eps_low, eps_high) where the user names none: DAPO §4.1 and GSPO §5.1. The others do not use them.
DEFAULT_EPS: dict[str, tuple[float, float]] = {"ppo_clip": (0.2, 0.28), "gspo": (3e-4, 4e-4)}


def find_loss(loss: str | LossFn) -> LossFn:
    """The function of that name, or the `module:function`; a function passes through. Raises `UsageError`
    for an unknown name."""
    if callable(loss):
        return loss
    if ":" in loss:
        return load_function("loss", loss)
    if loss not in LOSSES:
        raise UsageError(
            f"unknown loss {loss!r}: expected one of {', '.join(LOSSES)}, module:function, or a function"
        )
    return LOSSES[loss]


def kl_to_reference(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """(N,) k3 = pi_ref / pi_theta - log(pi_ref / pi_theta) - 1 of each token (GRPO, arXiv 2402.03300 eq. 4;
    J. Schulman, "Approximating KL divergence", 2020): never negative, unbiased on policy.

    logprobs, reference_logprobs: (N,). Stale tokens are not reweighted.
    """
    log_ratio = reference_logprobs - logprobs
    return torch.expm1(log_ratio) - log_ratio


def _clipped_and_corrected(
    t: PolicyTensors,
    ratio: Tensor,
    log_mismatch: Tensor,
    eps_low: float,
    eps_high: float,
    ratio_cap: float | None,
) -> tuple[Tensor, Stats]:
    """-min(r A, clip(r, 1 - eps_low, 1 + eps_high) A) times sg(min(exp(log_mismatch), cap)), all (N,)."""
    clipped = ratio.clamp(1 - eps_low, 1 + eps_high)
    loss = -torch.minimum(ratio * t.advantages, clipped * t.advantages)
    if ratio_cap is not None:
        loss = loss * _truncated(log_mismatch, ratio_cap)
    # Where the clipped term is the minimum, no gradient flows.
    high = (t.advantages > 0) & (ratio > 1 + eps_high)
    low = (t.advantages < 0) & (ratio < 1 - eps_low)
    truncated = torch.zeros_like(high) if ratio_cap is None else log_mismatch.exp() > ratio_cap
    return _total(loss, t), _rates(
        t, clip_rate=high | low, clip_rate_high=high, clip_rate_low=low, tis_rate=truncated
    )


def _truncated(log_ratio: Tensor, cap: float) -> Tensor:
    return log_ratio.exp().clamp(max=cap)


def _prox(t: PolicyTensors) -> Tensor:
    return t.logprobs.detach() if t.prox_logprobs is None else t.prox_logprobs


def _rollout_mean(values: Tensor, t: PolicyTensors) -> Tensor:
    """(N,) at every token the mean of `values` (N,) over the action tokens of its rollout."""
    lengths = t.cu_seqlens.diff()
    rollout = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)  # (N,)
    mask = t.action_mask.to(values.dtype)
    sums = torch.zeros(len(lengths), dtype=values.dtype, device=values.device)
    counts = sums.index_add(0, rollout, mask).clamp(min=1.0)  # (R,)
    return (sums.index_add(0, rollout, values * mask) / counts)[rollout]


def _total(token_loss: Tensor, t: PolicyTensors) -> Tensor:
    return (t.loss_weight * token_loss).sum()


def _rates(t: PolicyTensors, **flags: Tensor) -> Stats:
    return {name: (flag & t.action_mask).sum() for name, flag in flags.items()}
