"""Logprobs of the tokens that are there, from hidden states: the only place in the project that shifts.

Hidden state t - 1 predicts token t; entry t of every array returned here describes token t. The (N, V)
logits are never kept: they are made block by block (some tokens x some of the vocabulary), in fp32, and
again in the backward pass, so that memory does not grow with the vocabulary. What that costs is one more
product with the output head. The normaliser over the blocks of the vocabulary is the running one of
arXiv 1805.02867 (algorithm 3).
Left out: gradients through the entropy (nobody needs them yet) and output heads with a bias.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

#: Logits alive at once, in numbers: 4 MiB of fp32 stay near the caches.
BLOCK_LOGITS = 1 << 20
#: Tokens of a block at least, so that a large vocabulary still gets matrix products worth the name.
MIN_BLOCK_ROWS = 256


def token_logprobs(
    hidden: Tensor,
    lm_head_weight: Tensor,
    token_ids: Tensor,
    cu_seqlens: Tensor,
    temperature: float = 1.0,
    block: tuple[int, int] | None = None,
    wanted: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each token given those before it, and the entropy of the distribution it came from.

    hidden: (N, d) final hidden states of R packed rollouts; lm_head_weight: (V, d); token_ids: (N,) integer;
    cu_seqlens: (R + 1,) integer; temperature: what the sampler divides its logits by; block: (tokens,
    vocabulary) of the logits alive at once (default: about 4 MiB of them); wanted: (N,) bool, the tokens
    asked for (default: all). Returns `(logprobs (N,), entropy (N,))` in fp32, the second without gradient,
    both in nats. The first token of a rollout, which nothing predicts, and tokens not `wanted` get 0. Raises
    `ValueError` for a temperature that is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, not {temperature}")
    predicted = torch.ones_like(token_ids, dtype=torch.bool) if wanted is None else wanted.clone()  # (N,)
    predicted[cu_seqlens[:-1]] = False
    targets = predicted.nonzero().squeeze(1)  # (M,) positions of the tokens that have a predictor
    with torch.autocast(hidden.device.type, enabled=False):
        chosen, entropy = _BlockedLogprobs.apply(
            hidden.float(),
            lm_head_weight.float(),
            targets - 1,  # the shift
            token_ids[targets].long(),
            temperature,
            block or default_block(lm_head_weight.shape[0]),
        )
    zeros = torch.zeros(len(token_ids), dtype=torch.float32, device=hidden.device)
    return zeros.index_copy(0, targets, chosen), zeros.index_copy(0, targets, entropy)


def default_block(vocabulary: int) -> tuple[int, int]:
    """(tokens, vocabulary) of a block of `BLOCK_LOGITS`: the whole vocabulary where it is small."""
    rows = max(MIN_BLOCK_ROWS, BLOCK_LOGITS // vocabulary)
    return rows, min(vocabulary, BLOCK_LOGITS // rows)


class _BlockedLogprobs(torch.autograd.Function):
    """hidden (N, d), weight (V, d), predictors (M,) rows of hidden, targets (M,) token ids
    -> logprobs (M,), entropy (M,); logits exist only block by block. Predictors are distinct."""

    @staticmethod
    def forward(ctx, hidden, weight, predictors, targets, temperature, block):
        chosen = hidden.new_empty(len(targets))
        entropy = hidden.new_empty(len(targets))
        log_normaliser = hidden.new_empty(len(targets))
        for span in _spans(len(targets), block[0]):
            picked, top, total, weighted = _online_softmax(
                hidden[predictors[span]], weight, targets[span], temperature, block[1]
            )
            log_total = total.log()
            log_normaliser[span] = top + log_total
            chosen[span] = (picked - top) - log_total
            entropy[span] = log_total - weighted / total
        ctx.save_for_backward(hidden, weight, predictors, targets, log_normaliser)
        ctx.temperature, ctx.block = temperature, block
        ctx.mark_non_differentiable(entropy)
        return chosen, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_chosen, _grad_entropy):
        hidden, weight, predictors, targets, log_normaliser = ctx.saved_tensors
        grad_hidden = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        scaled = grad_chosen / ctx.temperature  # (M,)
        for span in _spans(len(targets), ctx.block[0]):
            rows = hidden[predictors[span]]  # (c, d)
            grad_rows = torch.zeros_like(rows)
            for words in _spans(weight.shape[0], ctx.block[1]):
                logits = _logits(rows, weight[words], ctx.temperature)  # (c, v)
                # d log p_y / d z_v = [v = y] - p_v
                grad_logits = logits.sub_(log_normaliser[span, None]).exp_().mul_(-scaled[span, None])
                column, here = _columns(targets[span], words)
                grad_logits.scatter_add_(1, column, (scaled[span] * here)[:, None])
                if grad_hidden is not None:
                    grad_rows.addmm_(grad_logits, weight[words])
                if grad_weight is not None:
                    grad_weight[words].addmm_(grad_logits.T, rows)
            if grad_hidden is not None:
                grad_hidden.index_copy_(0, predictors[span], grad_rows)
        return grad_hidden, grad_weight, None, None, None, None


def _online_softmax(
    rows: Tensor, weight: Tensor, targets: Tensor, temperature: float, vocabulary_block: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Over z = rows weight^T / temperature (c, V), a block of the vocabulary at a time, each (c,): the logit
    of the target, the largest logit m, sum_v exp(z_v - m), and sum_v exp(z_v - m) (z_v - m).

    When a block raises m by D, the sums so far are of exponentials too large by e^D, and of differences too
    large by D."""
    picked = top = total = weighted = None
    for words in _spans(weight.shape[0], vocabulary_block):
        logits = _logits(rows, weight[words], temperature)  # (c, v)
        column, here = _columns(targets, words)
        value = logits.gather(1, column).squeeze(1)
        block_top = logits.amax(dim=1)
        new_top = block_top if top is None else torch.maximum(top, block_top)
        exponents = logits.sub_(new_top[:, None])
        exponentials = exponents.exp()
        block_total = exponentials.sum(dim=1)
        block_weighted = exponentials.mul_(exponents).sum(dim=1)
        if top is None:
            picked, total, weighted = value, block_total, block_weighted
        else:
            lowered = top - new_top  # -D
            scale = lowered.exp()
            weighted = scale * (weighted + total * lowered) + block_weighted
            total = scale * total + block_total
            picked = torch.where(here, value, picked)
        top = new_top
    return picked, top, total, weighted


def _spans(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def _columns(targets: Tensor, words: slice) -> tuple[Tensor, Tensor]:
    """Where in a block of the vocabulary the targets (c,) stand: (c, 1) column (any one if it is elsewhere),
    and (c,) bool whether it is here."""
    column = targets - words.start
    here = (column >= 0) & (column < words.stop - words.start)
    return column.clamp(0, words.stop - words.start - 1)[:, None], here


def _logits(rows: Tensor, weight: Tensor, temperature: float) -> Tensor:
    logits = rows @ weight.T
    return logits if temperature == 1.0 else logits.div_(temperature)
