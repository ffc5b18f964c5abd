"""Countdown: reach a target with each of the given numbers used once. Levels 1 to 3 have 3 to 5 numbers."""

from __future__ import annotations

from fractions import Fraction
from random import Random

from envs.generated import Family, GeneratedTasks, Problem

MAX_NUMBER = 25
MAX_TARGET = 999


def draw(rng: Random, level: int) -> Problem:
    """A problem of `level + 2` numbers that has a solution, and one solution as the reference."""
    while True:
        numbers = [rng.randint(1, MAX_NUMBER) for _ in range(level + 2)]
        parts = [(Fraction(n), str(n)) for n in numbers]
        while len(parts) > 1:
            rng.shuffle(parts)
            parts.append(_combine(rng, parts.pop(), parts.pop()))
        value, solution = parts[0]
        if value.denominator == 1 and 1 <= value <= MAX_TARGET and value not in numbers:
            break
    asked = ", ".join(map(str, numbers))
    prompt = (
        f"Write an expression that equals {value} and uses each of the numbers {asked} exactly once, "
        "with +, -, *, / and parentheses."
    )
    key = f"countdown:{sorted(numbers)}:{value}"
    return Problem(prompt, solution, key, {"numbers": numbers, "target": int(value)})


def _combine(rng: Random, a: tuple[Fraction, str], b: tuple[Fraction, str]) -> tuple[Fraction, str]:
    """Two parts joined by an operation; only divisions that come out even."""
    operator = rng.choice("+-*/")
    if operator == "/" and (b[0] == 0 or (a[0] / b[0]).denominator != 1):
        operator = "+"
    left, right = (text if text.isdigit() else f"({text})" for text in (a[1], b[1]))
    value = {"+": a[0] + b[0], "-": a[0] - b[0], "*": a[0] * b[0]}.get(operator)
    return (a[0] / b[0] if value is None else value), f"{left} {operator} {right}"


class CountdownTasks(GeneratedTasks):
    name = "countdown"
    FAMILIES = {"countdown": Family(draw, verifier="countdown")}
