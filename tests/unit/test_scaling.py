import math
from fractions import Fraction
from functools import partial
from itertools import combinations, product

import numpy as np
import pytest

from reasoner.scaling import (
    ProblemSamples,
    avg_at_k,
    best_of_k,
    g_pass_at_k,
    maj_at_k,
    paired_comparison,
    pass_at_k,
    powers_of_two,
    scaling_table,
    weighted_maj_at_k,
)


def problem(keys, correct=None, task_id="t", logprobs=None, scores=None):
    """Keys as a string, a letter a sample: "." is unparsed; right are the samples with key "a"."""
    keys = tuple(None if key == "." else key for key in keys)
    correct = np.array([key == "a" for key in keys] if correct is None else correct, bool)
    logprobs = np.zeros(len(keys)) if logprobs is None else np.array(logprobs, float)
    return ProblemSamples(task_id, correct, keys, np.full(len(keys), 10), logprobs, scores)


def enumerated(n, k, outcome, *arguments):
    """The mean of `outcome(subset, *arguments)` over all size-k subsets, as a fraction."""
    subsets = list(combinations(range(n), k))
    return sum((Fraction(outcome(list(s), *arguments)) for s in subsets), Fraction(0)) / len(subsets)


def at_least(subset, right, needed):
    return int(right[subset].sum() >= needed)


def best(subset, correct, scores):
    top = [i for i in subset if scores[i] == max(scores[subset])]
    return Fraction(int(correct[top].sum()), len(top))


def vote(samples, subset, weights=None):
    """The rule in words: most votes win, ties uniformly, a voter of the winning class is asked at random."""
    classes = {}
    for i in subset:
        if samples.keys[i] is not None:
            classes.setdefault(samples.keys[i], []).append(i)
    if not classes:
        return Fraction(0)
    votes = {key: sum(1 if weights is None else weights[i] for i in v) for key, v in classes.items()}
    winners = [v for key, v in classes.items() if votes[key] == max(votes.values())]
    return sum(Fraction(int(samples.correct[v].sum()), len(v)) for v in winners) / len(winners)


@pytest.mark.parametrize("n", range(1, 9))
def test_counting_estimators_equal_enumeration(n):
    for c, k in product(range(n + 1), range(1, n + 1)):
        right = np.arange(n) < c
        assert pass_at_k(n, c, k) == float(enumerated(n, k, at_least, right, 1))
        for tau in (0.01, 0.3, 0.5, 0.75, 1.0):
            needed = math.ceil(Fraction(str(tau)) * k)
            exact = enumerated(n, k, at_least, right, needed)
            assert g_pass_at_k(n, c, k, tau) == pytest.approx(float(exact), abs=1e-14)


@pytest.mark.parametrize("n", range(1, 9))
def test_best_of_k_equals_enumeration_with_ties(n):
    rng = np.random.default_rng(n)
    for _ in range(20):
        correct, scores = rng.random(n) < 0.5, rng.integers(0, 3, n).astype(float)
        for k in range(1, n + 1):
            exact = float(enumerated(n, k, best, correct, scores))
            assert best_of_k(correct, scores, k) == pytest.approx(exact, abs=1e-14)


def partitions(n, largest=None):
    """All ways to write n as a sum of falling sizes."""
    if n == 0:
        yield ()
    for first in range(min(n, largest or n), 0, -1):
        yield from ((first, *rest) for rest in partitions(n - first, first))


def ballots(n):
    """Every vote of n samples there is: how many are right, how many unparsed, how the others are split."""
    for right, unparsed in product(range(n + 1), repeat=2):
        if right + unparsed <= n:
            for sizes in partitions(n - right - unparsed):
                wrong = "".join(chr(ord("b") + j) * size for j, size in enumerate(sizes))
                yield "a" * right + "." * unparsed + wrong


@pytest.mark.parametrize("n", range(1, 9))
def test_majority_equals_enumeration_for_every_vote(n):
    for keys in ballots(n):
        samples = problem(keys)
        for k in range(1, n + 1):
            exact = float(enumerated(n, k, partial(vote, samples)))
            assert maj_at_k(samples, k) == (pytest.approx(exact, abs=1e-13), 0.0)


