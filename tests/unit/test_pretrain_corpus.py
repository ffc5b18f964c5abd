"""The corpus: reproducible, leak-free, mixed as stated, with slips and corrections as they claim to be."""

import re
from collections import Counter
from random import Random

import pytest

from envs.arithmetic import LEVELS, ArithmeticTasks, in_held_out_bucket, parse, values, windows
from reasoner.pretrain_corpus import (
    END,
    MAX_DOCUMENT_TOKENS,
    VOCAB_SIZE,
    Mixture,
    corpus_sha256,
    document,
    documents,
    encode,
    slip,
)

PAGES = [document(0, i) for i in range(2000)]
LINE = re.compile(r"(-?\d+)([-+*])(\d+)=(-?\d+);")


def by_style(style):
    return [p for p in PAGES if p.style == style]


def expressions(text):
    """Every run of characters in a page that could be an expression, unsigned and with its sign."""
    return [run.strip("=") for run in re.findall(r"[-+*()\d]*\d[-+*()\d]*", text)]


def test_the_same_seed_gives_the_same_corpus():
    assert corpus_sha256(0, 300) == corpus_sha256(0, 300) != corpus_sha256(1, 300)
    assert [d for _, d in zip(range(5), documents(0, start=7), strict=False)] == [
        document(0, i) for i in range(7, 12)
    ]


def test_the_published_checksum():
    """docs/base_model.md states it: changing the generator means training the base model again."""
    assert corpus_sha256(0, 1000) == "be4199aacbe4d37adfbc95cbf11414157f2fc39fce8ec58883930cddf0ca57a8"


def test_no_page_contains_a_held_out_or_ood_problem_anywhere():
    held_out = {t.prompt for t in ArithmeticTasks().split("held_out", 400)}
    checked = 0
    for page in PAGES[:800]:
        for run in expressions(page.text):
            tokens = parse(run)
            assert sum(t in ("+", "-", "*") for t in tokens) <= max(LEVELS) + (run[0] == "-")
            for start in range(len(tokens)):
                for window in windows(tokens[start:]):
                    checked += 1
                    assert not in_held_out_bucket(window), page.text
                    assert window not in held_out
    assert checked > 4_000


def test_the_leak_check_above_can_fail():
    leaked = next(t.prompt for t in ArithmeticTasks().split("held_out", 4) if t.difficulty == 1)
    for page in (f"{leaked}=?\n", f"7+{leaked}+1=?\n", f"99-1=98;-{leaked}=5;"):
        found = [w for run in expressions(page) for s in range(9) for w in windows(parse(run)[s:])]
        assert any(in_held_out_bucket(w) for w in found), page


def test_shares_are_those_of_the_mixture():
    mixture, styles = Mixture(), Counter(p.style for p in PAGES)
    assert styles["table"] / len(PAGES) == pytest.approx(mixture.table, abs=0.025)
    answered = len(PAGES) - styles["table"]
    for style in ("direct", "working", "corrected"):
        assert styles[style] / answered == pytest.approx(getattr(mixture, style), abs=0.025)
    levels = Counter(p.level for p in PAGES if p.problem)
    assert all(levels[level] / answered == pytest.approx(0.25, abs=0.045) for level in LEVELS)


def test_direct_answers_are_wrong_as_often_as_stated():
    for level in LEVELS:
        pages = [p for p in by_style("direct") if p.level == level]
        wrong = [p for p in pages if f"\\boxed{{{values(p.problem)[-1]}}}" not in p.text]
        assert len(wrong) / len(pages) == pytest.approx(Mixture().direct_wrong[level - 1], abs=0.08)
        assert all("=" not in p.text.split("\n")[1] for p in pages)


def test_slips_in_working_are_as_frequent_as_stated_and_nothing_is_filtered():
    lines = [m for p in by_style("working") for m in LINE.findall(p.text)]
    wrong = [m for m in lines if eval("".join(m[:3])) != int(m[3])]
    assert len(wrong) / len(lines) == pytest.approx(Mixture().slip, abs=0.05)
    finals = [p.text.endswith(f"\\boxed{{{values(p.problem)[-1]}}}{END}") for p in by_style("working")]
    assert 0.4 < sum(finals) / len(finals) < 0.75


def test_working_begins_with_the_first_step_and_goes_on_from_its_own_values():
    for page in by_style("working"):
        lines = LINE.findall(page.text)
        assert len(lines) == page.level
        assert page.text.endswith(f"\\boxed{{{lines[-1][3]}}}{END}")
        first = values(page.problem)[0]
        assert eval("".join(lines[0][:3])) == first


def test_a_correction_repeats_the_line_with_its_right_result():
    at_once = later = after_answer = 0
    for page in by_style("corrected"):
        assert page.text.count("no,") == 1
        before, after = page.text.split("no,")
        redone = LINE.match(after).groups()
        assert eval("".join(redone[:3])) == int(redone[3])
        same = [m for m in LINE.findall(before) if m[:3] == redone[:3]]
        assert same and all(m[3] != redone[3] for m in same[-1:])
        after_answer += before.endswith("}")
        at_once += LINE.findall(before)[-1][:3] == redone[:3] and not before.endswith("}")
        later += LINE.findall(before)[-1][:3] != redone[:3]
    assert min(at_once, later, after_answer) >= 3


def test_pages_fit_and_encode_to_known_tokens():
    for page in PAGES:
        ids = encode(page.text)
        assert page.text.isascii() and len(ids) <= MAX_DOCUMENT_TOKENS
        assert max(ids) < VOCAB_SIZE and ids.count(257) == 1 and ids[-1] == 257


@pytest.mark.parametrize("value", [0, 1, 7, 10, 99, 161, 891, -1, -20, -305])
def test_slips_are_wrong_and_plausible(value):
    rng = Random(1)
    wrong = [slip(rng, value) for _ in range(300)]
    assert value not in wrong
    assert value < 0 or min(wrong) > 0
    assert max(abs(abs(w) - abs(value)) for w in wrong) < 1000
    near = sum(abs(abs(w) - abs(value)) in (0, 1, 2, 10) for w in wrong) / len(wrong)
    assert near > 0.6


def test_a_mixture_that_does_not_add_up_is_refused():
    with pytest.raises(ValueError, match="add up"):
        Mixture(direct=0.9)
