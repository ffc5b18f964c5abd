"""Whether two expressions are equal: exact algebra first, digits last.

`same_scalar` returns a `Match` that says which rule decided. Symbols are what they are: expressions
agree when they agree wherever both are real, at points of both signs; one being real where the other is
not tells them apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from verifiers.algebra import independent
from verifiers.budget import Budget, TooExpensive, Undefined
from verifiers.canon import Canon, prime_powers
from verifiers.nodes import Add, Call, Const, Div, Mul, Neg, Node, Num, Opaque, Pow, Sym, walk
from verifiers.numeric import MIN_DIGITS, Evaluator, decimal_agrees, height, to_fraction
from verifiers.symbolic import difference_vanishes

_POINTS = tuple(
    Fraction(n, d)
    for n, d in (
        (137, 100), (-83, 100), (31, 100), (-291, 100), (523, 100), (47, 100), (-19, 100), (211, 100),
        (-157, 100), (73, 100), (349, 100), (-61, 100),
    )
)  # fmt: skip
MIN_POINTS = 3
MAX_SYMBOLIC_HEIGHT = 100.0  # digits; past that the last resort is not worth its price
ALGEBRA_OPERATIONS = 20_000  # past that an expansion is given up for the numeric test


@dataclass(frozen=True)
class Match:
    """`equal` and the rule that decided, for `--explain`. Truthy when equal."""

    equal: bool
    rule: str

    def __bool__(self) -> bool:
        return self.equal


def decimal_literal(node: Node) -> tuple[Fraction, int, int] | None:
    """(value, places, significant digits) of a decimal as written, also with a sign or times 10ⁿ."""
    match node:
        case Num(value, places, sig) if places is not None:
            return value, places, sig
        case Neg(item):
            inner = decimal_literal(item)
            return None if inner is None else (-inner[0], inner[1], inner[2])
        case Mul((first, Pow(Num(ten), exp))) if ten == 10:
            inner = decimal_literal(first)
            shift = exp.value if isinstance(exp, Num) else None
            if isinstance(exp, Neg) and isinstance(exp.item, Num):
                shift = -exp.item.value
            if inner is None or shift is None or shift.denominator != 1 or abs(shift) > 400:
                return None
            return inner[0] * Fraction(10) ** shift.numerator, inner[1] - shift.numerator, inner[2]
    return None


def same_scalar(gold: Node, pred: Node, budget: Budget) -> Match:
    """Whether two scalar expressions are equal. Raises `TooExpensive`, `NotScalar`; an undefined side is
    unequal to everything."""
    try:
        match = _same(gold, pred, budget, "10")
        if not match and _has_log(gold) and _has_log(pred):
            match = _same(gold, pred, budget, "e")
        if not match and _has_log(gold) != _has_log(pred):
            match = _same(gold, pred, budget, "e")
        return match
    except Undefined as error:
        return Match(False, f"undefined: {error}")


def _has_log(node: Node) -> bool:
    return any(isinstance(part, Call) and part.name == "log" for part in walk(node))


def _same(gold: Node, pred: Node, budget: Budget, log_base: str) -> Match:
    if gold == pred and not _undefined(gold):
        return Match(True, "written alike")
    if Const("oo") in walk(gold) or Const("oo") in walk(pred):
        return Match(_infinite(gold) is not None and _infinite(gold) == _infinite(pred), "infinity")
    decimals = _decimals(gold, pred, budget, log_base)
    if decimals is not None:
        return decimals
    try:
        canon = Canon(Budget(min(ALGEBRA_OPERATIONS, budget.left)), log_base)
        budget.spend(100)
        a, b = canon.of(gold), canon.of(pred)
        if a.rational is not None and b.rational is not None:
            return Match(a.rational == b.rational, "exact numbers")
        difference = canon.algebra.add(
            canon.algebra.multiply(a.num, b.den), canon.algebra.multiply(b.num, a.den), -1
        )
        if not difference:
            return Match(True, "algebra: the difference vanishes")
        if independent(a.generators() | b.generators()):
            return Match(False, "algebra: the difference does not vanish")
        one, other = a.monomial, b.monomial
        if one and other and one[1] == other[1]:
            return Match(False, "algebra: different multiples")
    except TooExpensive:
        factored = prime_powers(gold, budget), prime_powers(pred, budget)
        if factored[0] is not None and factored[1] is not None:
            return Match(factored[0] == factored[1], "prime factors")
        if _shape(gold) == _shape(pred):
            return Match(True, "written alike, but for the order")
    return _numeric(gold, pred, budget, log_base)


def _shape(node: Node) -> tuple:
    """The tree with the items of sums and products in one order: equal shapes are equal expressions."""
    match node:
        case Num(value):
            return ("Num", repr(value))
        case Add(items) | Mul(items):
            return (type(node).__name__, *sorted((_shape(item) for item in items), key=repr))
        case Neg(item):
            return ("Neg", _shape(item))
        case Div(a, b) | Pow(a, b):
            return (type(node).__name__, _shape(a), _shape(b))
        case Call(name, args):
            return ("Call", name, *map(_shape, args))
    return (repr(node),)


def _undefined(node: Node) -> bool:
    return Const("oo") in walk(node) and _infinite(node) is None


def _infinite(node: Node) -> int | None:
    """+1 or -1 for ∞ and -∞, None for anything else."""
    if node == Const("oo"):
        return 1
    if isinstance(node, Neg) and node.item == Const("oo"):
        return -1
    return None


def _decimals(gold: Node, pred: Node, budget: Budget, log_base: str) -> Match | None:
    """The rule for decimals: they agree with an exact value to all the digits they give, at least six."""
    left, right = decimal_literal(gold), decimal_literal(pred)
    if left is None and right is None:
        return None
    if left is not None and right is not None:
        if left[0] == right[0]:
            return Match(True, "equal decimals")
        short, long = sorted((left, right), key=lambda d: d[1])
        enough = short[2] >= MIN_DIGITS and short[1] >= MIN_DIGITS and short[1] < long[1]
        return Match(enough and decimal_agrees(short[0], short[1], long[0]), "decimals, to the shorter one")
    (value, places, sig), exact_node = (left, pred) if left is not None else (right, gold)  # type: ignore[misc]
    canon = Canon(budget, log_base)
    exact: Fraction | None
    try:
        exact = canon.of(exact_node).rational
    except TooExpensive:
        exact = None
    if exact is None:
        if any(isinstance(part, (Sym, Opaque)) for part in walk(exact_node)):
            return Match(False, "a number against an expression with variables")
        digits = max(0, places) + int(height(exact_node)) + 30
        if digits > 2000:
            raise TooExpensive("a decimal with too many places")
        evaluator = Evaluator(digits, {}, budget, log_base)
        exact = to_fraction(evaluator.mp, evaluator.of(exact_node))
        if exact is None:
            return Match(False, "a decimal against a complex number")
    elif exact == value:
        return Match(True, "exact numbers")
    if exact.denominator == 1 and exact == exact.__round__():
        return Match(False, "a decimal against an integer")
    agrees = sig >= MIN_DIGITS and decimal_agrees(value, places, exact)
    return Match(agrees, f"decimal with {sig} significant digits")


def _numeric(gold: Node, pred: Node, budget: Budget, log_base: str) -> Match:
    """Compare at points, with the precision that the height of both sides calls for."""
    reach = height(gold) + height(pred)
    names = sorted({n.name for n in (*walk(gold), *walk(pred)) if isinstance(n, Sym)})
    valid = 0
    points = len(_POINTS) if names else 1
    for index in range(points):
        env = {
            name: _POINTS[(index + 5 * k) % len(_POINTS)] + Fraction(k, 97) for k, name in enumerate(names)
        }
        outcome = _at_point(gold, pred, env, reach, budget, log_base)
        if outcome is False:
            return Match(False, "numbers: different values")
        valid += outcome is True
        if valid >= 5:
            break
    if valid >= (MIN_POINTS if names else 1):
        where = f"at {valid} points " if names else ""
        return Match(True, f"numbers: equal {where}to {20 + int(2 * reach)} and {60 + int(4 * reach)} digits")
    if reach < MAX_SYMBOLIC_HEIGHT and difference_vanishes(gold, pred):
        return Match(True, "sympy: the difference simplifies to zero")
    return Match(False, "numbers: no point where both are defined")


def _surely_different(
    gold: Node, pred: Node, env: dict[str, Fraction], budget: Budget, log_base: str
) -> bool:
    """A cheap refutation before a costly comparison: both sides keep 20 digits when the precision is raised
    from 50 to 80, and differ in the first 15."""
    values = []
    for digits in (50, 80):
        evaluator = Evaluator(digits, env, budget, log_base)
        try:
            values.append([evaluator.of(node) for node in (gold, pred)])
        except Undefined:
            return False
    mp = evaluator.mp
    stable = all(abs(low - high) <= abs(high) * mp.mpf(10) ** -20 for low, high in zip(*values, strict=True))
    left, right = values[1]
    return bool(stable and abs(left - right) > mp.mpf(10) ** -15 * max(abs(left), abs(right)))


def _at_point(
    gold: Node, pred: Node, env: dict[str, Fraction], reach: float, budget: Budget, log_base: str
) -> bool | None:
    """True or False where both sides can be compared at the point, None where they cannot."""
    spread = reach + sum(6.0 for _ in env)
    if reach > 60 and _surely_different(gold, pred, env, budget, log_base):
        return False
    for digits, agree in ((40 + 3 * spread, 20 + 2 * spread), (90 + 6 * spread, 60 + 4 * spread)):
        sides: list[Any] = []
        for node in (gold, pred):
            evaluator = Evaluator(int(digits), env, budget, log_base)
            try:
                sides.append(evaluator.of(node))
            except Undefined:
                sides.append(None)
        mp = evaluator.mp
        if sides[0] is None and sides[1] is None:
            return None
        if sides[0] is None or sides[1] is None:
            return None if env else False
        tolerance = mp.mpf(10) ** (-int(agree))
        left, right = sides
        real = [abs(mp.im(s)) <= tolerance * max(1, abs(s)) for s in sides]
        if abs(left - right) > tolerance * max(1, abs(left), abs(right)):
            return None if env and not any(real) else False
    return True
