"""What more samples of the same problem are worth: estimators over k of n samples, their intervals, and the
paired comparison of two models. numpy only; no model, no verifier, no files.

Oracle quantities ask whether a right answer is among the samples (pass@k, G-pass@k); deployable ones are
what a user gets who does not know which sample is right (majority votes, best-of-k by a scorer). Nothing
here mixes them. Formulae and sources: docs/test_time_compute.md; the votes themselves: reasoner/votes.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from reasoner.votes import MAX_WORK, Ballot, Estimate, exact_vote, from_ratios, sampled_votes

TAUS = (0.5, 0.75, 1.0)  # of G-pass@k in a table
RESAMPLES = 2000  # bootstrap resamples of the problems
PERMUTATIONS = 10_000  # sign flips of the paired test, when they cannot all be enumerated
TABLE_WORK = 6 * 10**8  # of all exact votes of a table, in complex multiply-adds (some 20 s)
SAMPLED_VOTES = 3 * 10**8  # votes cast by Monte Carlo in a table, over all problems
Columns = dict[str, np.ndarray]  # "pass@4" -> (problems,), nan where a problem has fewer samples
_DRAWS = (4, 1000)  # fewest and most random orders of one problem's samples


@dataclass(frozen=True, eq=False)
class ProblemSamples:
    """All scored samples of one problem, n of them. Raises ValueError when the lengths differ."""

    task_id: str
    correct: np.ndarray  # (n,) bool
    keys: tuple[str | None, ...]  # (n,) answer classes for votes; None = unparsed: uses up a vote, never wins
    tokens: np.ndarray  # (n,) int, completion tokens
    mean_logprob: np.ndarray  # (n,) mean behaviour logprob of the completion's tokens, nan when unknown
    scores: np.ndarray | None = None  # (n,) from a scorer, for best-of-n; nan counts as the lowest

    def __post_init__(self) -> None:
        columns = {"keys": self.keys, "tokens": self.tokens, "mean_logprob": self.mean_logprob}
        columns |= {} if self.scores is None else {"scores": self.scores}
        for name, column in columns.items():
            if len(column) != self.n:
                raise ValueError(f"{self.task_id}: {self.n} verdicts but {len(column)} {name}")

    @property
    def n(self) -> int:
        return len(self.correct)

    @property
    def c(self) -> int:
        return int(np.count_nonzero(self.correct))

    @cached_property
    def ballot(self) -> Ballot:
        return Ballot.of(self.keys, np.asarray(self.correct, bool))


def powers_of_two(n: int) -> list[int]:
    """1, 2, 4 … up to n."""
    return [2**i for i in range(n.bit_length())]


# ---------------------------------------------------------------------- one problem


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that at least one of k samples drawn without replacement from n, c of them right, is right
    (arXiv 2107.03374 eq. 1), in integers up to one rounding. Raises ValueError unless c <= n and k <= n."""
    _check(n, c, k)
    subsets = math.comb(n, k)
    return (subsets - math.comb(n - c, k)) / subsets


def avg_at_k(n: int, c: int) -> float:
    """The share of right samples: the expected accuracy of one sample, whatever k they were drawn for."""
    _check(n, c, 1)
    return c / n


def g_pass_at_k(n: int, c: int, k: int, tau: float) -> float:
    """Probability that at least ⌈tau·k⌉ of k samples drawn without replacement are right (arXiv 2412.13147
    eq. 4), 0 < tau <= 1. Raises ValueError for numbers that do not fit."""
    _check(n, c, k)
    if not 0 < tau <= 1:
        raise ValueError(f"G-pass@k needs 0 < tau <= 1, got {tau}")
    return _tail(_hypergeometric(n, c, k), tau)


def best_of_k(correct: np.ndarray, scores: np.ndarray, k: int) -> float:
    """Expected correctness of the sample with the highest score among k drawn without replacement; equal
    scores share their place uniformly, nan counts as the lowest score.

    Over ranks r = 1..n by growing score, the best of k has rank r with probability C(r-1, k-1) / C(n, k)."""
    correct, scores = np.asarray(correct, float), np.asarray(scores, float)
    _check(len(correct), 0, k)
    return float(_best_of(correct, scores) @ _rank_weights(len(correct), k))


