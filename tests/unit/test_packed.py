"""The packed forward equals the model run on one rollout at a time, values and gradients."""

from __future__ import annotations

import itertools
from functools import partial
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AttentionInterface, AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from reasoner.packed import FREE_PADDING, MAX_PADDING, _windowed, packed_hidden, plan_layout
from reasoner.policy import choose_attention

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
    assert_same_gradients(packed, plain)


def assert_same_gradients(model, expected):
    """To 1e-5 of the gradient's largest entry."""
    grads = {
        n: (p.grad, q.grad) for (n, p), q in zip(model.named_parameters(), expected.parameters(), strict=True)
    }
    largest = max(b.abs().max() for _, b in grads.values() if b is not None)
    for name, (a, b) in grads.items():
        if b is not None:
            off = (a - b).abs().max() / largest
            assert off < 1e-5, f"{name}: off by {off:.2g}"


def test_equals_the_padded_batch():
    packed, plain = pair("qwen3")
    cu = np.concatenate([[0], np.cumsum(LENGTHS)])
    ids = torch.randint(0, 61, (cu[-1],))
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    padded = torch.zeros(mask.shape, dtype=torch.long).masked_scatter(mask, ids)
    expected = plain.model(padded, attention_mask=mask.long()).last_hidden_state[mask]
    hidden = packed_hidden(packed, ids, cu)
    torch.testing.assert_close(hidden, expected, atol=1e-5, rtol=1e-5)
    upstream = torch.randn_like(hidden)
    (hidden * upstream).sum().backward()
    (expected * upstream).sum().backward()
    assert_same_gradients(packed, plain)


