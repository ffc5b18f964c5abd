"""The learner on a tiny random model: exact logprobs, exact gradients, exact resume, bad numbers refused."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_learner import (
    LENGTHS,
    PROMPT,
    V,
    learner,
    make_batch,
    make_model,
    on_policy_batch,
    reference_logprobs,
    token_ids,
    weights,
)
from transformers import AutoModelForCausalLM, Gemma2Config

from reasoner.batch import select_rollouts
from reasoner.config import Config, load_config
from reasoner.errors import BrokenPolicyError, UsageError
from reasoner.learner import Learner, LearnerConfig
from reasoner.losses import PolicyTensors, cispo
from reasoner.update_metrics import importance_metrics


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"))


def test_score_equals_transformers_in_any_micro_batch(model_dir):
    plain = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    expected = [reference_logprobs(plain, ids).detach().numpy() for ids in token_ids()]
    for budget in (1, 25, 10_000):
        scored = learner(model_dir, micro_batch_tokens=budget).score(token_ids())
        for a, b in zip(scored, expected, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
    assert learner(model_dir).score([]) == []


def test_update_is_the_gradient_of_the_formula(model_dir):
    """The first AdamW step is -lr g / (|g| + eps): compared through the norm and the sign of the gradient."""
    batch = on_policy_batch(model_dir)
    plain = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    logprobs = torch.cat([reference_logprobs(plain, ids) for ids in token_ids()])
    loss = -(torch.from_numpy(batch.loss_weight * batch.advantages) * logprobs).sum()
    loss.backward()
    grads = {name: p.grad for name, p in plain.named_parameters()}
    norm = torch.stack([g.norm() for g in grads.values()]).norm().item()

    for budget in (1, 10_000):
        trained = learner(model_dir, micro_batch_tokens=budget)
        before = weights(trained)
        result = trained.update(batch)
        assert result.metrics["loss"] == pytest.approx(loss.item(), abs=1e-5)
        assert result.metrics["grad_norm"] == pytest.approx(norm, rel=1e-4)
        for name, after in weights(trained).items():
            clear = grads[name].abs() > 1e-5
            step = (after - before[name])[clear]
            torch.testing.assert_close(step, -1e-2 * grads[name][clear].sign(), atol=2e-5, rtol=0)


def test_weights_may_be_read_beside_an_update_until_its_step(model_dir):
    """What a weight sync does in asynchronous mode: neither notices the other."""
    batch, scores, waited_s = on_policy_batch(model_dir), [], []
    alone = learner(model_dir, micro_batch_tokens=20)
    expected = np.concatenate(alone.score(token_ids()))
    result = alone.update(batch)

    trained = learner(model_dir, micro_batch_tokens=20)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(lambda: scores.extend(trained.score(token_ids()) for _ in range(50)))
        trained.before_step = lambda: waited_s.append(_timed(reading.result))
        started = time.perf_counter()
        beside = trained.update(batch)
        total_s = time.perf_counter() - started
    assert len(scores) == 50
    assert all(np.array_equal(np.concatenate(score), expected) for score in scores)
    assert beside.metrics["loss"] == result.metrics["loss"]
    after = weights(alone)
    assert all(torch.equal(weight, after[name]) for name, weight in weights(trained).items())
    assert beside.metrics["update_seconds"] <= total_s - sum(waited_s), "waiting is no work"


def _timed(wait):
    started = time.perf_counter()
    wait()
    return time.perf_counter() - started


def test_the_noise_scale_comes_from_the_gradients_of_every_other_prompt(model_dir):
    batch = on_policy_batch(model_dir)  # prompts 0, 1, 2: the first half is 0 and 2, 49 - 12 of 49 - 9 tokens
    squares = []
    for chosen in (np.array([0, 1, 4, 5]), np.arange(6)):
        part = select_rollouts(batch, chosen).batch
        mean = replace(part, loss_weight=part.loss_weight / part.loss_weight.sum(), group=None)
        squares.append(learner(model_dir).update(mean).metrics["grad_norm"] ** 2)
    small, big = squares
    trained = learner(model_dir)
    metrics = trained.update(batch).metrics
    assert trained.noise.signal == pytest.approx((3 * big - 2 * small) / (3 - 2), rel=1e-4)
    assert trained.noise.noise == pytest.approx((small - big) / (1 / 2 - 1 / 3), rel=1e-4)
    expected = trained.noise.noise / trained.noise.signal
    assert metrics["grad_noise_scale"] == pytest.approx(expected) or min(trained.noise.signal, expected) < 0
    assert np.isnan(learner(model_dir).update(replace(batch, group=None)).metrics["grad_noise_scale"])


def test_on_policy_metrics_and_planted_faults(model_dir):
    batch = on_policy_batch(model_dir)
    result = learner(model_dir).update(batch)
    metrics = result.metrics
    assert metrics["kl_behaviour"] == pytest.approx(0, abs=1e-9)
    assert metrics["ess"] == pytest.approx(1)
    assert metrics["logprob_diff_max"] < 1e-5
    assert metrics["clip_rate"] == 0 and metrics["skipped_updates"] == 0
    assert 0 < metrics["entropy"] < np.log(V)
    assert metrics["tokens"] == sum(LENGTHS) and metrics["action_tokens"] == batch.num_action_tokens
    assert metrics["flops"] > 6 * sum(LENGTHS) * V * 16
    np.testing.assert_allclose(result.learner_logprobs, batch.behaviour_logprobs, atol=1e-5)
    assert (result.learner_logprobs[~batch.action_mask] == 0).all()

    other_temperature = Learner(model_dir, LearnerConfig(), temperature=1.0).update(batch).metrics
    assert other_temperature["logprob_diff_max"] > 1e-2 and other_temperature["ess"] < 1 - 1e-4
    shifted = replace(batch, behaviour_logprobs=np.roll(batch.behaviour_logprobs, 1))
    assert learner(model_dir).update(shifted).metrics["logprob_diff_max"] > 1e-2


def test_importance_metrics_by_hand(model_dir):
    batch = select_rollouts(on_policy_batch(model_dir), np.array([3])).batch  # one action token
    two = replace(
        batch,
        action_mask=np.array([False, False, True, True]),
        behaviour_logprobs=np.zeros(4, dtype=np.float32),
    )
    metrics = importance_metrics(np.log(np.array([9.0, 9.0, 1.0, 3.0])).astype(np.float32), two)
    assert metrics["ess"] == pytest.approx((1 + 3) ** 2 / (2 * (1 + 9)))
    assert metrics["kl_behaviour"] == pytest.approx((3 - 1 - np.log(3)) / 2)
    assert metrics["ratio_max"] == pytest.approx(3)


def test_what_is_rewarded_becomes_likelier(model_dir):
    trained = learner(model_dir, lr=3e-3)
    for _ in range(10):
        result = trained.update(make_batch(trained.score(token_ids())))
    batch, before = on_policy_batch(model_dir), on_policy_batch(model_dir).behaviour_logprobs
    gain = (np.concatenate(trained.score(token_ids())) - before)[batch.action_mask]
    assert float((gain * batch.advantages[batch.action_mask]).sum()) > 1.0
    assert trained.policy_version == 10 and result.metrics["grad_norm"] > 0


def test_pi_prox_is_the_policy_that_met_the_batch(model_dir):
    """With several minibatches the second one's ratio is to the policy before the first step, not to 1."""
    batch = on_policy_batch(model_dir)
    settings = {"loss": "ppo_clip", "clip": (0.0, 0.0), "lr": 5e-2, "ratio_cap": None}
    one, three = learner(model_dir, **settings), learner(model_dir, **settings, minibatches=3)
    met = np.where(batch.action_mask, np.concatenate(three.score(token_ids())), 0)
    first, second = one.update(batch), three.update(batch)
    assert first.metrics["clip_rate"] == 0
    assert second.metrics["clip_rate"] > 0.1
    np.testing.assert_allclose(first.learner_logprobs, met, atol=1e-5)
    np.testing.assert_allclose(second.learner_logprobs, met, atol=1e-5)
    assert (one.optimizer_steps, three.optimizer_steps) == (1, 3)
    assert one.policy_version == three.policy_version == 1


