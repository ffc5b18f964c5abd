"""Losses: small numbers by hand, gradients against the written-out formulas, clipping where it belongs."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from reasoner.errors import UsageError
from reasoner.losses import (
    DEFAULT_EPS,
    LOSSES,
    PolicyTensors,
    cispo,
    find_loss,
    gspo,
    kl_to_reference,
    ppo_clip,
    reinforce,
)


def tensors(ratios, advantages, *, prox_ratios=None, mask=None, weight=None, cu=None) -> PolicyTensors:
    """Tokens with pi_theta / pi_mu = ratios and, if given, pi_theta / pi_prox = prox_ratios; pi_mu = 1/2."""
    n = len(ratios)
    ratio = torch.tensor(ratios, dtype=torch.float64)
    behaviour = torch.full((n,), math.log(0.5), dtype=torch.float64)
    logprobs = (behaviour + ratio.log()).requires_grad_()
    prox = None
    if prox_ratios is not None:
        prox = logprobs.detach() - torch.tensor(prox_ratios, dtype=torch.float64).log()
    return PolicyTensors(
        logprobs=logprobs,
        behaviour_logprobs=behaviour,
        prox_logprobs=prox,
        advantages=torch.tensor(advantages, dtype=torch.float64),
        action_mask=torch.ones(n, dtype=torch.bool) if mask is None else torch.tensor(mask),
        loss_weight=torch.ones(n, dtype=torch.float64) if weight is None else torch.tensor(weight).double(),
        cu_seqlens=torch.tensor([0, n] if cu is None else cu),
    )


def gradient(loss_fn, t, *args) -> list[float]:
    loss, _ = loss_fn(t, *args)
    (grad,) = torch.autograd.grad(loss, t.logprobs)
    return grad.tolist()


def test_reinforce_by_hand():
    t = tensors([1.0, 3.0, 0.5], [2.0, 1.0, -1.0])
    # d/dlogp of -w A logp is -w A, w = min(r, 2)
    assert gradient(reinforce, t, 0, 0, 2.0) == pytest.approx([-2.0, -2.0, 0.5])
    loss, stats = reinforce(t, 0, 0, 2.0)
    logp = [math.log(0.5), math.log(1.5), math.log(0.25)]
    assert loss.item() == pytest.approx(-2 * logp[0] - 2 * logp[1] + 0.5 * logp[2])
    assert stats["clip_rate"].item() == 1
    assert gradient(reinforce, t, 0, 0, None) == pytest.approx([-2.0, -1.0, 1.0])


def test_cispo_by_hand():
    t = tensors([1.0, 9.0, 0.1], [2.0, 1.0, -1.0])
    assert gradient(cispo, t, 0.2, 0.2, 5.0) == pytest.approx([-2.0, -5.0, 0.1])
    _, stats = cispo(t, 0.2, 0.2, 5.0)
    assert stats["clip_rate"].item() == 1


def test_ppo_by_hand():
    ratios = [1.0, 1.5, 1.5, 0.5, 0.5]
    advantages = [1.0, 1.0, -1.0, 1.0, -1.0]
    t = tensors(ratios, advantages, prox_ratios=ratios)
    loss, stats = ppo_clip(t, 0.2, 0.3, None)
    # -min(r A, clip(r, 0.8, 1.3) A): 1, 1.3 (clipped), -1.5, 0.5, -0.8 (clipped)
    assert loss.item() == pytest.approx(-(1.0 + 1.3 - 1.5 + 0.5 - 0.8))
    assert stats["clip_rate"].item() == 2
    assert (stats["clip_rate_high"].item(), stats["clip_rate_low"].item()) == (1, 1)
    # the gradient of an unclipped token is -r A, of a clipped one 0
    assert gradient(ppo_clip, t, 0.2, 0.3, None) == pytest.approx([-1.0, 0.0, 1.5, -0.5, 0.0])


def test_ppo_corrects_the_sampler_by_the_truncated_ratio():
    # pi_theta / pi_mu = 3 and 1.2, pi_theta / pi_prox = 1 and 1.2, so pi_prox / pi_mu = 3 and 1
    t = tensors([3.0, 1.2], [1.0, 1.0], prox_ratios=[1.0, 1.2])
    assert gradient(ppo_clip, t, 0.5, 0.5, 2.0) == pytest.approx([-2.0, -1.2])
    assert ppo_clip(t, 0.5, 0.5, 2.0)[1]["tis_rate"].item() == 1
    assert ppo_clip(t, 0.5, 0.5, None)[1]["tis_rate"].item() == 0


def test_without_prox_the_ratio_is_one_and_the_gradient_that_of_reinforce():
    t = tensors([1.7, 0.4, 1.0], [1.0, -2.0, 0.5])
    for loss_fn in (ppo_clip, gspo):
        loss, stats = loss_fn(t, 0.0, 0.0, None)
        assert loss.item() == pytest.approx(-(1.0 - 2.0 + 0.5))
        assert stats["clip_rate"].item() == 0
    assert gradient(ppo_clip, t, 0.2, 0.2, None) == pytest.approx(gradient(reinforce, t, 0, 0, None))
    assert gradient(ppo_clip, t, 0.2, 0.2, 1.5) == pytest.approx(gradient(reinforce, t, 0, 0, 1.5))


def test_gspo_by_hand():
    # two rollouts; the first token of each is a prompt. Ratios 4 and 1: s = 2; ratio 1.1: s = 1.1
    t = tensors(
        [1.0, 4.0, 1.0, 1.0, 1.1],
        [0.0, 1.0, 1.0, 0.0, 1.0],
        prox_ratios=[1.0, 4.0, 1.0, 1.0, 1.1],
        mask=[False, True, True, False, True],
        weight=[0.0, 0.25, 0.25, 0.0, 0.5],
        cu=[0, 3, 5],
    )
    loss, stats = gspo(t, 0.2, 1.5, None)
    assert loss.item() == pytest.approx(-(0.5 * 2.0 + 0.5 * 1.1))
    # d s / d logp_t = s / T: -0.5 * 2 / 2 for both tokens of the first rollout
    assert gradient(gspo, t, 0.2, 1.5, None) == pytest.approx([0.0, -0.5, -0.5, 0.0, -0.55])
    assert stats["clip_rate"].item() == 0
    # s = 2 is clipped at 1.5, with all tokens of its rollout, prompt not counted
    assert gradient(gspo, t, 0.2, 0.5, None) == pytest.approx([0.0, 0.0, 0.0, 0.0, -0.55])
    assert gspo(t, 0.2, 0.5, None)[1]["clip_rate"].item() == 2


def test_gspo_corrects_the_sampler_per_rollout():
    # pi_theta = pi_prox; pi_prox / pi_mu = 16 and 1: geometric mean 4, truncated at 3
    t = tensors([16.0, 1.0], [1.0, 1.0], prox_ratios=[1.0, 1.0], weight=[0.5, 0.5])
    assert gradient(gspo, t, 0.2, 0.2, 3.0) == pytest.approx([-1.5, -1.5])


def written_out(name: str, t: PolicyTensors, low: float, high: float, cap: float) -> torch.Tensor:
    """The formulas once more, a rollout and a token at a time, in plain Python."""
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(t.cu_seqlens) - 1):
        actions = [p for p in range(int(t.cu_seqlens[i]), int(t.cu_seqlens[i + 1])) if t.action_mask[p]]
        mean_ratio = torch.stack([t.logprobs[p] - t.prox_logprobs[p] for p in actions]).mean().exp()
        mean_fix = torch.stack([t.prox_logprobs[p] - t.behaviour_logprobs[p] for p in actions]).mean().exp()
        for p in actions:
            a, w = t.advantages[p], t.loss_weight[p]
            behaviour_ratio = (t.logprobs[p] - t.behaviour_logprobs[p]).exp().item()
            if name in ("reinforce", "cispo"):
                total = total - w * min(behaviour_ratio, cap) * a * t.logprobs[p]
                continue
            per_token = (t.logprobs[p] - t.prox_logprobs[p]).exp()
            fix_per_token = (t.prox_logprobs[p] - t.behaviour_logprobs[p]).exp()
            r, fix = (mean_ratio, mean_fix) if name == "gspo" else (per_token, fix_per_token)
            surrogate = r * a if (r * a).item() <= (r.clamp(1 - low, 1 + high) * a).item() else None
            surrogate = r.clamp(1 - low, 1 + high).detach() * a if surrogate is None else surrogate
            total = total - w * min(fix.item(), cap) * surrogate
    return total


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_value_and_gradient_equal_the_written_out_formula(name):
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    n, cu = 40, torch.tensor([0, 5, 17, 40])
    mask = torch.rand(n, generator=generator) < 0.7
    logprobs = (random(n) * 0.5 - 1).requires_grad_()
    t = PolicyTensors(
        logprobs=logprobs,
        behaviour_logprobs=logprobs.detach() + 0.4 * random(n),
        prox_logprobs=logprobs.detach() + 0.3 * random(n),
        advantages=random(n) * mask,
        action_mask=mask,
        loss_weight=random(n).abs() * mask,
        cu_seqlens=cu,
    )
    loss, stats = LOSSES[name](t, 0.02, 0.03, 1.2)
    expected = written_out(name, t, 0.02, 0.03, 1.2)
    assert loss.item() == pytest.approx(expected.item())
    (grad,) = torch.autograd.grad(loss, logprobs)
    (expected_grad,) = torch.autograd.grad(expected, logprobs)
    torch.testing.assert_close(grad, expected_grad)
    assert 0 < stats["clip_rate"].item() < int(mask.sum())


@pytest.mark.parametrize("edge", [1.2, 0.8])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_ppo_clips_just_beyond_the_edge_and_only_in_the_advantage_s_direction(edge, advantage):
    for nudge in (-1e-6, 1e-6):
        t = tensors([edge + nudge], [advantage], prox_ratios=[edge + nudge])
        (grad,) = gradient(ppo_clip, t, 0.2, 0.2, None)
        beyond = nudge > 0 if edge > 1 else nudge < 0
        clipped = beyond and (edge > 1) == (advantage > 0)
        assert (grad == 0) == clipped
        assert ppo_clip(t, 0.2, 0.2, None)[1]["clip_rate"].item() == clipped


@given(
    st.lists(
        st.tuples(st.floats(0.5, 2.0), st.sampled_from([-1.5, -1.0, 1.0, 2.0]), st.integers(1, 4)),
        min_size=1,
        max_size=5,
    ),
    st.floats(0.05, 0.4),
    st.floats(0.05, 0.4),
)
def test_gspo_clips_whole_rollouts_exactly_where_the_paper_does(rollouts, low, high):
    """Eq. 5: no gradient where s > 1 + eps_high and A > 0, or s < 1 - eps_low and A < 0, and only there."""
    ratios = [s for s, _, tokens in rollouts for _ in range(tokens)]  # equal in a rollout: s is their mean
    advantages = [a for _, a, tokens in rollouts for _ in range(tokens)]
    cu = [0, *itertools.accumulate(tokens for _, _, tokens in rollouts)]
    assume(all(abs(s - edge) > 1e-9 for s in ratios for edge in (1 - low, 1 + high)))
    t = tensors(ratios, advantages, prox_ratios=ratios, cu=cu)
    clipped = [
        (s > 1 + high and a > 0) or (s < 1 - low and a < 0) for s, a in zip(ratios, advantages, strict=True)
    ]
    assert [g == 0 for g in gradient(gspo, t, low, high, None)] == clipped
    assert gspo(t, low, high, None)[1]["clip_rate"].item() == sum(clipped)


@given(st.lists(st.tuples(st.floats(0.01, 20), st.floats(-2, 2)), min_size=1, max_size=9), st.floats(0.5, 9))
def test_cispo_bounds_the_weight_of_a_token_and_never_drops_its_gradient(tokens, cap):
    """Eq. 4 and 5: the gradient is -min(r, cap) A whatever the side, and `clip_rate` counts r > cap."""
    ratios, advantages = zip(*tokens, strict=True)
    assume(all(abs(r - cap) > 1e-9 for r in ratios))
    t = tensors(ratios, advantages)
    expected = [-min(r, cap) * a for r, a in tokens]
    for loss_fn in (cispo, reinforce):
        assert gradient(loss_fn, t, 0.2, 0.2, cap) == pytest.approx(expected)
        assert loss_fn(t, 0.2, 0.2, cap)[1]["clip_rate"].item() == sum(r > cap for r in ratios)


@given(st.permutations(range(4)), st.integers(0, 2**16))
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_the_order_of_the_rollouts_changes_nothing(name, order, seed):
    generator = torch.Generator().manual_seed(seed)
    lengths = [3, 1, 5, 2]
    ends = list(itertools.accumulate(lengths))
    tokens = [torch.arange(end - n, end) for end, n in zip(ends, lengths, strict=True)]
    index = torch.cat([tokens[i] for i in order])
    values = torch.randn(4, ends[-1], generator=generator, dtype=torch.float64)
    mask, weight = values[3] > -1, values[3].abs()

    def of(index, lengths):
        logprobs = values[0][index].clone().requires_grad_()
        fixed = [logprobs.detach() + 0.3 * v[index] for v in values[1:3]]
        cu = torch.tensor([0, *itertools.accumulate(lengths)])
        t = PolicyTensors(
            logprobs, *fixed, values[2][index], mask[index], (weight * mask)[index], cu_seqlens=cu
        )
        loss, stats = LOSSES[name](t, 0.1, 0.1, 1.5)
        return loss, stats, torch.autograd.grad(loss, logprobs)[0]

    loss, stats, grad = of(torch.arange(ends[-1]), lengths)
    permuted, permuted_stats, permuted_grad = of(index, [lengths[i] for i in order])
    assert permuted.item() == pytest.approx(loss.item())
    assert {k: v.item() for k, v in permuted_stats.items()} == {k: v.item() for k, v in stats.items()}
    torch.testing.assert_close(permuted_grad, grad[index])


def test_kl_to_reference_by_hand():
    logprobs = torch.tensor([-1.0, -2.0], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([-1.0, -2.0 + math.log(2)], dtype=torch.float64)
    kl = kl_to_reference(logprobs, reference)
    assert kl.tolist() == pytest.approx([0.0, 2 - math.log(2) - 1])
    kl.sum().backward()
    assert logprobs.grad.tolist() == pytest.approx([0.0, 1 - 2])  # d k3 / d logp = 1 - pi_ref / pi


def test_names_and_functions():
    def own(t, eps_low, eps_high, ratio_cap):
        return t.logprobs.sum(), {}

    assert find_loss(own) is own
    assert find_loss("cispo") is cispo
    assert set(DEFAULT_EPS) <= set(LOSSES)
    with pytest.raises(UsageError, match="cispo"):
        find_loss("grpo")
