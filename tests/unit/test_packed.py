"""The packed forward equals the model run on one rollout at a time, values and gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from reasoner.packed import FREE_PADDING, MAX_PADDING, packed_hidden, plan_layout

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
LENGTHS = [5, 17, 3, 17, 40, 1, 9]


def config(kind: str):
    if kind == "qwen3":
        return Qwen3Config(**SIZES, head_dim=16)
    if kind == "llama":
        return LlamaConfig(**SIZES)
    return Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=4, max_window_layers=1)


def pair(kind: str):
    """The same random model with packed and with ordinary attention."""
    torch.manual_seed(0)
    packed = AutoModelForCausalLM.from_config(config(kind), attn_implementation="packed")
    for p in packed.parameters():
        if p.ndim == 1:
            torch.nn.init.normal_(p, 1.0, 0.3)
    plain = AutoModelForCausalLM.from_config(config(kind), attn_implementation="eager")
    plain.load_state_dict(packed.state_dict())
    return packed, plain


def one_by_one(model, ids, cu):
    pieces = [ids[a:b] for a, b in zip(cu[:-1], cu[1:], strict=True)]
    return torch.cat([model.model(p[None]).last_hidden_state[0] for p in pieces])


@pytest.mark.parametrize("kind", ["qwen3", "llama", "sliding_window"])
@pytest.mark.parametrize(
    "lengths", [LENGTHS, sorted(LENGTHS), [6, 6, 6]], ids=["unsorted", "sorted", "equal"]
)
def test_equals_one_rollout_at_a_time(kind, lengths, monkeypatch):
    monkeypatch.setattr("reasoner.packed.FREE_PADDING", 10)  # several buckets
    packed, plain = pair(kind)
    cu = np.concatenate([[0], np.cumsum(lengths)])
    ids = torch.randint(0, 61, (cu[-1],))
    hidden, expected = packed_hidden(packed, ids, cu), one_by_one(plain, ids, cu)
    torch.testing.assert_close(hidden, expected, atol=1e-5, rtol=1e-5)
    upstream = torch.randn_like(hidden)
    (hidden * upstream).sum().backward()
    (expected * upstream).sum().backward()
    for (name, a), b in zip(packed.named_parameters(), plain.parameters(), strict=True):
        if b.grad is not None:
            torch.testing.assert_close(
                a.grad, b.grad, atol=1e-4, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_equals_the_padded_batch():
    packed, plain = pair("qwen3")
    cu = np.concatenate([[0], np.cumsum(LENGTHS)])
    ids = torch.randint(0, 61, (cu[-1],))
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    padded = torch.zeros(mask.shape, dtype=torch.long).masked_scatter(mask, ids)
    expected = plain.model(padded, attention_mask=mask.long()).last_hidden_state[mask]
    torch.testing.assert_close(packed_hidden(packed, ids, cu), expected, atol=1e-5, rtol=1e-5)


def test_gradient_checkpointing_changes_nothing():
    packed, _ = pair("qwen3")
    cu = np.concatenate([[0], np.cumsum(LENGTHS)])
    ids = torch.randint(0, 61, (cu[-1],))
    grads = []
    for checkpointing in (False, True):
        if checkpointing:
            packed.gradient_checkpointing_enable({"use_reentrant": False})
            packed.train()
        packed.zero_grad()
        packed_hidden(packed, ids, cu).square().sum().backward()
        grads.append([p.grad.clone() for p in packed.parameters() if p.grad is not None])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=80))
def test_layout_holds_every_token_once_with_little_padding(lengths):
    layout = plan_layout(np.concatenate([[0], np.cumsum(lengths)]))
    tokens = sum(lengths)
    assert [b.start for b in layout.buckets] + [tokens] == [0] + [b.stop for b in layout.buckets]
    for bucket in layout.buckets:
        real, slots = bucket.stop - bucket.start, bucket.rollouts * bucket.length
        if bucket.slots is not None:
            assert bucket.source[bucket.slots].tolist() == list(range(real))
            assert len(bucket.source) == slots
        assert slots - real <= max(FREE_PADDING, MAX_PADDING * real)
    if layout.order is not None:
        assert layout.order[layout.unsort].tolist() == list(range(tokens))
    positions = np.concatenate([np.arange(n) for n in sorted(lengths)])
    assert layout.position_ids[0].tolist() == positions.tolist()


def test_bad_input():
    with pytest.raises(ValueError, match="at least one token"):
        plan_layout(np.array([0, 3, 3]))
    packed, _ = pair("qwen3")
    with pytest.raises(ValueError, match="packed_hidden"):
        packed(torch.tensor([[1, 2]]))
