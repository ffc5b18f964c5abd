"""Whether an answer is the reference: dispatch over what they are, ordered and typed.

Scalars go to `verifiers.scalar`, relations to `verifiers.relations`, sets of reals to
`verifiers.intervals`. Everything here is about structure: lists, tuples, units, percent, choices,
words.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from verifiers.amounts import Amounts
from verifiers.budget import Budget, TooExpensive
from verifiers.canon import NotScalar
from verifiers.intervals import NoSet, SetReader, same_sets
from verifiers.nodes import (
    Add,
    Based,
    Builder,
    Choice,
    Clock,
    Const,
    Matrix,
    Node,
    Num,
    Percent,
    PlusMinus,
    Quantity,
    Ratio,
    Rel,
    Seq,
    SetOp,
    Sym,
    Text,
    symbols,
    walk,
)
from verifiers.numerals import number_word
from verifiers.relations import Assigned, assigned, is_name, same_relations
from verifiers.scalar import Match, same_scalar
from verifiers.shapes import (
    EMPTY_SET_WORDS,
    STRUCTURES,
    as_clock,
    as_matrix,
    assignments,
    determinant,
    inequalities,
    is_condition,
    kind_of,
    names_agree,
    one_variable,
    plain_text,
    same_integer,
    set_like,
    unlabelled,
    with_signs,
)

MAX_ITEMS = 2000
MAX_SIGNS = 4


class Comparison(Amounts):
    """Compares syntax trees under one budget. `percent_asked`: the prompt asks for a percentage, so that a
    bare reference may be answered with a percent sign."""

    def __init__(self, budget: Budget, percent_asked: bool = False) -> None:
        self.budget = budget
        self.percent_asked = percent_asked

    def same(self, gold: Node, pred: Node) -> Match:
        """Whether `pred` answers `gold`. Raises `TooExpensive`."""
        self.budget.spend(5)
        try:
            return self._same(gold, pred)
        except (NotScalar, NoSet) as error:
            return Match(False, f"of different kinds ({error})")

    def _same(self, gold: Node, pred: Node) -> Match:
        if isinstance(gold, Choice) or isinstance(pred, Choice):
            return self.choice(gold, pred)
        if isinstance(gold, Text) or isinstance(pred, Text):
            return self.text(gold, pred)
        pred = same_integer(gold, pred)
        gold, pred = self.settle(gold), self.settle(pred)
        if isinstance(gold, Rel) or isinstance(pred, Rel):
            return self.relation(gold, pred)
        if isinstance(gold, Seq) or isinstance(pred, Seq):
            return self.sequence(gold, pred)
        gold, pred = as_matrix(gold), as_matrix(pred)
        if isinstance(gold, Matrix) or isinstance(pred, Matrix):
            return self.matrix(gold, pred)
        if set_like(gold) or set_like(pred):
            return self.sets(gold, pred)
        gold, pred = as_clock(gold, pred), as_clock(pred, gold)
        if isinstance(gold, Ratio):
            return self.ratio(gold, pred)
        if isinstance(gold, Clock) and isinstance(pred, Clock):
            return self.clock(gold, pred)
        if isinstance(gold, Based) and isinstance(pred, Based):
            return Match(gold == pred, "digits in a base")
        if isinstance(gold, STRUCTURES) or isinstance(pred, STRUCTURES):
            return Match(False, f"{kind_of(pred)} is not {kind_of(gold)}")
        return self.quantity(gold, pred)

    # -- preparation -----------------------------------------------------------------------------------

    def settle(self, node: Node) -> Node:
        """± written out as a list of both; one item in brackets as itself; "3 h and 5 min" as a sum."""
        if any(isinstance(part, PlusMinus) for part in walk(node)):
            node = self.expand_signs(node)
        node = unlabelled(node)
        if isinstance(node, Builder) and not isinstance(node.head, Sym):
            if all(map(is_condition, node.conditions)):
                return node.head  # {2kπ | k ∈ Z}
        if isinstance(node, Rel) and node.ops == ("in",) and is_name(node.items[0]):
            if isinstance(node.items[1], Seq) and node.items[1].open == "{":
                return node.items[1]
        if isinstance(node, Matrix) and all(len(r) == 1 and isinstance(r[0], Rel) for r in node.rows):
            return Seq("", "", tuple(row[0] for row in node.rows), "and")
        if isinstance(node, Seq) and node.open == "[" and len(node.items) == 1:
            if isinstance(node.items[0], Matrix):
                return node.items[0]
        if isinstance(node, Seq) and node.open == "" and node.joined == "and":
            units = [item.unit for item in node.items if isinstance(item, Quantity)]
            if len(units) == len(node.items) and len({u.dims for u in units}) == 1:
                if len({u.factor for u in units}) == len(units):
                    return Add(node.items)
        if isinstance(node, Seq) and node.open == "" and len(node.items) > 1:
            if node.joined == "or" and len(node.items) == 2 and self.agree(*node.items):
                return node.items[0]  # "1/2 or 0.5": one answer written twice
            return self.without_conditions(node)
        return node

    def without_conditions(self, node: Seq) -> Node:
        """`x = π/4 + kπ, k ∈ Z` without the condition on k."""
        kept = [i for i in node.items if not is_condition(i)]
        if kept and len(kept) < len(node.items):
            return kept[0] if len(kept) == 1 else replace(node, items=tuple(kept))
        return node

    def expand_signs(self, node: Node) -> Node:
        if isinstance(node, Seq) and node.open in ("", "{"):
            items: list[Node] = []
            for item in node.items:
                expanded = self.expand_signs(item)
                several = isinstance(expanded, Seq) and expanded.open == "" and expanded != item
                items += expanded.items if isinstance(expanded, Seq) and several else [item]
            return replace(node, items=tuple(items))
        signs = sum(isinstance(part, PlusMinus) for part in walk(node))
        if not signs:
            return node
        if signs > MAX_SIGNS:
            raise TooExpensive("too many ± signs")
        if any(isinstance(part, PlusMinus) and part.sign < 0 for part in walk(node)):
            choices = [[1] * signs, [-1] * signs]
        else:
            choices = [[1 if mask >> k & 1 else -1 for k in range(signs)] for mask in range(2**signs)]
        return Seq("", "", tuple(with_signs(node, list(choice)) for choice in choices), "or")

    # -- kinds -----------------------------------------------------------------------------------------

    def choice(self, gold: Node, pred: Node) -> Match:
        if isinstance(gold, Choice):
            if isinstance(pred, Choice):
                if gold.letter.upper() != pred.letter.upper():
                    return Match(False, "another letter")
                if gold.rest is None or pred.rest is None:
                    return Match(True, "the same letter")
                return self.same(gold.rest, pred.rest)
            if isinstance(pred, (Sym, Text)):
                name = pred.name if isinstance(pred, Sym) else pred.words
                if name.casefold() in (gold.letter.casefold(), f"option {gold.letter}".casefold()):
                    return Match(True, "the same letter")
            if gold.rest is not None:
                return self.same(gold.rest, pred)
            return self.same(Sym(gold.letter), pred) if isinstance(pred, Rel) else Match(False, "no letter")
        assert isinstance(pred, Choice)
        if pred.rest is not None:
            return self.same(gold, pred.rest)
        if isinstance(gold, Text):
            return Match(gold.words == pred.letter.casefold(), "a letter")
        return Match(gold == Sym(pred.letter), "a letter")

    def text(self, gold: Node, pred: Node) -> Match:
        empties = (gold, pred) if isinstance(gold, Text) else (pred, gold)
        if isinstance(empties[0], Text) and isinstance(empties[1], Seq) and not empties[1].items:
            return Match(plain_text(empties[0]) in EMPTY_SET_WORDS, "the empty set")
        if isinstance(pred, Rel) and pred.ops == ("=",) and isinstance(pred.items[1], Text):
            return self.text(gold, pred.items[1])
        for side, other in ((gold, pred), (pred, gold)):
            if isinstance(side, Text) and isinstance(other, Num):
                return Match(number_word(side.words) == other.value, "a number in words")
        if isinstance(gold, Text) and isinstance(pred, Text):
            return Match(plain_text(gold) == plain_text(pred), "words")
        if isinstance(gold, Text) and isinstance(pred, (Sym, Const)):
            return Match(gold.words == pred.name.casefold(), "words")
        if isinstance(pred, Text) and isinstance(gold, (Sym, Const)):
            return Match(gold.name == pred.words and len(pred.words) == 1, "words")
        if isinstance(gold, Rel) and isinstance(gold.items[-1], Text) and gold.ops == ("=",):
            return self.text(gold.items[-1], pred)
        return Match(False, f"{kind_of(pred)} is not {kind_of(gold)}")

    def relation(self, gold: Node, pred: Node) -> Match:
        said = assigned(pred, self.budget, self.agree) if isinstance(pred, Rel) else None
        wanted = assigned(gold, self.budget, self.agree) if isinstance(gold, Rel) else None
        if isinstance(gold, Rel) and isinstance(pred, Rel):
            if said and wanted and names_agree(wanted.name, said.name):
                valued = self.values(wanted, said)
                if valued or not (symbols(wanted.value) or symbols(said.value)):
                    return valued
            return self.try_sets(gold, pred) or same_relations(gold, pred, self.budget)
        if isinstance(pred, Rel) and said is not None:
            return self.values(Assigned(None, gold), said)
        if isinstance(gold, Rel) and wanted is not None and not isinstance(pred, Rel):
            return self.values(wanted, Assigned(None, pred))
        return self.try_sets(gold, pred) or Match(False, f"{kind_of(pred)} is not {kind_of(gold)}")

    def values(self, gold: Assigned, pred: Assigned) -> Match:
        match = self.same(gold.value, pred.value)
        if not match and pred.rounded is not None:
            match = self.same(gold.value, pred.rounded)
        if not match and gold.rounded is not None:
            match = self.same(gold.rounded, pred.value)
        return match

    def agree(self, left: Node, right: Node) -> bool:
        """Whether two links of a chain are equal (evaluated or not)."""
        if isinstance(left, STRUCTURES) or isinstance(right, STRUCTURES):
            return bool(self.same(left, right))
        if isinstance(left, (Quantity, Percent)) or isinstance(right, (Quantity, Percent)):
            return bool(self.quantity(left, right, evaluated=False))
        try:
            return bool(same_scalar(left, right, self.budget))
        except NotScalar:
            return False

    def try_sets(self, gold: Node, pred: Node) -> Match | None:
        reader = SetReader(self.budget)
        try:
            a, b = reader.read(gold), reader.read(pred)
        except NoSet:
            return None
        return Match(same_sets(a, b, self.bound), "sets of reals")

    def bound(self, gold: Node, pred: Node) -> bool:
        return bool(self.same(gold, pred))

    def sets(self, gold: Node, pred: Node) -> Match:
        match = self.try_sets(gold, pred)
        if match is not None:
            return match
        if isinstance(gold, SetOp) and isinstance(pred, SetOp) and gold.op == pred.op:
            straight = self.same(gold.left, pred.left) and self.same(gold.right, pred.right)
            crossed = gold.op != "setminus" and (
                self.same(gold.left, pred.right) and self.same(gold.right, pred.left)
            )
            return Match(bool(straight or crossed), "set operations, part by part")
        if isinstance(gold, Builder) and isinstance(pred, Builder):
            return Match(gold == pred, "set builders")
        return Match(gold == pred, "named sets")

    # -- lists -----------------------------------------------------------------------------------------

    def sequence(self, gold: Node, pred: Node) -> Match:
        if isinstance(gold, Matrix) or isinstance(pred, Matrix):
            return self.matrix(gold, pred)
        if set_like(gold) or set_like(pred) or inequalities(gold) or inequalities(pred):
            match = self.try_sets(gold, pred)
            if match is not None or not isinstance(gold, Seq) or not isinstance(pred, Seq):
                return match or Match(False, f"{kind_of(pred)} is not {kind_of(gold)}")
        if not isinstance(gold, Seq):
            return Match(False, "several answers where one was asked")
        if not isinstance(pred, Seq):
            if gold.open == "{" and len(gold.items) == 1:
                return self.same(gold.items[0], pred)
            return Match(False, "one answer where several were asked")
        if len(gold.items) > MAX_ITEMS or len(pred.items) > MAX_ITEMS:
            raise TooExpensive("a list too long to compare")
        named = self.named(gold, pred)
        if named is not None:
            return named
        return self.lists(gold, pred)

    def lists(self, gold: Seq, pred: Seq) -> Match:
        kinds = (gold.open + gold.close, pred.open + pred.close)
        if set(kinds) <= {"{}", ""}:
            return self.unordered(gold.items, pred.items, as_sets="{}" in kinds)
        vectors = {"()", "<>", ""}
        if kinds[0] == kinds[1] or set(kinds) <= vectors:
            return self.ordered(gold.items, pred.items)
        if set(kinds) == {"[]", ""} and len(gold.items) != 2:
            return self.ordered(gold.items, pred.items)
        return Match(False, f"{kind_of(pred)} is not {kind_of(gold)}")

    def ordered(self, gold: tuple[Node, ...], pred: tuple[Node, ...]) -> Match:
        if len(gold) != len(pred):
            return Match(False, f"{len(pred)} items, not {len(gold)}")
        for index, (a, b) in enumerate(zip(gold, pred, strict=True), 1):
            match = self.same(a, b)
            if not match:
                return Match(False, f"item {index}: {match.rule}")
        return Match(True, "item by item, in order")

    def unordered(self, gold: tuple[Node, ...], pred: tuple[Node, ...], as_sets: bool) -> Match:
        if as_sets:
            gold, pred = self.distinct(gold), self.distinct(pred)
        if len(gold) != len(pred):
            return Match(False, f"{len(pred)} elements, not {len(gold)}")
        left = list(pred)
        missing = []
        alike = Counter(pred)
        for item in gold:
            if alike[item]:
                alike[item] -= 1
                left.remove(item)
            else:
                missing.append(item)
        for item in missing:
            for index, other in enumerate(left):
                if self.same(item, other):
                    del left[index]
                    break
            else:
                return Match(False, "an element is missing")
        return Match(True, "element by element, in any order")

    def distinct(self, items: tuple[Node, ...]) -> tuple[Node, ...]:
        kept: list[Node] = []
        if all(isinstance(i, Num) and i.places is None for i in items):
            return tuple({i.value: i for i in items if isinstance(i, Num)}.values())
        for item in items:
            if not any(self.same(other, item) for other in kept):
                kept.append(item)
        return tuple(kept)

    def named(self, gold: Seq, pred: Seq) -> Match | None:
        """Lists of `name = value`: matched by name, or in order against plain values."""
        wanted, said = assignments(gold), assignments(pred)
        if wanted is None and said is None:
            return None
        if (wanted is None or said is None) and any(
            isinstance(item, Rel) for item in (pred if said is None else gold).items
        ):
            return None
        if wanted is not None and said is not None:
            names, others = [n for n, _ in wanted], [n for n, _ in said]
            if len(set(names)) == len(names) > 1 and not one_variable(names, others):
                if sorted(names) != sorted(others):
                    return Match(False, "other variables")
                table = dict(said)
                return self.ordered(tuple(v for _, v in wanted), tuple(table[n] for n in names))
            if {n.partition("_")[0] for n in names} != {n.partition("_")[0] for n in others}:
                return Match(False, "other variables")
            return self.unordered(tuple(v for _, v in wanted), tuple(v for _, v in said), as_sets=True)
        pairs, other = (wanted, pred) if wanted is not None else (said, gold)
        assert pairs is not None
        values = tuple(v for _, v in pairs)
        indexed = len({n.partition("_")[0] for n, _ in pairs}) < len(pairs)
        if indexed and other.open in ("", "{"):
            first, second = (values, other.items) if wanted is not None else (other.items, values)
            return self.unordered(first, second, as_sets=True)
        if not indexed and other.open in ("", "(", "<"):
            first, second = (values, other.items) if wanted is not None else (other.items, values)
            return self.ordered(first, second)
        return Match(False, f"{kind_of(pred)} is not {kind_of(gold)}")

    def matrix(self, gold: Node, pred: Node) -> Match:
        if isinstance(gold, Matrix) and gold.kind == "det" and not isinstance(pred, Matrix):
            return self.same(determinant(gold), pred)
        gold, pred = as_matrix(gold), as_matrix(pred)
        if not isinstance(gold, Matrix) or not isinstance(pred, Matrix) or gold.kind != pred.kind:
            return Match(False, f"{kind_of(pred)} is not {kind_of(gold)}")
        if [len(row) for row in gold.rows] != [len(row) for row in pred.rows]:
            return Match(False, "another shape")
        cells = [cell for row in gold.rows for cell in row]
        match = self.ordered(tuple(cells), tuple(cell for row in pred.rows for cell in row))
        return Match(match.equal, f"matrix, {match.rule}")
