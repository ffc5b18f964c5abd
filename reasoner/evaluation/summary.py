"""From stored samples to the numbers of eval.json. The schemas are documented in docs/evaluation.md."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reasoner.evaluation.budgets import s1_metrics, standing_for
from reasoner.evaluation.costs import Prices, costs_of, flops_of
from reasoner.evaluation.store import CHAIN, Point, Sample
from reasoner.flops import FlopCounter
from reasoner.scaling import ProblemSamples, powers_of_two, scaling_table
from reasoner.self_correction import detect
from reasoner.types import UNSCORED, Task

BUDGETS_SCHEMA = 1


@dataclass(frozen=True)
class SplitSamples:
    """The graded samples of one split: `rows[task_id][sample][point]`, tasks in order."""

    name: str
    tasks: tuple[Task, ...]
    rows: Mapping[str, Mapping[int, Mapping[Point, Sample]]]

    @classmethod
    def of(cls, name: str, tasks: Sequence[Task], samples: Iterable[Sample], wanted: int) -> SplitSamples:
        """The first `wanted` samples of each task."""
        ids = {task.id for task in tasks}
        rows: dict[str, dict[int, dict[Point, Sample]]] = {task.id: {} for task in tasks}
        for sample in samples:
            if sample.task_id in ids and sample.index < wanted and sample.grade is not None:
                rows[sample.task_id].setdefault(sample.index, {})[sample.point] = sample
        return cls(name, tuple(tasks), rows)

    def at(self, point: Point = CHAIN) -> list[list[Sample]]:
        """What counts at `point`, a list a task."""
        return [
            [s for i in sorted(self.rows[t.id]) if (s := standing_for(point, self.rows[t.id][i])) is not None]
            for t in self.tasks
        ]


def problem_samples(
    task_id: str, samples: Sequence[Sample], score: Callable[[Sample], float]
) -> ProblemSamples:
    """The scored samples of one problem, for the estimators."""
    scored = [s for s in samples if s.grade is not None and s.grade.verdict.status not in UNSCORED]
    return ProblemSamples(
        task_id,
        correct=np.array([_right(s) for s in scored], bool),
        keys=tuple(s.grade.key if s.grade else None for s in scored),
        tokens=np.array([s.tokens for s in scored], int),
        mean_logprob=np.array([s.mean_logprob for s in scored], float),
        scores=np.array([score(s) for s in scored], float),
    )


def scorer_of(samples: Iterable[Sample]) -> tuple[str, Callable[[Sample], float]]:
    """The scorer of best-of-k: the one samples were scored by, else their mean logprob."""
    if any(s.grade is not None and s.grade.score is not None for s in samples):
        return "scorer", lambda s: float("nan") if not s.grade or s.grade.score is None else s.grade.score
    return "mean_logprob", lambda s: s.mean_logprob


def problems_of(split: SplitSamples, point: Point = CHAIN) -> list[ProblemSamples]:
    groups = split.at(point)
    _, score = scorer_of(s for group in groups for s in group)
    found = [problem_samples(t.id, group, score) for t, group in zip(split.tasks, groups, strict=True)]
    return [p for p in found if p.n]


def families_of(split: SplitSamples, problems: Sequence[ProblemSamples]) -> dict[str, list[ProblemSamples]]:
    """The problems of each family by name; {} where there is only one."""
    family_of = {task.id: task.family for task in split.tasks}
    found: dict[str, list[ProblemSamples]] = defaultdict(list)
    for problem in problems:
        found[family_of[problem.task_id]].append(problem)
    return dict(sorted(found.items())) if len(found) > 1 else {}


def scaling(problems: Sequence[ProblemSamples], seed: int) -> dict[str, Any]:
    """The table of `reasoner.scaling` for k = 1, 2, 4 … as far as every problem has samples. What is not
    known (votes without classes, best-of-k without scores) is null."""
    if not problems:
        empty = ("pass@k", "maj@k", "weighted_maj@k", "best_of_k", "g_pass@k", "avg@k", "ci95")
        return dict.fromkeys(empty)
    table = scaling_table(problems, powers_of_two(min(p.n for p in problems)), seed)
    if all(key is None for p in problems for key in p.keys) and any(p.c for p in problems):
        table |= {
            "maj@k": None,
            "weighted_maj@k": None,
        }  # right answers without classes: nothing to vote with
    if any(np.isnan(p.scores).all() for p in problems if p.scores is not None):
        table["best_of_k"] = None
    return table


def split_summary(
    split: SplitSamples,
    flops: FlopCounter | None,
    seed: int,
    seconds_per_token: float | None = None,
    prices: Prices | None = None,
) -> dict[str, Any]:
    """One entry of `splits` in eval.json."""
    samples = [s for group in split.at() for s in group]
    scored = [s for s in samples if s.grade and s.grade.verdict.status not in UNSCORED]
    statuses = [s.grade.verdict.status for s in samples if s.grade]
    problems, task_of = problems_of(split), {task.id: task for task in split.tasks}
    by_difficulty: dict[str, list[Sample]] = defaultdict(list)
    by_family: dict[str, list[Sample]] = defaultdict(list)
    for sample in scored:
        by_difficulty[f"{task_of[sample.task_id].difficulty:g}"].append(sample)
        by_family[task_of[sample.task_id].family].append(sample)
    ids_of = {family: {s.task_id for s in of} for family, of in by_family.items()}
    name, _ = scorer_of(samples)
    return {
        "problems": len(split.tasks),
        "samples": max((len(group) for group in split.at()), default=0),
        **scaling(problems, seed),
        "best_of_k_scorer": name,
        "response_tokens_mean": mean([s.tokens for s in samples]),
        "unparsed_rate": mean([status == "unparsed" for status in statuses]),
        "masked_rate": mean([status in UNSCORED for status in statuses]),
        "truncated_rate": mean([s.truncated for s in samples]),
        "self_corrected_rate": mean([_right(s) and bool(detect(s.completion).retracted) for s in scored]),
        "self_correction": self_correction(scored),
        "by_difficulty": {level: _rates(of) for level, of in sorted(by_difficulty.items())},
        "by_family": {
            family: {**_rates(of), **_certainty([p for p in problems if p.task_id in ids_of[family]], seed)}
            for family, of in sorted(by_family.items())
        },
        **flops_of(samples, flops),
        "costs": costs_of(samples, seconds_per_token, prices),
    }


def self_correction(scored: Sequence[Sample]) -> dict[str, Any]:
    """What became of the answers on the way, over all scored chains: rates are shares of all of them.

    A chain's first candidate is what it would have answered had it stopped there."""
    chains = [s.grade.candidates_correct for s in scored if s.grade]
    several = [c for c in chains if len(c) > 1]
    changed = [
        s.grade is not None
        and len(s.grade.candidates) > 1
        and s.grade.candidates[0] != s.grade.candidates[-1]
        for s in scored
    ]
    total = len(chains)
    rate = lambda count: count / total if total else None  # noqa: E731
    return {
        "chains": total,
        "several_answers_rate": rate(len(several)),
        "wrong_to_right_rate": rate(sum(not c[0] and c[-1] for c in several)),
        "right_to_wrong_rate": rate(sum(c[0] and not c[-1] for c in several)),
        "last_differs_rate": rate(sum(changed)),
        "retracted_rate": mean([bool(detect(s.said).retracted) for s in scored]),
        "first_answer_accuracy": mean([c[0] for c in chains if c]),
        "last_answer_accuracy": mean([c[-1] for c in chains if c]),
        "candidates_mean": mean([len(c) for c in chains]),
    }


