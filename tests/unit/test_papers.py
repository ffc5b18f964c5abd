"""Each paper's whole objective (advantages, ratios, every mean) in plain loops, against what the settings of
docs/learner.md make of the same two groups of three answers: value, and gradient of every token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from reasoner.config import load_config
from reasoner.learner import LearnerConfig
from reasoner.losses import PolicyTensors, find_loss
from reasoner.types import Group, Rollout, Task, Verdict
from reasoner.update import prepare_update

TASK = Task("t", "?", "!")
REWARDS = [[1, 0, 0], [1, 1, 0]]
TOKENS = [[2, 1, 4], [3, 1, 2]]  # of each answer, after a prompt of two
MAX_TOKENS = 5
EPS = (0.2, 0.28)
NARROW = (3e-4, 4e-4)  # GSPO §5.1
CAP = 1.1


@dataclass
class Answer:
    advantage: float
    logprobs: list[Tensor]  # of its tokens, a scalar each, with gradient
    old: list[float]  # under the policy that sampled


def ratios(answer: Answer) -> list[Tensor]:
    return [(new - old).exp() for new, old in zip(answer.logprobs, answer.old, strict=True)]


def clipped(ratio: Tensor, advantage: float, eps: tuple[float, float]) -> Tensor:
    inside = torch.clamp(ratio, 1 - eps[0], 1 + eps[1])
    return torch.minimum(ratio * advantage, inside * advantage)


def grpo(group: list[Answer]) -> Tensor:
    """arXiv 2402.03300 eq. 3, without its KL term."""
    total = torch.zeros(())
    for answer in group:
        for ratio in ratios(answer):
            total = total + clipped(ratio, answer.advantage, (0.2, 0.2)) / len(answer.logprobs)
    return total / len(group)


def dr_grpo(group: list[Answer]) -> Tensor:
    """arXiv 2503.20783 eq. 3 without 1/|o| (§3.2), which a constant replaces (listing 1)."""
    total = torch.zeros(())
    for answer in group:
        for ratio in ratios(answer):
            total = total + clipped(ratio, answer.advantage, (0.2, 0.2)) / MAX_TOKENS
    return total / len(group)


def dapo(group: list[Answer]) -> Tensor:
    """arXiv 2503.14476 eq. 8: one mean over the tokens of a prompt's answers."""
    terms = [clipped(ratio, a.advantage, EPS) for a in group for ratio in ratios(a)]
    return torch.stack(terms).mean()


def gspo(group: list[Answer]) -> Tensor:
    """arXiv 2507.18071 eq. 5, with the ratio of eq. 7."""
    total = torch.zeros(())
    for answer in group:
        log_ratios = [new - old for new, old in zip(answer.logprobs, answer.old, strict=True)]
        total = total + clipped(torch.stack(log_ratios).mean().exp(), answer.advantage, NARROW)
    return total / len(group)


def cispo(group: list[Answer]) -> Tensor:
    """arXiv 2506.13585 eq. 4 and 5, and with other advantages arXiv 2510.13786 §4 (ScaleRL)."""
    terms = [
        ratio.detach().clamp(max=CAP) * a.advantage * new
        for a in group
        for ratio, new in zip(ratios(a), a.logprobs, strict=True)
    ]
    return torch.stack(terms).mean()


def by_group_deviation(rewards: list[list[int]]) -> list[list[float]]:
    return [[(r - np.mean(group)) / np.std(group) for r in group] for group in rewards]


def centred(rewards: list[list[int]]) -> list[list[float]]:
    return [[r - np.mean(group) for r in group] for group in rewards]


def by_batch_deviation(rewards: list[list[int]]) -> list[list[float]]:
    advantages = centred(rewards)
    return [[a / np.std(advantages) for a in group] for group in advantages]


