"""The padding-free forward: any causal language model of transformers over packed rollouts.

Linear layers, norms and gates see one row of tokens, in which the prompt that the rollouts of a group share
stands once. Attention runs per rollout, each with its prompt: rollouts of like length share a bucket, which
is padded on the right *inside the attention only*; causal attention never looks right, so no mask is needed,
and what padded and repeated queries compute is thrown away. On CUDA with flash-attn installed
transformers' own varlen kernels take its place, without padding and without sharing prompts
(`attn_implementation="flash_attention_2"`; the arguments for it are passed along, not run on the machines
this was developed on).
Left out: dropout (the sampler has none, so the learner must have none), KV caches, encoder-decoder models.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
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
    """Rollouts that share one attention call: `rollouts` rows of `length` slots."""

    rollouts: int
    length: int

    @property
    def slots(self) -> int:
        return self.rollouts * self.length


@dataclass(frozen=True)
class PackedLayout:
    """Where attention finds the rollouts of N tokens: computed once for a micro-batch, used in every layer.

    The model runs over M <= N tokens, those of rollouts sorted by length, each shared prompt once. Attention
    has S slots, bucket after bucket. Tensors are None where they would change nothing.
    """

    buckets: tuple[Bucket, ...]
    order: Tensor | None  # (M,) the token of the batch that is computed at each place
    places: Tensor | None  # (N,) the place at which each token of the batch is computed
    source: Tensor | None  # (S,) place of each slot; any valid one where a slot is padding
    own: Tensor | None  # (M,) the slot of each place, in the rollout that it is computed for
    shared: Tensor | None  # (E,) slots of tokens that are computed for another rollout
    shared_places: Tensor | None  # (E,) where they are computed
    position_ids: Tensor  # (1, M) within the rollout
    cu_seqlens: Tensor  # (R + 1,) int32, of the sorted rollouts, each of them whole
    max_length: int


def plan_layout(
    cu_seqlens: np.ndarray, device: str | torch.device = "cpu", prompts: Sequence[np.ndarray] = ()
) -> PackedLayout:
    """Sort rollouts by length and cut them into buckets with little padding. cu_seqlens: (R + 1,); prompts:
    the first tokens of each rollout, R arrays; equal ones are computed once."""
    starts, lengths = cu_seqlens[:-1].astype(np.int64), np.diff(cu_seqlens).astype(np.int64)
    if len(lengths) == 0 or lengths.min() < 1:
        raise ValueError("packed rollouts must have at least one token each")
    by_length = np.argsort(lengths, kind="stable")
    starts, lengths = starts[by_length], lengths[by_length]  # (R,), sorted from here on
    owners, lent = _owners([prompts[i] for i in by_length] if prompts else [], len(lengths))
    first = np.concatenate([[0], np.cumsum(lengths - lent)])  # (R + 1,) place of a rollout's first own token
    rows, offsets = _spread(lengths)  # (N,) the rollout of each sorted token, its position in it
    borrowed = offsets < lent[rows]
    places = first[np.where(borrowed, owners[rows], rows)] + offsets - np.where(borrowed, 0, lent[rows])
    tokens = starts[rows] + offsets  # (N,) in the batch
    order = tokens[~borrowed]

    cuts = _cut_by_length(lengths)
    buckets = tuple(Bucket(j - i, int(lengths[j - 1])) for i, j in zip(cuts[:-1], cuts[1:], strict=True))
    width = np.repeat([b.length for b in buckets], [b.rollouts for b in buckets])  # (R,) slots of a rollout
    slots = np.repeat(np.cumsum(width) - width, lengths) + offsets  # (N,) of each sorted token
    row_of_slot, offset_of_slot = _spread(width)
    begins = np.cumsum(lengths) - lengths
    source = places[begins[row_of_slot] + np.minimum(offset_of_slot, lengths[row_of_slot] - 1)]

    def tensor(array: np.ndarray, changes: bool) -> Tensor | None:
        return torch.from_numpy(array).to(device) if changes else None

    inverse = np.empty(len(tokens), np.int64)
    inverse[tokens] = places
    spread = len(source) != len(order)
    return PackedLayout(
        buckets=buckets,
        order=tensor(order, not np.array_equal(order, np.arange(len(tokens)))),
        places=tensor(inverse, not np.array_equal(inverse, np.arange(len(tokens)))),
        source=tensor(source, spread),
        own=tensor(slots[~borrowed], spread),
        shared=tensor(slots[borrowed], bool(borrowed.any())),
        shared_places=tensor(places[borrowed], bool(borrowed.any())),
        position_ids=torch.from_numpy(offsets[~borrowed]).to(device)[None],
        cu_seqlens=torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)).to(device),
        max_length=int(lengths[-1]),
    )


def _owners(prompts: Sequence[np.ndarray], rollouts: int) -> tuple[np.ndarray, np.ndarray]:
    """(R,) the first rollout that has the same prompt, and (R,) how many tokens it computes for this one."""
    owners, lent = np.arange(rollouts), np.zeros(rollouts, np.int64)
    seen: dict[bytes, int] = {}
    for i, prompt in enumerate(prompts):
        owners[i] = seen.setdefault(prompt.tobytes(), i)
        lent[i] = len(prompt) if owners[i] != i else 0
    return owners, lent


def _spread(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For rows of these lengths (R,), one after the other: the row of each element, and its place in it."""
    rows = np.repeat(np.arange(len(lengths)), lengths)
    return rows, np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)


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