@pytest.mark.parametrize("n", range(2, 9))
def test_majority_equals_enumeration_when_a_class_disagrees(n):
    rng = np.random.default_rng(n)
    for _ in range(10):
        samples = problem("".join(rng.choice(list(".ab"), n)), rng.random(n) < 0.5)
        for k in range(1, n + 1):
            exact = float(enumerated(n, k, partial(vote, samples)))
            assert maj_at_k(samples, k) == (pytest.approx(exact, abs=1e-13), 0.0)


def test_majority_by_hand():
    # aab: k = 2 draws aa, ab, ab: 1, 1/2, 1/2; an unparsed sample uses up a vote: a.. draws a., a., ..
    assert maj_at_k(problem("aab"), 2).value == pytest.approx(2 / 3, abs=1e-15)
    assert maj_at_k(problem("a.."), 2).value == pytest.approx(2 / 3, abs=1e-15)
    assert maj_at_k(problem("..."), 2).value == 0.0
    # two classes tie at 2 of 4: the right one gets half
    assert maj_at_k(problem("aabb"), 4).value == 0.5
    # a sample without a key never wins, even a right one
    assert maj_at_k(problem("..", [True, True]), 1).value == 0.0


def test_a_class_whose_samples_disagree_is_right_as_often_as_its_voters():
    samples = problem("aaa", [True, False, False])
    assert [maj_at_k(samples, k).value for k in (1, 2, 3)] == pytest.approx([1 / 3] * 3, abs=1e-15)
    # k = 2 of these always draws both classes or both of x: (1/2 + 0)/2 twice, 1/2 once
    samples = problem("xxb", [True, False, False])
    assert maj_at_k(samples, 2).value == pytest.approx((1 / 2 + 0 + 1 / 2) / 3, abs=1e-15)


@pytest.mark.parametrize("k", [2, 31, 512, 1000, 1024])
def test_estimators_are_exact_at_1024_samples(k):
    n, c = 1024, 300
    subsets = math.comb(n, k)
    assert pass_at_k(n, c, k) == float(1 - Fraction(math.comb(n - c, k), subsets))
    half = sum(math.comb(c, j) * math.comb(n - c, k - j) for j in range(math.ceil(k / 2), min(c, k) + 1))
    assert g_pass_at_k(n, c, k, 0.5) == pytest.approx(float(Fraction(half, subsets)), rel=1e-12)
    # one class against many single samples: the largest class's law, by hand, with ties only at one vote
    samples = problem(["a"] * c + [f"x{i}" for i in range(n - c)])
    wins = subsets - math.comb(n - c, k) - c * math.comb(n - c, k - 1)  # two votes or more
    exact = Fraction(wins, subsets) + Fraction(c * math.comb(n - c, k - 1), subsets * k)
    assert maj_at_k(samples, k) == (pytest.approx(float(exact), abs=1e-12), 0.0)
    # a score that only the right samples have makes best-of-k the oracle
    right = np.arange(n) < c
    assert best_of_k(right, right.astype(float), k) == pytest.approx(pass_at_k(n, c, k), abs=1e-13)


def test_two_large_classes_and_monte_carlo_agree_with_the_hypergeometric_law():
    a, b, k = 560, 464, 33  # odd k, two classes: the majority is right iff a gets at least 17 of 33
    samples = problem("a" * a + "b" * b)
    exact = g_pass_at_k(a + b, a, k, 17 / 33)
    assert maj_at_k(samples, k).value == pytest.approx(exact, abs=1e-13)
    sampled = maj_at_k(samples, k, max_work=0, draws=200)
    assert 0 < sampled.error < 0.01
    assert abs(sampled.value - exact) < 5 * sampled.error


