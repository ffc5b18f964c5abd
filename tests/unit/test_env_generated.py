"""Our own generators: every gold answer is right by its verifier, streams, splits, and what is refused."""

from fractions import Fraction
from random import Random

import pytest
from gymnasium.utils.env_checker import check_env

from envs import SingleTurnEnv, TaskSource, load_tasks
from envs.equations import draw_equation, draw_system, linear
from envs.generated import GeneratedTasks
from envs.number_theory import prime_factors
from reasoner.errors import UsageError
from reasoner.types import Task
from verifiers import load_verifier

OWN = ("countdown", "linear", "systems", "calculus", "number_theory")


def boxed(answer):
    return f"so it is \\boxed{{{answer}}}"


@pytest.mark.parametrize("name", OWN)
def test_gold_is_right_and_a_changed_number_is_not(name):
    source, judge = load_tasks(name), load_verifier("auto")
    assert isinstance(source, TaskSource) and isinstance(source, GeneratedTasks)
    tasks = [source.train(i) for i in range(40)] + source.split("held_out", 8) + source.split("ood", 4)
    for task in tasks:
        assert judge.verify(boxed(task.reference), task).is_correct, task
        wrong = judge.verify(boxed(f"{task.reference} + 999 x"), task)
        assert wrong.status in ("wrong", "unparsed"), (task, wrong)
    check_env(SingleTurnEnv(draw=source.train), skip_render_check=True)


@pytest.mark.parametrize("name", OWN)
def test_streams_and_splits(name):
    source, again = load_tasks(name, 2), load_tasks(name, 2)
    stream = [source.train(i) for i in range(60)]
    assert stream[37] == again.train(37)
    held = source.split("held_out", 20)
    assert held[:5] == load_tasks(name, 8).split("held_out", 5) and len({t.prompt for t in held}) == 20
    assert not {t.prompt for t in held} & {t.prompt for t in stream}
    trained = {(t.family, t.difficulty) for t in stream}
    assert (
        trained == {(f, float(n)) for f, n in source.cells()}
        if name != "number_theory"
        else len(trained) > 12
    )
    assert not {t.difficulty for t in source.split("ood", 6) if t.family == "countdown"} & {1.0, 2.0, 3.0}


def test_levels_and_families_restrict():
    source = load_tasks("number_theory:levels=1|3,families=gcd|divisors")
    cells = {(t.family, t.difficulty) for t in map(source.train, range(60))}
    assert cells == {("gcd", 1.0), ("gcd", 3.0), ("divisors", 1.0), ("divisors", 3.0)}
    assert {t.difficulty for t in source.split("ood", 6)} == {4.0}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("countdown:levels=9", "no level 9 .choose from 1, 2, 3"),
        ("calculus:families=integral", "no family 'integral': did you mean 'integrate'"),
        ("calculus:levels=4,families=integrate", "no integrate at the levels"),
        ("linear:size=3", "no option 'size'.*it has families, levels"),
        ("count_down", "did you mean 'countdown'"),
    ],
)
def test_bad_options(spec, message):
    with pytest.raises(UsageError, match=message):
        load_tasks(spec)


def test_equations_are_solved_by_their_references():
    assert linear([(2, "x"), (-1, "y"), (0, "z"), (4, "")]) == "2x - y + 4"
    for level in (1, 2, 3, 4):
        problem = draw_equation(Random(level), level)
        left, right = problem.prompt.removeprefix("Solve for x: ").split(" = ")
        x = Fraction(problem.reference)
        value = [_value(side, x) for side in (left, right)]
        assert value[0] == value[1], problem
    system = draw_system(Random(1), 3)
    solution = {p[0]: int(p[4:]) for p in system.reference.split(", ")}
    for line in system.prompt.removeprefix("Solve the system ").removesuffix(" for x, y and z.").split("; "):
        left, right = line.split(" = ")
        assert _value(left, **{k: Fraction(v) for k, v in solution.items()}) == int(right)


def _value(text, x=Fraction(0), y=Fraction(0), z=Fraction(0)):
    """A sum of terms, worked out by Python for texts this test made itself."""
    import re

    python = re.sub(r"(\d|\))(?=[xyz(])", r"\1*", text)
    return eval(python, {"__builtins__": {}}, {"x": x, "y": y, "z": z})


def test_prime_factors():
    assert [prime_factors(n) for n in (2, 12, 97, 1001)] == [[2], [2, 2, 3], [97], [7, 11, 13]]


COUNTDOWN = Task("t", "p", "8/(3-8/3)", metadata={"numbers": [3, 3, 8, 8], "target": 24})


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ("8/(3-8/3)", "correct"),
        ("8 \\div (3 - \\frac{8}{3})", "correct"),
        ("8/(3-8/3) = 24", "correct"),
        ("24 = 8/(3-8/3)", "wrong"),
        ("8/(3-8/3) = 25", "wrong"),
        ("24", "wrong"),
        ("3*8", "wrong"),
        ("3+3+8+8", "wrong"),
        ("3!*(8/8)*3+6", "wrong"),
        ("8^3/8/3-8/3", "wrong"),
        ("3*8+(8-8)*3", "wrong"),
        ("8/(3-3)+8", "wrong"),
        ("(3*8)*(8/8)^3", "wrong"),
        ("__import__('os')", "unparsed"),
        ("3 8 8 3", "unparsed"),
    ],
)
def test_countdown_answers(answer, status):
    assert load_verifier("countdown").verify(boxed(answer), COUNTDOWN).status == status


def test_countdown_without_numbers_is_a_bad_reference():
    assert load_verifier("countdown").verify(boxed("1"), Task("t", "p", "1")).status == "bad_reference"


INTEGRAL = Task("t", "p", "x^2", metadata={"integrand": "2x + \\cos{\\left(x \\right)}", "variable": "x"})


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ("x^2 + \\sin x", "correct"),
        ("x^2 + \\sin(x) + C", "correct"),
        ("F(x) = x^2 + \\sin x - 7", "correct"),
        ("x^2 - \\sin x", "wrong"),
        ("2x + \\cos x", "wrong"),
        ("7", "wrong"),
        ("\\int 2x + \\cos x \\, dx", "wrong"),
    ],
)
def test_antiderivatives(answer, status):
    verdict = load_verifier("antiderivative").verify(boxed(answer), INTEGRAL)
    assert verdict.status == status, verdict


def test_the_logarithm_of_an_absolute_value():
    task = Task("t", "p", "ln|x|", metadata={"integrand": "1/x", "variable": "x"})
    judge = load_verifier("antiderivative")
    assert judge.verify(boxed("\\ln|x| + C"), task).is_correct
    assert judge.verify(boxed("\\ln(x)"), task).is_correct
    assert not judge.verify(boxed("\\ln|x+1|"), task).is_correct


def test_an_integrand_that_cannot_be_read_is_a_bad_reference():
    task = Task("t", "p", "x", metadata={"integrand": "((("})
    assert load_verifier("antiderivative").verify(boxed("x"), task).status == "bad_reference"
