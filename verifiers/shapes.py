"""Small questions about answers as written: is it a set, an angle, a list of assignments, and what is its
unit."""

from __future__ import annotations

from fractions import Fraction

from verifiers.budget import Budget, TooExpensive, Undefined
from verifiers.canon import Canon, NotScalar
from verifiers.forms import scaled
from verifiers.nodes import (
    Add,
    Based,
    Builder,
    Call,
    Choice,
    Clock,
    Const,
    Div,
    Matrix,
    Mul,
    Neg,
    Node,
    Num,
    Percent,
    PlusMinus,
    Pow,
    Quantity,
    Ratio,
    Rel,
    Seq,
    SetOp,
    Sym,
    Text,
    Unit,
    rewrite,
    symbols,
    walk,
)
from verifiers.units import SINGLE, read_unit

STRUCTURES = (Seq, SetOp, Rel, Matrix, Text, Choice, Ratio, Clock, Builder, Based)

SYNONYMS = {
    "no solutions": "no solution", "no real solution": "no solution", "no real solutions": "no solution",
    "there is no solution": "no solution", "there are no solutions": "no solution", "dne": "does not exist",
    "doesn't exist": "does not exist", "the limit does not exist": "does not exist",
    "limit does not exist": "does not exist", "infinitely many solutions": "infinitely many",
    "infinite solutions": "infinitely many", "infinite": "infinity",
}  # fmt: skip

EMPTY_SET_WORDS = frozenset({"no solution", "none", "empty set", "the empty set"})


def is_angle(unit: Unit | None) -> bool:
    return unit is not None and len(unit.dims) == 1 and unit.dims[0][0] in ("angle", "radian")


def split_quantity(node: Node) -> tuple[Node, Unit | None, bool]:
    """(value, unit, is a percentage); "units" counts as no unit, and a sum of lengths is in base units."""
    match node:
        case Percent(item):
            return item, None, True
        case Quantity(item, unit):
            return item, None if unit.generic or not unit.dims else unit, False
        case Neg(Percent(item)):
            return Neg(item), None, True
        case Neg(Quantity(item, unit)):
            return Neg(item), None if unit.generic else unit, False
        case Add(items) if all(isinstance(i, Quantity) for i in items):
            units = [i.unit for i in items if isinstance(i, Quantity)]
            if len({u.dims for u in units}) == 1:
                total = Add(tuple(scaled(i.item, i.unit.factor) for i in items if isinstance(i, Quantity)))
                base = Unit(Fraction(1), units[0].dims, "+".join(u.name for u in units))
                return summed(total), base, False
    return node, None, False


def summed(total: Add) -> Node:
    if all(isinstance(i, Num) for i in total.items):
        return Num(sum((i.value for i in total.items if isinstance(i, Num)), Fraction(0)))
    return total


def with_signs(node: Node, signs: list[int]) -> Node:
    """`node` with each ± replaced by the next sign of `signs` (writing order)."""

    def resolve(part: Node) -> Node | None:
        if not isinstance(part, PlusMinus):
            return None
        first = None if part.left is None else rewrite(part.left, resolve)
        sign = signs.pop(0) * part.sign
        second = rewrite(part.right, resolve)
        second = second if sign > 0 else Neg(second)
        return second if first is None else Add((first, second))

    return rewrite(node, resolve)


def assignments(seq: Seq) -> list[tuple[str, Node]] | None:
    """(name, value) of each item when every item is `name = value`."""
    found = []
    for item in seq.items:
        if not isinstance(item, Rel) or set(item.ops) != {"="} or not isinstance(item.items[0], Sym):
            return None
        found.append((item.items[0].name, item.items[-1]))
    return found or None


def names_agree(a: Node | None, b: Node | None) -> bool:
    """Whether two left sides may name the same thing; words and a missing name fit any, y fits f(x)."""
    if a is None or b is None or isinstance(a, Text) or isinstance(b, Text):
        return True
    if {type(a), type(b)} == {Sym, Call}:
        return Sym("y") in (a, b)
    return a == b


def integers(node: Node) -> bool:
    if isinstance(node, Sym):
        return "set" in node.name or node.name.rstrip("*+") in ("N", "Z")
    return isinstance(node, Const) and node.name in "ZNRQ"


def integer_variable(node: Node) -> str | None:
    """The k of a list that ends in "k ∈ Z"."""
    if isinstance(node, Seq) and node.open == "":
        for item in node.items:
            if isinstance(item, Rel) and item.ops == ("in",) and integers(item.items[1]):
                return item.items[0].name if isinstance(item.items[0], Sym) else None
    return None


def same_integer(gold: Node, pred: Node) -> Node:
    """`pred` with its integer variable ("n ∈ Z") called as in `gold`."""
    wanted, given = integer_variable(gold), integer_variable(pred)
    if wanted is None and given is not None:
        letters = symbols(gold) & {"k", "n", "m", "l"}  # not said to be an integer, but meant
        wanted = next(iter(letters)) if len(letters) == 1 and symbols(gold) <= letters | {"x"} else None
    if wanted is None or given is None or wanted == given:
        return pred
    return rewrite(pred, lambda part: Sym(wanted) if part == Sym(given) else None)


def set_like(node: Node) -> bool:
    if isinstance(node, Sym):
        return node.name.startswith("setR")
    return isinstance(node, (SetOp, Builder)) or (isinstance(node, Const) and node.name in "RZNQC")