def maj_at_k(
    samples: ProblemSamples, k: int, seed: int = 0, max_work: float = MAX_WORK, draws: int = _DRAWS[1]
) -> Estimate:
    """Expected correctness of a majority vote over k of the samples (see reasoner/votes.py for its rules).

    Exact (error 0) where that takes at most `max_work` complex multiply-adds, which is decided from the
    class sizes alone; else Monte Carlo over `draws` random orders, with its standard error."""
    _check(samples.n, 0, k)
    exact = exact_vote(samples.ballot, k, max_work)
    if exact is not None:
        return Estimate(exact, 0.0)
    correct = np.asarray(samples.correct, bool)
    return sampled_votes(samples.ballot, correct, [k], None, draws, np.random.default_rng(seed))[0]


def weighted_maj_at_k(samples: ProblemSamples, k: int, seed: int = 0, draws: int = _DRAWS[1]) -> Estimate:
    """As `maj_at_k`, but each sample's vote weighs exp(mean logprob): the geometric mean of its tokens'
    probabilities. Monte Carlo with its standard error. Raises ValueError when a logprob is unknown (nan)."""
    _check(samples.n, 0, k)
    return _weighted(samples, [k], draws, np.random.default_rng(seed))[0]


def _weighted(
    samples: ProblemSamples, ks: Sequence[int], draws: int, rng: np.random.Generator
) -> list[Estimate]:
    weights = np.exp(np.asarray(samples.mean_logprob, float))
    if not np.isfinite(weights).all():
        raise ValueError(f"{samples.task_id}: a weighted vote needs the mean logprob of every sample")
    return sampled_votes(samples.ballot, np.asarray(samples.correct, bool), ks, weights, draws, rng)


def _check(n: int, c: int, k: int) -> None:
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"k of n samples, c right: needs 0 <= c <= n and 1 <= k <= n, got {n=}, {c=}, {k=}")


