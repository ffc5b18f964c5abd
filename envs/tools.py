"""The tools of `envs.tool_use`: a calculator, and sympy in a process that can be killed.

Both read what the policy wrote with the verifier's grammar and build values from the tree; text never becomes
code. The calculator works in exact fractions with a bound on their size, in this process. sympy runs in a
verifier process, with its deadline and its limit on memory: a call that takes too long is an answer too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from typing import Any

from envs.specs import split_outside
from reasoner.errors import UsageError
from reasoner.types import Task, Verdict
from verifiers.math import read
from verifiers.nodes import Add, Div, Mul, Neg, Node, Num, Pow, Rel
from verifiers.pool import VerifierPool
from verifiers.symbolic import Unknown, to_sympy

MAX_BITS = 10_000  # of a numerator or denominator
MAX_RESULT = 400  # characters
SYMPY_TIMEOUT_S = 5.0
SYMPY_FUNCTIONS = ("simplify", "expand", "factor", "diff", "integrate", "solve")
_SHOWN_DECIMALS = 10


class ToolError(ValueError):
    """What a call cannot do; the message is for the policy."""


def calculate(text: str) -> str:
    """The exact value of an expression of numbers with + - * / ^, and its decimals when it is a fraction."""
    tree = read(text).tree
    if tree is None:
        raise ToolError("cannot read the expression")
    result = work_out(tree)
    shown = str(result)
    if len(shown) > MAX_RESULT:
        raise ToolError("the result is too long")
    return shown if result.denominator == 1 else f"{shown} = {float(result):.{_SHOWN_DECIMALS}g}"


def work_out(node: Node) -> Fraction:
    """The value of a tree. ToolError for anything but numbers and arithmetic, and for results too large."""
    match node:
        case Num(value):
            result = value
        case Add(items):
            result = sum(map(work_out, items), Fraction(0))
        case Mul(items):
            result = Fraction(1)
            for item in items:
                result = _bounded(result * work_out(item))
        case Neg(item):
            result = -work_out(item)
        case Div(top, bottom):
            divisor = work_out(bottom)
            if divisor == 0:
                raise ToolError("division by zero")
            result = work_out(top) / divisor
        case Pow(base, exp):
            result = _power(work_out(base), work_out(exp))
        case _:
            raise ToolError("only numbers with + - * / ^ and parentheses")
    return _bounded(result)


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise ToolError("the result is too large")
    return value


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        raise ToolError("only whole exponents")
    if base == 0 and exponent < 0:
        raise ToolError("division by zero")
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(exponent) * bits > MAX_BITS:
        raise ToolError("the result is too large")
    return Fraction(base ** int(exponent))


def call_sympy(text: str) -> str:
    """`factor(x^2 - 1)`, `diff(x*sin(x), x)`, `solve(x^2 = 2, x)` …, in this process (see `sympy_tool`)."""
    import sympy

    name, opened, body = text.strip().partition("(")
    if not opened or not body.endswith(")") or name.strip() not in SYMPY_FUNCTIONS:
        raise ToolError(f"write one of {', '.join(SYMPY_FUNCTIONS)} with its arguments, like factor(x^2 - 1)")
    try:
        arguments = [_argument(piece) for piece in split_outside(body[:-1])]
    except (UsageError, Unknown) as error:
        raise ToolError(f"cannot read the arguments: {error}") from None
    needed = {"diff": 2, "integrate": 2, "solve": 2}.get(name.strip(), 1)
    if len(arguments) != needed:
        raise ToolError(f"{name.strip()} takes {needed} argument{'s' if needed > 1 else ''}")
    return str(getattr(sympy, name.strip())(*arguments))


def _argument(text: str) -> Any:
    tree = read(text).tree
    if tree is None:
        raise Unknown(repr(text))
    if isinstance(tree, Rel) and tree.ops == ("=",):
        return to_sympy(tree.items[0]) - to_sympy(tree.items[1])
    return to_sympy(tree)


def in_verifier_process(completion: str, task: Task) -> Verdict:
    """`call_sympy` in the form that a verifier process runs: the result is what is `extracted`."""
    try:
        return Verdict.correct(call_sympy(completion))
    except ToolError as error:
        return Verdict.wrong(None, str(error))


in_verifier_process.timeout_s = SYMPY_TIMEOUT_S  # type: ignore[attr-defined]
in_verifier_process.timeout_is_answer = True  # type: ignore[attr-defined]
_POOL_LOCK = threading.Lock()


@cache
def _pool() -> VerifierPool:
    return VerifierPool("envs.tools:in_verifier_process", timeout_s=SYMPY_TIMEOUT_S)


def sympy_tool(text: str) -> str:
    """The result of a sympy call, from the killable process (started with the first call)."""
    with _POOL_LOCK:
        pool = _pool()
    verdict = pool.verify_group([text], Task("tool", "", "-"))[0]
    if verdict.is_correct and verdict.extracted is not None:
        return verdict.extracted
    if verdict.status == "wrong":
        raise ToolError(verdict.detail)
    raise ToolError("it took too long" if verdict.status == "timeout" else "sympy cannot do that")


TOOLS: dict[str, Callable[[str], str]] = {"calc": calculate, "sympy": sympy_tool}


def use(name: str, text: str) -> str:
    """What a tool says, short enough to read; an error is something it says too."""
    try:
        said = TOOLS[name](text)
    except ToolError as error:
        return f"error: {error}"
    return said if len(said) <= MAX_RESULT else said[:MAX_RESULT] + " …"
