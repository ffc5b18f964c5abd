"""vLLM's own compiled RMS norms, for servers on a CPU.

vLLM leaves norms on CPUs to torch.compile, which servers on a CPU do without (it would take half a minute of
their start); what is left then are six operations of torch a norm. The compiled kernels are part of vLLM all
the same: this registers them with its operator table, under a name that `engine_args` prefers. On 512 tokens
they take a quarter of the time. (Its compiled `silu_and_mul` is four times slower than torch's: not used.)
"""

from __future__ import annotations

import torch
from vllm import ir
from vllm.platforms import current_platform

COMPILED = "cpu_compiled"
VECTOR = 16  # numbers that the kernels take at once: other widths they refuse
PREFERRED = {"rms_norm": [COMPILED], "fused_add_rms_norm": [COMPILED]}


def _plain(
    x: torch.Tensor, weight: torch.Tensor | None, epsilon: float, variance_size: int | None = None
) -> bool:
    whole = x.shape[-1] % VECTOR == 0
    return variance_size is None and weight is not None and weight.dtype == x.dtype and whole


def _plain_with_residual(
    x: torch.Tensor,
    x_residual: torch.Tensor,
    weight: torch.Tensor | None,
    epsilon: float,
    variance_size: int | None = None,
) -> bool:
    alike = x.dtype == x_residual.dtype and x.is_contiguous() and x_residual.is_contiguous()
    return _plain(x, weight, epsilon, variance_size) and alike


def _rms_norm(
    x: torch.Tensor, weight: torch.Tensor | None, epsilon: float, variance_size: int | None = None
) -> torch.Tensor:
    out = torch.empty(x.shape, dtype=x.dtype)
    torch.ops._C.rms_norm(out, x.contiguous(), weight, epsilon)  # it knows no strides
    return out


def _fused_add_rms_norm(
    x: torch.Tensor,
    x_residual: torch.Tensor,
    weight: torch.Tensor | None,
    epsilon: float,
    variance_size: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """In place, as vLLM's table allows: `x` becomes the norm of the sum, `x_residual` the sum."""
    torch.ops._C.fused_add_rms_norm(x, x_residual, weight, epsilon)
    return x, x_residual


def register() -> None:
    """Make the kernels known to vLLM in this process (idempotent)."""
    current_platform.import_kernels()
    norm, add_norm = ir.ops.rms_norm, ir.ops.fused_add_rms_norm
    if COMPILED not in norm.impls:
        norm.register_impl(COMPILED, supports_args=_plain)(_rms_norm)
        add_norm.register_impl(COMPILED, supports_args=_plain_with_residual, inplace=True)(
            _fused_add_rms_norm
        )
