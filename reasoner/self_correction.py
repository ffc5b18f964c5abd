"""Finds explicit self-correction in a chain of thought: a claim that was wrong and was later revised.

Two kinds of claim are read, both checkable without judgement:

1. an answer, a complete `\\boxed{...}`: retracted when the last one of the completion differs from it;
2. an arithmetic equation such as `87+74=151`: retracted when it is false and the same left side later
   stands in a true equation.

What is left out on purpose: hesitation ("wait", "hmm") without a revised claim, equations with variables,
and wrong lines that are never restated. Equations are evaluated exactly by the small evaluator below
(`Fraction`s, no `eval`); what it cannot read is not a claim.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Literal

from reasoner.types import Verdict

_MAX_TOKENS = 100  # of one side of an equation; bounds the recursion as well
_MAX_DIGITS = 40
_MAX_CHARACTERS = 400
_SYNONYMS = (("\\times", "*"), ("\\cdot", "*"), ("×", "*"), ("·", "*"), ("÷", "/"), ("−", "-"))
_RUN = re.compile(r"(?:[0-9+\-*/() \t=]|\.(?=[0-9]))+")
_TOKEN = re.compile(r"\s*(?:(\d+(?:\.\d+)?)|([-+*/()]))")
_BRACES = re.compile(r"\\boxed\{|\{|\}")


@dataclass(frozen=True)
class Claim:
    """One checkable statement of a completion; `start` is its offset in characters."""

    kind: Literal["answer", "equation"]
    text: str
    start: int


@dataclass(frozen=True)
class SelfCorrection:
    """All claims in order of appearance, and those of them that were revised later."""

    claims: tuple[Claim, ...]
    retracted: tuple[Claim, ...]


def self_corrected(completion: str, verdict: Verdict | None) -> bool:
    """Whether the completion ends correct after an explicit earlier claim was wrong and was revised."""
    return verdict is not None and verdict.is_correct and bool(detect(completion).retracted)


def detect(completion: str) -> SelfCorrection:
    """Reads the claims of `completion` and which of them it takes back (see the module's docstring)."""
    answers = list(_boxed_answers(completion))
    equations = list(_equations(completion))
    retracted = [claim for claim, value in answers[:-1] if value != answers[-1][1]]
    last_true = {left: claim.start for claim, left, true in equations if true}
    retracted += [
        claim for claim, left, true in equations if not true and last_true.get(left, -1) > claim.start
    ]
    claims = [claim for claim, _ in answers] + [claim for claim, _, _ in equations]
    return SelfCorrection(
        tuple(sorted(claims, key=_start)),
        tuple(sorted(retracted, key=_start)),
    )


def _start(claim: Claim) -> int:
    return claim.start


def _boxed_answers(text: str) -> Iterator[tuple[Claim, Fraction | int | str]]:
    """Every complete, outermost `\\boxed{...}` with its value: a number, or else its text without spaces."""
    openings: list[re.Match[str]] = []
    spans: list[tuple[int, int, int]] = []  # start, start of the content, end of the content
    for brace in _BRACES.finditer(text):
        if brace.group() != "}":
            openings.append(brace)
        elif openings and (opening := openings.pop()).group() != "{":
            while spans and spans[-1][0] > opening.start():
                spans.pop()
            spans.append((opening.start(), opening.end(), brace.start()))
    for start, begin, end in spans:
        value = evaluate(text[begin:end])
        claim = Claim("answer", text[start : end + 1], start)
        yield claim, "".join(text[begin:end].split()) if value is None else value


def _equations(text: str) -> Iterator[tuple[Claim, tuple[str, ...], bool]]:
    """Every arithmetic equation as (claim, tokens of the left side, whether it is true).

    `a+b=c=d` counts as `a+b=c` and, where `c` is an operation too, `c=d`.
    """
    ascii_text = text
    for written, symbol in _SYNONYMS:
        ascii_text = ascii_text.replace(written, symbol.rjust(len(written)))
    for run in _RUN.finditer(ascii_text):
        sides = run.group().split("=")
        if _continues_left(ascii_text[max(0, run.start() - 8) : run.start()], sides[0]):
            sides[0] = " " * len(sides[0])
        if _continues_right(ascii_text[run.end() : run.end() + 1], sides[-1]):
            sides[-1] = " " * len(sides[-1])
        offset = run.start()
        for i in range(len(sides) - 1):
            left = _balanced(sides[i], first=i == 0)
            right = _balanced(sides[i + 1], last=i == len(sides) - 2)
            tokens, value, claimed = _tokens(left), evaluate(left), evaluate(right)
            if value is not None and claimed is not None and len(tokens) > 2:
                start = offset + len(sides[i]) - len(left.lstrip(" \t"))
                end = offset + len(sides[i]) + 1 + len(right)
                claim = Claim("equation", text[start:end].strip(" \t"), start)
                yield claim, tokens, value == claimed
            offset += len(sides[i]) + 1


def _continues_left(before: str, side: str) -> bool:
    """Whether the first side is the tail of something larger, such as `x+87=` or `2^3+1=`."""
    if side[:1] not in (" ", "\t") and before and (before[-1].isalnum() or before[-1] in "^_}]"):
        return True
    previous = before.rstrip()[-1:]
    return side.lstrip(" \t")[:1] in tuple("+-*/") and (previous.isalnum() or previous in tuple(")]}"))


def _continues_right(after: str, side: str) -> bool:
    """Whether the last side goes on as something larger, such as `=2x` or `=3^2` or `=5%`."""
    return bool(after) and (after in "^!%_\\{" or (after.isalpha() and side[-1:].isdigit()))


def _balanced(side: str, first: bool = False, last: bool = False) -> str:
    """Drops the surrounding prose's bracket, as in `(so 3+4=7).`; "" when far too long."""
    if len(side) > _MAX_CHARACTERS:
        return ""
    if last:
        side = side.rstrip(" \t(")
        while side.count(")") > side.count("(") and side.endswith(")"):
            side = side[:-1].rstrip(" \t")
    if first:
        side = side.lstrip(" \t)")
        while side.count("(") > side.count(")") and side.startswith("("):
            side = side[1:].lstrip(" \t")
    return side


@lru_cache(10_000)
def _tokens(text: str) -> tuple[str, ...]:
    """The tokens of an arithmetic expression, () when it holds anything else or is too long."""
    tokens: list[str] = []
    position, text = 0, text.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None or len(tokens) == _MAX_TOKENS or len(match.group()) > _MAX_DIGITS:
            return ()
        tokens.append(match.group(1) or match.group(2))
        position = match.end()
    return tuple(tokens)


@lru_cache(10_000)
def evaluate(text: str) -> Fraction | int | None:
    """The exact value of an expression of numbers, `+ - * / ( )` and signs; None when it is not one."""
    if text.isdecimal() and text.isascii() and len(text) <= _MAX_DIGITS:
        return int(text)
    tokens = _tokens(text)
    if not tokens:
        return None
    try:
        value, end = _sum(tokens, 0)
    except (_NotAnExpression, ZeroDivisionError):
        return None
    return value if end == len(tokens) else None


class _NotAnExpression(Exception):
    """The tokens do not form an expression."""


def _sum(tokens: tuple[str, ...], i: int) -> tuple[Fraction | int, int]:
    value, i = _product(tokens, i)
    while i < len(tokens) and tokens[i] in "+-":
        term, end = _product(tokens, i + 1)
        value, i = (value + term if tokens[i] == "+" else value - term), end
    return value, i


def _product(tokens: tuple[str, ...], i: int) -> tuple[Fraction | int, int]:
    value, i = _atom(tokens, i)
    while i < len(tokens) and tokens[i] in "*/":
        factor, end = _atom(tokens, i + 1)
        value, i = (value * factor if tokens[i] == "*" else Fraction(value) / factor), end
    return value, i


def _atom(tokens: tuple[str, ...], i: int) -> tuple[Fraction | int, int]:
    if i >= len(tokens):
        raise _NotAnExpression
    if tokens[i] in "+-":
        value, end = _atom(tokens, i + 1)
        return (-value if tokens[i] == "-" else value), end
    if tokens[i] == "(":
        value, i = _sum(tokens, i + 1)
        if i >= len(tokens) or tokens[i] != ")":
            raise _NotAnExpression
        return value, i + 1
    if tokens[i][0].isdigit():
        return (Fraction(tokens[i]) if "." in tokens[i] else int(tokens[i])), i + 1
    raise _NotAnExpression
