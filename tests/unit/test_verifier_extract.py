"""What counts as the final statement of a completion."""

from __future__ import annotations

import time

import pytest

from verifiers.boxes import find_boxes
from verifiers.extract import extract


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{84}", "84"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"first \boxed{41}, then it is \boxed{42}", "42"),
        (r"\fbox{84}", "84"),
        (r"\boxed 5", "5"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        ("80+4=84\n\n\\boxed{84}", "84"),
        ("The answer is 84.", "84"),
        ("**Answer:** 84", "84"),
        ("#### 84", "84"),
        ("<answer>84</answer>", "84"),
        ("<think>41</think>The answer is 84.", "84"),
        ("La respuesta es 84.", "84"),
        ("答案是84。", "84"),
        ("The final answer is $x=84$. I hope it is correct.", "x=84"),
        ("161-90=71;\\boxed{61}no,161-90=71;\\boxed{71}", "71"),
    ],
)
def test_final_statement(text: str, answer: str) -> None:
    assert extract(text).answer == answer


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   \n ",
        r"\boxed{}",
        r"84 \boxed{ }",
        r"2 \boxed{42}",
        "\\sqrt{\n\\boxed{42}}",
        "<think>The answer is 84.</think>",
        r"<think>\boxed{84}",
        r"The answer is not \boxed{84}.",
        r"\boxed{84} is wrong.",
        r"\boxed{84} or 85",
        "Maybe the answer is either 84 or so.",
        "It could be 84.",
    ],
)
def test_no_answer(text: str) -> None:
    assert extract(text).answer is None


def test_boxes_of_one_statement_are_several_answers() -> None:
    found = extract(r"x = \boxed{2} or x = \boxed{3}")
    assert found.several == ("2", "3")
    assert found.answer == "2, 3"


def test_only_complete_boxes_count() -> None:
    assert [box.content for box in find_boxes(r"\boxed{1} \boxed{2 \boxed{3}")] == ["1", "3"]
    assert [box.content for box in find_boxes(r"\boxed{a\}b}")] == [r"a\}b"]


@pytest.mark.parametrize(
    "unit", [r"\boxed{", "{", "}", "$", "####", "<think>", "the answer is ", "\\", "1$ "]
)
def test_a_megabyte_is_read_at_once(unit: str) -> None:
    text = unit * (1_000_000 // len(unit))
    begun = time.process_time()
    extract(text)
    assert time.process_time() - begun < 1.5
