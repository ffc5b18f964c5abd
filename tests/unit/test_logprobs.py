"""token_logprobs against the naive computation: values, gradients, alignment, and what is kept in memory."""

from __future__ import annotations

import pytest
import torch

from reasoner.logprobs import default_block, token_logprobs

N, D, V = 23, 8, 50
CU = torch.tensor([0, 7, 8, 23])


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(N, D, generator=generator, requires_grad=True)
    weight = torch.randn(V, D, generator=generator, requires_grad=True)
    return hidden, weight, torch.randint(0, V, (N,), generator=generator)


def naive(hidden, weight, ids, temperature=1.0):
    """Rollout by rollout: logits of position t - 1 for token t."""
    logprobs, entropy = [], []
    for start, stop in zip(CU[:-1].tolist(), CU[1:].tolist(), strict=True):
        table = torch.log_softmax(hidden[start:stop] @ weight.T / temperature, dim=-1)
        zero = torch.zeros(1)
        logprobs += [zero, *(table[t - 1, ids[start + t]][None] for t in range(1, stop - start))]
        entropy += [zero, *((-table[t - 1].exp() * table[t - 1]).sum()[None] for t in range(1, stop - start))]
    return torch.cat(logprobs), torch.cat(entropy)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("block", [(1, 1), (5, 7), (1000, 49), (4, 50), None])
def test_equals_the_naive_computation(inputs, temperature, block):
    hidden, weight, ids = inputs
    logprobs, entropy = token_logprobs(hidden, weight, ids, CU, temperature, block)
    expected, expected_entropy = naive(hidden, weight, ids, temperature)
    torch.testing.assert_close(logprobs, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy, expected_entropy, atol=1e-5, rtol=1e-5)
    assert not entropy.requires_grad
    upstream = torch.randn(N, generator=torch.Generator().manual_seed(2))
    grads = torch.autograd.grad((logprobs * upstream).sum(), (hidden, weight))
    expected_grads = torch.autograd.grad((expected * upstream).sum(), (hidden, weight))
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, atol=1e-5, rtol=1e-5)


def test_by_hand_entry_t_describes_token_t():
    """Two tokens; the hidden state of the first makes the second's probability 3/4, at temperature 2 too."""
    hidden = torch.tensor([[1.0], [100.0]])
    weight = torch.tensor([[0.0], [torch.log(torch.tensor(3.0))]])
    ids, cu = torch.tensor([0, 1]), torch.tensor([0, 2])
    logprobs, entropy = token_logprobs(hidden, weight, ids, cu)
    p = torch.tensor(0.75)
    torch.testing.assert_close(logprobs, torch.tensor([0.0, p.log()]))
    torch.testing.assert_close(entropy, torch.tensor([0.0, -(p * p.log() + 0.25 * torch.log(1 - p))]))
    logprobs, _ = token_logprobs(2 * hidden, weight, ids, cu, temperature=2.0)
    torch.testing.assert_close(logprobs, torch.tensor([0.0, p.log()]))


@pytest.mark.parametrize("block", [(2, 1), (2, 2), (2, 3)])
def test_by_hand_the_largest_logit_in_every_block(block):
    """exp(200) overflows unless every block is lowered by the largest logit so far."""
    for values in ([0.0, 200.0, 100.0], [100.0, 200.0, 0.0], [200.0, 100.0, 0.0], [0.0, 100.0, 200.0]):
        weight = torch.tensor(values)[:, None].requires_grad_()
        for target, value in enumerate(values):
            ids = torch.tensor([0, target])
            cu = torch.tensor([0, 2])
            logprobs, entropy = token_logprobs(torch.ones(2, 1), weight, ids, cu, block=block)
            assert logprobs[1].item() == value - 200  # log(1 + e^-100 + e^-200) is 0 in fp32
            assert entropy[1].item() == pytest.approx(0, abs=1e-30)
            (grad,) = torch.autograd.grad(logprobs.sum(), weight)
            expected = [(i == target) - (v == 200) for i, v in enumerate(values)]
            assert grad.flatten().tolist() == pytest.approx(expected, abs=1e-30)


def test_a_block_is_about_four_mib_whatever_the_vocabulary():
    for vocabulary in (259, 1000, 49_152, 151_936):
        rows, words = default_block(vocabulary)
        assert rows >= 256 and words <= vocabulary and rows * words <= 1 << 20
    assert default_block(259)[1] == 259


def test_first_tokens_and_unwanted_tokens_are_zero_and_get_no_gradient(inputs):
    hidden, weight, ids = inputs
    wanted = torch.zeros(N, dtype=torch.bool)
    wanted[[0, 5, 7, 9]] = True  # 0 and 7 begin a rollout
    logprobs, entropy = token_logprobs(hidden, weight, ids, CU, wanted=wanted)
    expected, _ = naive(hidden, weight, ids)
    assert logprobs.nonzero().flatten().tolist() == [5, 9] == entropy.nonzero().flatten().tolist()
    torch.testing.assert_close(logprobs[[5, 9]], expected[[5, 9]])
    (grad,) = torch.autograd.grad(logprobs.sum(), hidden)
    assert grad.abs().sum(1).nonzero().flatten().tolist() == [4, 8]


def test_nothing_of_the_size_of_the_logits_is_kept(inputs):
    hidden, weight, ids = inputs
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        token_logprobs(hidden, weight, ids, CU, block=(4, 9))
    assert saved and max(saved) <= max(hidden.numel(), weight.numel())


def test_bf16_hidden_states_meet_an_fp32_head(inputs):
    hidden, weight, ids = inputs
    with torch.autocast("cpu", torch.bfloat16):
        logprobs, _ = token_logprobs(hidden.bfloat16(), weight, ids, CU)
    expected, _ = token_logprobs(hidden.bfloat16().float(), weight, ids, CU)
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs, expected)


def test_rollouts_of_one_token_have_nothing_to_predict():
    logprobs, _ = token_logprobs(
        torch.randn(2, D), torch.randn(V, D), torch.tensor([1, 2]), torch.tensor([0, 1, 2])
    )
    assert logprobs.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_impossible_temperature(inputs, temperature):
    hidden, weight, ids = inputs
    with pytest.raises(ValueError, match="temperature"):
        token_logprobs(hidden, weight, ids, CU, temperature)