def _hypergeometric(n: int, c: int, k: int) -> np.ndarray:
    """P(j of the k drawn are right), j = 0..k: (k + 1,)."""
    low, high = max(0, k - (n - c)), min(c, k)
    j = np.arange(low, high)
    ratios = (c - j) * (k - j) / ((j + 1) * (n - c - k + j + 1))
    p = np.zeros(k + 1)
    p[low : high + 1] = from_ratios(ratios, min(high, max(low, (k + 1) * (c + 1) // (n + 2))) - low)
    return p


def _tail(p: np.ndarray, tau: float) -> float:
    k = len(p) - 1
    return float(min(1.0, p[math.ceil(tau * k - 1e-9) :].sum()))


def _rank_weights(n: int, k: int) -> np.ndarray:
    """P(the best of k has rank r), r = 1..n by growing score: (n,)."""
    r = np.arange(n, 0, -1)
    at_most = np.cumprod(np.concatenate([[1.0], (r[:-1] - k) / r[:-1]]))[::-1]  # C(r, k) / C(n, k)
    return np.maximum(0.0, at_most) * k / np.arange(1, n + 1)


def _best_of(correct: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Correctness by growing score, averaged over equal scores: (n,)."""
    ranked = np.where(np.isnan(scores), -np.inf, scores)
    order = ranked.argsort(kind="stable")
    ranked, correct = ranked[order], correct[order]
    starts = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]]))
    sizes = np.diff(np.append(starts, len(ranked)))
    return np.repeat(np.add.reduceat(correct, starts) / sizes, sizes)


# ---------------------------------------------------------------------- all problems


def scaling_table(problems: Sequence[ProblemSamples], ks: Sequence[int], seed: int) -> dict[str, Any]:
    """Every estimator at every k, averaged over the problems, with 95 % bootstrap intervals over problems.

    A problem enters at every k it has samples for; `problems@k` counts them. A majority vote is exact where
    it takes at most its share of `TABLE_WORK`; `maj_error` is the Monte Carlo standard error of the mean, 0.0
    where all votes are exact. `weighted_maj@k` is null when a logprob is unknown, `best_of_k` when there are
    no scores. Raises ValueError without problems or when no problem has k samples."""
    if not problems or not ks:
        raise ValueError("a scaling table needs problems and sample counts")
    most = max(p.n for p in problems)
    if min(ks) < 1 or max(ks) > most:
        raise ValueError(f"k must be between 1 and {most}, the most samples any problem has: got {list(ks)}")
    rng = np.random.default_rng(seed)
    ks = sorted(set(ks))
    values, (voted, errors) = closed_forms(problems, ks), votes(problems, ks, rng)
    values |= voted
    if all(np.isfinite(p.mean_logprob).all() for p in problems):
        voted, of_weighted = votes(problems, ks, rng, weighted=True)
        values, errors = values | voted, errors | of_weighted
    means = {name: _mean(column) for name, column in values.items()}
    return {
        "pass@k": _at(means, "pass@"),
        "maj@k": _at(means, "maj@"),
        "weighted_maj@k": _at(means, "weighted_maj@") or None,
        "best_of_k": _at(means, "best_of_") or None,
        "g_pass@k": {f"{tau:g}": _at(means, f"g_pass[{tau:g}]@") for tau in TAUS},
        "avg@k": _mean(np.array([p.c / p.n for p in problems if p.n])),
        "ci95": _bootstrap(values, rng),
        "problems@k": {str(k): sum(p.n >= k for p in problems) for k in ks},
        "maj_error": _at(errors, "maj@"),
        "weighted_maj_error": _at(errors, "weighted_maj@") or None,
    }


def _at(values: Mapping[str, float], prefix: str) -> dict[str, float]:
    return {name[len(prefix) :]: v for name, v in values.items() if name.startswith(prefix)}


def _mean(column: np.ndarray) -> float:
    return float(np.nanmean(column))


def closed_forms(problems: Sequence[ProblemSamples], ks: Sequence[int]) -> Columns:
    """pass@k, G-pass@k and, when all problems have scores, best-of-k, a value for every problem."""
    return _counted(problems, ks) | _best_of_table(problems, ks)


def votes(
    problems: Sequence[ProblemSamples],
    ks: Sequence[int],
    rng: np.random.Generator,
    *,
    weighted: bool = False,
    draws: int | None = None,
) -> tuple[Columns, dict[str, float]]:
    """Majority votes for every problem, and the Monte Carlo standard errors of their means over problems.

    `draws` random orders a problem where Monte Carlo is needed; by default what `SAMPLED_VOTES` allows."""
    limit = TABLE_WORK / (len(problems) * len(ks))
    cast = sum(p.n for p in problems) * len(ks)
    draws = draws or int(min(_DRAWS[1], max(_DRAWS[0], SAMPLED_VOTES // cast)))
    table = np.full((2, len(problems), len(ks)), np.nan)
    for row, problem in enumerate(problems):
        if at := [k for k in ks if k <= problem.n]:
            estimates = (
                _weighted(problem, at, draws, rng) if weighted else _majority(problem, at, limit, draws, rng)
            )
            table[:, row, : len(at)] = np.array(estimates).T
    prefix = "weighted_maj@" if weighted else "maj@"
    squares, known = np.nansum(table[1] ** 2, axis=0), np.isfinite(table[1]).sum(axis=0)
    errors = np.sqrt(squares) / known
    values = {f"{prefix}{k}": table[0, :, column] for column, k in enumerate(ks)}
    return values, {name: float(e) for name, e in zip(values, errors, strict=True)}


def _majority(
    problem: ProblemSamples, ks: Sequence[int], limit: float, draws: int, rng: np.random.Generator
) -> list[Estimate]:
    exact = {k: exact_vote(problem.ballot, k, limit) for k in ks}
    sampled: dict[int, Estimate] = {}
    if costly := [k for k in ks if exact[k] is None]:
        correct = np.asarray(problem.correct, bool)
        found = sampled_votes(problem.ballot, correct, costly, None, draws, rng)
        sampled = dict(zip(costly, found, strict=True))
    return [sampled[k] if (value := exact[k]) is None else Estimate(value, 0.0) for k in ks]


def _counted(problems: Sequence[ProblemSamples], ks: Sequence[int]) -> Columns:
    """pass@k and G-pass@k, computed once for every distinct (n, c)."""
    pairs, inverse = np.unique([(p.n, p.c) for p in problems], axis=0, return_inverse=True)
    inverse = inverse.reshape(-1)
    values: Columns = {}
    for k in ks:
        fits = [(int(n), int(c)) if n >= k else None for n, c in pairs]
        found = np.array([math.nan if pair is None else pass_at_k(*pair, k) for pair in fits])
        values[f"pass@{k}"] = found[inverse]
        laws = [None if pair is None else _hypergeometric(*pair, k) for pair in fits]
        for tau in TAUS:
            found = np.array([math.nan if law is None else _tail(law, tau) for law in laws])
            values[f"g_pass[{tau:g}]@{k}"] = found[inverse]
    return values


def _best_of_table(problems: Sequence[ProblemSamples], ks: Sequence[int]) -> Columns:
    """best-of-k for problems with scores; empty when any has none."""
    scored = [p.scores for p in problems if p.scores is not None]
    if len(scored) != len(problems):
        return {}
    values = np.full((len(problems), len(ks)), np.nan)
    enough = {p.n for p in problems if p.n >= min(ks)}
    weights = {n: np.stack([_rank_weights(n, k) for k in ks if k <= n]) for n in enough}  # (ks, n)
    for row, (problem, scores) in enumerate(zip(problems, scored, strict=True)):
        if problem.n in enough:
            at = weights[problem.n] @ _best_of(np.asarray(problem.correct, float), np.asarray(scores, float))
            values[row, : len(at)] = at
    return {f"best_of_{k}": values[:, column] for column, k in enumerate(ks)}


# ---------------------------------------------------------------------- uncertainty over problems


def _resampled_means(columns: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Means of (problems, m) values over bootstrap resamples of the problems: (RESAMPLES, m)."""
    present = np.isfinite(columns)
    filled = np.where(present, columns, 0.0)
    problems, means = len(columns), []
    for batch in _batches(RESAMPLES, problems):
        chosen = rng.integers(0, problems, (batch, problems)) + np.arange(batch)[:, None] * problems
        times = np.bincount(chosen.ravel(), minlength=batch * problems).reshape(batch, problems).astype(float)
        with np.errstate(invalid="ignore"):  # a resample without any problem that has k samples
            means.append((times @ filled) / (times @ present))
    return np.concatenate(means)


def _batches(total: int, width: int) -> Iterator[int]:
    size = max(1, min(total, 2_000_000 // width))
    for start in range(0, total, size):
        yield min(size, total - start)


def _bootstrap(values: Columns, rng: np.random.Generator) -> dict[str, list[float]]:
    """Percentile intervals; all estimators see the same resamples."""
    means = _resampled_means(np.stack(list(values.values()), axis=1), rng)
    low, high = np.nanquantile(means, (0.025, 0.975), axis=0)
    return {name: [float(low[i]), float(high[i])] for i, name in enumerate(values)}


def paired_comparison(
    a: Sequence[ProblemSamples], b: Sequence[ProblemSamples], k: int, seed: int, metric: str = "pass@k"
) -> dict[str, Any]:
    """`a` minus `b` on the problems that both have, at k: the mean difference, its 95 % bootstrap interval
    and the two-sided p-value of a sign-flip permutation test (all flips up to 13 problems).

    `metric` is pass@k (at k = 1: the accuracy), maj@k, weighted_maj@k or best_of_k. Raises ValueError when
    no problem is in both with k samples or the metric is not known for them."""
    others = {p.task_id: p for p in b}
    pairs = [(p, others[p.task_id]) for p in a if p.task_id in others]
    pairs = [(x, y) for x, y in pairs if min(x.n, y.n) >= k]
    if not pairs:
        raise ValueError(f"no problem has {k} samples of both models: their task ids must match")
    estimate = _estimator(metric)
    difference = np.array([estimate(x, k) - estimate(y, k) for x, y in pairs])
    rng = np.random.default_rng(seed)
    low, high = np.quantile(_resampled_means(difference[:, None], rng), (0.025, 0.975))
    return {
        "metric": metric,
        "k": k,
        "difference": float(difference.mean()),
        "ci95": [float(low), float(high)],
        "p_value": _sign_flip(difference, rng),
        "problems": len(pairs),
    }


def _estimator(metric: str) -> Callable[[ProblemSamples, int], float]:
    def best(p: ProblemSamples, k: int) -> float:
        if p.scores is None:
            raise ValueError(f"{p.task_id}: best_of_k needs scores")
        return best_of_k(p.correct, p.scores, k)

    known: dict[str, Callable[[ProblemSamples, int], float]] = {
        "pass@k": lambda p, k: pass_at_k(p.n, p.c, k),
        "maj@k": lambda p, k: maj_at_k(p, k).value,
        "weighted_maj@k": lambda p, k: weighted_maj_at_k(p, k).value,
        "best_of_k": best,
    }
    if metric not in known:
        raise ValueError(f"no metric {metric!r}: known are {', '.join(known)}")
    return known[metric]


def _sign_flip(difference: np.ndarray, rng: np.random.Generator) -> float:
    """Two-sided p-value of the mean under random signs: exact for up to 13 non-zero differences, else with
    the observed signs counted among the permutations, so that it is never 0."""
    moved = difference[difference != 0]
    if not len(moved):
        return 1.0
    observed = abs(moved.sum()) * (1 - 1e-12)
    if len(moved) <= 13:
        signs = 1 - 2 * ((np.arange(2 ** len(moved))[:, None] >> np.arange(len(moved))) & 1)
        return float(np.mean(np.abs(signs @ moved) >= observed))
    extreme = 0
    for batch in _batches(PERMUTATIONS, len(moved)):
        signs = 1 - 2 * rng.integers(0, 2, (batch, len(moved)))
        extreme += int(np.count_nonzero(np.abs(signs @ moved) >= observed))
    return (extreme + 1) / (PERMUTATIONS + 1)