def inequalities(node: Node) -> bool:
    return isinstance(node, Seq) and any(
        isinstance(i, Rel) and any(op not in ("=", "~") for op in i.ops) for i in node.items
    )


def as_quantity(node: Node) -> Node:
    """`0.0012 m^2` or `5 \\frac{m}{s}`, read as a product of symbols, as a quantity when every symbol in it
    is the sign of a unit."""
    parts: list[str] = []
    value = _units_apart(node, "", parts)
    counted = parts and any(isinstance(part, Num) for part in walk(node))
    unit = read_unit(" ".join(parts)) if counted and value is not None else None
    return node if unit is None or value is None else Quantity(value, unit)


def _units_apart(node: Node, sign: str, parts: list[str]) -> Node | None:
    """The number in a product of a number and signs of units; the signs go to `parts`."""
    match node:
        case Sym(name) if name in SINGLE:
            parts.append(sign + name)
            return Num(Fraction(1))
        case Pow(Sym(name), Num(power)) if name in SINGLE:
            parts.append(f"{sign}{name}^{power}")
            return Num(Fraction(1))
        case Mul(items) if items:
            found = [_units_apart(item, sign, parts) for item in items]
            numbers = [item for item in found if item is not None and item != Num(Fraction(1))]
            return numbers[0] if len(numbers) == 1 and None not in found else None
        case Div(top, bottom) if symbols(bottom):
            value = _units_apart(top, sign, parts)
            under = _units_apart(bottom, "/ ", parts)
            return value if under == Num(Fraction(1)) else None
    return None if symbols(node) else node


def one_variable(*lists: list[str]) -> bool:
    """Whether all names are one variable with different indices, or without (`x_1 = 3, x_2 = -1`)."""
    names = {name for found in lists for name in found}
    return len({name.partition("_")[0] for name in names}) == 1 and any(len(set(f)) < len(f) for f in lists)


def unlabelled(node: Node) -> Node:
    """`A(1, 2)`, a point with its name, as the bare tuple."""
    match node:
        case Mul((Sym(name), Seq("(", ")", items))) if len(items) > 1 and len(name) == 1 and name.isupper():
            return node.items[1]
        case Call(name, args) if len(args) > 1 and len(name) == 1 and name.isupper():
            return Seq("(", ")", args)
    return node


def determinant(matrix: Matrix) -> Node:
    """The determinant as an expression, expanded along the first row; `matrix` itself unless it is square and
    at most 4 × 4."""
    size = len(matrix.rows)
    if not 1 <= size <= 4 or any(len(row) != size for row in matrix.rows):
        return Matrix(matrix.rows)
    if size == 1:
        return matrix.rows[0][0]
    terms: list[Node] = []
    for column, cell in enumerate(matrix.rows[0]):
        minor = tuple(row[:column] + row[column + 1 :] for row in matrix.rows[1:])
        term = Mul((cell, determinant(Matrix(minor, "det"))))
        terms.append(Neg(term) if column % 2 else term)
    return Add(tuple(terms))


def _product(factor: Node, cell: Node) -> Node:
    """factor · cell, multiplied out when both are fractions: a matrix may keep a common factor outside."""
    try:
        whole = Canon(Budget(1000)).of(Mul((factor, cell))).rational
    except (TooExpensive, Undefined, NotScalar):
        whole = None
    return Mul((factor, cell)) if whole is None else Num(whole)


def as_matrix(node: Node) -> Node:
    """A list of rows, or a number times a matrix, as a matrix."""
    if isinstance(node, Mul) and isinstance(node.items[-1], Matrix) and len(node.items) == 2:
        factor, matrix = node.items[0], node.items[-1]
        if matrix.kind == "matrix":
            return Matrix(tuple(tuple(_product(factor, cell) for cell in row) for row in matrix.rows))
    if isinstance(node, Seq) and node.open in ("[", "(") and node.items:
        rows = [row.items for row in node.items if isinstance(row, Seq) and row.open in ("[", "(")]
        if len(rows) == len(node.items):
            return Matrix(tuple(rows))
    return node


def plain_text(node: Text) -> str:
    plain = node.words
    for article in ("the ", "a ", "an "):
        plain = plain.removeprefix(article)
    return SYNONYMS.get(plain, plain)


def kind_of(node: Node) -> str:
    names = {
        Seq: "a list", SetOp: "a set", Builder: "a set", Rel: "a relation", Matrix: "a matrix", Text: "words",
        Choice: "a letter", Ratio: "a ratio", Clock: "a time", Based: "a number in another base",
    }  # fmt: skip
    return names.get(type(node), "a value")


def is_condition(node: Node) -> bool:
    """`k ∈ Z`, `n ≥ 1`: what is said about an index, not part of the answer."""
    if not isinstance(node, Rel) or len(node.ops) != 1 or not isinstance(node.items[0], Sym):
        return False
    if node.ops == ("in",):
        return integers(node.items[1])
    return (
        node.items[0].name in ("n", "k", "m", "j")
        and node.ops[0] in (">", ">=")
        and isinstance(node.items[1], Num)
    )


def as_clock(node: Node, other: Node) -> Node:
    """`6:30` as a time of day where the other side is one."""
    if isinstance(other, Clock) and isinstance(node, Ratio) and len(node.items) == 2:
        hours, minutes = node.items
        if isinstance(hours, Num) and isinstance(minutes, Num) and minutes.sig <= 2:
            return Clock(f"{hours.value}:{int(minutes.value):02}:00")
    return node
