"""The padding-free forward: any causal language model of transformers over packed rollouts.

Linear layers, norms and gates see one row of N tokens. Attention runs per rollout: rollouts of like length
share a bucket, which is padded on the right *inside the attention only*; causal attention never looks right,
so no mask is needed, and what the padded queries compute is thrown away. On CUDA with flash-attn installed
transformers' own varlen kernels do the same without any padding (`attn_implementation="flash_attention_2"`;
the arguments for it are passed along, not run on the machines this was developed on).
Left out: dropout (the sampler has none, so the learner must have none), KV caches, encoder-decoder models.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface

from reasoner.errors import UsageError

ATTENTION_NAME = "packed"
#: Padded slots a bucket may have for each real token: more means fewer buckets and more wasted attention.
MAX_PADDING = 0.15
#: Padded slots a bucket may have in any case: another attention call would cost more.
FREE_PADDING = 512
#: Queries that attend at once where a sliding window binds: no mask is larger than they times the window.
QUERY_CHUNK = 512


@dataclass(frozen=True)
class Bucket:
    """Rollouts that share one attention call: the tokens [start, stop) of the sorted micro-batch, as
    `rollouts` rows of `length` slots. `source` and `slots` are None where nothing is padded."""

    start: int
    stop: int
    rollouts: int
    length: int
    source: Tensor | None  # (rollouts * length,) token of each slot, from `start`; any valid one if padded
    slots: Tensor | None  # (stop - start,) the slots of the real tokens


@dataclass(frozen=True)
class PackedLayout:
    """Where attention finds the rollouts of N tokens: computed once for a micro-batch, used in every layer.

    The model runs over rollouts sorted by length; `order` and `unsort` lead there and back (None: in order).
    """

    buckets: tuple[Bucket, ...]
    order: Tensor | None  # (N,)
    unsort: Tensor | None  # (N,)
    position_ids: Tensor  # (1, N) of the sorted tokens
    cu_seqlens: Tensor  # (R + 1,) int32, of the sorted rollouts
    max_length: int


def plan_layout(cu_seqlens: np.ndarray, device: str | torch.device = "cpu") -> PackedLayout:
    """Sort rollouts by length and cut them into buckets with little padding. cu_seqlens: (R + 1,)."""
    starts, lengths = cu_seqlens[:-1].astype(np.int64), np.diff(cu_seqlens).astype(np.int64)
    if len(lengths) == 0 or lengths.min() < 1:
        raise ValueError("packed rollouts must have at least one token each")
    by_length = np.argsort(lengths, kind="stable")
    sorted_lengths = lengths[by_length]
    sorted_cu = np.concatenate([[0], np.cumsum(sorted_lengths)])  # (R + 1,)
    within = np.arange(sorted_cu[-1]) - np.repeat(sorted_cu[:-1], sorted_lengths)  # (N,) position in rollout
    order = np.repeat(starts[by_length], sorted_lengths) + within
    sorted_already = bool((order == np.arange(len(order))).all())
    cuts = _cut_by_length(sorted_lengths)
    return PackedLayout(
        buckets=tuple(_bucket(sorted_cu, i, j, device) for i, j in zip(cuts[:-1], cuts[1:], strict=True)),
        order=None if sorted_already else torch.from_numpy(order).to(device),
        unsort=None if sorted_already else torch.from_numpy(np.argsort(order)).to(device),
        position_ids=torch.from_numpy(within).to(device)[None],
        cu_seqlens=torch.from_numpy(sorted_cu.astype(np.int32)).to(device),
        max_length=int(sorted_lengths[-1]),
    )


def _bucket(cu_seqlens: np.ndarray, first: int, last: int, device: str | torch.device) -> Bucket:
    """The bucket of the sorted rollouts [first, last)."""
    start, stop = int(cu_seqlens[first]), int(cu_seqlens[last])
    starts, lengths = cu_seqlens[first:last] - start, np.diff(cu_seqlens[first : last + 1])
    length = int(lengths[-1])
    if length * len(lengths) == stop - start:
        return Bucket(start, stop, len(lengths), length, None, None)
    offset = np.arange(length)
    source = starts[:, None] + np.minimum(offset, lengths[:, None] - 1)  # (n, length)
    slots = np.flatnonzero(offset < lengths[:, None])
    return Bucket(
        start,
        stop,
        len(lengths),
        length,
        torch.from_numpy(source.ravel()).to(device),
        torch.from_numpy(slots).to(device),
    )


def _cut_by_length(lengths: np.ndarray) -> list[int]:
    """Borders of runs of the ascending `lengths` (R,) within the two limits on padding."""
    cuts, tokens = [0], 0
    for i, length in enumerate(lengths):
        padding = (i - cuts[-1]) * int(length) - tokens
        if padding > max(FREE_PADDING, MAX_PADDING * (tokens + length)):
            cuts.append(i)
            tokens = 0
        tokens += int(length)
    return [*cuts, len(lengths)]


class _Pad(torch.autograd.Function):
    """(m, H, D) tokens of a bucket -> (n * length, H, D) slots. Padded slots get no gradient (their queries
    are dropped, their keys never looked at), so the backward pass gathers instead of adding up."""

    @staticmethod
    def forward(ctx, tokens: Tensor, source: Tensor, slots: Tensor) -> Tensor:
        ctx.save_for_backward(slots)
        return tokens.index_select(0, source)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        (slots,) = ctx.saved_tensors
        return grad.index_select(0, slots), None, None


class _Unpad(torch.autograd.Function):
    """(n * length, H, D) slots -> (m, H, D) tokens; the gradient of padded slots is zero."""

    @staticmethod
    def forward(ctx, padded: Tensor, slots: Tensor) -> Tensor:
        ctx.save_for_backward(slots)
        ctx.num_slots = len(padded)
        return padded.index_select(0, slots)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        (slots,) = ctx.saved_tensors
        return grad.new_zeros(ctx.num_slots, *grad.shape[1:]).index_copy_(0, slots, grad), None


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    packed_layout: PackedLayout | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Causal attention within each rollout: an attention function of transformers' `AttentionInterface`.

    query: (1, H, N, D); key, value: (1, H_kv, N, D). Returns (1, N, H, D). `attention_mask` is None and
    `dropout` (in kwargs) is ignored, see the module's docstring. Raises `ValueError` without a layout,
    `UsageError` for attention with sinks or soft-capped scores.
    """
    if packed_layout is None:
        raise ValueError("packed attention needs packed_layout: call the model through packed_hidden()")
    if kwargs.get("s_aux") is not None or kwargs.get("softcap") is not None:
        raise UsageError("this model's attention has sinks or soft-capped scores, which is not supported")
    sizes = [b.stop - b.start for b in packed_layout.buckets]
    # On a CPU the backward pass of bf16 attention is an order of magnitude slower than that of fp32.
    dtype = torch.float32 if query.device.type == "cpu" else query.dtype
    pieces = [x[0].transpose(0, 1).to(dtype).split(sizes) for x in (query, key, value)]  # (m, H, D) each
    with torch.autocast(query.device.type, enabled=False):
        outputs = [
            _attend(bucket, q, k, v, scaling, sliding_window)
            for bucket, q, k, v in zip(packed_layout.buckets, *pieces, strict=True)
        ]
    return torch.cat(outputs)[None].to(query.dtype), None


