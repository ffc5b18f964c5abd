"""The hand-written norms and gates against the elementary operations they replace."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from reasoner.kernels import rms_norm, swiglu, use_lean_kernels


def test_rms_norm_by_hand():
    x = torch.tensor([[3.0, 4.0]])  # mean square 12.5
    out = rms_norm(x, torch.tensor([1.0, 2.0]), 0.0, torch.float32)
    torch.testing.assert_close(out, torch.tensor([[3.0, 8.0]]) / 12.5**0.5)


def test_gradients_by_finite_differences():
    """gradcheck wants fp64, which the norm does not compute in: central differences in fp32 instead."""
    torch.manual_seed(0)
    x, w, g = torch.randn(3, 5), torch.randn(5), torch.randn(3, 5)

    def value(a, b):
        return (rms_norm(a, b, 1e-2, torch.float32) * g).sum()

    a, b = x.clone().requires_grad_(), w.clone().requires_grad_()
    grads = torch.autograd.grad(value(a, b), (a, b))
    for which, tensor in enumerate((x, w)):
        for i in range(tensor.numel()):
            step = torch.zeros(tensor.numel())
            step[i] = 1e-2
            step = step.view_as(tensor)
            up = value(x + step, w) if which == 0 else value(x, w + step)
            down = value(x - step, w) if which == 0 else value(x, w - step)
            assert grads[which].flatten()[i] == pytest.approx(float(up - down) / 2e-2, abs=2e-3)


def test_swiglu_gradient():
    torch.manual_seed(0)
    inputs = [torch.randn(4, 6, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(swiglu, inputs)
    torch.testing.assert_close(swiglu(*inputs), torch.nn.functional.silu(inputs[0]) * inputs[1])


SIZES = {
    "vocab_size": 37,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


@pytest.mark.parametrize("config", [Qwen3Config(**SIZES, head_dim=16), LlamaConfig(**SIZES)])
@pytest.mark.parametrize("bf16", [False, True])
def test_a_model_computes_the_same(config, bf16):
    torch.manual_seed(0)
    models = [AutoModelForCausalLM.from_config(config, attn_implementation="eager") for _ in range(2)]
    for p in models[0].parameters():
        if p.ndim == 1:
            torch.nn.init.normal_(p, 1.0, 0.3)
    models[1].load_state_dict(models[0].state_dict())
    norms_a_layer = 4 if config.model_type == "qwen3" else 2
    assert use_lean_kernels(models[1]) == 2 * (norms_a_layer + 1) + 1
    assert list(models[0].state_dict()) == list(models[1].state_dict())
    ids = torch.randint(0, 37, (2, 12))
    outputs = []
    for model in models:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(ids).logits.float()
        torch.log_softmax(logits, -1)[..., 0].sum().backward()
        outputs.append(logits)
    tolerance = {"atol": 3e-2, "rtol": 3e-2} if bf16 else {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(*outputs, **tolerance)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        scale = a.grad.abs().max()
        torch.testing.assert_close(a.grad / scale, b.grad / scale, **tolerance)
