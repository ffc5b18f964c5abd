"""The mathematical verifier against its labelled corpus and its rules."""

from __future__ import annotations

import pytest

from reasoner.types import Task
from verifiers.corpora import NAMES, Case, load_corpus
from verifiers.math import MathVerifier

VERIFIER = MathVerifier()


def verdict(gold: str, pred: str, prompt: str = ""):
    return VERIFIER.verify(pred, Task("t", prompt, gold))


@pytest.mark.parametrize("name", NAMES)
def test_every_case_of_the_corpus(name: str) -> None:
    wrong: list[Case] = []
    for case in load_corpus(name):
        if VERIFIER.verify(case.pred, case.task).is_correct != case.correct:
            wrong.append(case)
    assert not wrong


def test_corpus_covers_every_category() -> None:
    cases = [case for name in NAMES for case in load_corpus(name)]
    assert len(cases) > 1000
    assert len({case.id for case in cases}) == len(cases)
    categories = {case.category for case in cases}
    wanted = (
        "integers fractions decimals percent units separators scientific radicals constants expressions "
        "equations inequalities intervals tuples sets matrices complex infinity choices text bases"
    )
    assert set(wanted.split()) <= categories
    assert 0.2 < sum(case.correct for case in cases) / len(cases) < 0.8


def test_a_reference_list_is_any_of() -> None:
    task = Task("t", "", ("84", "eighty-four apples"))
    assert VERIFIER.verify(r"\boxed{84}", task).is_correct
    assert not VERIFIER.verify(r"\boxed{85}", task).is_correct


def test_status_tells_whose_fault_it_is() -> None:
    assert verdict("84", r"\boxed{85}").status == "wrong"
    assert verdict("84", "I do not know.").status == "unparsed"
    assert verdict("84", r"\boxed{\frac{}").status == "unparsed"
    assert verdict("", r"\boxed{84}").status == "bad_reference"
    assert verdict(r"\frac{1}{", r"\boxed{84}").status == "bad_reference"
    assert verdict(r"\frac{1}{", "no answer at all").status == "bad_reference"
    assert verdict(r"\sin(10^{10^{10}})", r"\boxed{\cos(10^{10^{10}})}").status == "timeout"


def test_rewards_follow_the_status() -> None:
    assert verdict("84", r"\boxed{84}").reward == 1.0
    assert verdict("84", r"\boxed{85}").reward == 0.0
    assert verdict(r"\sin(10^{10^{10}})", r"\boxed{\cos(10^{10^{10}})}").reward == 0.0
    assert verdict(r"\frac{1}{", r"\boxed{84}").reward is None


def test_percent_sign_counts_when_the_prompt_asks_for_percent() -> None:
    assert not verdict("84", r"\boxed{84\%}").is_correct
    assert verdict("84", r"\boxed{84\%}", prompt="What percent of them …?").is_correct


def test_explain_says_how_it_was_decided() -> None:
    explained = VERIFIER.explain(r"so \boxed{\frac{2}{4}}", Task("t", "", "0.5"))
    assert explained.is_correct
    assert r"extracted (box): \frac{2}{4}" in explained.detail
    assert "answer read as: Div(2, 4)" in explained.detail
    assert "rule: exact numbers" in explained.detail


def test_answer_keys_make_classes() -> None:
    def key(answer: str) -> str | None:
        return VERIFIER.answer_key(rf"\boxed{{{answer}}}", Task("t", "", "1"))

    assert key(r"\frac{1}{2}") == key("0.5") == key(r"\frac{2}{4}") == key("x = 0.5")
    assert key(r"2\sqrt{3}") == key(r"\sqrt{12}") != key(r"\sqrt{13}")
    assert key("x+1") == key("1+x") != key("x-1")
    assert key(r"\{1,2\}") == key(r"\{2,1\}") != key("(1,2)") != key("(2,1)")
    assert key("B") == key("(B)") != key("C")
    assert key(r"\text{Tuesday}") == key("tuesday")
    assert VERIFIER.answer_key("no answer here, sorry about that", Task("t", "", "1")) is None


def test_candidates_are_all_boxed_answers_in_order() -> None:
    assert VERIFIER.candidates(r"\boxed{61}no,161-90=71;\boxed{71}") == ["61", "71"]
    assert VERIFIER.candidates("The answer is 42.") == ["42"]
    assert VERIFIER.candidates("") == []


@pytest.mark.parametrize(
    "pred",
    [
        r"\boxed{__import__('os').system('touch {path}')}",
        r"\boxed{exec(open('{path}','w').write('x'))}",
        r"\boxed{\write18{touch {path}}}",
        r"\boxed{(lambda: open('{path}','w'))()}",
        "`touch {path}`",
        "$(touch {path})",
    ],
)
def test_text_never_becomes_code(pred: str, tmp_path) -> None:
    path = tmp_path / "executed"
    attack = pred.replace("{path}", str(path))
    assert not verdict("84", attack).is_correct
    assert not verdict(attack, r"\boxed{84}").is_correct
    assert not path.exists()
