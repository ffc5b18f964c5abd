"""Countdown answers: an expression that uses every number once and equals the target.

The expression is read by the project's grammar and worked out in exact fractions; text never becomes code.
"""

from __future__ import annotations

from fractions import Fraction

from reasoner.types import Task, Verdict
from verifiers.base import Verifier
from verifiers.extract import extract
from verifiers.math import read
from verifiers.nodes import Add, Div, Mul, Neg, Node, Num, Rel


class NotCountdown(ValueError):
    """Something other than +, -, *, / and whole numbers, or a division by zero; the message says what."""


def work_out(node: Node, used: list[int]) -> Fraction:
    """The value of an expression; the numbers in it are appended to `used`. Raises NotCountdown."""
    match node:
        case Num(value, None) if value.denominator == 1:
            used.append(int(value))
            return value
        case Add(items):
            return sum((work_out(item, used) for item in items), Fraction(0))
        case Mul(items):
            product = Fraction(1)
            for item in items:
                product *= work_out(item, used)
            return product
        case Neg(item):
            return -work_out(item, used)
        case Div(top, bottom):
            value, divisor = work_out(top, used), work_out(bottom, used)
            if divisor == 0:
                raise NotCountdown("it divides by zero")
            return value / divisor
    raise NotCountdown(f"{type(node).__name__} is none of +, -, *, / and whole numbers")


class CountdownVerifier(Verifier):
    """Right when the expression equals `metadata["target"]` and uses `metadata["numbers"]` once each. A
    right-hand side that says so (`… = 24`) may follow."""

    name = "countdown"
    timeout_s = 5.0
    timeout_is_answer = True

    def verify(self, completion: str, task: Task) -> Verdict:
        numbers, target = task.metadata.get("numbers"), task.metadata.get("target")
        if not isinstance(numbers, (list, tuple)) or target is None:
            return Verdict("bad_reference", None, None, "the task's metadata has no numbers or no target")
        answer = extract(completion).answer
        if answer is None:
            return Verdict.unparsed("no final answer")
        tree = read(answer).tree
        if tree is None:
            return Verdict("unparsed", 0.0, answer, "the expression cannot be read")
        used: list[int] = []
        try:
            if isinstance(tree, Rel) and set(tree.ops) == {"="}:
                stated = [work_out(item, []) for item in tree.items[1:]]
                tree = tree.items[0]
            else:
                stated = []
            value = work_out(tree, used)
        except NotCountdown as error:
            return Verdict.wrong(answer, str(error))
        if sorted(used) != sorted(numbers):
            return Verdict.wrong(answer, f"uses {sorted(used)}, not {sorted(numbers)}")
        if value != target or any(value != other for other in stated):
            return Verdict.wrong(answer, f"equals {value}, not {target}")
        return Verdict.correct(answer, f"equals {target}")

    def answer_key(self, completion: str, task: Task) -> str | None:
        answer = extract(completion).answer
        return None if answer is None else "".join(answer.split())
