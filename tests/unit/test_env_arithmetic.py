"""Arithmetic problems: values by hand, streams, splits and their disjointness from training."""

import re
import subprocess
import sys
from collections import Counter

import pytest

from envs import arithmetic
from envs.arithmetic import (
    ArithmeticTasks,
    first_step,
    in_held_out_bucket,
    parse,
    touches_held_out,
    values,
    windows,
)
from reasoner.errors import UsageError


def operations(prompt: str) -> int:
    return len(re.findall(r"[-+*]", prompt))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("87+74-90", [161, 71]),
        ("(12+7)*3-5", [19, 57, 52]),
        ("50-(8+13)", [21, 29]),
        ("5+12*3-7", [36, 41, 34]),
        ("10-90+5", [-80, -75]),
        ("(70-(8+13))*2", [21, 49, 98]),
        ("42", [42]),
    ],
)
def test_values_in_order_of_working(text, expected):
    assert values(text) == expected


@pytest.mark.parametrize("text", ["", "1 + 2", "1+x", "=3"])
def test_what_is_no_canonical_expression_is_refused(text):
    with pytest.raises(ValueError, match="canonical"):
        parse(text)


def test_first_step_is_the_left_side_of_the_first_line():
    assert first_step("50-(8+13)*2") == "8+13="
    assert first_step("5+12*3-7") == "12*3="


def test_windows_are_the_runs_of_terms_that_are_expressions():
    assert list(windows(parse("1+2*3"))) == ["1+2", "1+2*3", "2*3"]
    assert list(windows(parse("(1+2)*3"))) == ["(1+2)", "(1+2)*3", "1+2"]


def test_references_agree_with_python_and_values_stay_in_range():
    source = ArithmeticTasks(seed=3)
    tasks = [source.train(i) for i in range(800)] + source.split("held_out", 200) + source.split("ood", 200)
    for task in tasks:
        assert eval(task.prompt) == int(task.reference)
        assert all(abs(v) <= 999 for v in values(task.prompt))
        numbers = [int(n) for n in re.findall(r"\d+", task.prompt)]
        assert all(1 <= n <= 99 for n in numbers)
        assert operations(task.prompt) == task.difficulty


def test_products_are_two_digits_times_one_digit():
    products = 0
    for task in (ArithmeticTasks().train(i) for i in range(1500)):
        tokens = parse(task.prompt)
        while len(tokens) > 1:
            index = arithmetic.next_operation(tokens)
            if tokens[index] == "*":
                products += 1
                assert 10 <= tokens[index - 1] <= 99 and 2 <= tokens[index + 1] <= 9
            tokens = arithmetic.substitute(tokens, index, arithmetic.apply(tokens, index))
    assert products > 300


def test_a_position_of_the_stream_is_a_pure_function_of_seed_and_index():
    stream = [ArithmeticTasks(seed=5).train(i) for i in range(50)]
    assert ArithmeticTasks(seed=5).train(37) == stream[37]
    assert [t.prompt for t in stream] != [ArithmeticTasks(seed=6).train(i).prompt for i in range(50)]
    assert len({t.id for t in stream}) == 50


def test_the_stream_is_the_same_in_another_process():
    code = "from envs import ArithmeticTasks as A; print([A(seed=5).train(i).prompt for i in range(5)])"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert other.strip() == str([ArithmeticTasks(seed=5).train(i).prompt for i in range(5)])


def test_splits_are_balanced_distinct_and_prefixes_of_each_other():
    source = ArithmeticTasks()
    held_out = source.split("held_out", 300)
    assert len({t.prompt for t in held_out}) == 300
    assert [t.prompt for t in source.split("held_out", 40)] == [t.prompt for t in held_out[:40]]
    assert Counter(t.difficulty for t in held_out) == {1: 75, 2: 75, 3: 75, 4: 75}
    assert Counter(t.family for t in held_out if t.difficulty == 3) == {
        "chain": 25,
        "product": 25,
        "paren": 25,
    }
    assert {t.difficulty for t in source.split("ood", 90)} == {5, 6, 7}
    assert ArithmeticTasks(seed=9).split("held_out", 40) == source.split("held_out", 40)


def test_the_held_out_bucket_never_changes():
    """Weights in use were trained around this bucket: a new hash would silently leak held-out problems."""
    assert [t.prompt for t in ArithmeticTasks().split("held_out", 6)] == [
        "25-87",
        "87-84-30",
        "1-98+1-71",
        "63+32-23+57-63",
        "39-43",
        "95*6-90",
    ]


def test_nothing_held_out_or_ood_is_generated_for_training():
    source = ArithmeticTasks(seed=1)
    training = [source.train(i).prompt for i in range(1200)]
    assert not any(in_held_out_bucket(p) for p in training)
    assert not any(touches_held_out(parse(p)) for p in training)
    assert all(in_held_out_bucket(t.prompt) for t in source.split("held_out", 100))
    assert max(map(operations, training)) == 4
    one_in = 3000 / sum(in_held_out_bucket(f"{a}+{b}") for a in range(10, 70) for b in range(10, 60))
    assert 25 < one_in < 41


def test_touching_is_found_inside_and_behind_a_sign():
    inner = next(f"{a}-{b}" for a in range(1, 99) for b in range(1, 99) if in_held_out_bucket(f"{a}-{b}"))
    assert touches_held_out(parse(f"5+{inner}"))
    assert touches_held_out(parse(f"(3+{inner})*2"))
    left, right = map(int, inner.split("-"))
    assert touches_held_out([-left, "-", right])


def test_a_split_that_runs_dry_takes_other_cells_and_then_says_so(monkeypatch):
    monkeypatch.setattr(arithmetic, "_SPLIT_DRAWS", 200)
    with pytest.raises(UsageError, match="holds only"):
        ArithmeticTasks(levels=(1,), families=("chain",)).split("held_out", 700)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"levels": (5,)}, "no level 5"),
        ({"families": ("sum",)}, "no family 'sum'"),
        ({"levels": (1, 2), "families": ("product",)}, "at level 1"),
        ({"levels": ()}, "at least one"),
    ],
)
def test_impossible_restrictions(settings, message):
    with pytest.raises(UsageError, match=message):
        ArithmeticTasks(**settings)


def test_bad_requests():
    with pytest.raises(UsageError, match="held_out or ood"):
        ArithmeticTasks().split("test", 3)
    with pytest.raises(UsageError, match="negative"):
        ArithmeticTasks().train(-1)


def test_templates():
    source = ArithmeticTasks()
    assert source.base_template.format(prompt="1+2") == "1+2=?\n"
    assert source.chat_template.format(prompt="1+2") == "Calculate 1+2. Give the final answer in \\boxed{}."


def test_families_left_out_of_training_are_a_split_of_their_own():
    source = ArithmeticTasks(levels=(1, 2), families=("chain", "paren"))
    assert source.eval_splits == ("held_out", "ood", "unseen_family")
    tasks = source.split("unseen_family", 8)
    assert {task.family for task in tasks} == {"product"} and {task.difficulty for task in tasks} == {2.0}
    assert ArithmeticTasks().eval_splits == ("held_out", "ood")