@pytest.mark.parametrize(("configured", "given"), [(0.0, None), (2.5, 2.5)])
def test_a_ratio_cap_of_0_is_none(model_dir, configured, given):
    caps = []

    def loss(t, eps_low, eps_high, ratio_cap):
        caps.append(ratio_cap)
        return cispo(t, eps_low, eps_high, ratio_cap)

    settings = LearnerConfig.of(load_config(None, {"learner.ratio_cap": configured}).learner)
    Learner(model_dir, replace(settings, loss=loss)).update(on_policy_batch(model_dir))
    assert set(caps) == {given}


@pytest.mark.parametrize("minibatches", [1, 2])
def test_the_three_policies_and_the_forward_that_is_saved(model_dir, minibatches):
    """pi_mu is what the batch says, pi_prox the learner when it came, pi_theta the learner now."""
    batch = make_batch([np.full(n, -2.0, dtype=np.float32) for n in LENGTHS])
    seen: list[PolicyTensors] = []

    def loss(t, *numbers):
        seen.append(t)
        return cispo(t, *numbers)

    trained = learner(model_dir, loss=loss, lr=5e-2, minibatches=minibatches)
    met = np.where(batch.action_mask, np.concatenate(trained.score(token_ids())), 0)
    forwards = []
    trained.policy.register_forward_hook(lambda *call: forwards.append(torch.is_grad_enabled()))
    result = trained.update(batch)
    np.testing.assert_allclose(result.learner_logprobs, met, atol=1e-5)
    assert all((t.behaviour_logprobs[t.action_mask] == -2).all() for t in seen)
    if minibatches == 1:
        assert all(forwards) and all(t.prox_logprobs is None for t in seen)
        now = torch.cat([t.logprobs[t.action_mask] for t in seen])
        np.testing.assert_allclose(np.sort(now.detach()), np.sort(met[batch.action_mask]), atol=1e-5)
        return
    assert forwards[0] is False and all(forwards[1:]), "one forward over the second, before the first step"
    first, second = seen[:2], seen[2:]  # every other prompt, and the others
    assert all(t.prox_logprobs is None for t in first), "they are under the weights that met the batch"
    prox = [t.prox_logprobs[t.action_mask] for t in second]
    met_them = torch.cat([*(t.logprobs.detach()[t.action_mask] for t in first), *prox])
    np.testing.assert_allclose(np.sort(met_them), np.sort(met[batch.action_mask]), atol=1e-5)
    moved = [(t.logprobs - t.prox_logprobs)[t.action_mask].abs().max().item() for t in second]
    assert min(moved) > 1e-2, "the second minibatch is under other weights"
    once, whole = (n.update(batch).metrics["flops"] for n in (learner(model_dir), trained))
    assert 1 < whole / once < 4 / 3, "the forward of the first minibatch is saved"


