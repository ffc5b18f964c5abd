"""Random expressions against equivalent rewritings (must be correct) and perturbed ones (must not), and a
fuzzer with a bounded time: no exception, no slow case, whatever the input.
"""

from __future__ import annotations

import random
import time
from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from reasoner.types import STATUSES, Task
from verifiers.corpora import load_corpus
from verifiers.math import MathVerifier

VERIFIER = MathVerifier()
FAST = settings(max_examples=60, deadline=None, derandomize=True)


def correct(gold: str, pred: str) -> bool:
    return VERIFIER.verify(rf"\boxed{{{pred}}}", Task("t", "", gold)).is_correct


fractions = st.fractions(min_value=-999, max_value=999, max_denominator=999)


def latex(value: Fraction) -> str:
    if value.denominator == 1:
        return str(value.numerator)
    return f"{'-' if value < 0 else ''}\\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"


@FAST
@given(fractions, st.integers(2, 50))
def test_fractions_equal_their_rewritings(value: Fraction, k: int) -> None:
    gold = latex(value)
    assert correct(gold, f"{value.numerator}/{value.denominator}")
    assert correct(gold, f"\\frac{{{value.numerator * k}}}{{{value.denominator * k}}}")
    assert correct(f"x = {gold}", gold)


@FAST
@given(fractions, fractions)
def test_different_fractions_differ(a: Fraction, b: Fraction) -> None:
    assert correct(latex(a), latex(b)) == (a == b)


@FAST
@given(st.decimals(min_value=-1000, max_value=1000, places=4, allow_nan=False), st.integers(1, 9))
def test_decimals_are_exact(value, digit: int) -> None:
    text = f"{value:f}"
    assert correct(text, f"{text}00")
    assert correct(latex(Fraction(text)), text)
    assert not correct(text, f"{text}{digit}")


@FAST
@given(st.lists(st.integers(-9, 9), min_size=2, max_size=5), st.randoms(use_true_random=False))
def test_polynomials_equal_any_order_and_factoring(coefficients: list[int], rng: random.Random) -> None:
    terms = [f"{c}x^{{{k}}}" if c >= 0 else f"({c})x^{{{k}}}" for k, c in enumerate(coefficients, 1)]
    gold = "+".join(terms)
    shuffled = list(terms)
    rng.shuffle(shuffled)
    assert correct(gold, "+".join(shuffled))
    lowered = [t.replace(f"^{{{k}}}", f"^{{{k - 1}}}") for k, t in enumerate(terms, 1)]
    assert correct(gold, f"x({'+'.join(lowered)})")
    assert not correct(gold, gold + "+x^{9}")
    assert not correct(gold, gold + "+1")


@FAST
@given(st.integers(2, 60), st.integers(2, 60))
def test_radicals(a: int, b: int) -> None:
    assert correct(f"\\sqrt{{{a * b * b}}}", f"{b}\\sqrt{{{a}}}")
    assert correct(f"\\frac{{1}}{{\\sqrt{{{a}}}}}", f"\\frac{{\\sqrt{{{a}}}}}{{{a}}}")
    assert not correct(f"\\sqrt{{{a}}}+\\pi", f"\\sqrt{{{a + 1}}}+\\pi")


@FAST
@given(st.sets(st.integers(-50, 50), min_size=2, max_size=6), st.randoms(use_true_random=False))
def test_sets_and_tuples(elements: set[int], rng: random.Random) -> None:
    ordered = sorted(elements)
    shuffled = list(ordered)
    rng.shuffle(shuffled)
    gold, pred = ", ".join(map(str, ordered)), ", ".join(map(str, shuffled))
    assert correct(f"\\{{{gold}\\}}", f"\\{{{pred}\\}}")
    assert correct(f"({gold})", f"({pred})") == (ordered == shuffled)
    assert not correct(f"\\{{{gold}\\}}", f"\\{{{pred}, 99\\}}")
    assert not correct(f"({gold})", f"\\{{{gold}\\}}")


@FAST
@given(st.integers(-30, 30), st.integers(1, 30), st.booleans(), st.booleans())
def test_intervals_are_inequalities(low: int, width: int, left: bool, right: bool) -> None:
    high = low + width
    interval = f"{'[' if left else '('}{low},{high}{']' if right else ')'}"
    ops = {True: "\\le", False: "<"}
    inequality = f"{low} {ops[left]} x {ops[right]} {high}"
    assert correct(interval, inequality)
    assert correct(inequality, interval)
    other = f"{'(' if left else '['}{low},{high}{']' if right else ')'}"
    assert not correct(inequality, other)


@FAST
@given(st.integers(1, 10**9))
def test_thousands_separators(value: int) -> None:
    gold = str(value)
    assert correct(gold, f"{value:,}")
    assert correct(gold, f"{value:,}".replace(",", "\\,"))
    assert correct(gold, f"{value:,}".replace(",", "{,}"))
    assert not correct(gold, f"{value + 1:,}")


@FAST
@given(st.text(max_size=60), st.text(max_size=20))
def test_any_text_gets_a_verdict(pred: str, gold: str) -> None:
    assert VERIFIER.verify(pred, Task("t", "", gold)).status in STATUSES


FRAGMENTS = (
    r"\frac { } ( ) [ ] | ^ _ \boxed{ \{ \} $ \text{ 1 23 x , = < \pm \cup % ! ' \sin \log & \\ \left e i "
    r"\pi \infty ^{-1} 9^9 ... \overline{3} or and km ² ½ √ <think> </think> #### + - * / : \sum \int "
    r"\binom ٣"
).split()


def mutated(text: str, rng: random.Random) -> str:
    """`text` with a few random insertions, deletions and repetitions."""
    chars = list(text)
    for _ in range(rng.choice([1, 1, 2, 3, 6])):
        kind, at = rng.random(), rng.randrange(len(chars) + 1)
        if kind < 0.5:
            chars[at:at] = rng.choice(FRAGMENTS)
        elif kind < 0.75:
            del chars[at : at + rng.randint(1, 4)]
        else:
            chars[at:at] = chars[max(0, at - rng.randint(1, 15)) : at]
    return "".join(chars)


def test_fuzz_for_a_bounded_time() -> None:
    rng = random.Random(20240)
    cases = [case for name in ("ordinary", "adversarial") for case in load_corpus(name)]
    end, slowest = time.process_time() + 1.2, 0.0
    tried = 0
    while time.process_time() < end:
        case = rng.choice(cases)
        pred = mutated(case.pred, rng)
        task = case.task if rng.random() < 0.6 else Task("t", "", mutated(case.task.references[0], rng))
        begun = time.process_time()
        assert VERIFIER.verify(pred, task).status in STATUSES
        VERIFIER.answer_key(pred, case.task)
        slowest = max(slowest, time.process_time() - begun)
        tried += 1
    assert tried > 20
    assert slowest < 1.0


def test_long_runs_of_one_thing_are_read_in_linear_time() -> None:
    runs = ["1" + " " * 5900 + "2", "1" + "," * 5000 + "2", "one " * 1500, "x for " * 900, "1 (" * 1500]
    runs += ["10:15 " * 50_000, "5 May " * 50_000, "$x$ " * 50_000, "half " * 50_000 + "84 is", "- " * 50_000]
    for pred in runs:
        begun = time.process_time()
        VERIFIER.verify(pred, Task("t", "", "84"))
        assert time.process_time() - begun < 0.5, pred[:20]
