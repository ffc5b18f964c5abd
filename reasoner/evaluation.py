"""Evaluation through the same path that training samples by: workers, servers, verifier.

`evaluate_split` is used inside the training loop; `evaluate` is the public entry behind `reasoner eval`.
pass@k is the unbiased estimator of arXiv 2107.03374 eq. 1. Not here yet: majority votes, best-of-n by
a scorer, thinking budgets and the exchange rate; their fields in eval.json are null.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray

from envs.tasks import load_tasks
from reasoner import cluster
from reasoner.config import Config
from reasoner.errors import ReasonerError, UsageError
from reasoner.flops import FlopCounter
from reasoner.model_source import resolve_model
from reasoner.run import prompt_template, provenance
from reasoner.self_correction import detect, self_corrected
from reasoner.types import UNSCORED, Group, Rollout, SamplingParams, Task
from rollouts.dispatch import Dispatcher
from verifiers import load_verifier

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
    dispatcher: Dispatcher,
    tasks: Sequence[Task],
    samples: int,
    params: SamplingParams,
    *,
    chunk: int = 64,
    on_wait: Callable[[], None] = lambda: None,
) -> list[Group]:
    """`samples` verified rollouts of every task, in task order. `on_wait` is called about once a second;
    it may raise to stop."""
    starts = range(0, len(tasks), chunk)
    tickets = [dispatcher.submit(tasks[i : i + chunk], samples, params, i) for i in starts]
    results: dict[int, list[Group]] = {}
    while len(results) < len(tickets):
        on_wait()
        for ticket, finished in dispatcher.finished(tickets, timeout_s=1.0).items():
            results[ticket] = [result.group for result in finished]
    return [group for ticket in tickets for group in results[ticket]]


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
        "self_corrected_rate": _mean([self_corrected(r.completion, r.verdict) for r in scored]),
        "by_difficulty": {level: _rates(rs) for level, rs in sorted(by_difficulty.items())},
        "by_style": {
            name: {"share": len(rs) / len(scored), **_rates(rs)} for name, rs in sorted(by_style.items())
        },
    }


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


def evaluate(
    config: Config, *, verifier: Any = None, progress: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Evaluates `config.model` on the splits of `config.tasks.source`; returns the contents of eval.json.

    Problems and samples are `config.eval`'s, budget and temperature `config.rollout`'s. Starts and stops its
    own server and workers. Raises UsageError for a model, tasks or verifier that cannot be used."""
    model = resolve_model(config.model)
    template = prompt_template(config.tasks.template, model)
    cluster.context_tokens(config, model)
    source = load_tasks(config.tasks.source, config.seed)
    verifier = verifier if verifier is not None else config.verifier.name
    load_verifier(verifier)
    if config.server.addresses:
        raise UsageError("evaluation starts its own server: leave server.addresses out")
    tasks = {split: found for split in SPLITS if (found := source.split(split, config.eval.problems))}
    if not tasks:
        raise UsageError(
            f"{config.tasks.source} has neither held-out nor out-of-distribution tasks: "
            'give some lines "split": "held_out"'
        )
    flops = FlopCounter.from_config(json.loads((model.path / "config.json").read_text()))
    params = SamplingParams(config.rollout.max_tokens, config.rollout.temperature, config.rollout.stop)
    splits = {}
    progress(f"starting vLLM with {model.name} …")
    try:
        with (
            cluster.connected(config.cluster.address),
            tempfile.TemporaryDirectory(prefix="reasoner-eval-") as logs,
        ):
            processes = cluster.start(config, model, template, verifier, Path(logs), learner_base=None)
            try:
                for split, problems in tasks.items():
                    progress(f"{split}: {len(problems)} problems × {config.eval.samples} samples")
                    groups = evaluate_split(processes.dispatcher, problems, config.eval.samples, params)
                    check_scored(groups)
                    splits[split] = {**summarise(groups), **scaling(groups, flops, config.seed)}
            finally:
                processes.stop()
    except ray.exceptions.RayError as e:
        raise cluster.unwrap(e) from None
    return {
        "model": model.name,
        "versions": provenance(),
        "seed": config.seed,
        "tasks": config.tasks.source,
        "verifier": config.verifier.name,
        "sampling": {
            "max_tokens": params.max_tokens,
            "temperature": params.temperature,
            "template": template,
        },
        "splits": splits,
        "budgets": None,
        "exchange_rate": None,
    }


def check_scored(groups: Sequence[Group]) -> None:
    """Raises ReasonerError when a verifier scored nothing at all: it is broken, or the references are."""
    verdicts = [r.verdict for g in groups for r in g.rollouts if r.verdict]
    if verdicts and all(v.status in ("error", "bad_reference") for v in verdicts):
        raise ReasonerError(
            f"the verifier scored none of {len(verdicts)} rollouts: "
            f"{verdicts[0].status}: {verdicts[0].detail}"
        )


def scaling(groups: Sequence[Group], flops: FlopCounter, seed: int, resamples: int = 2000) -> dict[str, Any]:
    """pass@k for k = 1, 2, 4 …, its 95 % bootstrap interval over problems, and what a sample costs."""
    counts = []
    for group in groups:
        verdicts = [r.verdict for r in group.rollouts if r.verdict and r.verdict.status not in UNSCORED]
        counts.append((len(verdicts), sum(v.is_correct for v in verdicts)))
    counts = [(n, c) for n, c in counts if n]
    ks = [2**i for i in range(min((n for n, _ in counts), default=0).bit_length())]
    rng = np.random.default_rng(seed)
    pass_at, intervals = {}, {}
    for k in ks:
        per_problem = np.array([pass_at_k(n, c, k) for n, c in counts])
        means = per_problem[rng.integers(0, len(per_problem), (resamples, len(per_problem)))].mean(axis=1)
        pass_at[str(k)] = float(per_problem.mean())
        intervals[f"pass@{k}"] = [float(x) for x in np.quantile(means, (0.025, 0.975))]
    rollouts = [r for g in groups for r in g.rollouts]
    spent = flops.forward(len(r.token_ids) for r in rollouts)
    correct = sum(c for _, c in counts)
    statuses = [r.verdict.status for r in rollouts if r.verdict]
    return {
        "pass@k": pass_at,
        "maj@k": None,
        "best_of_k": None,
        "avg@k": pass_at.get("1"),
        "ci95": intervals,
        "unparsed_rate": _mean([s == "unparsed" for s in statuses]),
        "masked_rate": _mean([s in UNSCORED for s in statuses]),
        "flops_per_sample": spent / len(rollouts) if rollouts else None,
        "flops_per_correct": spent / correct if correct else None,
    }
