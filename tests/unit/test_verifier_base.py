"""The plug-in API: what may be a verifier, and what its results become."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from reasoner.config import Config
from reasoner.errors import UsageError
from reasoner.rejudge import Judge
from reasoner.types import Task, Verdict
from verifiers.base import Verifier, load_verifier, to_verdict

TASK = Task("t", "1 + 1", "2")


@pytest.mark.parametrize(
    ("outcome", "status", "reward"),
    [
        (True, "correct", 1.0),
        (False, "wrong", 0.0),
        (1, "correct", 1.0),
        (0.5, "wrong", 0.5),
        (-1.0, "wrong", -1.0),
        (np.float32(1.0), "correct", 1.0),
        (None, "masked", None),
        (Verdict.unparsed("?"), "unparsed", 0.0),
        (Verdict.correct(reward=math.nan), "error", None),
        (Verdict.correct(reward="1"), "error", None),  # type: ignore[arg-type]
        (Verdict.correct(reward=np.float32(0.5)), "correct", 0.5),  # type: ignore[arg-type]
        (math.nan, "error", None),
        (math.inf, "error", None),
        ("yes", "error", None),
        ([1.0], "error", None),
    ],
)
def test_outcomes_become_verdicts(outcome, status: str, reward: float | None) -> None:
    verdict = to_verdict(outcome)
    assert (verdict.status, verdict.reward) == (status, reward)


def test_the_threshold_is_the_verifiers() -> None:
    assert to_verdict(0.5, correct_from=0.5).is_correct


def exact(completion: str, task: Task) -> bool:
    return completion == task.references[0]


async def slowly(completion: str, task: Task) -> float:
    return float(completion == task.references[0])


def best_of_group(completions: list[str], task: Task) -> list[float]:
    return [float(c == max(completions, key=len)) for c in completions]


best_of_group.batched = True  # type: ignore[attr-defined]


class Exact:
    timeout_s = 3.0

    def verify(self, completion: str, task: Task) -> bool:
        return completion == task.references[0]


class Own(Verifier):
    name = "own"

    def verify(self, completion: str, task: Task) -> Verdict:
        return Verdict.correct(completion)


class Awaited(Verifier):
    async def verify(self, completion: str, task: Task) -> bool:  # type: ignore[override]
        return completion == task.references[0]


@pytest.mark.parametrize("spec", [exact, slowly, Exact, Exact(), Awaited, lambda c, t: c == t.references[0]])
def test_callables_are_verifiers(spec) -> None:
    verifier = load_verifier(spec)
    assert [v.status for v in verifier.verify_group(["2", "3"], TASK)] == ["correct", "wrong"]
    assert verifier.verify("2", TASK).is_correct


def test_declarations_are_read() -> None:
    assert load_verifier(Exact).timeout_s == 3.0
    assert load_verifier(best_of_group).batched
    assert load_verifier(Own).name == "own"
    assert load_verifier("math").timeout_is_answer


def test_a_batched_verifier_sees_the_group() -> None:
    verdicts = load_verifier(best_of_group).verify_group(["a", "abc", "ab"], TASK)
    assert [v.reward for v in verdicts] == [0.0, 1.0, 0.0]


def test_a_batched_verifier_must_answer_for_each() -> None:
    def short(completions: list[str], task: Task) -> list[float]:
        return [1.0]

    short.batched = True  # type: ignore[attr-defined]
    verdicts = load_verifier(short).verify_group(["a", "b"], TASK)
    assert [v.status for v in verdicts] == ["error", "error"]
    assert "expected 2 outcomes" in verdicts[0].detail


def test_one_failing_async_call_is_one_error() -> None:
    async def flaky(completion: str, task: Task) -> bool:
        if completion == "bad":
            raise ValueError("no network")
        return True

    verdicts = load_verifier(flaky).verify_group(["ok", "bad", "ok"], TASK)
    assert [v.status for v in verdicts] == ["correct", "error", "correct"]
    assert "no network" in verdicts[1].detail


def test_specs_by_name(tmp_path, monkeypatch) -> None:
    (tmp_path / "my_rewards.py").write_text("def exact(c, t):\n    return c == t.references[0]\nvalue = 3\n")
    monkeypatch.chdir(tmp_path)
    assert load_verifier("my_rewards:exact").verify("2", TASK).is_correct
    assert load_verifier("my_rewards.py:exact").verify("2", TASK).is_correct
    sys.modules.pop("my_rewards", None)


def test_a_file_may_import_its_neighbours_and_be_called_anything(tmp_path) -> None:
    (tmp_path / "a_neighbour.py").write_text("right = 2\n")
    (tmp_path / "math.py").write_text(
        "import a_neighbour\ndef exact(c, t):\n    return c == str(a_neighbour.right)\n"
    )
    assert load_verifier(f"{tmp_path}/math.py:exact").verify("2", TASK).is_correct
    assert sys.modules["math"] is math
    sys.path.remove(str(tmp_path))


def test_a_class_whose_constructor_raises_is_one_clear_message() -> None:
    class Keyless:
        def __init__(self) -> None:
            raise RuntimeError("no key")

    with pytest.raises(UsageError, match="constructible without arguments: RuntimeError: no key"):
        load_verifier(Keyless)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("maths", "unknown verifier 'maths': neither one of math"),
        ("no_such_module:f", "cannot be imported: there is no module 'no_such_module' in the current dir"),
        ("json:no_such", "has no attribute 'no_such'"),
        ("json:__name__", "expected a function, class or Verifier"),
        (":f", "expected 'module:attribute' or"),
        ("mine.py", "which function or class of that file"),
        ("missing.py:f", "no such file"),
        (3, "expected a function, class or Verifier"),
    ],
)
def test_bad_specs_are_one_clear_message(spec, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_verifier(spec)


def test_bad_declarations_are_usage_errors() -> None:
    def never(completion: str, task: Task) -> bool:
        return True

    never.timeout_s = -1  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="timeout_s must be positive"):
        load_verifier(never)


def test_a_run_takes_the_deadline_that_the_verifier_declares() -> None:
    patient = lambda c, t: True  # noqa: E731
    patient.timeout_s = 60.0  # type: ignore[attr-defined]
    patient.in_process = True  # type: ignore[attr-defined]
    with Judge(patient) as judge:
        assert judge._pool(Config()).timeout_s == 60.0
        assert judge._pool(Config(verifier={"timeout_s": 5.0})).timeout_s == 5.0