def test_a_gradient_that_is_not_finite_changes_nothing(model_dir):
    batch = on_policy_batch(model_dir)
    trained = learner(model_dir)
    before = weights(trained)
    bad = batch.advantages.copy()
    bad[PROMPT] = np.inf
    metrics = trained.update(replace(batch, advantages=bad)).metrics
    assert metrics["skipped_updates"] == 1 and not np.isfinite(metrics["grad_norm"])
    assert all(torch.equal(before[name], after) for name, after in weights(trained).items())
    assert trained.policy_version == 1
    assert trained.update(batch).metrics["skipped_updates"] == 1
    assert any(not torch.equal(before[name], after) for name, after in weights(trained).items())


def test_lr_scale_and_gradient_clipping(model_dir):
    batch = on_policy_batch(model_dir)
    still = learner(model_dir)
    before = weights(still)
    assert still.update(batch, lr_scale=0.0).metrics["lr"] == 0
    assert all(torch.equal(before[name], after) for name, after in weights(still).items())
    clipped = learner(model_dir, grad_clip=1e-3)
    clipped.update(batch)
    moments = [s["exp_avg"].norm() for s in clipped.optimizer.state.values()]
    assert torch.stack(moments).norm().item() == pytest.approx(0.1 * 1e-3, rel=1e-3)  # (1 - beta_1) g


def test_save_and_resume_continue_exactly(model_dir, tmp_path):
    batch = on_policy_batch(model_dir)
    straight = learner(model_dir, weight_decay=0.1)
    straight.update(batch)
    straight.save(tmp_path / "hf")
    straight.save_trainer(tmp_path / "hf" / "trainer")
    straight.update(batch)

    resumed = learner(tmp_path / "hf", weight_decay=0.1)
    resumed.load_trainer(tmp_path / "hf" / "trainer")
    assert (resumed.policy_version, resumed.optimizer_steps) == (1, 1)
    resumed.update(batch)
    other = weights(resumed)
    assert all(torch.equal(other[name], after) for name, after in weights(straight).items())


