"""The syntax tree of an answer: what was written, before anything is computed.

Trees are small (the parser bounds length and depth) and immutable. Nothing here knows arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction


class Node:
    """Base of all syntax nodes."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Num(Node):
    """A number literal. `places` is the number of digits after the point of a decimal (for scientific
    notation: the exponent of the last digit given, negated), None for integers, fractions and repeating
    decimals, which are exact. `sig` counts significant digits."""

    value: Fraction
    places: int | None = None
    sig: int = 0


@dataclass(frozen=True, slots=True)
class Const(Node):
    """`pi`, `e`, `i`, `oo` (infinity) or `R`, `Z`, `N`, `Q`, `C` (number sets)."""

    name: str


@dataclass(frozen=True, slots=True)
class Sym(Node):
    """A variable or a name: `x`, `x_1`, `alpha`, `AB`."""

    name: str


@dataclass(frozen=True, slots=True)
class Add(Node):
    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Neg(Node):
    item: Node


@dataclass(frozen=True, slots=True)
class Mul(Node):
    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Div(Node):
    top: Node
    bottom: Node


@dataclass(frozen=True, slots=True)
class Pow(Node):
    base: Node
    exp: Node


@dataclass(frozen=True, slots=True)
class Call(Node):
    """A function applied: elementary (`sin`, `ln`, `root`, `abs`, `fact` …) or unknown (`f`)."""

    name: str
    args: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Opaque(Node):
    """An operator that is not evaluated (`\\sum`, `\\int`, `\\lim`, `mod`): equal only when written alike.
    `meaning` is (variable, from, to, body) where it was understood; a limit has no `to`."""

    name: str
    args: tuple[Node, ...]
    meaning: tuple[Node, ...] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class PlusMinus(Node):
    """`left ± right`; `left` is None for a leading sign. `sign` is +1 for ±, -1 for ∓."""

    left: Node | None
    right: Node
    sign: int = 1


@dataclass(frozen=True, slots=True)
class Percent(Node):
    item: Node


@dataclass(frozen=True, slots=True)
class Unit(Node):
    """`factor` in base units of `dims` (sorted (base, exponent) pairs); `generic` for "units"."""

    factor: Fraction
    dims: tuple[tuple[str, Fraction], ...]
    name: str
    generic: bool = False


@dataclass(frozen=True, slots=True)
class Quantity(Node):
    item: Node
    unit: Unit


@dataclass(frozen=True, slots=True)
class Based(Node):
    """Digits in a stated base other than ten, `204_5`."""

    digits: str
    base: int


@dataclass(frozen=True, slots=True)
class Ratio(Node):
    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Clock(Node):
    """A time of day, normalised text such as `9:05 pm`."""

    text: str


@dataclass(frozen=True, slots=True)
class Seq(Node):
    """Several answers: `open` is `(`, `[`, `{` (a set), `<` (a vector) or empty for a bare list; `close` may
    differ from it in half-open intervals. `joined` by `,`, `or` or `and`."""

    open: str
    close: str
    items: tuple[Node, ...]
    joined: str = ","


@dataclass(frozen=True, slots=True)
class SetOp(Node):
    """`op` is `cup`, `cap` or `setminus`."""

    op: str
    left: Node
    right: Node


@dataclass(frozen=True, slots=True)
class Builder(Node):
    """`{ head | conditions }`."""

    head: Node
    conditions: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Rel(Node):
    """A chain `items[0] ops[0] items[1] …`; ops are `= != < <= > >= ~ in equiv`."""

    items: tuple[Node, ...]
    ops: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Matrix(Node):
    """`kind` is `matrix`, `det` (vertical bars) or `cases`."""

    rows: tuple[tuple[Node, ...], ...]
    kind: str = "matrix"


@dataclass(frozen=True, slots=True)
class Choice(Node):
    """A lettered option, `(B)` or `B. 42`; `rest` is what stands behind the letter."""

    letter: str
    rest: Node | None = None


@dataclass(frozen=True, slots=True)
class Text(Node):
    """Words, normalised for comparison."""

    words: str


