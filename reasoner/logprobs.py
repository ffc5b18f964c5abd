"""Logprobs of the tokens that are there, from hidden states: the only place in the project that shifts.

Hidden state t - 1 predicts token t; entry t of every array returned here describes token t. The (N, V)
logits are never kept: they are made chunk by chunk, in fp32, and again in the backward pass, so that memory
does not grow with tokens times vocabulary. What that costs is one more product with the output head.
Left out: gradients through the entropy (nobody needs them yet) and output heads with a bias.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

#: Logits alive at once, in numbers: 4 MiB of fp32 stay near the caches. At least 128 rows, so that a large
#: vocabulary still gets matrix products worth the name.
CHUNK_LOGITS = 1 << 20
MIN_CHUNK_ROWS = 128


def token_logprobs(
    hidden: Tensor,
    lm_head_weight: Tensor,
    token_ids: Tensor,
    cu_seqlens: Tensor,
    temperature: float = 1.0,
    chunk: int | None = None,
    wanted: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each token given those before it, and the entropy of the distribution it came from.

    hidden: (N, d) final hidden states of R packed rollouts; lm_head_weight: (V, d); token_ids: (N,) integer;
    cu_seqlens: (R + 1,) integer; temperature: what the sampler divides its logits by; chunk: rows of logits
    alive at once (default: about 4 MiB of them); wanted: (N,) bool, the tokens asked for (default: all).
    Returns `(logprobs (N,), entropy (N,))` in fp32, the second without gradient, both in nats. The first
    token of a rollout, which nothing predicts, and tokens not `wanted` get 0. Raises `ValueError` for a
    temperature that is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, not {temperature}")
    predicted = torch.ones_like(token_ids, dtype=torch.bool) if wanted is None else wanted.clone()  # (N,)
    predicted[cu_seqlens[:-1]] = False
    targets = predicted.nonzero().squeeze(1)  # (M,) positions of the tokens that have a predictor
    with torch.autocast(hidden.device.type, enabled=False):
        chunk = chunk or max(MIN_CHUNK_ROWS, CHUNK_LOGITS // lm_head_weight.shape[0])
        chosen, entropy = _ChunkedLogprobs.apply(
            hidden.float(),
            lm_head_weight.float(),
            targets - 1,  # the shift
            token_ids[targets].long(),
            temperature,
            chunk,
        )
    zeros = torch.zeros(len(token_ids), dtype=torch.float32, device=hidden.device)
    return zeros.index_copy(0, targets, chosen), zeros.index_copy(0, targets, entropy)


class _ChunkedLogprobs(torch.autograd.Function):
    """hidden (N, d), weight (V, d), predictors (M,) rows of hidden, targets (M,) token ids
    -> logprobs (M,), entropy (M,); logits exist only chunk by chunk. Predictors are distinct."""

    @staticmethod
    def forward(ctx, hidden, weight, predictors, targets, temperature, chunk):
        chosen = hidden.new_empty(len(targets))
        entropy = hidden.new_empty(len(targets))
        log_normaliser = hidden.new_empty(len(targets))
        for start in range(0, len(targets), chunk):
            span = slice(start, start + chunk)
            logits = _logits(hidden[predictors[span]], weight, temperature)  # (c, V)
            picked = logits.gather(1, targets[span, None]).squeeze(1)
            normaliser = logits.logsumexp(dim=1)
            chosen[span] = picked - normaliser
            log_normaliser[span] = normaliser
            # H = log Z - sum_v p_v z_v
            probs = (logits - normaliser[:, None]).exp_()
            entropy[span] = normaliser - probs.mul_(logits).sum(dim=1)
        ctx.save_for_backward(hidden, weight, predictors, targets, log_normaliser)
        ctx.temperature, ctx.chunk = temperature, chunk
        ctx.mark_non_differentiable(entropy)
        return chosen, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_chosen, _grad_entropy):
        hidden, weight, predictors, targets, log_normaliser = ctx.saved_tensors
        grad_hidden = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        scaled = grad_chosen / ctx.temperature  # (M,)
        for start in range(0, len(targets), ctx.chunk):
            span = slice(start, start + ctx.chunk)
            rows = hidden[predictors[span]]
            logits = _logits(rows, weight, ctx.temperature)  # (c, V)
            # d log p_y / d z_v = [v = y] - p_v
            grad_logits = logits.sub_(log_normaliser[span, None]).exp_().mul_(-scaled[span, None])
            grad_logits.scatter_add_(1, targets[span, None], scaled[span, None])
            if grad_hidden is not None:
                grad_hidden.index_copy_(0, predictors[span], grad_logits @ weight)
            if grad_weight is not None:
                grad_weight.addmm_(grad_logits.T, rows)
        return grad_hidden, grad_weight, None, None, None, None


def _logits(rows: Tensor, weight: Tensor, temperature: float) -> Tensor:
    logits = rows @ weight.T
    return logits if temperature == 1.0 else logits.div_(temperature)
