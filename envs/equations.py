"""Linear equations in one unknown, and systems of two or three of them."""

from __future__ import annotations

from fractions import Fraction
from random import Random

from envs.generated import Family, GeneratedTasks, Problem


def term(coefficient: int, name: str, first: bool) -> str:
    """`3x`, ` - x`, ` + 5` (empty name): a term as it is written in a sum; nothing for 0."""
    if coefficient == 0:
        return ""
    sign = ("-" if coefficient < 0 else "") if first else (" - " if coefficient < 0 else " + ")
    size = "" if abs(coefficient) == 1 and name else str(abs(coefficient))
    return f"{sign}{size}{name}"


def linear(pairs: list[tuple[int, str]]) -> str:
    """`2x - 3y + 4`, `0` when nothing is left."""
    text = ""
    for coefficient, name in pairs:
        text += term(coefficient, name, first=not text)
    return text or "0"


def _factor(coefficient: int) -> str:
    """What stands before a bracket: `3`, `-`, nothing for 1."""
    return {1: "", -1: "-"}.get(coefficient, str(coefficient))


def _nonzero(rng: Random, size: int) -> int:
    return rng.choice((-1, 1)) * rng.randint(1, size)


def draw_equation(rng: Random, level: int) -> Problem:
    """Level 1: `ax + b = c`; 2: the unknown on both sides; 3: with a bracket; from 4 on: fractional solutions
    and a bracket on each side."""
    size = (9, 12, 12, 20)[min(level, 4) - 1]
    while True:
        a, b, c, d = (_nonzero(rng, size) for _ in range(4))
        p, q = _nonzero(rng, 9), _nonzero(rng, 9)
        if level == 1:
            left, right, slope, rest = linear([(a, "x"), (b, "")]), str(d), a, d - b
        elif level == 2:
            left, right = linear([(a, "x"), (b, "")]), linear([(c, "x"), (d, "")])
            slope, rest = a - c, d - b
        elif level == 3:
            left = f"{_factor(a)}(x{term(p, '', False)}){term(b, '', False)}"
            right = linear([(c, "x"), (d, "")])
            slope, rest = a - c, d - b - a * p
        else:
            left = f"{_factor(a)}(x{term(p, '', False)}){term(b, '', False)}"
            right = f"{_factor(c)}({linear([(q, 'x'), (d, '')])})"
            slope, rest = a - c * q, c * d - b - a * p
        if slope and (level >= 4 or rest % slope == 0) and abs(Fraction(rest, slope)) <= 100:
            break
    equation = f"{left} = {right}"
    return Problem(f"Solve for x: {equation}", str(Fraction(rest, slope)), f"equation:{equation}")


def draw_system(rng: Random, level: int) -> Problem:
    """Levels 1 and 2: two unknowns; 3: three; 4: three with larger numbers. Whole solutions."""
    count, size = ((2, 5), (2, 12), (3, 5), (3, 12))[level - 1]
    names = "xyz"[:count]
    solution = [rng.randint(-size, size) for _ in names]
    while True:
        rows = [[rng.randint(-size, size) for _ in names] for _ in names]
        if _determinant(rows) and all(sum(map(bool, row)) > 1 for row in rows):
            break
    lines = []
    for row in rows:
        total = sum(a * x for a, x in zip(row, solution, strict=True))
        lines.append(f"{linear(list(zip(row, names, strict=True)))} = {total}")
    reference = ", ".join(f"{n} = {x}" for n, x in zip(names, solution, strict=True))
    asked = " and ".join([", ".join(names[:-1]), names[-1]])
    prompt = f"Solve the system {'; '.join(lines)} for {asked}."
    return Problem(prompt, reference, f"system:{sorted(lines)}")


def _determinant(rows: list[list[int]]) -> int:
    if len(rows) == 1:
        return rows[0][0]
    minors = (
        (-1) ** i * a * _determinant([[*row[:i], *row[i + 1 :]] for row in rows[1:]])
        for i, a in enumerate(rows[0])
    )
    return sum(minors)


class LinearTasks(GeneratedTasks):
    name = "linear"
    FAMILIES = {"linear": Family(draw_equation)}


class SystemTasks(GeneratedTasks):
    name = "systems"
    FAMILIES = {"systems": Family(draw_system)}