def children(node: Node) -> tuple[Node, ...]:
    """The direct sub-nodes, in writing order."""
    match node:
        case Add(items) | Mul(items) | Ratio(items) | Seq(_, _, items) | Rel(items, _):
            return items
        case Neg(item) | Percent(item) | Quantity(item, _):
            return (item,)
        case Div(a, b) | Pow(a, b) | SetOp(_, a, b):
            return (a, b)
        case Call(_, args) | Opaque(_, args, _):
            return args
        case PlusMinus(left, right):
            return (right,) if left is None else (left, right)
        case Builder(head, conditions):
            return (head, *conditions)
        case Matrix(rows):
            return tuple(cell for row in rows for cell in row)
        case Choice(_, rest):
            return () if rest is None else (rest,)
    return ()


def rewrite(node: Node, change: Callable[[Node], Node | None]) -> Node:
    """`node` with every sub-node for which `change` gives a replacement replaced, outermost first."""
    changed = change(node)
    if changed is not None:
        return changed
    match node:
        case Add(items):
            return Add(tuple(rewrite(i, change) for i in items))
        case Mul(items):
            return Mul(tuple(rewrite(i, change) for i in items))
        case Neg(item):
            return Neg(rewrite(item, change))
        case Div(a, b):
            return Div(rewrite(a, change), rewrite(b, change))
        case Pow(a, b):
            return Pow(rewrite(a, change), rewrite(b, change))
        case Call(name, args):
            return Call(name, tuple(rewrite(i, change) for i in args))
        case Quantity(item, unit):
            return Quantity(rewrite(item, change), unit)
        case Percent(item):
            return Percent(rewrite(item, change))
        case Rel(items, ops):
            return Rel(tuple(rewrite(i, change) for i in items), ops)
        case Seq(opened, closed, items, joined):
            return Seq(opened, closed, tuple(rewrite(i, change) for i in items), joined)
        case SetOp(op, a, b):
            return SetOp(op, rewrite(a, change), rewrite(b, change))
        case Matrix(rows, kind):
            return Matrix(tuple(tuple(rewrite(c, change) for c in row) for row in rows), kind)
    return node


def walk(node: Node) -> list[Node]:
    """All nodes of the tree, parents first."""
    found, waiting = [], [node]
    while waiting:
        current = waiting.pop()
        found.append(current)
        waiting.extend(children(current))
    return found


def depth(node: Node) -> int:
    """How many levels the tree has."""
    level, current = 0, [node]
    while current:
        level += 1
        current = [child for parent in current for child in children(parent)]
    return level


def symbols(node: Node) -> frozenset[str]:
    """The names of all variables and unknown functions."""
    from verifiers.tables import KNOWN_CALLS

    found = set()
    for part in walk(node):
        if isinstance(part, Sym):
            found.add(part.name)
        elif isinstance(part, Call) and part.name not in KNOWN_CALLS:
            found.add(part.name)
        elif isinstance(part, (Opaque, Text)):
            found.add(f"#{type(part).__name__}")
    return frozenset(found)


def show(node: Node) -> str:
    """A short form of the tree for people, such as `Add(Mul(2, x), 1/3)`."""
    match node:
        case Num(value):
            bits = value.numerator.bit_length() + value.denominator.bit_length()
            return f"(a number of {bits} bits)" if bits > 10_000 else str(value)
        case Const(name) | Sym(name):
            return name
        case Text(plain) | Clock(plain):
            return f"{type(node).__name__}({plain!r})"
        case Based(digits, base):
            return f"{digits} in base {base}"
        case Quantity(item, unit):
            return f"Quantity({show(item)}, {unit.name})"
        case Choice(letter, rest):
            return f"Choice({letter})" if rest is None else f"Choice({letter}, {show(rest)})"
        case Seq(opened, closed, items, joined):
            kind = {"": "List", "{": "Set", "(": "Tuple", "[": "Bracket", "<": "Vector"}[opened]
            kind = f"{opened}{closed}" if opened and opened + closed in ("(]", "[)") else kind
            return f"{kind}({(', ' if joined == ',' else f' {joined} ').join(map(show, items))})"
        case Rel(items, ops):
            return " ".join(
                [show(items[0]), *(f"{op} {show(i)}" for op, i in zip(ops, items[1:], strict=False))]
            )
        case Call(name, _) | Opaque(name, _, _):
            return f"{name}({', '.join(map(show, children(node)))})"
    return f"{type(node).__name__}({', '.join(map(show, children(node)))})"
