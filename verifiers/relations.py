"""Chains, equations and inequalities: what `x = 12·7 = 84` answers, and when two relations are the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from verifiers.algebra import Poly, combine, independent, normal, proportional
from verifiers.budget import Budget, TooExpensive, Undefined
from verifiers.canon import Canon, NotScalar
from verifiers.intervals import FLIPPED
from verifiers.nodes import (
    Add,
    Call,
    Div,
    Mul,
    Neg,
    Node,
    Opaque,
    Ratio,
    Rel,
    Seq,
    SetOp,
    Sym,
    Text,
    symbols,
    walk,
)
from verifiers.numeric import Evaluator, height
from verifiers.scalar import _POINTS, Match, decimal_literal
from verifiers.tables import KNOWN_CALLS, OPERATORS

_NAMED_FUNCTIONS = frozenset("sin cos tan cot sec csc det arg dim tr max min gcd lcm".split())


@dataclass(frozen=True)
class Assigned:
    """What a chain of equalities says: the name on the left, if any, and the value; `rounded` is a decimal
    given after ≈ beside an exact value."""

    name: Node | None
    value: Node
    rounded: Node | None = None


def is_name(node: Node) -> bool:
    """Whether a left side names what follows (`x`, `f(2)`, `Area`, `m + n`, `dy/dx`)."""
    match node:
        case Sym() | Text():
            return True
        case Opaque(name, _):
            return name in OPERATORS  # `\\int_0^1 x dx = 1/2`: what is asked, not evaluated here
        case Call("abs", (Sym(name),)):
            return name.isupper() or " " in name  # a segment or a vector, not an unknown
        case Call("norm", (Sym(),)):
            return True
        case Call(name, args):
            return name not in KNOWN_CALLS or (name in _NAMED_FUNCTIONS and bool(symbols(args[0])))
        case Add(items) | Mul(items):
            return len(set(items)) == len(items) > 1 and all(isinstance(i, Sym) for i in items)
        case SetOp(_, Sym(), Sym()):
            return True
        case Ratio(items):
            return all(isinstance(i, Sym) for i in items)
        case Mul((Sym(name), Seq("(" | "[", _, items))):
            return name.isupper()  # C(5, 2), P[A]
        case Seq("(", ")", items):
            return len(items) > 1 and all(isinstance(i, Sym) for i in items)
        case Div(Mul((Sym("d"), *_)) | Sym("d"), Mul((Sym("d"), *_))):
            return True
    return False


def assigned(rel: Rel, budget: Budget, same: Callable[[Node, Node], bool]) -> Assigned | None:
    """What a chain of `=` and `≈` answers, or None: when it is no such chain, when two of its values differ
    (`84 = 85`), or when it is an equation to be solved rather than a value. Behind a name, a link may have
    variables that the next one has not (`A = πr² = 25π`): they were given values, which is not checked."""
    if not all(op in ("=", "~", "equiv") for op in rel.ops):
        return None
    items, ops = list(rel.items), list(rel.ops)
    name = items[0] if is_name(items[0]) else None
    if name is not None:
        if symbols(name) & symbols(Rel(tuple(items[1:]), ())) and isinstance(name, Sym):
            return None
        items, ops = items[1:], ops[1:]
    elif len(items) == 2 and is_name(items[1]) and not symbols(items[0]):
        name, items, ops = items[1], items[:1], []
    while len(items) > 1 and is_name(items[0]) and name is not None and not symbols(items[-1]):
        items, ops = items[1:], ops[1:]
    rounded = None
    if "~" in ops:
        cut = ops.index("~")
        if not all(_close(items[cut], item, budget) for item in items[cut + 1 :]):
            return None
        rounded, items, ops = items[-1], items[: cut + 1], ops[:cut]
    if name is None and len(items) > 1 and items[0] == items[-1]:
        return None  # 84 = 84 says nothing
    for left, right in zip(items, items[1:], strict=False):
        if not same(left, right) and not (name is not None and symbols(left) - symbols(right)):
            return None
    return Assigned(name, items[-1], rounded)


def _close(exact: Node, rounded: Node, budget: Budget) -> bool:
    """Whether `rounded` is `exact` to the digits it gives (one more in the last place is tolerated)."""
    try:
        evaluator = Evaluator(40, {}, budget)
        left, right = evaluator.of(exact), evaluator.of(rounded)
    except (Undefined, TooExpensive):
        return False
    literal = decimal_literal(rounded)
    if literal is None:
        return bool(abs(left - right) <= evaluator.mp.mpf("0.5"))
    return bool(abs(left - right) <= evaluator.mp.mpf(10) ** (-literal[1]))


def constraints(rel: Rel) -> list[tuple[str, Node]]:
    """A chain as single constraints (op, e) meaning `e op 0`, with op in `= != < <=`."""
    found: list[tuple[str, Node]] = []
    for left, op, right in zip(rel.items, rel.ops, rel.items[1:], strict=False):
        if op in (">", ">="):
            left, right, op = right, left, FLIPPED[op]
        if op not in ("=", "!=", "<", "<="):
            raise NotScalar(f"relation {op}")
        found.append((op, Add((left, Neg(right)))))
    return found


def same_relations(gold: Rel, pred: Rel, budget: Budget) -> Match:
    """Whether two relations hold for the same values: each constraint a multiple of one of the other's, by a
    positive factor where there is a direction, by a non-zero one elsewhere."""
    try:
        wanted, given = constraints(gold), constraints(pred)
    except NotScalar as error:
        return Match(False, str(error))
    if len(wanted) != len(given):
        return Match(False, "a different number of conditions")
    left = list(given)
    for op, expression in wanted:
        for index, (other_op, other) in enumerate(left):
            if op == other_op and _multiple(expression, other, budget, op in ("<", "<=")):
                del left[index]
                break
        else:
            return Match(False, "relations that are no multiple of each other")
    return Match(True, "the same relation up to a factor")


def _cleared(poly: Poly) -> Poly:
    """Without negative powers of generators."""
    lowest: dict[str, Fraction] = {}
    for monomial in poly:
        for gen, exponent in monomial:
            if exponent < 0:
                lowest[gen] = min(lowest.get(gen, Fraction(0)), exponent)
    if not lowest:
        return poly
    lift, _ = normal((gen, -e) for gen, e in lowest.items())
    cleared: Poly = {}
    for monomial, coefficient in poly.items():
        raised, scale = combine(monomial, lift)
        cleared[raised] = cleared.get(raised, Fraction(0)) + coefficient * scale
    return cleared


def _multiple(a: Node, b: Node, budget: Budget, directed: bool) -> bool:
    try:
        canon = Canon(budget)
        first, second = canon.of(a), canon.of(b)
    except (Undefined, NotScalar):
        return False
    if not first.num or not second.num or not symbols(a) or not symbols(b):
        return False  # 0 = 0 and the like say nothing
    if directed:
        difference = canon.add(first, canon.scale(second, Fraction(-1)))
        if not difference.num:
            return True
        if first.den != second.den:
            return False
        ratio = proportional(canon.algebra, first.num, second.num)
        return ratio is not None and ratio > 0
    if proportional(canon.algebra, _cleared(first.num), _cleared(second.num)) is not None:
        return True
    if independent(first.generators() | second.generators()) and not _irrational(first.generators()):
        return False
    return _constant_ratio(a, b, budget)


def _irrational(generators: frozenset[str]) -> bool:
    return any(not gen.startswith("s:") for gen in generators)


def _constant_ratio(a: Node, b: Node, budget: Budget) -> bool:
    """Whether a / b is the same non-zero number at several points, to the digits their height calls for."""
    names = sorted({n.name for n in (*walk(a), *walk(b)) if isinstance(n, Sym)})
    digits = int(60 + 4 * (height(a) + height(b)))
    ratios = []
    for index in range(8):
        env = {n: _POINTS[(index + 5 * k) % len(_POINTS)] + Fraction(k, 97) for k, n in enumerate(names)}
        evaluator = Evaluator(digits, env, budget)
        try:
            ratios.append(evaluator.divide(evaluator.of(a), evaluator.of(b)))
        except Undefined:
            continue
    if len(ratios) < 4:
        return False
    mp, first = evaluator.mp, ratios[0]
    tolerance = mp.mpf(10) ** (-digits // 2)
    return abs(first) > tolerance and all(abs(r - first) <= tolerance * abs(first) for r in ratios)
