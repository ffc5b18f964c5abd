"""RMSNorm and SwiGLU with hand-written backward passes: fewer passes over memory, less kept for the backward.

In a model of a few million parameters a CPU spends half of its time outside matrix products. transformers
spells both out in elementary operations, each of which reads and writes the activations once more.
`use_lean_kernels` replaces the `forward` of known modules of a model; parameters, their names and what is
computed stay the same. Left out: rotary embeddings, and norms with another formula (Gemma's 1 + w).
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

NORMS = frozenset({"LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm"})
MLPS = frozenset({"LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP"})
#: Norms whose output only feeds linear layers: under autocast they emit its dtype, so that it is cast once.
FEEDS_LINEAR = ("input_layernorm", "post_attention_layernorm")


def use_lean_kernels(model: nn.Module) -> int:
    """Give the known norms and MLPs of the model the functions below; returns how many modules it changed."""
    changed = 0
    for name, module in model.named_modules():
        kind = type(module).__name__
        if kind in NORMS:
            feeds_linear = name.endswith(FEEDS_LINEAR)
            module.forward = functools.partial(_norm_forward, module, feeds_linear)
        elif kind in MLPS and module.config.hidden_act == "silu":
            module.forward = functools.partial(_mlp_forward, module)
        else:
            continue
        changed += 1
    return changed


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """weight * x / sqrt(mean(x^2) + eps) over the last axis (arXiv 1910.07467 eq. 4), computed in fp32.

    x: (..., d); weight: (d,); dtype: of the result.
    """
    return _RMSNorm.apply(x, weight, eps, dtype)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up (arXiv 2002.05202 eq. 6), element by element; only the two inputs are kept."""
    return _SwiGLU.apply(gate, up)


def _norm_forward(module: nn.Module, feeds_linear: bool, hidden_states: Tensor) -> Tensor:
    device = hidden_states.device.type
    dtype = torch.result_type(hidden_states, module.weight)
    if feeds_linear and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    return rms_norm(hidden_states, module.weight, module.variance_epsilon, dtype)


def _mlp_forward(module: nn.Module, x: Tensor) -> Tensor:
    return module.down_proj(swiglu(module.gate_proj(x), module.up_proj(x)))


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps, dtype):
        mean_square = torch.linalg.vector_norm(x.float(), dim=-1, keepdim=True).square_().div_(x.shape[-1])
        scale = mean_square.add_(eps).rsqrt_()  # (..., 1)
        normed = x.float() * scale
        ctx.save_for_backward(normed, weight, scale)
        ctx.input_dtype = x.dtype
        return (normed * weight).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        # with n = x s: dx = s (g w - n mean(g w n)), dw = sum over rows of g n
        normed, weight, scale = ctx.saved_tensors
        grad = grad.float()
        product = grad * normed
        grad_weight = product.flatten(0, -2).sum(0)
        mean = (product @ weight).div_(-weight.shape[0]).unsqueeze(-1)
        grad_x = torch.mul(grad, weight, out=product).addcmul_(normed, mean).mul_(scale)
        return grad_x.to(ctx.input_dtype), grad_weight, None, None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        gate, up = ctx.saved_tensors
        grad_gate = torch.ops.aten.silu_backward(grad * up, gate)
        return grad_gate, F.silu(gate).mul_(grad)
