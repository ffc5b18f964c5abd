"""Evaluation inside the training loop: verified groups from the loop's own workers, and the `eval` object of
metrics.jsonl. `reasoner eval`, with everything that many samples tell, is `reasoner.evaluation.run`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from reasoner.errors import ReasonerError
from reasoner.self_correction import detect, self_corrected
from reasoner.types import UNSCORED, Group, Rollout, SamplingParams, Task
from rollouts.dispatch import Dispatcher

SPLITS = ("held_out", "ood")


def evaluate_split(
    dispatcher: Dispatcher,
    tasks: Sequence[Task],
    samples: int,
    params: SamplingParams,
    *,
    chunk: int = 64,
    on_wait: Callable[[int], None] = lambda finished: None,
) -> list[Group]:
    """`samples` verified rollouts of every task, in task order. `on_wait` is called about once a second with
    the number of requests (of `chunk` tasks each) that have finished; it may raise to stop."""
    starts = range(0, len(tasks), chunk)
    tickets = [dispatcher.submit(tasks[i : i + chunk], samples, params, i) for i in starts]
    results: dict[int, list[Group]] = {}
    while len(results) < len(tickets):
        on_wait(len(results))
        for ticket, finished in dispatcher.finished(tickets, timeout_s=1.0).items():
            results[ticket] = [result.group for result in finished]
    return [group for ticket in tickets for group in results[ticket]]


def summarise(groups: Sequence[Group]) -> dict[str, Any]:
    """The `eval` object of one split in metrics.jsonl. Unscored rollouts are left out of every rate."""
    scored = _scored(groups)
    families = {name: [g for g in groups if g.task.family == name] for name in _families(groups)}
    by_difficulty: dict[str, list[Rollout]] = defaultdict(list)
    by_style: dict[str, list[Rollout]] = defaultdict(list)
    for rollout in scored:
        by_difficulty[f"{rollout.task.difficulty:g}"].append(rollout)
        by_style[style(rollout)].append(rollout)
    return {
        **_rates(scored),
        "problems": len(groups),
        "samples": max((len(g.rollouts) for g in groups), default=0),
        "masked_rate": 1 - len(scored) / max(1, sum(len(g.rollouts) for g in groups)),
        "truncated_rate": _mean([r.truncated for r in scored]),
        "self_corrected_rate": _mean([self_corrected(r.completion, r.verdict) for r in scored]),
        "by_difficulty": {level: _rates(rs) for level, rs in sorted(by_difficulty.items())},
        "by_style": {
            name: {"share": len(rs) / len(scored), **_rates(rs)} for name, rs in sorted(by_style.items())
        },
        **({"by_family": {n: _of_family(gs) for n, gs in families.items()}} if len(families) > 1 else {}),
    }


def _families(groups: Sequence[Group]) -> list[str]:
    return sorted({group.task.family for group in groups})


def _of_family(groups: Sequence[Group]) -> dict[str, Any]:
    return {**_rates(_scored(groups)), "problems": len(groups)}


def _scored(groups: Sequence[Group]) -> list[Rollout]:
    return [r for g in groups for r in g.rollouts if r.verdict and r.verdict.status not in UNSCORED]


def style(rollout: Rollout) -> str:
    """direct: only an answer; corrected: a claim was made and taken back, rightly or not; else working.

    Only read off the text after the fact: never part of a reward."""
    if detect(rollout.completion).retracted:
        return "corrected"
    before_answer = rollout.completion.split("\\boxed", 1)[0]
    return "working" if before_answer.strip() else "direct"


def _rates(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    return {
        "pass@1": _mean([r.verdict is not None and r.verdict.is_correct for r in rollouts]),
        "response_tokens_mean": _mean([r.num_action_tokens for r in rollouts]),
    }


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def check_scored(groups: Sequence[Group]) -> None:
    """Raises ReasonerError when a verifier scored nothing at all: it is broken, or the references are."""
    verdicts = [r.verdict for g in groups for r in g.rollouts if r.verdict]
    if verdicts and all(v.status in ("error", "bad_reference") for v in verdicts):
        raise ReasonerError(
            f"none of {len(verdicts)} rollouts was scored: {verdicts[0].status}: {verdicts[0].detail}"
        )


def verifier_failed(group: Group) -> bool:
    """Whether the verifier failed on every rollout of the group; mended, it may judge the next ones."""
    return all(r.verdict is not None and r.verdict.status == "error" for r in group.rollouts)
