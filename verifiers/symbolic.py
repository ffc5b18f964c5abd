"""The last resort: sympy, under a budget of function calls.

It is asked for the value of references that are sums, integrals or limits, where the numeric test finds no
point to compare at, and by `--explain` to confirm what rests on digits. Expressions are built from our
syntax tree by calling sympy's classes; no text ever reaches sympy. Symbols carry no assumptions.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from fractions import Fraction
from types import FrameType
from typing import Any

from verifiers.nodes import Add, Call, Const, Div, Mul, Neg, Node, Num, Opaque, Percent, Pow, Quantity, Sym

MAX_CALLS = 300_000  # Python calls inside sympy, about half a second


class _Spent(Exception):
    """The budget of calls is used up."""


class Unknown(Exception):
    """The node has no counterpart in sympy."""


#: What sympy raises where it cannot go on.
_LIMITS = (
    Unknown,
    ValueError,
    TypeError,
    ArithmeticError,
    AttributeError,
    NotImplementedError,
    RecursionError,
)


def to_sympy(node: Node) -> Any:
    """The sympy expression of a scalar node. Raises `Unknown`."""
    import sympy

    match node:
        case Num(value):
            return sympy.Rational(value.numerator, value.denominator)
        case Sym(name):
            return sympy.Symbol(name)
        case Const("pi" | "e" | "i" | "oo"):
            return {"pi": sympy.pi, "e": sympy.E, "i": sympy.I, "oo": sympy.oo}[node.name]
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
    except _LIMITS:
        return None  # it could not say


def value_of(node: Opaque, calls: int = MAX_CALLS) -> Node | None:
    """The value of a sum, product, definite integral or limit, where sympy finds one in closed form within so
    many calls."""
    import sympy

    if node.meaning is None:
        return None
    variable, *bounds, body = node.meaning

    def compute() -> Any:
        x, inside = to_sympy(variable), to_sympy(body)
        if node.name == "lim":
            return sympy.limit(inside, x, to_sympy(bounds[0]), "+-" if bounds[0] != Const("oo") else "-")
        limits = (x, to_sympy(bounds[0]), to_sympy(bounds[1]))
        if node.name == "int":
            return sympy.integrate(inside, limits)
        return sympy.summation(inside, limits) if node.name == "sum" else sympy.product(inside, limits)

    try:
        found = within_calls(lambda: from_sympy(compute()), calls)
    except _LIMITS:
        return None
    return found if isinstance(found, Node) else None


def from_sympy(value: Any) -> Node:
    """The syntax tree of a sympy expression. Raises `Unknown` for what has no counterpart."""
    import sympy

    constants = {sympy.pi: "pi", sympy.E: "e", sympy.I: "i", sympy.oo: "oo"}
    if value in constants:
        return Const(constants[value])
    if value is sympy.S.NegativeInfinity:
        return Neg(Const("oo"))
    if value.is_Rational:
        return Num(Fraction(int(value.p), int(value.q)))
    if value.is_Symbol:
        return Sym(value.name)
    args = tuple(map(from_sympy, value.args))
    if value.is_Add or value.is_Mul:
        return Add(args) if value.is_Add else Mul(args)
    if value.is_Pow:
        return Pow(*args)
    names = {"log": "ln", "Abs": "abs"}
    name = type(value).__name__
    if name == "exp":
        return Pow(Const("e"), args[0])
    known = "log Abs sin cos tan cot sec csc asin acos atan sinh cosh tanh asinh acosh atanh".split()
    if name not in known:
        raise Unknown(name)
    return Call(names.get(name, name), args)
