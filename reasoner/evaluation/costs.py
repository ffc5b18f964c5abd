"""What samples cost: tokens, FLOPs, seconds and money, a sample and a correct answer.

FLOPs of a sample: prompt and all tokens really spent, 2·N each and attention (`reasoner.flops`); a prompt
that samples share is counted for each, as somebody who asks once pays it. Seconds: the wall-clock time of
sampling divided among all samples by their tokens, so they are those of a busy server, not of one request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reasoner.evaluation.store import Sample
from reasoner.flops import FlopCounter
from rollouts.endpoint import Endpoint


@dataclass(frozen=True)
class Prices:
    """Per million tokens, any currency."""

    prompt: float
    completion: float

    @classmethod
    def of(cls, endpoint: Endpoint | None) -> Prices | None:
        if endpoint is None or (endpoint.price_in is None and endpoint.price_out is None):
            return None
        return cls(endpoint.price_in or 0.0, endpoint.price_out or 0.0)


def flops_of(samples: Sequence[Sample], flops: FlopCounter | None) -> dict[str, float | None]:
    """`flops_per_sample` and `flops_per_correct`; null for an endpoint, whose model is not known."""
    lengths = [s.prompt_tokens + s.tokens for s in samples if s.prompt_tokens is not None]
    if flops is None or not samples or len(lengths) < len(samples):
        return {"flops_per_sample": None, "flops_per_correct": None}
    each, correct = _shares(flops.forward(lengths), samples)
    return {"flops_per_sample": each, "flops_per_correct": correct}


def costs_of(
    samples: Sequence[Sample], seconds_per_token: float | None, prices: Prices | None
) -> dict[str, Any]:
    """The `costs` object of a split; null is not known, or no correct answer."""
    tokens = sum(s.tokens for s in samples)
    found: dict[str, Any] = dict(
        zip(("tokens_per_sample", "tokens_per_correct"), _shares(tokens, samples), strict=True)
    )
    seconds = None if seconds_per_token is None else seconds_per_token * tokens
    found |= dict(zip(("seconds_per_sample", "seconds_per_correct"), _shares(seconds, samples), strict=True))
    prompt = [s.prompt_tokens for s in samples if s.prompt_tokens is not None]
    price = None
    if prices is not None and len(prompt) == len(samples):
        price = (prices.prompt * sum(prompt) + prices.completion * tokens) / 1e6
    found |= dict(zip(("price_per_sample", "price_per_correct"), _shares(price, samples), strict=True))
    return found


def _shares(total: float | None, samples: Sequence[Sample]) -> tuple[float | None, float | None]:
    """(a sample, a correct sample)."""
    right = sum(s.grade is not None and s.grade.verdict.is_correct for s in samples)
    if total is None or not samples:
        return None, None
    return total / len(samples), total / right if right else None
