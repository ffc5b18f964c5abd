"""Sequential scaling: thinking cut off at B tokens and made to answer, or extended when it wants to end.

Budget forcing and its metrics are those of arXiv 2501.19393 (s1), section 3. All budgets are measured on the
same chains: one that ends before B counts as it is, a longer one is cut at B tokens, a text that asks for the
answer is appended as tokens, and the model goes on from there. Token ids in, nothing is re-tokenised.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from reasoner.evaluation.generate import Generator
from reasoner.evaluation.store import CHAIN, Point, Sample
from reasoner.types import Completion, SamplingParams

ANSWER_TOKENS = 64  # most tokens of a forced answer
BOX = "\\boxed{"
THINK, END_THINK = "<think>", "</think>"


def default_force_text(template: str) -> str:
    """What makes a model answer at once, on a line of its own: after an unfinished equation a bare box would
    read as its continuation. A base model is not told in words it may not know."""
    return f"\n{BOX}" if template == "base" else "\n\nThe final answer is \\boxed{"


def points_of(
    budgets: Sequence[int], force_text: str, extend: str | None, extend_times: int
) -> tuple[Point, ...]:
    """What to do with every chain: cuts by growing budget, then extensions in order."""
    cuts = [Point("cut", budget, force_text) for budget in sorted(set(budgets))]
    times = extend_times if extend else 0
    return (*cuts, *(Point("extended", i + 1, str(extend)) for i in range(times)))


def parent_of(point: Point) -> Point:
    """The point whose tokens this one goes on from."""
    if point.kind == "extended" and point.amount > 1:
        return point._replace(amount=point.amount - 1)
    return CHAIN


def applies(point: Point, parent: Sample, max_tokens: int) -> bool:
    """Whether there is anything to do: a chain to cut, or one that ended by itself with tokens left."""
    if point.kind == "cut":
        longer = parent.tokens > point.amount
        return longer or (parent.truncated and parent.tokens >= point.amount)
    return not parent.truncated and parent.tokens + ANSWER_TOKENS // 8 < max_tokens


def standing_for(point: Point, rows: Mapping[Point, Sample]) -> Sample | None:
    """The sample that counts at `point`: its own, or the chain (the last extension) that needed no more."""
    while point != CHAIN and point not in rows:
        point = parent_of(point)
    return rows.get(point)


async def follow(
    generator: Generator,
    point: Point,
    parent: Sample,
    position: int,
    params: SamplingParams,
) -> Sample:
    """Carries out `point` on `parent`, whose token ids are known."""
    assert parent.token_ids is not None and parent.prompt_tokens is not None
    begin = parent.prompt_tokens
    said = parent.token_ids[begin:].tolist()
    if point.kind == "cut":
        kept, allowed = said[: point.amount], ANSWER_TOKENS
        added = await generator.encode(force_text(await generator.decode(kept), point.suffix))
    else:
        kept = _without_end(said, generator.end_token_ids, await generator.encode(END_THINK))
        added = await generator.encode(point.suffix)
        allowed = params.max_tokens - len(kept) - len(added)
    before = [*parent.token_ids[:begin].tolist(), *kept, *added]
    if generator.context_tokens is not None:
        allowed = min(allowed, generator.context_tokens - len(before))
    if allowed > 0:
        answer = await generator.go_on(before, position, replace(params, max_tokens=allowed))
    else:
        answer = Completion(np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros(0, np.int32), "length")
    return await _joined(generator, point, parent, before, len(kept), len(added), answer)


async def _joined(
    generator: Generator,
    point: Point,
    parent: Sample,
    before: Sequence[int],
    kept: int,
    added: int,
    answer: Completion,
) -> Sample:
    assert parent.prompt_tokens is not None and parent.logprobs is not None
    token_ids = np.array([*before, *answer.token_ids.tolist()], np.int32)
    text = await generator.decode(token_ids[parent.prompt_tokens :].tolist())
    logprobs = np.concatenate([parent.logprobs[:kept], np.zeros(added), answer.behaviour_logprobs])
    sampled = np.concatenate([parent.logprobs[:kept], answer.behaviour_logprobs])
    tokens = len(token_ids) - parent.prompt_tokens
    return replace(
        parent,
        point=point,
        completion=text,
        said=text,
        token_ids=token_ids,
        logprobs=logprobs.astype(np.float32),
        mean_logprob=float(sampled.mean()) if len(sampled) else float("nan"),
        tokens=tokens,
        thinking_tokens=kept if point.kind == "cut" else tokens,
        truncated=answer.finish_reason == "length",
        grade=None,
    )


def force_text(so_far: str, text: str) -> str:
    """What to append to a cut chain: nothing where an answer is being written already, and an open thought
    is closed first."""
    opened = so_far.rfind(BOX)
    if opened >= 0 and "}" not in so_far[opened:]:
        return ""
    thinking = so_far.rfind(THINK) > so_far.rfind(END_THINK)
    return f"\n{END_THINK}{text}" if thinking else text


def _without_end(said: list[int], end_token_ids: Collection[int], end_think: list[int]) -> list[int]:
    """The tokens before the model ended: before the end of its last thought when it thinks in tags (as s1
    suppresses that delimiter), else without the end token."""
    if len(end_think) <= 2:  # a token of its own, perhaps with a blank: else the model knows no such tag
        for start in range(len(said) - len(end_think), 0, -1):
            if said[start : start + len(end_think)] == end_think:
                return said[:start]
    while said and said[-1] in end_token_ids:
        said = said[:-1]
    return said


def s1_metrics(budgets: Sequence[tuple[int, Sequence[int], float, float]]) -> dict[str, Any]:
    """Control, scaling and performance (arXiv 2501.19393, section 3.2) of (budget B, thinking tokens of each
    sample, mean tokens spent, accuracy), one a budget.

    control: share of samples whose thinking stayed within B. scaling: mean slope of accuracy over mean
    tokens spent, over all pairs of budgets, per 1000 tokens; null for fewer than two different token counts.
    performance: the best accuracy."""
    if not budgets:
        return {"control": None, "scaling_per_1000_tokens": None, "performance": None}
    within = [np.asarray(thinking) <= budget for budget, thinking, _, _ in budgets]
    slopes = [
        (f_b - f_a) / (b - a) * 1000
        for i, (_, _, a, f_a) in enumerate(budgets)
        for _, _, b, f_b in budgets[i + 1 :]
        if b != a
    ]
    return {
        "control": float(np.concatenate(within).mean()),
        "scaling_per_1000_tokens": float(np.mean(slopes)) if slopes else None,
        "performance": max(accuracy for *_, accuracy in budgets),
    }