def test_saved_directory_is_plain_hugging_face(model_dir, tmp_path):
    trained = learner(model_dir)
    trained.update(on_policy_batch(model_dir))
    trained.save(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert plain.config._attn_implementation != "packed"
    assert "packed" not in json.dumps(json.loads((tmp_path / "config.json").read_text()))
    assert (tmp_path / "tokenizer.json").read_text() == (model_dir / "tokenizer.json").read_text()
    assert list(plain.state_dict()) == list(trained.model.state_dict())
    expected = [reference_logprobs(plain, ids).detach().numpy() for ids in token_ids()]
    for a, b in zip(trained.score(token_ids()), expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_policy_that_is_not_finite_is_not_saved(model_dir, tmp_path):
    broken = learner(model_dir)
    with torch.no_grad():
        next(broken.model.parameters())[3, 1] = torch.inf
    with pytest.raises(BrokenPolicyError, match=r"embed_tokens.weight is not finite after 0 optimizer steps"):
        broken.save(tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_resume_takes_the_settings_of_the_new_configuration(model_dir, tmp_path):
    first = learner(model_dir, weight_decay=0.1)
    first.update(on_policy_batch(model_dir))
    first.save_trainer(tmp_path)
    second = learner(model_dir, weight_decay=0.3)
    second.load_trainer(tmp_path)
    assert second.optimizer.param_groups[0]["weight_decay"] == 0.3
    assert second.optimizer.param_groups[1]["weight_decay"] == 0.0


def test_kl_to_the_reference_holds_the_policy_back(model_dir):
    batch = on_policy_batch(model_dir)
    still = replace(batch, advantages=np.zeros_like(batch.advantages))
    at_reference = learner(model_dir, kl_coef=3.0).update(still).metrics
    assert at_reference["grad_norm"] == at_reference["kl_reference"] == pytest.approx(0, abs=1e-5)
    distance, kl = {}, {}
    for kl_coef in (0.0, 30.0):
        trained = learner(model_dir, lr=1e-3, kl_coef=kl_coef)
        for _ in range(20):
            kl[kl_coef] = trained.update(batch).metrics.get("kl_reference")
        met = np.concatenate(trained.score(token_ids()))
        distance[kl_coef] = np.abs(met - batch.behaviour_logprobs)[batch.action_mask].mean()
    assert distance[30.0] < 0.5 * distance[0.0]
    assert kl[30.0] > 0 and kl[0.0] is None


def test_bfloat16_computes_in_bf16_and_keeps_fp32_weights(model_dir):
    batch = on_policy_batch(model_dir)
    trained = learner(model_dir, dtype="bfloat16")
    metrics = trained.update(batch).metrics
    assert all(p.dtype == torch.float32 for p in trained.model.parameters())
    assert 1e-5 < metrics["logprob_diff_max"] < 0.3


def test_gradient_checkpointing_changes_nothing(model_dir):
    batch = on_policy_batch(model_dir)
    plain, checkpointed = learner(model_dir), learner(model_dir, gradient_checkpointing=True)
    a, b = plain.update(batch).metrics, checkpointed.update(batch).metrics
    assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-6)
    assert b["flops"] == pytest.approx(4 / 3 * a["flops"])


def test_an_own_loss_and_its_stats(model_dir):
    def own(t, eps_low, eps_high, ratio_cap):
        return -(t.loss_weight * t.advantages * t.logprobs).sum(), {"twos": 2 * t.action_mask.sum()}

    metrics = learner(model_dir, loss=own).update(on_policy_batch(model_dir)).metrics
    assert metrics["twos"] == 2


def test_config():
    assert LearnerConfig(loss="gspo").eps == (3e-4, 4e-4)
    assert LearnerConfig(loss="ppo_clip", clip=(0.1, 0.5)).eps == (0.1, 0.5)
    for wrong in (
        {"lr": 0.0},
        {"minibatches": 0},
        {"dtype": "float16"},
        {"grad_clip": -1.0},
        {"clip": (0.2, -1.0)},
    ):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            LearnerConfig(**wrong)
    with pytest.raises(UsageError, match="unknown loss"):
        LearnerConfig(loss="grpo")

    class Section:
        lr, loss, unrelated = 0.5, "gspo", "ignored"

    assert LearnerConfig.of(Section()) == LearnerConfig(lr=0.5, loss="gspo")
    configured = LearnerConfig.of(Config(learner={"loss": "ppo_clip", "clip": [0.1, 0.4]}).learner)
    assert configured.eps == (0.1, 0.4)
    assert LearnerConfig.of(Config(learner={"loss": "ppo_clip"}).learner).eps == (0.2, 0.28)


def test_logits_that_are_not_a_plain_product_are_refused(tmp_path):
    config = Gemma2Config(
        vocab_size=V,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="final_logit_softcapping"):
        Learner(tmp_path, LearnerConfig())
