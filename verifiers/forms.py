"""Is it an answer, or the question written down again? What in an expression is left to be computed.

A literal reference wants a literal answer: fractions, radicals, π, e and powers are values; a sum or
product of two numbers, a function applied to numbers, a sum or an integral are work left undone, unless
the reference itself is written that way.
"""

from __future__ import annotations

from fractions import Fraction

from verifiers.budget import Budget, TooExpensive, Undefined
from verifiers.canon import Canon, NotScalar
from verifiers.nodes import (
    Add,
    Call,
    Const,
    Div,
    Mul,
    Neg,
    Node,
    Num,
    Opaque,
    Percent,
    Pow,
    Quantity,
    Sym,
    symbols,
    walk,
)
from verifiers.scalar import decimal_literal

ELEMENTARY = frozenset(
    "sin cos tan cot sec csc asin acos atan acot asec acsc sinh cosh tanh coth sech csch asinh acosh atanh "
    "ln log logb".split()
)


_TEN = Num(Fraction(10), None, 2)


def is_literal(node: Node) -> bool:
    """Whether a reference is a number (no variables, no unknown functions)."""
    return not symbols(node)


def _rational(node: Node) -> bool:
    """Whether a node is a rational number as written: a literal, a fraction of literals, a power of them."""
    match node:
        case Num():
            return True
        case Neg(item) | Percent(item):
            return _rational(item)
        case Div(a, b):
            return _rational(a) and _rational(b)
        case Pow(a, b):
            return _rational(a) and _rational(b) and not _fractional(b)
    return False


def _fractional(exp: Node) -> bool:
    return any(isinstance(p, Div) or (isinstance(p, Num) and p.value.denominator != 1) for p in walk(exp))


def _literal_exponent(exp: Node) -> bool:
    """An integer or a fraction of integers, and neither 0 nor 1."""
    inner = exp.item if isinstance(exp, Neg) else exp
    parts = (inner.top, inner.bottom) if isinstance(inner, Div) else (inner,)
    trivial = isinstance(exp, Num) and exp.value in (0, 1)
    return all(isinstance(part, Num) for part in parts) and not trivial


def _scientific(items: tuple[Node, ...]) -> bool:
    """`a × 10ⁿ`."""
    return len(items) == 2 and isinstance(items[0], Num) and _ten_power(items[1])


def _ten_power(node: Node) -> bool:
    return isinstance(node, Pow) and isinstance(node.base, Num) and node.base.value == 10 and _rational(node)


def unevaluated(node: Node) -> frozenset[str]:
    """What is left to compute in an expression without variables, as names of operations."""
    found: set[str] = set()
    for part in walk(node):
        match part:
            case Add(items):
                if sum(map(_rational, items)) > 1 or _like_terms(items):
                    found.add("sum")
            case Mul(items):
                if sum(map(_rational, items)) > 1 and not _scientific(items):
                    found.add("product")
                if sum(isinstance(i, Call) and i.name == "root" for i in items) > 1 and _is_rational(part):
                    found.add("product of roots")
            case Neg(Neg()):
                found.add("double sign")
            case Pow(Num(base), _) if base == 1:
                found.add("power of one")
            case Pow(base, exp) if _rational(exp) and not _literal_exponent(exp) and base != _TEN:
                found.add("exponent")
            case Call(name, _) if name != "root":
                found.add("function" if name in ELEMENTARY else name)
            case Opaque(name, _):
                found.add(name)
    return frozenset(found)


def _like_terms(items: tuple[Node, ...]) -> bool:
    canon = Canon(Budget(5000))
    seen = set()
    try:
        for item in items:
            monomial = canon.of(item).monomial
            if monomial is not None:
                if monomial[1] in seen:
                    return True
                seen.add(monomial[1])
    except (TooExpensive, Undefined, NotScalar):
        return False
    return False


def _is_rational(node: Node) -> bool:
    try:
        return Canon(Budget(5000)).of(node).rational is not None
    except (TooExpensive, Undefined, NotScalar):
        return False


def left_to_do(gold: Node, pred: Node) -> frozenset[str]:
    """What `pred` leaves to be computed that the literal reference `gold` does not; empty when nothing."""
    if not is_literal(gold):
        return frozenset()
    extra = set(unevaluated(pred) - unevaluated(gold))
    if decimal_literal(gold) is not None:
        extra -= {"function"}
        if not _is_rational(pred):
            return frozenset(extra)
    if _rational(gold):
        names = {type(part).__name__ for part in walk(pred) if isinstance(part, (Sym, Const))}
        if names and not isinstance(pred, Quantity):
            extra.add("terms that cancel")
        if sum(isinstance(part, Call) and part.name == "root" for part in walk(pred)) > 1:
            extra.add("roots")
    return frozenset(extra)


def scaled(node: Node, factor: Fraction) -> Node:
    """factor · node, folded into a number literal where there is one."""
    if factor == 1:
        return node
    if isinstance(node, Num) and node.places is not None and factor == Fraction(1, 100):
        return Num(node.value * factor, node.places + 2, node.sig)
    if isinstance(node, Num):
        return Num(node.value * factor)
    return Mul((Num(factor), node))
