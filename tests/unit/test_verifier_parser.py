"""The grammar, the exact algebra and the numeric comparison below the verifier."""

from __future__ import annotations

import threading
from fractions import Fraction

import pytest

from verifiers.budget import Budget, TooExpensive
from verifiers.intervals import SetReader
from verifiers.nodes import Num, show
from verifiers.numerals import number_word
from verifiers.numeric import decimal_agrees, height
from verifiers.reading import parse
from verifiers.scalar import same_scalar
from verifiers.symbolic import difference_vanishes, within_calls
from verifiers.text import Unreadable, clean, words
from verifiers.units import read_unit


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        (r"\frac12x^2 - 1", "Add(Mul(Div(1, 2), Pow(x, 2)), Neg(1))"),
        ("4 4/9", "40/9"),
        (r"4\frac{4}{9}", "40/9"),
        (r"4\frac{9}{4}", "Mul(4, Div(9, 4))"),
        ("7,425,000", "7425000"),
        ("(7,425)", "Tuple(7, 425)"),
        (r"0.1\overline{6}", "1/6"),
        ("50%", "Percent(50)"),
        (r"\sin^{-1} x", "asin(x)"),
        (r"\sin 2x\cos x", "Mul(sin(Mul(2, x)), cos(x))"),
        (r"\log_2 8", "logb(8, 2)"),
        ("204_5", "204 in base 5"),
        ("5 km/h", "Quantity(5, km/h)"),
        ("x=1 or x=2", "List(x = 1 or x = 2)"),
        (r"[0,1)\cup\{2\}", "SetOp([)(0, 1), Set(2))"),
        (r"0\le x<1", "0 <= x < 1"),
        (r"x^{23}y", "Mul(Pow(x, 23), y)"),
        ("2^10", "Pow(2, 10)"),
        (r"3\pm\sqrt2", "PlusMinus(3, root(2, 2))"),
        ("(B) 42", "Choice(B, 42)"),
    ],
)
def test_reads(text: str, tree: str) -> None:
    assert show(parse(text)) == tree


@pytest.mark.parametrize(
    "text",
    ["", "84 85", "8 4", r"\frac{1}", "(1", r"\foo{84}", "1..2", "0x54", "84 is wrong", "--84", "(84,)",
     "(" * 60 + "1" + ")" * 60, "3" + "!" * 500, "1e999999", "x+" * 3500],
)  # fmt: skip
def test_refuses(text: str) -> None:
    with pytest.raises(Unreadable):
        parse(text)


def test_going_back_does_not_lose_letters() -> None:
    assert show(parse(r"60 \frac{km}{x}")) == "Mul(60, Div(Mul(k, m), x))"


def same(a: str, b: str) -> bool:
    return bool(same_scalar(parse(a), parse(b), Budget()))


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        (r"\frac{1}{\sqrt2+1}", r"\sqrt2-1", True),
        (r"\sqrt{3+2\sqrt2}", r"1+\sqrt2", True),
        (r"\sqrt{2}+\sqrt{3}", r"\sqrt{5+2\sqrt6}", True),
        (r"\sqrt{2}+\sqrt{3}", r"\sqrt{10}", False),
        ("2^{-99}", "2^{-98}", False),
        ("10^{-7}", "0", False),
        (r"\pi+10^{-300}", r"\pi", False),
        (r"e^{\pi\sqrt{163}}", "640320^3+744", False),
        ("2^{1000000}", "4^{500000}", True),
        ("2^{1000000}", "2^{1000001}", False),
        (r"\sqrt{x^2}", "x", False),
        (r"\sqrt{x^2}", "|x|", True),
        (r"\ln(e^x)", "x", True),
        ("f(x)", "f(y)", False),
        ("f(x+1)", "f(1+x)", True),
        (r"\sin^2 x+\cos^2 x", "1", True),
        ("x+10^{-50}", "x", False),
        (r"\frac{0}{0}", "1", False),
        ("4^x", "2^{2x}", True),
        (r"\sqrt[3]{-8}", "-2", True),
    ],
)
def test_scalars(a: str, b: str, equal: bool) -> None:
    assert same(a, b) is equal


def test_too_big_is_refused_not_built() -> None:
    with pytest.raises(TooExpensive):
        same("10^{10^{10}}", "10^{10^{10}}+1")
    with pytest.raises(TooExpensive):
        height(parse("9^{9^{9^{9}}}+x"))


def test_the_same_in_any_thread() -> None:
    found: list[bool] = []
    cases = [(r"\sqrt{3+2\sqrt2}", r"1+\sqrt2"), (r"\sin 2x", r"2\sin x\cos x"), (r"\sqrt2", "1.41421356")]
    threads = [threading.Thread(target=lambda c=c: found.append(same(*c))) for c in cases for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 12


@pytest.mark.parametrize(
    ("value", "places", "exact", "agrees"),
    [
        ("0.666667", 6, Fraction(2, 3), True),
        ("0.666666", 6, Fraction(2, 3), True),
        ("0.666668", 6, Fraction(2, 3), False),
        ("-0.666667", 6, Fraction(-2, 3), True),
        ("0.666667", 6, Fraction(-2, 3), False),
        ("1200", -2, Fraction(1234), True),
    ],
)
def test_decimals_round_or_cut(value: str, places: int, exact: Fraction, agrees: bool) -> None:
    assert decimal_agrees(Fraction(value), places, exact) is agrees


def test_sets_have_a_normal_form() -> None:
    reader = SetReader(Budget())
    a = reader.read(parse(r"[0,1]\cup[1,2)\cup\{5\}"))
    assert [(i.low_at, i.high_at) for i in a.intervals] == [(0, 2), (5, 5)]
    b = reader.read(parse(r"\mathbb{R}\setminus\{0\}"))
    assert len(b.intervals) == 2 and not b.intervals[0].high_closed


def test_units() -> None:
    def factor(phrase: str) -> tuple[Fraction, tuple]:
        unit = read_unit(phrase)
        assert unit is not None
        return unit.factor, unit.dims

    assert factor("square centimeters") == factor("cm^2") == factor("sq cm")
    assert factor("miles per hour") == factor("mph")
    assert factor("apples") == factor("apple") != factor("oranges")
    assert read_unit("is wrong") is None
    assert read_unit("or more") is None


def test_characters() -> None:
    assert clean("８４") == "84"
    assert clean("٨٤") == "84"
    assert parse("½") == parse(r"\frac{1}{2}")
    for text in ("8\u200b4", "\u202e48", "8４"):
        with pytest.raises(Unreadable):
            clean(text)
    assert words(r"\text{The Answer.}") == "the answer"
    assert number_word("forty-two") == 42 and number_word("forty-zero") is None
    assert parse("84") == Num(Fraction(84), None, 2)


def test_sympy_confirms_under_a_budget_of_calls() -> None:
    assert difference_vanishes(parse(r"\sqrt{3+2\sqrt2}"), parse(r"1+\sqrt2")) is True
    assert difference_vanishes(parse("x"), parse("|x|")) is None
    assert difference_vanishes(parse("f(x)"), parse("f(x)")) is None
    assert difference_vanishes(parse(r"\sin^2 x"), parse(r"1-\cos^2 x"), calls=50) is None
    assert within_calls(lambda: sum(abs(i) for i in range(10)), 1000) == 45
    assert within_calls(lambda: [parse("1") for _ in range(1000)], 100) is None