def _attend(
    bucket: Bucket, q: Tensor, k: Tensor, v: Tensor, scaling: float | None, sliding_window: int | None
) -> Tensor:
    """Causal attention of one bucket's tokens, q (m, H, D), k and v (m, H_kv, D) -> (m, H, D)."""
    q, k, v = (_to_slots(x, bucket) for x in (q, k, v))  # (n, H, length, D)
    attend = functools.partial(
        F.scaled_dot_product_attention, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
    )
    if sliding_window is None or sliding_window >= bucket.length:
        out = attend(q, k, v, is_causal=True)
    else:
        out = _windowed(attend, q, k, v, sliding_window)
    slots = out.transpose(1, 2).reshape(bucket.rollouts * bucket.length, out.shape[1], out.shape[3])
    return slots if bucket.slots is None else _Unpad.apply(slots, bucket.slots)


AttentionInterface.register(ATTENTION_NAME, packed_attention)


def _to_slots(tokens: Tensor, bucket: Bucket) -> Tensor:
    """(m, H, D) -> (n, H, length, D)"""
    if bucket.source is not None:
        tokens = _Pad.apply(tokens, bucket.source, bucket.slots)
    return tokens.unflatten(0, (bucket.rollouts, bucket.length)).transpose(1, 2)


def _windowed(attend: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Causal attention to the last `window` tokens, (n, H, length, D), a chunk of queries at a time."""
    length, chunk = q.shape[2], QUERY_CHUNK
    band = _band(chunk, window, q.device, q.dtype)
    outputs = []
    for start in range(0, length, chunk):
        stop, first = min(start + chunk, length), max(0, start - window + 1)  # of the queries; of the keys
        offset = window - 1 - start  # from a key's position to its column in the band
        mask = band[: stop - start, first + offset : stop + offset]
        outputs.append(attend(q[:, :, start:stop], k[:, :, first:stop], v[:, :, first:stop], attn_mask=mask))
    return torch.cat(outputs, dim=2)


@functools.lru_cache(maxsize=4)
def _band(chunk: int, window: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(chunk, chunk + window - 1) what is added to the scores of a chunk's queries, for its keys and the
    window - 1 before them. Numbers, made once: attention would keep what it makes of a bool mask."""
    inside = torch.ones(chunk, chunk + window - 1, dtype=torch.bool, device=device).triu().tril(window - 1)
    return torch.zeros(inside.shape, dtype=dtype, device=device).masked_fill_(~inside, -torch.inf)


def packed_hidden(model: nn.Module, token_ids: Tensor, cu_seqlens: np.ndarray) -> Tensor:
    """Final hidden states (N, d), after the last norm and before the output head, of R packed rollouts.

    model: a causal language model loaded with `attn_implementation="packed"` (or "flash_attention_2");
    token_ids: (N,) integer; cu_seqlens: (R + 1,). Fastest when the rollouts are sorted by length.
    """
    layout = plan_layout(cu_seqlens, token_ids.device)
    sorted_ids = token_ids if layout.order is None else token_ids[layout.order]
    output = model.get_decoder()(
        input_ids=sorted_ids[None].long(),
        position_ids=layout.position_ids,
        use_cache=False,
        packed_layout=layout,
        cu_seq_lens_q=layout.cu_seqlens,
        cu_seq_lens_k=layout.cu_seqlens,
        max_length_q=layout.max_length,
        max_length_k=layout.max_length,
    )
    hidden = output.last_hidden_state[0]  # (N, d)
    return hidden if layout.unsort is None else hidden[layout.unsort]