@pytest.mark.parametrize("k", [2, 9, 20, 39])
def test_majority_equals_the_sum_over_all_counts(k):
    """Every way k votes can fall on the classes, weighted by its number of subsets, in fractions."""
    sizes, share, unparsed = (11, 9, 9, 4), (1, 0, Fraction(2, 3), 0), 7
    n = sum(sizes) + unparsed
    total = Fraction(0)
    for counts in product(*(range(g + 1) for g in sizes)):
        if max(counts) > 0 and 0 <= (rest := k - sum(counts)) <= unparsed:
            winners = [share[j] for j, votes in enumerate(counts) if votes == max(counts)]
            ways = math.comb(unparsed, rest) * math.prod(map(math.comb, sizes, counts))
            total += ways * sum(winners) / len(winners)
    correct = np.repeat([True, False, True, False, False, False], [11, 9, 6, 3, 4, unparsed])
    samples = problem("a" * 11 + "b" * 9 + "c" * 9 + "d" * 4 + "." * unparsed, correct)
    assert maj_at_k(samples, k) == (pytest.approx(float(total / math.comb(n, k)), abs=1e-13), 0.0)


def test_monte_carlo_is_used_where_exact_costs_too_much_and_says_how_sure_it_is():
    samples = problem("aaabbccde." * 6)
    exact = maj_at_k(samples, 8)
    errors = []
    for seed in range(30):
        sampled = maj_at_k(samples, 8, seed=seed, max_work=10, draws=100)
        errors.append((sampled.value - exact.value) / sampled.error)
    assert exact.error == 0.0
    assert 0.5 < np.std(errors) < 1.6  # the stated error is the real one


def test_weighted_majority_equals_enumeration_within_its_error():
    samples = problem("abbc.ab", [1, 0, 0, 0, 0, 1, 1], logprobs=[-0.1, -0.9, -1.2, -0.2, -0.05, -2.0, -0.3])
    weights = [Fraction(math.exp(x)) for x in samples.mean_logprob]
    for k in range(1, 8):
        exact = float(enumerated(7, k, partial(vote, samples, weights=weights)))
        sampled = weighted_maj_at_k(samples, k, draws=4000)
        assert abs(sampled.value - exact) <= 5 * sampled.error + 1e-12
    assert weighted_maj_at_k(samples, 7).error == 0.0  # there is only one subset
    with pytest.raises(ValueError, match="mean logprob of every sample"):
        weighted_maj_at_k(problem("ab", logprobs=[0.0, math.nan]), 1)


def test_confident_samples_outvote_a_majority():
    samples = problem("abb", logprobs=[-0.1, -3.0, -3.0])
    assert maj_at_k(samples, 3).value == 0.0
    assert weighted_maj_at_k(samples, 3).value == 1.0


def test_table_by_hand():
    problems = [problem("aab.", task_id="1"), problem("bbbb", task_id="2")]
    table = scaling_table(problems, powers_of_two(4), seed=0)
    assert table["pass@k"] == pytest.approx({"1": 0.25, "2": 5 / 12, "4": 0.5})
    # aab.: pairs aa, ab, a., ab, a., b.: 1, .5, 1, .5, 1, 0 = 4 of 6
    assert table["maj@k"] == pytest.approx({"1": 0.25, "2": 1 / 3, "4": 0.5})
    assert table["weighted_maj@k"] == pytest.approx({"1": 0.25, "2": 1 / 3, "4": 0.5}, abs=0.02)
    assert table["g_pass@k"]["1"] == pytest.approx({"1": 0.25, "2": 1 / 12, "4": 0.0})
    assert table["avg@k"] == 0.25
    assert table["best_of_k"] is None
    assert table["maj_error"] == {"1": 0.0, "2": 0.0, "4": 0.0}
    assert table["ci95"]["pass@4"] == [0.0, 1.0]
    assert table["problems@k"] == {"1": 2, "2": 2, "4": 2}