def budgets_summary(
    splits: Sequence[SplitSamples], points: Sequence[Point], flops: FlopCounter | None, seed: int
) -> dict[str, Any] | None:
    """`budgets` of eval.json: accuracy and scaling at every budget and extension, from the same chains."""
    if not points:
        return None
    found: dict[str, Any] = {}
    for split in splits:
        at = [_budget_point(split, point, flops, seed) for point in (*points, CHAIN)]
        cuts = [
            (p.amount, [s.thinking_tokens for g in split.at(p) for s in g], e["tokens_mean"], e["accuracy"])
            for p, e in zip(points, at, strict=False)
            if p.kind == "cut" and e["accuracy"] is not None
        ]
        found[split.name] = {"points": at, "s1": s1_metrics(cuts)}
    return {"schema": BUDGETS_SCHEMA, "splits": found}


def _budget_point(split: SplitSamples, point: Point, flops: FlopCounter | None, seed: int) -> dict[str, Any]:
    groups = split.at(point)
    samples = [s for group in groups for s in group]
    problems = problems_of(split, point)
    table = scaling(problems, seed)
    return {
        "kind": "full" if point == CHAIN else point.kind,
        "budget": point.amount if point.kind == "cut" else None,
        "times": point.amount if point.kind == "extended" else None,
        "text": point.suffix,
        "applied_rate": mean([s.point == point for s in samples]),
        "tokens_mean": mean([s.tokens for s in samples]),
        "thinking_tokens_mean": mean([s.thinking_tokens for s in samples]),
        "accuracy": table["avg@k"],
        **{name: table[name] for name in ("pass@k", "maj@k", "weighted_maj@k", "best_of_k", "ci95")},
        **flops_of(samples, flops),
    }


def unpaired_difference(
    a: Sequence[ProblemSamples], b: Sequence[ProblemSamples], seed: int
) -> dict[str, Any]:
    """Accuracy on `a` minus accuracy on `b`, other problems, with a 95 % bootstrap interval over problems."""
    rates = [np.array([p.c / p.n for p in problems]) for problems in (a, b)]
    if not all(map(len, rates)):
        return {"difference": None, "ci95": None}
    rng = np.random.default_rng(seed)
    drawn = [_resampled(r, rng) for r in rates]
    low, high = np.quantile(drawn[0] - drawn[1], (0.025, 0.975))
    return {"difference": float(rates[0].mean() - rates[1].mean()), "ci95": [float(low), float(high)]}


def _certainty(problems: Sequence[ProblemSamples], seed: int) -> dict[str, Any]:
    """How many problems, and a 95 % bootstrap interval over them."""
    rates = np.array([p.c / p.n for p in problems])
    means = _resampled(rates, np.random.default_rng(seed))
    return {
        "problems": len(rates),
        "ci95": {"pass@1": [float(q) for q in np.quantile(means, (0.025, 0.975))]},
    }


def _resampled(rates: np.ndarray, rng: np.random.Generator, resamples: int = 2000) -> np.ndarray:
    return rates[rng.integers(0, len(rates), (resamples, len(rates)))].mean(axis=1)


def _rates(samples: Sequence[Sample]) -> dict[str, Any]:
    return {
        "pass@1": mean(list(map(_right, samples))),
        "response_tokens_mean": mean([s.tokens for s in samples]),
    }


def _right(sample: Sample) -> bool:
    return sample.grade is not None and sample.grade.verdict.is_correct


def mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None
