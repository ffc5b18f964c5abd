"""Names for classes of equal answers, for majority votes. Equal keys are an equivalence relation by
construction: the key is computed from one answer alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from verifiers.algebra import number_key
from verifiers.budget import Budget, TooExpensive, Undefined
from verifiers.canon import Canon, NotScalar
from verifiers.nodes import (
    Choice,
    Neg,
    Node,
    Percent,
    Quantity,
    Rel,
    Seq,
    Sym,
    Text,
    children,
    symbols,
)
from verifiers.numeric import Evaluator

if TYPE_CHECKING:
    from verifiers.math import Reading

DIGITS = 15


def answer_key(reading: Reading, operations: int) -> str | None:
    """The class of an answer, None when it cannot be read (an unreadable answer has no class to vote in)."""
    if reading.tree is None:
        return None
    try:
        return _key(reading.tree, Budget(operations))
    except (TooExpensive, Undefined, RecursionError, OverflowError):
        return f"as written: {reading.text.strip()}"


def _key(node: Node, budget: Budget) -> str:
    match node:
        case Text(words):
            return f"words: {words}"
        case Choice(letter):
            return f"choice: {letter}"
        case Percent(item):
            return f"{_key(item, budget)} %"
        case Quantity(item, _):  # a missing unit is forgiven, so it is left out of the class
            return _key(item, budget)
        case Neg(Quantity(item, _)):
            return _key(Neg(item), budget)
        case Rel((Sym(), value), ("=",)) if not symbols(value):
            return _key(value, budget)
        case Seq(opened, closed, items, _):
            keys = [_key(item, budget) for item in items]
            if opened in ("", "{"):
                keys = sorted(set(keys))
            return f"{opened}{'; '.join(keys)}{closed}"
    try:
        return _scalar(node, budget)
    except NotScalar:
        inner = ", ".join(_key(child, budget) for child in children(node))
        return f"{type(node).__name__}({inner or repr(node)})"


def _scalar(node: Node, budget: Budget) -> str:
    quotient = Canon(budget).of(node)
    if quotient.rational is not None:
        return number_key(quotient.rational)
    if symbols(node):
        return quotient.key()
    evaluator = Evaluator(DIGITS + 20, {}, budget)
    return str(evaluator.mp.nstr(evaluator.of(node), DIGITS))
