"""Several checkpoints of a run, each evaluated with many samples: how curves and self-correction change over
training, and what training was worth in samples (the exchange rate)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from reasoner import cluster
from reasoner.checkpoint import CheckpointStore
from reasoner.config import Config
from reasoner.errors import UsageError
from reasoner.exchange import CheckpointCurves, exchange_rate
from reasoner.metrics import read_metrics

#: Of each split's entry, what is kept for every checkpoint.
KEPT = ("pass@k", "maj@k", "avg@k", "ci95", "response_tokens_mean", "flops_per_sample", "self_correction")


def models_of(run: Path, config: Config, chosen: Sequence[int] = ()) -> list[tuple[int, str]]:
    """(step, model) of the base and of the run's complete checkpoints, oldest first; only the `chosen` steps
    when there are any. UsageError when one of those is not there."""
    there = {0: config.model} | {int(p.name.split("_")[1]): str(p) for p in CheckpointStore(run).complete()}
    if missing := [step for step in chosen if step not in there]:
        raise UsageError(
            f"{run} has no checkpoint of step {missing[0]}: there are {', '.join(map(str, sorted(there)))} "
            "(0 is the base model; checkpoint.keep decides how many a run keeps)"
        )
    return sorted((step, model) for step, model in there.items() if not chosen or step in chosen)


def training_flops(run: Path, step: int) -> float:
    """All FLOPs of the run up to `step`: updates, and every rollout, discarded ones among them."""
    lines = [line for line in read_metrics(run) if line["step"] <= step]
    return float(sum((line["train_flops"] or 0.0) + (line["sample_flops"] or 0.0) for line in lines))


def evaluate_checkpoints(
    run: Path, config: Config, chosen: Sequence[int], evaluate: Callable[[Config], dict[str, Any]]
) -> dict[str, Any]:
    """The result of the newest of the models, with `checkpoints` and `exchange_rate` of all of them."""
    found: list[tuple[int, dict[str, Any]]] = []
    with cluster.connected(config.cluster.address):
        for step, model in models_of(run, config, chosen):
            found.append((step, evaluate(config.model_copy(update={"model": model}))))
    if len(found) < 2:
        raise UsageError(f"{run} has a single model to evaluate: an exchange rate needs two or more")
    rows = [
        {
            "step": step,
            "model": result["model"],
            "train_flops": training_flops(run, step),
            "splits": {n: {k: s[k] for k in KEPT} for n, s in result["splits"].items()},
        }
        for step, result in found
    ]
    return found[-1][1] | {"checkpoints": rows, "exchange_rate": exchange_of(rows)}


def exchange_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The exchange rate of the first split; null when a checkpoint's costs or curves are not known."""
    split = next(iter(rows[0]["splits"]))
    curves = []
    for row in rows:
        entry = row["splits"][split]
        if not entry["flops_per_sample"] or not entry["pass@k"]:
            return None
        curves.append(
            CheckpointCurves(
                name=f"step {row['step']}",
                train_flops=row["train_flops"],
                flops_per_sample=entry["flops_per_sample"],
                deployable=_by_k(entry["maj@k"]),
                oracle=_by_k(entry["pass@k"]),
            )
        )
    return {"split": split, **exchange_rate(curves)}


def _by_k(curve: Mapping[str, float] | None) -> dict[int, float]:
    return {int(k): value for k, value in (curve or {}).items()}


__all__ = ["evaluate_checkpoints", "exchange_of", "models_of", "training_flops"]