class _ToSlots(torch.autograd.Function):
    """(M, H, D) tokens -> (S, H, D) slots. Padded slots get no gradient (their queries are dropped, their
    keys never looked at), so the backward pass gathers; only the keys and values of shared tokens are added
    up (`adds`), in fp32: over a group they nearly cancel. Their repeated queries are dropped, too."""

    @staticmethod
    def forward(ctx, tokens: Tensor, layout: PackedLayout, adds: bool) -> Tensor:
        ctx.layout, ctx.adds = layout, adds and layout.shared is not None
        return tokens.index_select(0, layout.source)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        layout = ctx.layout
        own = grad.index_select(0, layout.own)
        if ctx.adds:
            shared = grad.index_select(0, layout.shared).float()
            own = own.float().index_add_(0, layout.shared_places, shared).to(grad.dtype)
        return own, None, None


class _FromSlots(torch.autograd.Function):
    """(S, H, D) slots -> (M, H, D) tokens; the gradient of slots that are padding or another's is zero."""

    @staticmethod
    def forward(ctx, slots: Tensor, layout: PackedLayout) -> Tensor:
        ctx.layout, ctx.num_slots = layout, len(slots)
        return slots.index_select(0, layout.own)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        return grad.new_zeros(ctx.num_slots, *grad.shape[1:]).index_copy_(0, ctx.layout.own, grad), None


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
    sizes = [bucket.slots for bucket in packed_layout.buckets]
    spread = packed_layout.source is not None
    # On a CPU the backward pass of bf16 attention is an order of magnitude slower than that of fp32.
    dtype = torch.float32 if query.device.type == "cpu" else query.dtype
    tokens = [x[0].transpose(0, 1).to(dtype) for x in (query, key, value)]  # (M, H, D) each
    slots = tokens  # (S, H, D) each
    if spread:
        q, *keys_values = tokens
        shared = [_ToSlots.apply(x, packed_layout, True) for x in keys_values]
        slots = [_ToSlots.apply(q, packed_layout, False), *shared]
    with torch.autocast(query.device.type, enabled=False):
        outputs = [
            _attend(bucket, q, k, v, scaling, sliding_window)
            for bucket, q, k, v in zip(packed_layout.buckets, *(x.split(sizes) for x in slots), strict=True)
        ]
    output = torch.cat(outputs)
    output = _FromSlots.apply(output, packed_layout) if spread else output
    return output[None].to(query.dtype), None


def _attend(
    bucket: Bucket, q: Tensor, k: Tensor, v: Tensor, scaling: float | None, sliding_window: int | None
) -> Tensor:
    """Causal attention within a bucket's rollouts, q (n * length, H, D), k and v (n * length, H_kv, D) ->
    (n * length, H, D)."""
    rows = (bucket.rollouts, bucket.length)
    q, k, v = (x.unflatten(0, rows).transpose(1, 2) for x in (q, k, v))  # (n, H, length, D)
    attend = functools.partial(
        F.scaled_dot_product_attention, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
    )
    if sliding_window is None or sliding_window >= bucket.length:
        out = attend(q, k, v, is_causal=True)
    else:
        out = _windowed(attend, q, k, v, sliding_window)
    return out.transpose(1, 2).flatten(0, 1)


AttentionInterface.register(ATTENTION_NAME, packed_attention)


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


def packed_hidden(
    model: nn.Module, token_ids: Tensor, cu_seqlens: np.ndarray, prompts: Sequence[np.ndarray] = ()
) -> Tensor:
    """Final hidden states (N, d), after the last norm and before the output head, of R packed rollouts.

    model: a causal language model loaded with `attn_implementation="packed"` (or "flash_attention_2");
    token_ids: (N,) integer; cu_seqlens: (R + 1,); prompts: R arrays, the first tokens of each rollout, of
    which packed attention computes equal ones once. Fastest when the rollouts are sorted by length.
    """
    shares = model.config._attn_implementation == ATTENTION_NAME
    layout = plan_layout(cu_seqlens, token_ids.device, prompts if shares else ())
    computed = token_ids if layout.order is None else token_ids[layout.order]
    output = model.get_decoder()(
        input_ids=computed[None].long(),
        position_ids=layout.position_ids,
        use_cache=False,
        packed_layout=layout,
        cu_seq_lens_q=layout.cu_seqlens,
        cu_seq_lens_k=layout.cu_seqlens,
        max_length_q=layout.max_length,
        max_length_k=layout.max_length,
    )
    hidden = output.last_hidden_state[0]  # (M, d)
    return hidden if layout.places is None else hidden.index_select(0, layout.places)
