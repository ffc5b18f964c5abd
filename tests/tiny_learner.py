"""A tiny random tied Qwen3, a batch for it, and scoring by transformers itself: for tests of the learner."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from reasoner.learner import Learner, LearnerConfig
from reasoner.types import TrainBatch

V = 31
TEMPERATURE = 0.8
LENGTHS = [6, 13, 9, 4, 21, 9]
PROMPT = 3


def make_model(path: Path) -> Path:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=V,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    (path / "tokenizer.json").write_text('{"kept": "as it is"}')
    return path


def learner(model_dir, **settings) -> Learner:
    defaults = {"lr": 1e-2, "grad_clip": 1e9}
    return Learner(model_dir, LearnerConfig(**{**defaults, **settings}), temperature=TEMPERATURE)


def token_ids(seed: int = 0) -> list[np.ndarray]:
    """Two rollouts a prompt."""
    rng = np.random.default_rng(seed)
    ids = [rng.integers(0, V, n).astype(np.int32) for n in LENGTHS]
    for first, second in zip(ids[::2], ids[1::2], strict=True):
        second[:PROMPT] = first[:PROMPT]
    return ids


def make_batch(behaviour: list[np.ndarray], seed: int = 0) -> TrainBatch:
    rng = np.random.default_rng(seed + 1)
    ids = token_ids(seed)
    mask = np.concatenate([np.arange(n) >= PROMPT for n in LENGTHS])
    advantage = rng.standard_normal(len(LENGTHS))
    return TrainBatch(
        token_ids=np.concatenate(ids),
        cu_seqlens=np.concatenate([[0], np.cumsum(LENGTHS)]).astype(np.int32),
        action_mask=mask,
        behaviour_logprobs=np.where(mask, np.concatenate(behaviour), 0).astype(np.float32),
        advantages=np.where(mask, np.repeat(advantage, LENGTHS), 0).astype(np.float32),
        loss_weight=np.where(mask, 1 / mask.sum(), 0).astype(np.float32),
        group=np.array([0, 0, 1, 1, 2, 2]),
    )


def on_policy_batch(model_dir) -> TrainBatch:
    return make_batch(learner(model_dir).score(token_ids()))


def weights(a: Learner) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in a.model.named_parameters()}


def reference_logprobs(model, ids: np.ndarray, temperature: float = TEMPERATURE) -> torch.Tensor:
    tokens = torch.from_numpy(ids).long()
    table = torch.log_softmax(model(tokens[None]).logits[0] / temperature, -1)
    return torch.cat([torch.zeros(1), table[:-1].gather(1, tokens[1:, None]).squeeze(1)])