PPO = {"loss": "ppo_clip", "clip": "0.2,0.2", "ratio_cap": 0, "batch_normalise": False}
#: name: the objective of one prompt, the advantages, the settings under [learner].
PAPERS: dict[str, tuple[Callable, Callable, dict]] = {
    "GRPO": (grpo, by_group_deviation, PPO | {"estimator": "grpo", "aggregation": "sequence"}),
    "Dr. GRPO": (dr_grpo, centred, PPO | {"estimator": "dr_grpo", "aggregation": "constant"}),
    "DAPO": (
        dapo,
        by_group_deviation,
        PPO | {"estimator": "grpo", "clip": "0.2,0.28", "aggregation": "prompt"},
    ),
    "GSPO": (
        gspo,
        by_group_deviation,
        PPO | {"estimator": "grpo", "loss": "gspo", "clip": "3e-4,4e-4", "aggregation": "sequence"},
    ),
    "CISPO": (
        cispo,
        by_group_deviation,
        {"estimator": "grpo", "batch_normalise": False, "ratio_cap": CAP, "aggregation": "prompt"},
    ),
    "ScaleRL": (cispo, by_batch_deviation, {"estimator": "dr_grpo", "ratio_cap": CAP}),
}


def rollout(reward: int, old: list[float]) -> Rollout:
    mask = np.arange(2 + len(old)) >= 2
    return Rollout(
        task=TASK,
        token_ids=np.arange(len(mask), dtype=np.int32),
        action_mask=mask,
        behaviour_logprobs=np.array([0.0, 0.0, *old], dtype=np.float32),
        policy_version=np.where(mask, 0, -1).astype(np.int32),
        completion="",
        terminated=True,
        truncated=False,
        verdict=Verdict.correct() if reward else Verdict.wrong("?"),
    )


@pytest.mark.parametrize("name", PAPERS)
def test_the_settings_are_the_paper_s_objective(name):
    objective, advantages, settings = PAPERS[name]
    rng = np.random.default_rng(1)
    old = [[np.float32(rng.normal(-1, 0.3, n)).tolist() for n in lengths] for lengths in TOKENS]
    theta = [
        [[torch.tensor(v + rng.normal(0, 0.25), requires_grad=True) for v in answer] for answer in group]
        for group in old
    ]
    prompts = [
        [Answer(a, *of) for a, *of in zip(*row, strict=True)]
        for row in zip(advantages(REWARDS), theta, old, strict=True)
    ]
    expected = -torch.stack([objective(group) for group in prompts]).mean()  # over prompts
    leaves = [logprob for group in theta for answer in group for logprob in answer]
    gradient = torch.stack(torch.autograd.grad(expected, leaves))

    flags = {f"learner.{key}": value for key, value in settings.items()}
    config = load_config(None, {**flags, "rollout.max_tokens": MAX_TOKENS})
    groups = [
        Group(TASK, tuple(rollout(*answer) for answer in zip(*group, strict=True)))
        for group in zip(REWARDS, old, strict=True)
    ]
    batch = prepare_update(groups, config).batch
    mask = torch.from_numpy(batch.action_mask)
    logprobs = torch.zeros(batch.num_tokens).masked_scatter(mask, torch.stack(leaves).float())
    behaviour = torch.from_numpy(batch.behaviour_logprobs)
    tensors = PolicyTensors(
        logprobs=logprobs,
        behaviour_logprobs=behaviour,
        prox_logprobs=behaviour,  # the papers know one old policy
        advantages=torch.from_numpy(batch.advantages),
        action_mask=mask,
        loss_weight=torch.from_numpy(batch.loss_weight),
        cu_seqlens=torch.from_numpy(batch.cu_seqlens).long(),
    )
    learner = LearnerConfig.of(config.learner)
    loss, stats = find_loss(learner.loss)(tensors, *learner.eps, learner.ratio_cap or None)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(torch.stack(torch.autograd.grad(loss, leaves)), gradient, atol=1e-6, rtol=1e-5)
    assert 0 < stats["clip_rate"] < len(leaves), "clipping decides something here"
