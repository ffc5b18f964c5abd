"""vLLM's compiled norms against torch's, and which inputs they get."""

import pytest
import torch

pytestmark = pytest.mark.slow  # imports vLLM


@pytest.fixture(scope="module")
def ops():
    from vllm import ir

    from rollouts import cpu_kernels

    cpu_kernels.register()
    cpu_kernels.register()  # a second time is no error
    return ir.ops, cpu_kernels.COMPILED


def strided(rows, heads, width):
    """As q and k come out of one product: a view of every row's first part."""
    return torch.randn(rows, 2 * heads * width)[:, : heads * width].view(rows, heads, width)


@pytest.mark.parametrize("x", [torch.randn(5, 128), torch.randn(5, 576), strided(7, 4, 32)])
def test_the_compiled_norm_is_the_native_one(ops, x):
    norm, weight = ops[0].rms_norm, torch.randn(x.shape[-1])
    found, expected = (norm.impls[name].impl_fn(x, weight, 1e-6) for name in (ops[1], "native"))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_the_compiled_norm_of_a_sum_is_the_native_one(ops):
    x, residual, weight = torch.randn(6, 64), torch.randn(6, 64), torch.randn(64)
    norm = ops[0].fused_add_rms_norm
    expected = norm.impls["native"].impl_fn(x.clone(), residual.clone(), weight, 1e-6)
    for value, wanted in zip(norm.impls[ops[1]].impl_fn(x, residual, weight, 1e-6), expected, strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("width", "dtype", "taken"),
    [(32, torch.float32, True), (20, torch.float32, False), (32, torch.bfloat16, False)],
)
def test_other_widths_and_mixed_types_go_to_the_native_norm(ops, width, dtype, taken):
    norm = ops[0].rms_norm
    assert (
        norm.impls[ops[1]].supports_args(torch.randn(3, width), torch.ones(width, dtype=dtype), 1e-6) is taken
    )