@settings(max_examples=30)
@given(st.integers(1, 24), st.integers(1, 24), st.integers(1, 9))
def test_a_sliding_window_in_chunks_is_the_masked_attention(length, window, chunk):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, h, length, 8, generator=generator, requires_grad=True) for h in (4, 2, 2))
    distance = torch.arange(length)[:, None] - torch.arange(length)
    attend = partial(F.scaled_dot_product_attention, enable_gqa=True)
    expected = attend(q, k, v, attn_mask=(distance >= 0) & (distance < window))
    with patch("reasoner.packed.QUERY_CHUNK", chunk):
        out = _windowed(attend, q, k, v, window)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    upstream = torch.randn(out.shape, generator=generator)
    grads = [torch.autograd.grad((o * upstream).sum(), (q, k, v)) for o in (out, expected)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_no_mask_is_made_of_a_whole_rollout(monkeypatch):
    attend, masks = F.scaled_dot_product_attention, []

    def recorded(*tensors, attn_mask=None, **kwargs):
        masks.append(attn_mask)
        return attend(*tensors, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr("reasoner.packed.QUERY_CHUNK", 16)
    monkeypatch.setattr("reasoner.packed.F.scaled_dot_product_attention", recorded)
    packed, _ = pair("sliding_window")  # the second layer's window is 4
    packed_hidden(packed, torch.randint(0, 61, (100,)), np.array([0, 100]))
    assert masks[0] is None and max(mask.numel() for mask in masks[1:]) <= 16 * (16 + 4)


def test_varlen_kernels_are_told_where_the_rollouts_lie(monkeypatch):
    """What flash-attn gets, read by a stand-in that attends within [cu[i], cu[i + 1])."""

    def varlen(module, query, key, value, attention_mask, scaling=None, **kwargs):
        cu = kwargs["cu_seq_lens_q"]
        assert attention_mask is None and cu.dtype == torch.int32
        assert torch.equal(cu, kwargs["cu_seq_lens_k"])
        assert kwargs["max_length_q"] == kwargs["max_length_k"] == int(cu.diff().max())
        spans = [slice(a, b) for a, b in itertools.pairwise(cu.tolist())]
        attend = partial(F.scaled_dot_product_attention, is_causal=True, scale=scaling, enable_gqa=True)
        out = [attend(query[:, :, s], key[:, :, s], value[:, :, s]) for s in spans]
        return torch.cat(out, dim=2).transpose(1, 2), None

    AttentionInterface.register("varlen_stand_in", varlen)
    _, plain = pair("qwen3")
    cu = np.concatenate([[0], np.cumsum(LENGTHS)])
    ids = torch.randint(0, 61, (cu[-1],))
    expected = one_by_one(plain, ids, cu)
    plain.set_attn_implementation("varlen_stand_in")
    same = [ids[:1].numpy()] * len(LENGTHS)  # it computes every rollout whole, whatever they share
    torch.testing.assert_close(packed_hidden(plain, ids, cu, same), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("device", "dtype", "installed", "chosen"),
    [
        ("cuda", "bfloat16", True, "flash_attention_2"),
        ("cuda", "float32", True, "packed"),
        ("cuda", "bfloat16", False, "packed"),
        ("cpu", "bfloat16", True, "packed"),
    ],
)
def test_flash_attention_is_for_bf16_on_cuda(monkeypatch, device, dtype, installed, chosen):
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: installed)
    assert choose_attention(torch.device(device), dtype) == chosen


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


@pytest.mark.parametrize("kind", ["qwen3", "sliding_window"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_shared_prompt_is_computed_once_and_changes_nothing(kind, checkpointing, monkeypatch):
    monkeypatch.setattr("reasoner.packed.FREE_PADDING", 10)  # several buckets
    packed, plain = pair(kind)
    if checkpointing:
        packed.gradient_checkpointing_enable({"use_reentrant": False})
        packed.train()
    generator = torch.Generator().manual_seed(1)
    asked = [torch.randint(0, 61, (n,), generator=generator) for n in (7, 1, 12)]
    which = [0, 1, 0, 2, 2, 1, 0, 2]  # groups in any order
    answers = [torch.randint(0, 61, (n,), generator=generator) for n in (3, 9, 1, 20, 4, 4, 30, 2)]
    pieces = [torch.cat([asked[g], answer]) for g, answer in zip(which, answers, strict=True)]
    ids, cu = torch.cat(pieces), np.concatenate([[0], np.cumsum([len(p) for p in pieces])])
    seen = []
    packed.model.layers[0].mlp.register_forward_hook(lambda _, args, out: seen.append(args[0].shape[1]))
    hidden = packed_hidden(packed, ids, cu, [asked[g].numpy() for g in which])
    assert seen == [sum(map(len, asked)) + sum(map(len, answers))]
    expected = one_by_one(plain, ids, cu)
    torch.testing.assert_close(hidden, expected, atol=1e-5, rtol=1e-5)
    upstream = torch.randn(hidden.shape, generator=generator)
    (hidden * upstream).sum().backward()
    (expected * upstream).sum().backward()
    assert_same_gradients(packed, plain)


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(1, 200)), min_size=1, max_size=80),
    st.lists(st.integers(0, 40), min_size=5, max_size=5),
)
def test_layout_computes_every_token_once_with_little_padding(rollouts, prompt_lengths):
    """`rollouts`: (which prompt, further tokens) of each; every token is known by its rollout and position,
    those of a prompt by the prompt's."""
    prompts = [np.full(n, prompt) for prompt, n in enumerate(prompt_lengths)]
    names = [
        [*(("prompt", p, t) for t in range(prompt_lengths[p])), *((i, t) for t in range(tail))]
        for i, (p, tail) in enumerate(rollouts)
    ]
    lengths = [len(name) for name in names]
    layout = plan_layout(np.concatenate([[0], np.cumsum(lengths)]), prompts=[prompts[p] for p, _ in rollouts])
    flat = [name for rollout in names for name in rollout]
    order = range(len(flat)) if layout.order is None else layout.order.tolist()
    computed = [flat[token] for token in order]
    assert sorted(map(str, computed)) == sorted({str(name) for name in flat})
    places = range(len(flat)) if layout.places is None else layout.places.tolist()
    assert [computed[place] for place in places] == flat
    assert layout.position_ids[0].tolist() == [
        name[2] if name[0] == "prompt" else name[1] + prompt_lengths[rollouts[name[0]][0]]
        for name in computed
    ]
    slots = sum(bucket.slots for bucket in layout.buckets)
    source = range(slots) if layout.source is None else layout.source.tolist()
    own = range(slots) if layout.own is None else layout.own.tolist()
    assert [source[slot] for slot in own] == list(range(len(computed)))
    rows = sorted(names, key=len)
    for bucket in layout.buckets:
        real = 0
        for rollout in rows[: bucket.rollouts]:
            assert [computed[place] for place in source[: len(rollout)]] == rollout
            source, real = source[bucket.length :], real + len(rollout)
        rows = rows[bucket.rollouts :]
        assert bucket.slots - real <= max(FREE_PADDING, MAX_PADDING * real)
    assert not rows


def test_bad_input():
    with pytest.raises(ValueError, match="at least one token"):
        plan_layout(np.array([0, 3, 3]))
    packed, _ = pair("qwen3")
    with pytest.raises(ValueError, match="packed_hidden"):
        packed(torch.tensor([[1, 2]]))