def test_table_of_problems_with_different_numbers_of_samples():
    problems = [problem("aabb", task_id="1"), problem("ab", task_id="2"), problem("", task_id="3")]
    table = scaling_table(problems, [1, 2, 4], seed=0)
    assert table["problems@k"] == {"1": 2, "2": 2, "4": 1}
    assert table["pass@k"] == pytest.approx({"1": 0.5, "2": (5 / 6 + 1) / 2, "4": 1.0})
    assert table["maj@k"]["4"] == 0.5
    scored = [problem("ab" * n, task_id=str(n), scores=np.arange(2.0 * n)) for n in (1, 2)]
    assert scaling_table(scored, [4], seed=0)["best_of_k"] == {"4": 0.0}
    with pytest.raises(ValueError, match="between 1 and 4"):
        scaling_table(problems, [8], seed=0)
    with pytest.raises(ValueError, match="needs problems"):
        scaling_table([], [1], seed=0)


def test_table_without_logprobs_or_with_scores():
    samples = problem("aab", logprobs=[math.nan] * 3, scores=np.array([0.0, 1.0, 0.5]))
    table = scaling_table([samples], [1, 2], seed=0)
    assert table["weighted_maj@k"] is None
    # best by score: pairs (a0, a1), (a0, b.5), (a1, b.5) give 1, 0, 1
    assert table["best_of_k"] == pytest.approx({"1": 2 / 3, "2": 2 / 3})
    assert table["ci95"]["best_of_2"] == pytest.approx([2 / 3, 2 / 3])


def test_bootstrap_interval_covers_the_truth_about_as_often_as_it_says():
    rng, covered = np.random.default_rng(0), 0
    for seed in range(60):
        problems = [problem("a" if rng.random() < 0.3 else "b", task_id=str(i)) for i in range(60)]
        low, high = scaling_table(problems, [1], seed)["ci95"]["pass@1"]
        covered += low <= 0.3 <= high
    assert 50 <= covered <= 60


def test_paired_comparison():
    a = [problem("aa", task_id=str(i)) for i in range(6)] + [problem("ab", task_id="only a")]
    b = [problem("ab", task_id=str(i)) for i in range(6)]
    found = paired_comparison(a, b, 1, seed=0)
    assert found["problems"] == 6
    assert found["difference"] == 0.5
    assert found["ci95"] == [0.5, 0.5]
    assert found["p_value"] == 2 / 64  # all signs equal, either way, of 2^6
    assert paired_comparison(a, a, 1, seed=0)["p_value"] == 1.0
    assert paired_comparison(a, b, 2, seed=0, metric="maj@k")["difference"] == 0.5
    with pytest.raises(ValueError, match="task ids must match"):
        paired_comparison(a, [problem("a", task_id="other")], 1, seed=0)
    with pytest.raises(ValueError, match="no metric"):
        paired_comparison(a, b, 1, seed=0, metric="luck")


def test_paired_p_values_are_uniform_without_a_difference():
    rng, small = np.random.default_rng(1), 0
    for seed in range(60):
        a = [problem("a" if rng.random() < 0.5 else "b", task_id=str(i)) for i in range(80)]
        b = [problem("a" if rng.random() < 0.5 else "b", task_id=str(i)) for i in range(80)]
        small += paired_comparison(a, b, 1, seed)["p_value"] <= 0.1
    assert 1 <= small <= 14


def test_bad_numbers_are_refused():
    for call in (
        lambda: pass_at_k(4, 5, 1),
        lambda: pass_at_k(4, 1, 5),
        lambda: avg_at_k(0, 0),
        lambda: g_pass_at_k(4, 1, 2, 0.0),
        lambda: best_of_k(np.ones(2), np.ones(2), 3),
        lambda: maj_at_k(problem("ab"), 3),
        lambda: ProblemSamples("t", np.ones(2, bool), ("a",), np.ones(2), np.ones(2)),
    ):
        with pytest.raises(ValueError):
            call()


def test_monte_carlo_of_very_many_samples_stays_within_its_memory_and_its_error():
    n = 40_000
    samples = problem(["a"] * (n // 3 + 300) + [f"x{i % 2}" for i in range(n - n // 3 - 300)])
    sampled = maj_at_k(samples, 501, max_work=0, draws=20)
    exact = maj_at_k(samples, 501)
    assert exact.error == 0.0
    assert 0 < sampled.error and abs(sampled.value - exact.value) < 5 * sampled.error
    assert 0.35 < exact.value < 0.6
