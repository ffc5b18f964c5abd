"""Hand-labelled chains of thought: which of their claims are taken back."""

import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasoner.self_correction import detect, evaluate, self_corrected
from reasoner.types import Verdict

# (completion, texts of the retracted claims)
LABELLED = [
    (r"87+74=151;no,87+74=161;161-90=71;\boxed{71}", ["87+74=151"]),
    (r"87+74=151;151-90=61;no,87+74=161;161-90=71;\boxed{71}", ["87+74=151"]),
    (r"\boxed{61}no,161-90=71;\boxed{71}", [r"\boxed{61}"]),
    (r"87+74=151;\boxed{61}no,87+74=161;161-90=71;\boxed{71}", ["87+74=151", r"\boxed{61}"]),
    (r"12*7=74; 12*7=94; 12*7=84; \boxed{84}", ["12*7=74", "12*7=94"]),
    ("First 3 + 4 = 8. Wait, 3+4 = 7, so the answer is 7.", ["3 + 4 = 8"]),
    ("3 \\times 4 = 13. Hmm. 3×4=12.", ["3 \\times 4 = 13"]),
    ("5 \u2212 9 = 4, no: 5 - 9 = -4", ["5 \u2212 9 = 4"]),
    ("(so 2+2=5) but really (2+2=4).", ["2+2=5"]),
    ("0.5+0.25=0.7; 0.5+0.25=0.75", ["0.5+0.25=0.7"]),
    (r"\boxed{1/3} wait \boxed{\frac{1}{2}}", [r"\boxed{1/3}"]),
    # Not corrections:
    (r"87+74=161;161-90=71;\boxed{71}", []),
    (r"87+74=151;151-90=61;\boxed{61}", []),
    (r"87+74=151;wait;161-90=71;\boxed{71}", []),  # the wrong line is never restated
    (r"87+74=161;no,87+74=151;\boxed{61}", []),  # a true line replaced by a false one
    (r"87+74=151;no,87+74=141;\boxed{71}", []),  # still false
    (r"87+74=151;no,74+87=161;\boxed{71}", []),  # another left side: not the same claim
    (r"\boxed{71} check \boxed{71}", []),
    (r"\boxed{0.5} that is \boxed{1/2} or \boxed{ 1/2 }", []),  # the same number
    (r"\boxed{71", []),
    (r"\boxed{61 no \boxed{71}", []),  # the first one is not complete
    ("Hmm, wait, let me think again. 71.", []),
    ("x=5, no, x=6", []),  # no arithmetic on the left
    ("2x+3=8, no, 2x+3=7", []),  # tails of algebra are not claims
    ("2^3+1=5, no, 2^3+1=9, and 3+1=4", []),
    ("3+1=5x, 3+1=4", []),
    ("3+1=5%, 3+1=4", []),
    ("7/0=3; 7/0=0", []),
    ("", []),
]


@pytest.mark.parametrize(("completion", "retracted"), LABELLED)
def test_hand_labelled(completion, retracted):
    found = detect(completion)
    assert [claim.text for claim in found.retracted] == retracted
    for claim in found.claims:
        assert completion[claim.start :].startswith(claim.text)


def test_a_chain_of_equalities_is_one_claim_a_sign():
    found = detect("87+74-90=151-90=61")
    assert [c.text for c in found.claims] == ["87+74-90=151-90", "151-90=61"]


def test_self_corrected_needs_a_correct_end():
    text = r"\boxed{61}no,\boxed{71}"
    assert self_corrected(text, Verdict.correct("71"))
    assert not self_corrected(text, Verdict.wrong("71"))
    assert not self_corrected(r"\boxed{71}", Verdict.correct("71"))
    assert not self_corrected(text, None)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("87+74-90", 71),
        ("2*(3-5)", -4),
        ("50-(8+13)*2", 8),
        ("-(-3)", 3),
        ("7/2", Fraction(7, 2)),
        ("1.50", Fraction(3, 2)),
        ("1/0", None),
        ("2**3", None),
        ("1 2", None),
        ("(1", None),
        ("1)", None),
        ("", None),
        ("+", None),
        ("9" * 41, None),
        ("(" * 60 + "1" + ")" * 60, None),
    ],
)
def test_evaluate(text, value):
    assert evaluate(text) == value


@settings(max_examples=50)
@given(st.integers(-999, 999), st.integers(1, 99), st.integers(1, 99), st.sampled_from("+-*"))
def test_evaluate_agrees_with_python(a, b, c, sign):
    expression = f"({a}{sign}{b})-{c}*2"
    assert evaluate(expression) == eval(expression)


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{" * 20_000,
        "\\boxed{1}" * 10_000,
        "1" * 200_000 + "=",
        ")" * 100_000 + "=1",
        "(" * 100_000 + "=1",
        "=1" * 50_000,
        "1+" * 100_000 + "=1",
        "{}" * 50_000,
    ],
)
def test_hostile_text_takes_linear_time(text):
    started = time.process_time()
    detect(text)
    assert time.process_time() - started < 2


@settings(max_examples=50)
@given(st.text(alphabet="0123456789+-*/()= .;,x\\boxed{}^", max_size=80))
def test_any_text_is_answered(text):
    found = detect(text)
    assert set(found.retracted) <= set(found.claims)
