"""The last resort: sympy, under a budget of function calls.

It is asked where the numeric test finds no point to compare at, and by `--explain` to confirm what rests on
digits. Expressions are built from our syntax tree by calling sympy's classes; no text ever reaches sympy.
Symbols carry no assumptions.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from verifiers.nodes import Add, Call, Const, Div, Mul, Neg, Node, Num, Percent, Pow, Quantity, Sym

MAX_CALLS = 300_000  # Python calls inside sympy, about half a second


class _Spent(Exception):
    """The budget of calls is used up."""


class Unknown(Exception):
    """The node has no counterpart in sympy."""


def to_sympy(node: Node) -> Any:
    """The sympy expression of a scalar node. Raises `Unknown`."""
    import sympy

    match node:
        case Num(value):
            return sympy.Rational(value.numerator, value.denominator)
        case Sym(name):
            return sympy.Symbol(name)
        case Const("pi" | "e" | "i"):
            return {"pi": sympy.pi, "e": sympy.E, "i": sympy.I}[node.name]
        case Add(items):
            return sympy.Add(*map(to_sympy, items))
        case Mul(items):
            return sympy.Mul(*map(to_sympy, items))
        case Neg(item):
            return -to_sympy(item)
        case Percent(item):
            return to_sympy(item) / 100
        case Quantity(item, unit) if unit.name == "°":
            return to_sympy(item) * sympy.pi / 180
        case Div(top, bottom):
            return to_sympy(top) / to_sympy(bottom)
        case Pow(base, exp):
            return sympy.Pow(to_sympy(base), to_sympy(exp))
        case Call(name, args):
            return _call(name, [to_sympy(arg) for arg in args])
    raise Unknown(type(node).__name__)


def _call(name: str, args: list[Any]) -> Any:
    import sympy

    if name == "root":
        return sympy.real_root(*args) if args[0].is_negative and args[1].is_odd else sympy.root(*args)
    if name == "logb":
        return sympy.log(args[0]) / sympy.log(args[1])
    names = {"ln": "log", "abs": "Abs", "fact": "factorial", "binom": "binomial", "ceil": "ceiling",
             "sgn": "sign", "max": "Max", "min": "Min", "conj": "conjugate"}  # fmt: skip
    known = frozenset(
        "sin cos tan cot sec csc asin acos atan acot asec acsc sinh cosh tanh coth sech csch asinh acosh "
        "atanh floor gcd lcm exp".split()
    )
    if name not in names and name not in known:
        raise Unknown(name)
    return getattr(sympy, names.get(name, name))(*args)


def within_calls(work: Callable[[], Any], calls: int) -> Any:
    """`work()` unless it makes more than so many Python calls: then None. Counting calls instead of seconds
    gives the same outcome on a busy machine, and works in any thread."""
    left = calls
    previous = sys.getprofile()

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal left
        if event == "call":
            left -= 1
            if left < 0:
                raise _Spent

    sys.setprofile(count)
    try:
        return work()
    except _Spent:
        return None
    finally:
        sys.setprofile(previous)


def difference_vanishes(gold: Node, pred: Node, calls: int = MAX_CALLS) -> bool | None:
    """Whether sympy finds the difference of two scalars to be zero; None when it cannot say."""
    import sympy

    def decide() -> bool | None:
        difference = to_sympy(gold) - to_sympy(pred)
        if difference.has(sympy.zoo, sympy.nan, sympy.oo):
            return None
        simplified = sympy.simplify(difference)
        if simplified == 0:
            return True
        return False if simplified.is_nonzero else None

    try:
        return within_calls(decide, calls)
    except (
        Unknown,
        ValueError,
        TypeError,
        ArithmeticError,
        AttributeError,
        NotImplementedError,
        RecursionError,
    ):
        return None  # sympy's own limits: it could not say
