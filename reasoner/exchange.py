"""The exchange rate between training and sampling: which is the cheaper way to the next point of accuracy.

Training is paid once, samples are paid at every query. So the answer is a number of queries: the break-even
after which having trained was cheaper. Pure functions over measured curves; nothing is extrapolated, and
what is out of reach is None (`null` in eval.json). What is left out: memory, latency and the price of idle
hardware; a FLOP of training counts as much as one of sampling.

Between measured sample counts accuracy is linear in log k, between checkpoints linear in cumulative training
FLOPs; a k that is no integer is a mixture of its neighbours over queries. Schema and hand-computed example:
docs/test_time_compute.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

SCHEMA_VERSION = 1
Kind = Literal["deployable", "oracle"]
KINDS: tuple[Kind, ...] = ("deployable", "oracle")
_STEP = 0.05  # between default targets


@dataclass(frozen=True)
class CheckpointCurves:
    """What one checkpoint cost so far and what it reaches with k samples. Raises ValueError for numbers that
    cannot be: negative costs, k < 1, accuracies outside [0, 1]."""

    name: str
    train_flops: float  # cumulative: rollouts, discarded samples and recomputation included; 0 for the base
    flops_per_sample: float  # inference, prompt included
    deployable: Mapping[int, float]  # k -> maj@k
    oracle: Mapping[int, float]  # k -> pass@k: somebody knows which sample is right

    def __post_init__(self) -> None:
        if not 0 <= self.train_flops < math.inf or not 0 < self.flops_per_sample < math.inf:
            raise ValueError(f"{self.name}: costs must be finite, and a sample must cost something")
        for kind in KINDS:
            for k, accuracy in self.curve(kind).items():
                if k < 1 or not 0 <= accuracy <= 1:
                    raise ValueError(f"{self.name}: {kind} accuracy {accuracy} with {k} samples cannot be")

    def curve(self, kind: Kind) -> Mapping[int, float]:
        return self.deployable if kind == "deployable" else self.oracle


def exchange_rate(
    checkpoints: Sequence[CheckpointCurves], targets: Sequence[float] | None = None
) -> dict[str, Any]:
    """The `exchange_rate` object of eval.json. The reference is the least trained checkpoint; the targets are
    multiples of 0.05 within what was measured unless they are given.

    Raises ValueError for fewer than two checkpoints, for two of one name, or for targets outside (0, 1]."""
    points = sorted(checkpoints, key=lambda p: p.train_flops)
    names = [p.name for p in points]
    if len(points) < 2 or len(set(names)) < len(names):
        raise ValueError(
            f"an exchange rate needs two or more checkpoints with names of their own: got {names}"
        )
    targets = default_targets(points) if targets is None else sorted(targets)
    if any(not 0 < target <= 1 for target in targets):
        raise ValueError(f"target accuracies must be in (0, 1]: got {list(targets)}")
    return {
        "schema": SCHEMA_VERSION,
        "reference": names[0],
        "targets": list(targets),
        **{
            kind: {
                "iso_accuracy": [_iso_accuracy(points, kind, target) for target in targets],
                "samples_as_training": _samples_as_training(points, kind),
            }
            for kind in KINDS
        },
    }


def default_targets(points: Sequence[CheckpointCurves]) -> list[float]:
    """Multiples of 0.05 above the lowest accuracy of one sample, up to the highest that was reached."""
    values = [a for p in points for kind in KINDS for a in p.curve(kind).values()]
    if not values:
        return []
    first, last = math.floor(min(values) / _STEP) + 1, math.floor(max(values) / _STEP + 1e-9)
    return [round(i * _STEP, 2) for i in range(first, last + 1)]


def samples_needed(curve: Mapping[int, float], target: float) -> float | None:
    """The smallest k, real-valued, at which accuracy reaches `target`: linear in log k between measured
    points, the smallest measured k when that suffices, None where no measured k does."""
    points = sorted(curve.items())
    if points and points[0][1] >= target:
        return float(points[0][0])
    for (k0, a0), (k1, a1) in zip(points, points[1:], strict=False):
        if a0 < target <= a1:
            share = (target - a0) / (a1 - a0)
            return float(k0 * (k1 / k0) ** share)
    return None


def break_even_queries(train_flops: float, saved_per_query: float) -> float | None:
    """After how many queries training paid for itself; None when it saves nothing a query."""
    return train_flops / saved_per_query if saved_per_query > 0 else None


def _iso_accuracy(points: Sequence[CheckpointCurves], kind: Kind, target: float) -> dict[str, Any]:
    """What every checkpoint needs for one accuracy, and what having trained costs against the reference."""
    rows: list[dict[str, Any]] = []
    for point in points:
        k = samples_needed(point.curve(kind), target)
        cost = None if k is None else k * point.flops_per_sample
        extra = point.train_flops - points[0].train_flops
        reference = rows[0]["flops_per_query"] if rows else None
        saved = None if cost is None or reference is None else reference - cost
        rows.append(
            {
                "checkpoint": point.name,
                "train_flops": point.train_flops,
                "samples": k,
                "flops_per_query": cost,
                "extra_train_flops": extra,
                "saved_flops_per_query": saved,
                "break_even_queries": None if saved is None else break_even_queries(extra, saved),
            }
        )
    return {"accuracy": target, "checkpoints": rows}


def _samples_as_training(points: Sequence[CheckpointCurves], kind: Kind) -> list[dict[str, Any]]:
    """For every k of the reference: the training after which a single sample is as accurate."""
    reference, rows = points[0], []
    alone = [(p, p.curve(kind)[1]) for p in points if 1 in p.curve(kind)]
    for k, accuracy in sorted(reference.curve(kind).items()):
        equal = _trained_to(alone, accuracy)
        extra = None if equal is None else equal[0] - reference.train_flops
        saved = None if equal is None else k * reference.flops_per_sample - equal[1]
        rows.append(
            {
                "samples": k,
                "accuracy": accuracy,
                "flops_per_query": k * reference.flops_per_sample,
                "equal_train_flops": extra,
                "break_even_queries": None
                if extra is None or saved is None
                else break_even_queries(extra, saved),
            }
        )
    return rows


def _trained_to(alone: Sequence[tuple[CheckpointCurves, float]], target: float) -> tuple[float, float] | None:
    """(cumulative training FLOPs, FLOPs a sample) at which one sample first reaches `target`."""
    if alone and alone[0][1] >= target:
        return alone[0][0].train_flops, alone[0][0].flops_per_sample
    for (p, a), (q, b) in zip(alone, alone[1:], strict=False):
        if a < target <= b:
            share = (target - a) / (b - a)
            return (
                p.train_flops + share * (q.train_flops - p.train_flops),
                p.flops_per_sample + share * (q.flops_per_sample - p.flops_per_sample),
            )
    return None
