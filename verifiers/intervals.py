"""Sets of real numbers: unions of intervals and points, in a normal form that can be compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cmp_to_key

from verifiers.budget import Budget, Undefined
from verifiers.canon import Canon, NotScalar
from verifiers.nodes import Add, Builder, Const, Neg, Node, Num, Rel, Seq, SetOp, Sym, symbols, walk
from verifiers.numeric import Evaluator

FLIPPED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "!=": "!=", "=": "="}
_INFINITE = {"-oo": Fraction(-1, 1) * 10**400, "oo": Fraction(10**400)}
LOW, HIGH = Neg(Const("oo")), Const("oo")


class NoSet(Exception):
    """The node describes no set of reals that can be put in normal form."""


@dataclass(frozen=True)
class Interval:
    """From `low` to `high` (nodes; `position`s are their values for sorting); a point when both are equal."""

    low: Node
    high: Node
    low_closed: bool
    high_closed: bool
    low_at: Fraction
    high_at: Fraction

    @property
    def empty(self) -> bool:
        return self.low_at > self.high_at or (
            self.low_at == self.high_at and not (self.low_closed and self.high_closed)
        )


@dataclass(frozen=True)
class RealSet:
    """Disjoint intervals in increasing order, and the variable they were stated for, if any."""

    intervals: tuple[Interval, ...]
    variable: str | None = None


class SetReader:
    """Turns nodes into `RealSet`s under a budget."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.in_builder = False  # {x : x = 3 or x = 5}

    def read(self, node: Node, loose: bool = True) -> RealSet:
        """The set that `node` describes. With `loose`, `(a, b)` is an open interval. Raises `NoSet`."""
        match node:
            case Sym("setR+") | Sym("setR^+"):
                return RealSet((self.interval(Num(Fraction(0)), HIGH, False, False),))
            case Sym("setR-"):
                return RealSet((self.interval(LOW, Num(Fraction(0)), False, False),))
            case Const("R"):
                return RealSet((self.interval(LOW, HIGH, False, False),))
            case Seq("{", "}", items):
                return self.union([RealSet((self.interval(i, i, True, True),)) for i in items])
            case Seq("(" | "[" as opened, closed, (low, high)) if loose or opened + closed != "()":
                return RealSet(self.normal([self.interval(low, high, opened == "[", closed == "]")]))
            case SetOp(op, left, right):
                return self.operation(op, self.read(left), self.read(right))
            case Rel(items, ("in",)) if isinstance(items[0], Sym):
                return RealSet(self.read(items[1]).intervals, items[0].name)
            case Rel():
                return self.relation(node)
            case Builder(head, conditions):
                return self.builder(head, conditions)
            case Seq("", "", items, joined) if any(isinstance(i, Rel) for i in items):
                return self.several(items, joined)
        raise NoSet(type(node).__name__)

    def position(self, node: Node) -> Fraction:
        if node == HIGH:
            return _INFINITE["oo"]
        if node == LOW:
            return _INFINITE["-oo"]
        if symbols(node):
            raise NoSet("a bound with variables")
        try:
            exact = Canon(self.budget).of(node).rational
            if exact is not None:
                return exact
            evaluator = Evaluator(60, {}, self.budget)
            value = evaluator.of(node)
        except (Undefined, NotScalar) as error:
            raise NoSet(str(error)) from error
        if evaluator.mp.im(value) != 0 or abs(value) > 1e300:
            raise NoSet("a bound that is no real number")
        return Fraction(int(evaluator.mp.nint(value * 10**45)), 10**45)

    def interval(self, low: Node, high: Node, low_closed: bool, high_closed: bool) -> Interval:
        if (low == LOW and low_closed) or (high == HIGH and high_closed):
            low_closed = low_closed and low != LOW  # "[-∞" is read as "(-∞"
            high_closed = high_closed and high != HIGH
        return Interval(low, high, low_closed, high_closed, self.position(low), self.position(high))

    def normal(self, intervals: list[Interval]) -> tuple[Interval, ...]:
        """Sorted, without empty ones, overlapping and touching ones merged."""

        def order(a: Interval, b: Interval) -> int:
            if a.low_at != b.low_at:
                return -1 if a.low_at < b.low_at else 1
            return (not a.low_closed) - (not b.low_closed)

        kept: list[Interval] = []
        for current in sorted((i for i in intervals if not i.empty), key=cmp_to_key(order)):
            last = kept[-1] if kept else None
            touching = last is not None and (
                current.low_at < last.high_at
                or (current.low_at == last.high_at and (current.low_closed or last.high_closed))
            )
            if last is None or not touching:
                kept.append(current)
                continue
            further = (current.high_at, current.high_closed) > (last.high_at, last.high_closed)
            end = current if further else last
            kept[-1] = Interval(
                last.low, end.high, last.low_closed, end.high_closed, last.low_at, end.high_at
            )
        return tuple(kept)

    def union(self, sets: list[RealSet]) -> RealSet:
        names = {s.variable for s in sets if s.variable}
        if len(names) > 1:
            raise NoSet("several variables")
        merged = self.normal([i for s in sets for i in s.intervals])
        return RealSet(merged, names.pop() if names else None)

    def complement(self, s: RealSet) -> RealSet:
        pieces, low, closed = [], LOW, False
        low_node: Node = low
        for i in s.intervals:
            if i.low != LOW:
                pieces.append(self.interval(low_node, i.low, closed, not i.low_closed))
            low_node, closed = i.high, not i.high_closed
        if low_node != HIGH:
            pieces.append(self.interval(low_node, HIGH, closed, False))
        return RealSet(self.normal(pieces), s.variable)

    def intersection(self, sets: list[RealSet]) -> RealSet:
        return self.complement(self.union([self.complement(s) for s in sets]))

    def operation(self, op: str, left: RealSet, right: RealSet) -> RealSet:
        if op == "cup":
            return self.union([left, right])
        if op == "setminus":
            right = self.complement(right)
        return self.intersection([left, right])

    # -- from relations --------------------------------------------------------------------------------

    def relation(self, node: Rel) -> RealSet:
        """Inequalities in one variable, linear in it, as a set."""
        known = ("<", "<=", ">", ">=", "!=", "=") if self.in_builder else ("<", "<=", ">", ">=", "!=")
        if not all(op in known for op in node.ops):
            raise NoSet("no inequality")
        names = symbols(node)
        if len(names) != 1 or "?" in names:
            raise NoSet("not one variable")
        (name,) = names
        sets = [
            self.half_line(left, op, right, name)
            for left, op, right in zip(node.items, node.ops, node.items[1:], strict=False)
        ]
        return RealSet(self.intersection(sets).intervals, name)

    def half_line(self, left: Node, op: str, right: Node, name: str) -> RealSet:
        if symbols(right) and not symbols(left):
            left, op, right = right, FLIPPED[op], left
        if left == Sym(name) and not symbols(right):
            bound = right
        else:
            bound, op = self.solved(left, op, right, name)
        if op == "=":
            return RealSet((self.interval(bound, bound, True, True),))
        if op == "!=":
            point = RealSet((self.interval(bound, bound, True, True),))
            return self.complement(point)
        if op in ("<", "<="):
            piece = self.interval(LOW, bound, False, op == "<=")
        else:
            piece = self.interval(bound, HIGH, op == ">=", False)
        return RealSet(self.normal([piece]))

    def solved(self, left: Node, op: str, right: Node, name: str) -> tuple[Node, str]:
        """The bound of a·x + b ⋈ 0 with rational a, b."""
        if Const("oo") in walk(left) or Const("oo") in walk(right):
            raise NoSet("infinity in an inequality")
        try:
            q = Canon(self.budget).of(Add((left, Neg(right))))
        except (Undefined, NotScalar) as error:
            raise NoSet(str(error)) from error
        gen = ((f"s:{name}", Fraction(1)),)
        if len(q.den) != 1 or () not in q.den or not set(q.num) <= {(), gen} or gen not in q.num:
            raise NoSet("not linear")
        slope, constant = q.num[gen], q.num.get((), Fraction(0))
        return Num(-constant / slope), op if slope > 0 else FLIPPED[op]

    def builder(self, head: Node, conditions: tuple[Node, ...]) -> RealSet:
        if isinstance(head, Rel) and head.ops == ("in",):
            conditions, head = (Rel(head.items, head.ops), *conditions), head.items[0]
        if not isinstance(head, Sym):
            raise NoSet("a set builder over an expression")
        outer, self.in_builder = self.in_builder, True
        sets = [self.read(c) for c in conditions]
        self.in_builder = outer
        if any(s.variable not in (None, head.name) for s in sets):
            raise NoSet("a condition on another variable")
        return RealSet(self.intersection(sets).intervals)

    def several(self, items: tuple[Node, ...], joined: str) -> RealSet:
        sets = [self.read(item) for item in items]
        names = {s.variable for s in sets}
        if len(names) != 1:
            raise NoSet("several variables")
        if joined != "or":
            both = self.intersection(sets)
            if both.intervals:
                return RealSet(both.intervals, sets[0].variable)
        return self.union(sets)


def same_sets(a: RealSet, b: RealSet, same: Callable[[Node, Node], bool]) -> bool:
    """Whether two sets are equal; `same` compares bounds."""
    if a.variable and b.variable and a.variable != b.variable:
        return False
    if len(a.intervals) != len(b.intervals):
        return False
    return all(
        x.low_closed == y.low_closed
        and x.high_closed == y.high_closed
        and same(x.low, y.low)
        and same(x.high, y.high)
        for x, y in zip(a.intervals, b.intervals, strict=True)
    )
