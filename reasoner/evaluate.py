"""Evaluation through the same path that training samples by: workers, servers, verifier.

`evaluate_split` is used inside the training loop; `evaluate` is the public entry behind `reasoner eval`.
pass@k is the unbiased estimator of arXiv 2107.03374 eq. 1.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import ray

from reasoner.self_correction import self_corrected
from reasoner.types import UNSCORED, Group, Rollout, SamplingParams, Task

SPLITS = ("held_out", "ood")


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that at least one of k samples drawn without replacement from n, c of them right, is right
    (arXiv 2107.03374 eq. 1). Raises ValueError for k > n."""
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n, got n={n}, c={c}, k={k}")
    if n - c < k:
        return 1.0
    return 1.0 - math.exp(math.fsum(math.log1p(-k / (n - i)) for i in range(c)))


def evaluate_split(
    workers: Sequence[Any],
    tasks: Sequence[Task],
    samples: int,
    params: SamplingParams,
    *,
    chunk: int = 64,
    on_wait: Callable[[], None] = lambda: None,
) -> list[Group]:
    """`samples` verified rollouts of every task, in task order. `on_wait` is called about once a second and may
    raise to stop."""
    pending: dict[Any, int] = {}
    for i, start in enumerate(range(0, len(tasks), chunk)):
        worker = workers[i % len(workers)]
        pending[worker.run.remote(tasks[start : start + chunk], samples, params, start)] = start
    results: dict[int, list[Group]] = {}
    while pending:
        on_wait()
        for call in ray.wait(list(pending), num_returns=1, timeout=1.0)[0]:
            results[pending.pop(call)] = [r.group for r in ray.get(call)]
    return [group for start in sorted(results) for group in results[start]]


def summarise(groups: Sequence[Group]) -> dict[str, Any]:
    """The `eval` object of one split in metrics.jsonl. Unscored rollouts are left out of every rate."""
    scored = [r for g in groups for r in g.rollouts if r.verdict and r.verdict.status not in UNSCORED]
    by_difficulty: dict[str, list[Rollout]] = defaultdict(list)
    by_style: dict[str, list[Rollout]] = defaultdict(list)
    for rollout in scored:
        by_difficulty[f"{rollout.task.difficulty:g}"].append(rollout)
        by_style[style(rollout)].append(rollout)
    return {
        **_rates(scored),
        "problems": len(groups),
        "samples": max((len(g.rollouts) for g in groups), default=0),
        "truncated_rate": _mean([r.truncated for r in scored]),
        "self_corrected_rate": _mean([style(r) == "corrected" for r in scored]),
        "by_difficulty": {level: _rates(rs) for level, rs in sorted(by_difficulty.items())},
        "by_style": {
            name: {"share": len(rs) / len(scored), **_rates(rs)} for name, rs in sorted(by_style.items())
        },
    }


def style(rollout: Rollout) -> str:
    """direct: nothing but an answer; corrected: a wrong claim was made and taken back; else working.

    Only read off the text after the fact: never part of a reward."""
    if rollout.verdict is not None and self_corrected(rollout.completion, rollout.verdict):
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
