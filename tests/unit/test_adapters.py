"""LoRA in the learner: what is trained, what is exported, and that a resume goes on exactly."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from peft import PeftModel
from tiny_learner import LENGTHS, TEMPERATURE, make_model, on_policy_batch, token_ids
from transformers import AutoModelForCausalLM

from reasoner.adapters import ALPHA, exported_weights
from reasoner.config import Config
from reasoner.errors import ReasonerError, UsageError
from reasoner.learner import Learner, LearnerConfig
from reasoner.learner_actor import sends_adapters, with_adapters
from reasoner.weight_channel import SharedMemoryChannel
from rollouts.merging import StoredWeights, merged

RANK = 4


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"))


def learner(path, base=None, **settings) -> Learner:
    config = LearnerConfig(**{"lr": 1e-2, "lora_rank": RANK, **settings})
    return Learner(path, config, temperature=TEMPERATURE, reference_path=base)


def scores(a: Learner) -> np.ndarray:
    return np.concatenate(a.score(token_ids()))


def test_only_adapters_are_trained_and_they_begin_as_nothing(model_dir):
    trained = learner(model_dir)
    full = learner(model_dir, lora_rank=0)
    np.testing.assert_array_equal(scores(trained), scores(full))
    before = {name: p.detach().clone() for name, p in trained.model.named_parameters()}
    metrics = trained.update(on_policy_batch(model_dir)).metrics
    changed = {name for name, p in trained.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed and all(".lora_B." in name for name in changed), "A moves once B is not zero"
    assert metrics["flops"] == 2 * trained.flops.forward(LENGTHS)
    assert len(trained.optimizer.state) == sum(".lora_" in name for name in before)


def test_one_step_is_the_chain_rule(model_dir):
    """With B = 0: dL/dB = (ALPHA / r) dL/dW A^T, and dL/dA = 0."""
    batch = on_policy_batch(model_dir)
    adapted, full = learner(model_dir), learner(model_dir, lora_rank=0)
    gradients = []
    for one in (adapted, full):
        one._backward(batch, np.arange(batch.num_tokens), None, _Ignore())
        gradients.append({name: p.grad for name, p in one.model.named_parameters()})
    layer = "model.layers.0.self_attn.q_proj"
    down = adapted.model.get_submodule(layer).lora_A["default"].weight
    expected = ALPHA / RANK * gradients[1][f"{layer}.weight"] @ down.T
    torch.testing.assert_close(gradients[0][f"{layer}.lora_B.default.weight"], expected, atol=1e-6, rtol=1e-4)
    assert not gradients[0][f"{layer}.lora_A.default.weight"].any()


class _Ignore:
    def add(self, *args):
        pass


def test_what_is_exported_is_the_policy(model_dir, tmp_path):
    trained = learner(model_dir)
    for _ in range(2):
        trained.update(on_policy_batch(model_dir))
    trained.save(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert [w.name for w in exported_weights(trained.model)] == [n for n, _ in plain.named_parameters()]
    merged = learner(tmp_path, lora_rank=0)
    np.testing.assert_allclose(scores(merged), scores(trained), atol=1e-5)
    assert np.abs(scores(merged) - scores(learner(model_dir))).max() > 1e-2

    with_peft = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(model_dir), tmp_path / "adapter"
    )
    ids = torch.from_numpy(token_ids()[1]).long()[None]
    torch.testing.assert_close(with_peft(ids).logits, plain(ids).logits, atol=1e-5, rtol=1e-4)
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == RANK


def test_servers_merge_what_peft_merges(model_dir):
    """The bytes of A and (ALPHA / r) B, with the stored base, are W + (ALPHA / r) B A."""
    trained = learner(model_dir)
    for _ in range(2):
        trained.update(on_policy_batch(model_dir))
    channel = SharedMemoryChannel(trained.model, adapters_only=True)
    sent = channel.load()
    names, stored = channel.init_info["names"], StoredWeights(model_dir)
    loaded = dict(merged(zip(names, channel._views, strict=True), stored))
    channel.close()

    adapters = [p for name, p in trained.model.named_parameters() if ".lora_" in name]
    assert sent == 4 * sum(p.numel() for p in adapters)
    expected = {}
    for name, module in trained.model.named_modules():
        if hasattr(module, "lora_A"):
            module.merge()
            expected[f"{name}.weight"] = module.base_layer.weight.detach()
    assert loaded.keys() == expected.keys() and len(expected) == 2 * 7
    for name, weight in expected.items():
        torch.testing.assert_close(loaded[name], weight, atol=1e-6, rtol=1e-6)
        assert (loaded[name] - stored[name]).abs().max() > 1e-3, name


def test_who_gets_adapters_only(model_dir, tmp_path):
    lora = Config(learner={"lora_rank": 4})
    assert sends_adapters("cpu", lora, model_dir) and sends_adapters("cuda", lora, model_dir)
    assert not sends_adapters("cpu", Config(), model_dir)
    assert not sends_adapters("cpu", lora, tmp_path), "no safetensors to merge with"
    external = Config(learner={"lora_rank": 4}, server={"addresses": ["http://127.0.0.1:8000"]})
    assert not sends_adapters("cpu", external, model_dir), "nobody knows what it was started with"
    shared_gpu = Config(learner={"lora_rank": 4}, cluster={"colocate": True})
    assert not sends_adapters("cuda", shared_gpu, model_dir)
    assert (with_adapters("nccl"), with_adapters("shared_memory")) == ("nccl_adapters", "shared_memory")


def test_a_base_without_the_weight_is_named(model_dir):
    halves = [("head.lora_A.weight", torch.ones(1, 2)), ("head.lora_B.weight", torch.ones(3, 1))]
    with pytest.raises(KeyError, match="stores no tensor head.weight"):
        list(merged(halves, StoredWeights(model_dir)))


def test_a_resume_goes_on_exactly(model_dir, tmp_path):
    batch = on_policy_batch(model_dir)
    straight = learner(model_dir)
    straight.update(batch)
    straight.save(tmp_path)
    straight.save_trainer(tmp_path / "trainer")
    straight.update(batch)
    resumed = learner(tmp_path, base=model_dir)
    resumed.load_trainer(tmp_path / "trainer")
    resumed.update(batch)
    for (name, a), (_, b) in zip(
        straight.model.named_parameters(), resumed.model.named_parameters(), strict=True
    ):
        assert torch.equal(a, b), name


def test_a_new_run_begins_with_the_merged_weights(model_dir, tmp_path):
    first = learner(model_dir)
    first.update(on_policy_batch(model_dir))
    first.save(tmp_path)
    np.testing.assert_allclose(scores(learner(tmp_path)), scores(first), atol=1e-5)


def test_another_rank_or_none_cannot_go_on(model_dir, tmp_path):
    trained = learner(model_dir)
    trained.update(on_policy_batch(model_dir))
    trained.save(tmp_path)
    trained.save_trainer(tmp_path / "trainer")
    with pytest.raises(UsageError, match="lora_rank is 2, but the adapter .* has rank 4"):
        learner(tmp_path, base=model_dir, lora_rank=2)
    with pytest.raises(ReasonerError, match="lora_rank"):
        learner(tmp_path, lora_rank=0).load_trainer(tmp_path / "trainer")
